"""The truth of instances that share no pixel, beside reference.py: float64 NumPy, slow and obvious. Never imports
fai_fast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import reference
from reference import PIXEL_TOLERANCE, SCORE_TOLERANCE
from reference_panoptic import ratio_above


@dataclass
class Truth:
    """What every row that competes is, and where float32 may decide otherwise."""

    size: tuple[int, int]
    pairs: list[tuple[int, int]]  # (N) query and class, in order of falling score
    score: np.ndarray  # (N,)
    certain: np.ndarray  # (N, H, W) bool: won under every rounding
    possible: np.ndarray  # (N, H, W) bool: won under some
    valid: np.ndarray  # (N,) bool: kept under every rounding
    maybe_valid: np.ndarray  # (N,) bool: under some
    unclear: bool  # whether who competes hangs on a rounding


def corners(matrix_y, matrix_x, values):
    """The largest of the samples that each pixel is interpolated between."""
    rows = np.stack([values[row > 0].max(axis=0) for row in matrix_y])
    return np.stack([rows[:, column > 0].max(axis=1) for column in matrix_x], axis=1)


def exclusive(
    mask_logits,
    class_logits,
    size,
    *,
    threshold=0.5,
    mask_threshold=0.5,
    overlap_threshold=0.8,
    multi_label=True,
    class_activation="softmax",
    letterbox=None,
    logits_size=None,
):
    """`letterbox` = (input, content, offset), each (vertical, horizontal)."""
    masks = np.asarray(mask_logits, np.float64)
    pairs, probability = reference.best_pairs(class_logits, class_activation, threshold)
    # Also those that float32 cannot tell from the threshold, or from the last that is considered.
    every = np.sort(np.nan_to_num(probability, nan=-1.0), axis=None)[::-1]
    edges = [threshold, *every[len(masks) - 1 : len(masks) + 1]]
    near = [np.abs(probability - edge) < 1e-6 for edge in edges if edge >= 0]
    doubtful = np.any(near, axis=0) & (np.float32(probability) != np.float32(threshold))
    if len(every) <= len(masks) or every[len(masks)] < threshold - 1e-6:
        doubtful &= np.abs(probability - threshold) < 1e-6
    if not multi_label:
        best = np.nan_to_num(probability, nan=-1.0).argmax(axis=1)
        pairs = [
            (q, int(k)) for q, k in enumerate(best) if np.float32(probability[q, k]) > np.float32(threshold)
        ]
        # Of several classes whose probabilities are equal in float32, the largest logit's is as right.
        ordered = np.sort(np.nan_to_num(probability, nan=-1.0), axis=1)
        doubtful = np.abs(ordered[:, -1] - threshold) < 1e-6
        doubtful &= np.float32(ordered[:, -1]) != np.float32(threshold)
        if ordered.shape[1] > 1:
            doubtful |= (ordered[:, -1] > threshold) & (ordered[:, -1] - ordered[:, -2] < 2e-7)
    nan = np.isnan(masks).any(axis=(1, 2))
    pairs = [pair for pair in pairs if not nan[pair[0]]]
    pairs.sort(key=lambda pair: (-np.float32(probability[pair]), pair))
    score = np.array([probability[pair] for pair in pairs])

    count = len(pairs)
    worth, error = np.zeros((count, *size)), np.zeros((count, *size))
    for i, (query, _) in enumerate(pairs):
        logits = masks[query]
        noise = 0.0
        if logits_size is not None:
            noise = 1e-6 * np.abs(np.clip(logits, -1e30, 1e30)).max()
            [logits] = reference.resized_logits(logits[None], logits_size, letterbox)
        logits = np.clip(logits, -1e30, 1e30)
        placed = None if logits_size is not None else letterbox
        y, x = reference.axes(logits.shape, size, placed)
        worth[i] = score[i] * (y @ logits @ x.T)
        # The interpolation's rounding is a part of its corners, whatever their shares are.
        error[i] = PIXEL_TOLERANCE + score[i] * (noise + 1e-6 * corners(y, x, np.abs(logits)))
    if count:
        ahead = worth[None] - worth[:, None]  # of the second over the first
        room = error[None] + error[:, None]
        others = ~np.eye(count, dtype=bool)[:, :, None, None]
        certain = ~((ahead > -room) & others).any(axis=1)
        possible = ~((ahead > room) & others).any(axis=1)
    else:
        certain = possible = np.zeros((0, *size), bool)
    own_certain = worth >= mask_threshold + error
    own_possible = worth >= mask_threshold - error
    valid, maybe = np.zeros(count, bool), np.zeros(count, bool)
    for i in range(count):
        least, most = certain[i].sum(), possible[i].sum()
        fewest, largest = own_certain[i].sum(), own_possible[i].sum()
        valid[i] = fewest > 0 and ratio_above(least, largest, overlap_threshold)
        # Of no pixel that is surely its own, one may be.
        maybe[i] = largest > 0 and ratio_above(most, max(fewest, 1), overlap_threshold)
    return Truth(tuple(size), pairs, score, certain, possible, valid, maybe, bool(doubtful.any()))


def assert_matches(truth, rows):
    """Fails unless the rows (attributes query, class_id, confidence, xyxy, area, mask of shape (N, H, W)) are what the
    specification says, except for decisions that float32 rounding may turn, and what follows from those."""
    assert rows.mask.shape == (len(rows.query), *truth.size)
    assert rows.mask.sum(axis=0).max(initial=0) <= 1, "instances overlap"
    place = {pair: i for i, pair in enumerate(truth.pairs)}
    found = list(zip(rows.query.tolist(), rows.class_id.tolist(), strict=True))
    assert len(set(found)) == len(found)
    for row, pair in enumerate(found):
        assert pair in place, f"{pair} does not compete"
        i, mask = place[pair], rows.mask[row]
        assert truth.maybe_valid[i], f"{pair} is no instance"
        assert abs(rows.confidence[row] - truth.score[i]) <= SCORE_TOLERANCE
        assert rows.area[row] == mask.sum() >= 1
        assert tuple(rows.xyxy[row]) == reference.tight_box(mask), f"{pair}: box"
        assert not (mask & ~truth.possible[i]).any(), f"{pair}: pixels that it cannot have won"
        missing = truth.certain[i] & ~mask
        assert not missing.any(), f"{pair}: {missing.sum()} of the pixels that it won are not its own"
    for i, pair in enumerate(truth.pairs):
        assert pair in found or not truth.valid[i], f"{pair} is missing"
    order = sorted(range(len(found)), key=lambda row: (-rows.confidence[row], *found[row]))
    assert order == list(range(len(found))), (
        "rows are not in order of falling score, ties by query, then class"
    )
