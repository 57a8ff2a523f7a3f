"""The truth the compiled code is tested against: float64 NumPy, slow and obvious. Never imports fai_fast."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

PIXEL_TOLERANCE = 1e-4  # a pixel closer than this to its decision may fall on either side
SCORE_TOLERANCE = 1e-5

KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


# ---------------------------------------------------------------------------------------------- sampling


def interpolation(positions, inputs):
    """Matrix (len(positions), inputs): linear samples at `positions`, clamped to the range there is."""
    positions = np.clip(np.asarray(positions, np.float64), 0, inputs - 1)
    left = np.floor(positions).astype(int)
    right = np.minimum(left + 1, inputs - 1)
    fraction = positions - left
    matrix = np.zeros((len(positions), inputs))
    rows = np.arange(len(positions))
    np.add.at(matrix, (rows, left), 1 - fraction)
    np.add.at(matrix, (rows, right), fraction)
    return matrix


def stretch(inputs, outputs):
    return interpolation((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, inputs)


def nearest(inputs, outputs, scale, offset=0.0):
    """The sample that holds a pixel's first edge, which torch finds in float32."""
    position = np.float32(np.arange(outputs)) * np.float32(scale) + np.float32(offset)
    return interpolation(np.floor(position), inputs)


def stretch_as_torch(inputs, outputs):
    """Where torch's float32 interpolate samples: networks were trained on frames resized so, and its rounding
    of scale and centers to float32 moves values by more than 1e-3 of an 8-bit step."""
    scale = np.float64(np.float32(inputs / outputs))
    return interpolation(np.float32(scale * (np.arange(outputs) + 0.5) - 0.5), inputs)


# -------------------------------------------------------------------------------------------- preprocess


def yuv_to_rgb(y, u, v, matrix, yuv_range):
    y, u, v = (np.asarray(plane, np.float64) for plane in (y, u, v))
    kr, kb = KR_KB[matrix]
    kg = 1 - kr - kb
    u, v = u - 128, v - 128
    if yuv_range == "limited":
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    red = y + 2 * (1 - kr) * v
    blue = y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / kg
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 255)


def nearest_chroma(plane, height, width):
    return plane.repeat(2, axis=0)[:height].repeat(2, axis=1)[:, :width]


def to_rgb(image, color, matrix="bt601", yuv_range="limited"):
    """The frame as float64 RGB (H, W, 3) on the 0..255 scale."""
    if color in ("nv12", "i420"):
        if isinstance(image, np.ndarray):
            height, width = image.shape[0] * 2 // 3, image.shape[1]
            luma, chroma = image[:height], image[height:].reshape(-1)
            if color == "nv12":
                planes = [luma, chroma.reshape(height // 2, width // 2, 2)]
            else:
                planes = [luma, *chroma.reshape(2, height // 2, width // 2)]
        else:
            planes = list(image)
        if color == "nv12":
            planes = [planes[0], planes[1][..., 0], planes[1][..., 1]]
        luma, u, v = planes
        return yuv_to_rgb(luma, *(nearest_chroma(c, *luma.shape) for c in (u, v)), matrix, yuv_range)
    if color in ("yuyv", "uyvy"):
        luma, chroma = image[..., 0], image[..., 1]
        if color == "uyvy":
            luma, chroma = chroma, luma
        u, v = (chroma[:, first::2].repeat(2, axis=1) for first in (0, 1))
        return yuv_to_rgb(luma, u, v, matrix, yuv_range)
    image = np.asarray(image, np.float64)
    if color == "gray":
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    order = [0, 1, 2] if color in ("rgb", "rgba") else [2, 1, 0]
    return image[..., order]


def fits(frame, target):
    """The letterbox geometries ((content_h, content_w), (top, left)) that the definition allows: one, or more
    where a side of the content falls exactly between two whole numbers."""
    ratio = min(Fraction(target[0], frame[0]), Fraction(target[1], frame[1]))

    def rounded(exact):
        floor = exact.numerator // exact.denominator
        rest = exact - floor
        half = Fraction(1, 2)
        return [max(1, side) for side in (floor, floor + 1) if abs(exact - side) <= half or rest == half]

    return [
        ((content_h, content_w), ((target[0] - content_h) // 2, (target[1] - content_w) // 2))
        for content_h in rounded(frame[0] * ratio)
        for content_w in rounded(frame[1] * ratio)
    ]


def pad(frame, target):
    """((content_h, content_w), (0, 0)) of a frame that is resized to fit the target and padded behind: the side with
    the larger ratio of frame to target fills it, truncated, after the other was rounded; a frame whose other side is
    that already stays as it is."""
    filling = 0 if Fraction(frame[0], target[0]) > Fraction(frame[1], target[1]) else 1
    other = 1 - filling
    exact = target[filling] * float(frame[other]) / float(frame[filling])
    content = [0, 0]
    content[other] = round(exact)
    content[filling] = int(exact * frame[filling] / frame[other])
    if frame[other] == content[other]:
        content[filling] = frame[filling]
    return tuple(min(max(side, 1), most) for side, most in zip(content, target, strict=True)), (0, 0)


def preprocess(
    image, size, mean, std, color="rgb", matrix="bt601", yuv_range="limited", content=None, black=False
):
    """(1, 3, h, w) float64. `content` = ((h, w), (top, left)) of a letterbox, beside which is the mean or black."""
    frame = to_rgb(image, color, matrix, yuv_range)
    (height, width), (top, left) = content or (tuple(size), (0, 0))
    rows, columns = stretch_as_torch(frame.shape[0], height), stretch_as_torch(frame.shape[1], width)
    scaled = np.einsum("yi,ijc,xj->cyx", rows, frame, columns, optimize=True)
    mean, std = (np.broadcast_to(np.asarray(value, np.float64), 3)[:, None, None] for value in (mean, std))
    tensor = np.zeros((1, 3, *size)) - mean / std * black
    tensor[0, :, top : top + height, left : left + width] = (scaled - mean) / std
    return tensor


# ------------------------------------------------------------------------------------------- postprocess


def sigmoid(x):
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def softmax(x):
    """Along the last axis; NaN where the largest is +inf or all are -inf."""
    x = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)


@dataclass
class Truth:
    """What the specification says of every query, and where float32 may decide otherwise."""

    size: tuple[int, int]
    probability: np.ndarray  # (Q, C), NaN in dropped queries
    class_score: np.ndarray  # (Q,)
    class_id: np.ndarray  # (Q,)
    dropped: np.ndarray  # (Q,) bool: NaN somewhere in the query's logits or probabilities
    m: np.ndarray  # (Q, H, W) mask probabilities
    inside: np.ndarray  # (Q, H, W) bool, b_q of the specification
    margin: np.ndarray  # (Q, H, W) or (H, W): distance of each pixel from its decision
    certain: np.ndarray  # (Q, H, W) bool: in b_q under every rounding within PIXEL_TOLERANCE
    possible: np.ndarray  # (Q, H, W) bool: in b_q under some rounding
    threshold: float
    use_mask_score: bool
    mask_threshold: float = 0.5
    epsilon: float = 0.01  # beside the count that mask scores are divided by
    nodes: np.ndarray | None = None  # (Q, h, w) mask probabilities, where mask scores are of nodes

    def score(self, query, mask):
        """Step 5's score of the query, were b_q `mask`."""
        if not self.use_mask_score:
            return self.class_score[query]
        if self.nodes is not None:
            inside = self.nodes[query][self.nodes[query] >= self.mask_threshold]
            return self.class_score[query] * inside.sum() / (inside.size + self.epsilon)
        return self.class_score[query] * self.m[query][mask].sum() / (mask.sum() + self.epsilon)

    def score_range(self, query):
        """Smallest and largest score of the query over all masks between `certain` and `possible`."""
        doubtful = np.sort(self.m[query][self.possible[query] & ~self.certain[query]])
        certain = self.m[query][self.certain[query]]
        if self.nodes is not None:
            near = np.abs(self.nodes[query] - self.mask_threshold) <= PIXEL_TOLERANCE
            doubtful = self.nodes[query][near]
            certain = self.nodes[query][~near & (self.nodes[query] >= self.mask_threshold)]
        if not self.use_mask_score or not doubtful.size:
            return (self.score(query, self.certain[query]),) * 2

        def means(values):
            sums = certain.sum() + np.concatenate([[0.0], np.cumsum(values)])
            counts = certain.size + np.arange(len(sums))
            if self.nodes is not None:
                return sums / (counts + self.epsilon)
            return sums[counts >= 2] / (counts[counts >= 2] + self.epsilon)

        # The extremes take the smallest (largest) doubtful values first, as many as help.
        low, high = means(doubtful), means(doubtful[::-1])
        score = self.class_score[query]
        return (score * low.min(), score * high.max()) if low.size else (0.0, 0.0)

    def rows(self):
        """Kept queries in order of falling score, and their scores: steps 4 to 6 to the letter."""
        area = self.inside.sum(axis=(1, 2))
        alive = [q for q in range(len(area)) if not self.dropped[q] and area[q] >= 2]
        scores = {q: self.score(q, self.inside[q]) for q in alive}
        # In the type that scores are reported in.
        kept = [q for q in alive if np.float32(scores[q]) > np.float32(self.threshold)]
        kept.sort(key=lambda q: (-scores[q], q))
        return np.array(kept, int), np.array([scores[q] for q in kept])

    def must_keep(self, query):
        return (
            not self.dropped[query]
            and self.certain[query].sum() >= 2
            and self.score_range(query)[0] > self.threshold + SCORE_TOLERANCE
        )


def postprocess(
    mask_logits,
    class_logits,
    size,
    *,
    threshold=0.5,
    mask_threshold=0.5,
    use_mask_score=False,
    predict_all_pixels=False,
    class_activation="softmax",
    letterbox=None,
    logits_size=None,
    of_logits=False,
    use_nearest=False,
):
    """Every query's truth. `letterbox` = (input, content, offset), each (vertical, horizontal).

    `logits_size`, `of_logits`, `use_nearest`: the fields of fai_fast.Resampling."""
    mask_logits = np.asarray(mask_logits, np.float64)
    class_logits = np.asarray(class_logits, np.float64)
    mask_logits = mask_logits.reshape(mask_logits.shape[-3:])
    class_logits = class_logits.reshape(class_logits.shape[-2:])
    queries = len(mask_logits)
    probability = softmax(class_logits)[:, :-1] if class_activation == "softmax" else sigmoid(class_logits)
    dropped = np.isnan(mask_logits).any(axis=(1, 2)) | np.isnan(class_logits).any(axis=1)
    dropped |= np.isnan(probability).any(axis=1)
    probability = np.where(dropped[:, None], np.nan, probability)
    class_id = np.where(dropped, 0, np.argmax(np.nan_to_num(probability, nan=-1.0), axis=1))
    class_score = probability[np.arange(queries), class_id]

    logits = np.where(dropped[:, None, None], 0, mask_logits)
    if logits_size is not None:
        logits = resized_logits(logits, logits_size, letterbox)
        letterbox = None
    matrices = axes(logits.shape[1:], size, letterbox, use_nearest)
    if of_logits:
        m = sigmoid(matrices[0] @ np.clip(logits, -1e30, 1e30) @ matrices[1].T)
    else:
        m = matrices[0] @ sigmoid(logits) @ matrices[1].T

    alive = ~dropped[:, None, None]
    if predict_all_pixels:
        value = np.where(alive, class_score[:, None, None] * m, -np.inf)
        ranked = np.sort(np.concatenate([np.full((2, *size), -np.inf), value]), axis=0)
        best, second = ranked[-1], ranked[-2]
        winner = value.argmax(axis=0)
        inside = (np.arange(queries)[:, None, None] == winner) & alive
        margin = np.where(np.isinf(second), np.inf, best - np.where(np.isinf(second), 0, second))
        possible = alive & (value >= best - PIXEL_TOLERANCE)
        certain = inside & (margin >= PIXEL_TOLERANCE)
    else:
        inside = (m >= mask_threshold) & alive
        margin = np.abs(m - mask_threshold)
        possible = alive & (m >= mask_threshold - PIXEL_TOLERANCE)
        certain = alive & (m >= mask_threshold + PIXEL_TOLERANCE)
    return Truth(
        size=tuple(size),
        probability=probability,
        class_score=class_score,
        class_id=class_id,
        dropped=dropped,
        m=m,
        inside=inside,
        margin=margin,
        certain=certain,
        possible=possible,
        threshold=threshold,
        use_mask_score=use_mask_score,
        mask_threshold=mask_threshold,
        epsilon=1e-6 if of_logits or use_nearest else 0.01,
        nodes=sigmoid(logits) if use_nearest else None,
    )


def axes(nodes, size, letterbox=None, use_nearest=False):
    """Where the pixels of a frame of `size` lie among the (h, w) nodes of a mask: a matrix for each axis."""
    matrices = []
    for axis in (0, 1):
        inputs, outputs = nodes[axis], size[axis]
        if use_nearest:
            network, content, offset = (1, 1, 0) if letterbox is None else (part[axis] for part in letterbox)
            matrices.append(
                nearest(inputs, outputs, inputs / network * content / outputs, inputs / network * offset)
            )
        elif letterbox is None:
            matrices.append(stretch(inputs, outputs))
        else:
            network, content, offset = (letterbox[k][axis] for k in range(3))
            center = (np.arange(outputs) + 0.5) * content / outputs + offset
            matrices.append(interpolation(center * inputs / network - 0.5, inputs))
    return matrices


def resized_logits(logits, size, letterbox=None):
    """(Q, h, w) at `size`, or at the part of it that a frame takes which is a part of the network's input."""
    matrices = []
    for axis in (0, 1):
        matrix = stretch(logits.shape[1 + axis], size[axis])
        if letterbox is not None:
            network, content, offset = (part[axis] for part in letterbox)
            begin = min(round(offset * size[axis] / network), size[axis] - 1)
            count = min(max(round(content * size[axis] / network), 1), size[axis] - begin)
            matrix = matrix[begin : begin + count]
        matrices.append(matrix)
    return matrices[0] @ np.clip(logits, -1e30, 1e30) @ matrices[1].T


def best_pairs(class_logits, class_activation, threshold):
    """multi_label: [(query, class)] in order of query and class, and the probabilities (Q, C), NaN in a query without
    pairs. A query with NaN in its mask alone takes its places, and gives no rows."""
    logits = np.asarray(class_logits, np.float64)
    probability = softmax(logits)[:, :-1] if class_activation == "softmax" else sigmoid(logits)
    without = np.isnan(logits).any(axis=1) | np.isnan(probability).any(axis=1)
    probability = np.where(without[:, None], np.nan, probability)
    scores = np.float32(probability).reshape(-1)
    order = sorted(np.flatnonzero(~np.isnan(scores)), key=lambda pair: (-scores[pair], pair))
    kept = sorted(pair for pair in order[: len(logits)] if scores[pair] > np.float32(threshold))
    return [divmod(int(pair), probability.shape[1]) for pair in kept], probability


def paint(image, masks, colors, rows, alpha, line):
    """Masks over each other, their contours opaque: pixels fewer than `line` steps across or down from one outside."""
    drawn = image.astype(int)
    for row in rows:
        inner = masks[row].copy()
        for _ in range(line):
            # What lies beyond the frame counts as in the mask.
            around = np.pad(inner, 1, constant_values=True)
            inner = inner & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
        opacity = np.where(inner, alpha, 255) * masks[row]
        for y, x in zip(*np.nonzero(masks[row]), strict=True):
            for c in range(3):
                mixed = drawn[y, x, c] * (255 - opacity[y, x]) + int(colors[row][c]) * opacity[y, x]
                drawn[y, x, c] = (2 * mixed + 255) // 510  # to nearest; there are no ties, as 255 is odd
    return drawn.astype(np.uint8)


def tight_box(mask):
    """Half-open (x1, y1, x2, y2) of a mask with pixels."""
    y, x = np.nonzero(mask)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def assert_matches(truth, rows):
    """Fails unless the rows (attributes query, class_id, confidence, xyxy, area, mask of shape (N, H, W)) are
    what the specification says, except for decisions that float32 rounding may turn. What follows from such a
    decision (area, box, score, order) must follow from it exactly."""
    count = len(rows.query)
    queries = len(truth.class_score)
    mask = rows.mask
    assert mask.shape == (count, *truth.size)
    assert mask.dtype == bool
    assert len(set(rows.query.tolist())) == count
    for i, query in enumerate(rows.query.tolist()):
        assert 0 <= query < queries, f"row {i} names query {query} of {queries}"
        assert not truth.dropped[query], f"query {query} has NaN and was kept"
        wrong = (truth.certain[query] & ~mask[i]) | (mask[i] & ~truth.possible[query])
        assert not wrong.any(), (
            f"query {query}: {wrong.sum()} wrong pixels, the first at {np.argwhere(wrong)[0]}"
        )
        assert rows.area[i] == mask[i].sum() >= 2
        assert tuple(rows.xyxy[i]) == tight_box(mask[i]), f"query {query}: box"
        # Classes may differ only where their probabilities are equal in float32.
        chosen = truth.probability[query, rows.class_id[i]]
        assert truth.class_score[query] - chosen <= 2e-7, f"query {query}: class {rows.class_id[i]}"
        score = truth.score(query, mask[i])
        low, high = truth.score_range(query) if truth.nodes is not None else (score, score)
        assert low - SCORE_TOLERANCE <= rows.confidence[i] <= high + SCORE_TOLERANCE, (
            f"query {query}: {rows.confidence[i]} for {score}"
        )
        score = high
        assert score > truth.threshold - SCORE_TOLERANCE, f"query {query}: score {score} was kept"
    for query in set(range(queries)) - set(rows.query.tolist()):
        assert not truth.must_keep(query), f"query {query}, score {truth.score_range(query)}, is missing"
    order = sorted(range(count), key=lambda i: (-rows.confidence[i], rows.query[i]))
    assert order == list(range(count)), "rows are not in order of falling score, ties by query"


def assert_disjoint(rows):
    """Semantic results: no pixel belongs to two rows."""
    assert rows.mask.sum(axis=0).max(initial=0) <= 1


# -------------------------------------------------------------------------------------- semantic by sum


@dataclass
class Sums:
    """For each pixel the sum, over all queries, of class probability times mask probability."""

    size: tuple[int, int]
    sums: np.ndarray | None  # (C, H, W), None where every query is dropped
    classes: int
    threshold: float

    def score(self, class_id, mask):
        """The mean over a mask of the class's sums, of which each counts up to 1."""
        return np.minimum(self.sums[class_id][mask], 1).mean()


def semantic_sums(
    mask_logits, class_logits, size, *, threshold=0.5, class_activation="softmax", letterbox=None
):
    """By the letter: masks get the frame's size first, then each pixel's sums are taken of them."""
    truth = postprocess(
        mask_logits, class_logits, size, class_activation=class_activation, letterbox=letterbox
    )
    classes = truth.probability.shape[1]
    alive = ~truth.dropped
    if not alive.any():
        return Sums(truth.size, None, classes, threshold)
    sums = np.einsum("qc,qyx->cyx", truth.probability[alive], truth.m[alive])
    return Sums(truth.size, sums, classes, threshold)


def crop_sums(mask_logits, class_logits, size, whole, starts, *, threshold=0.0, class_activation="softmax"):
    """Of crops side by side along the longer side of a frame stretched to `whole`, which begin at `starts`."""
    side = min(whole)
    total, count = 0.0, np.zeros(whole)
    for masks, classes, start in zip(mask_logits, class_logits, starts, strict=True):
        truth = postprocess(
            masks, classes, (side, side), class_activation=class_activation, logits_size=(side, side)
        )
        alive = ~truth.dropped
        place = np.s_[start : start + side] if whole[0] > whole[1] else np.s_[:, start : start + side]
        sums = np.zeros((truth.probability.shape[1], *whole))
        sums[(slice(None), *(place if isinstance(place, tuple) else (place,)))] = np.einsum(
            "qc,qyx->cyx", truth.probability[alive], truth.m[alive]
        )
        total = total + sums
        count[place] += 1
    sums = stretch(whole[0], size[0]) @ (total / count) @ stretch(whole[1], size[1]).T
    return Sums(tuple(size), sums, len(sums), threshold)


def assert_sums_match(truth, rows):
    """Fails unless the rows are what the sums say, except for decisions that float32 rounding may turn."""
    assert rows.class_id.tolist() == rows.query.tolist()
    assert len(set(rows.class_id.tolist())) == len(rows.class_id)
    if truth.sums is None:
        assert len(rows.class_id) == 0
        return
    best = truth.sums.max(axis=0)
    possible = truth.sums >= best - PIXEL_TOLERANCE * np.maximum(best, 1)
    certain = possible & (possible.sum(axis=0) == 1)
    for i, class_id in enumerate(rows.class_id.tolist()):
        mask = rows.mask[i]
        wrong = (certain[class_id] & ~mask) | (mask & ~possible[class_id])
        assert not wrong.any(), (
            f"class {class_id}: {wrong.sum()} wrong pixels, the first at {np.argwhere(wrong)[0]}"
        )
        assert rows.area[i] == mask.sum() >= 2
        assert tuple(rows.xyxy[i]) == tight_box(mask)
        score = truth.score(class_id, mask)
        assert abs(rows.confidence[i] - score) <= SCORE_TOLERANCE, (
            f"class {class_id}: {rows.confidence[i]} for {score}"
        )
        assert score > truth.threshold - SCORE_TOLERANCE
    for class_id in set(range(truth.classes)) - set(rows.class_id.tolist()):
        least, doubtful = certain[class_id], possible[class_id] & ~certain[class_id]
        if least.sum() < 2:
            continue
        # The smallest mean that any choice among the doubtful pixels gives.
        values = np.minimum(truth.sums[class_id], 1)
        more = np.sort(values[doubtful])
        means = (values[least].sum() + np.concatenate([[0], np.cumsum(more)])) / (
            least.sum() + np.arange(len(more) + 1)
        )
        assert means.min() <= truth.threshold + SCORE_TOLERANCE, f"class {class_id} is missing"
    order = sorted(range(len(rows.class_id)), key=lambda i: (-rows.confidence[i], rows.class_id[i]))
    assert order == list(range(len(rows.class_id))), "rows are not in order of falling score, ties by class"
