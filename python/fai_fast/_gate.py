"""Does a lower precision still find what fp32 finds? Both run on the same pictures, and what they find is compared.

For whoever makes another precision: give :func:`verify` the two engines (or two functions between arrays), the pictures
(``Pictures.drawn(size)``, ``Pictures.given(folder)``) and the model's spec. It returns a :class:`Verdict`:

    >>> pictures = Pictures.drawn((256, 256))  # doctest: +SKIP
    >>> verdict = verify(int8_engine, fp32_engine, pictures, spec)  # doctest: +SKIP
    >>> verdict.holds, str(verdict), verdict.to_dict()  # doctest: +SKIP

What counts and how much of it may differ is in docs/low_precision.md, and in the constants here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fai_fast._crops import middle_crop, sees_crops
from fai_fast._pictures import Pictures
from fai_fast._rules import arguments_of, rules_of
from fai_fast.detections import Detections
from fai_fast.engines.base import Engine
from fai_fast.ops import postprocess, preprocess_frame
from fai_fast.registry import ModelSpec

__all__ = [
    "MIN_PANOPTIC_QUALITY",
    "MIN_PIXEL_ACCURACY",
    "MIN_SIGNAL_TO_NOISE",
    "VERSION",
    "Comparison",
    "Run",
    "Verdict",
    "normalized",
    "verify",
]

VERSION = 1
"""Of what is measured, which verdicts in the cache depend on."""
MIN_PANOPTIC_QUALITY = 0.9
"""Of models that find instances, or panoptic segments. Rounding to bf16 leaves 0.99 and more, and int8 that costs no AP
0.92, as masks move by a pixel; below 0.9 AP falls fast: docs/low_precision.md has the AP of a model at each panoptic
quality."""
MIN_PIXEL_ACCURACY = 0.97
"""Of semantic models: what the same disturbance leaves that costs a model of instances a tenth of its quality."""
MIN_SIGNAL_TO_NOISE = 20.0
"""dB, reached by three quarters of the queries: noise of a tenth of the signal, which again costs about as much. bf16
leaves 30 to 45 dB."""
SCORE_MARGIN = 0.1
"""Rows whose scores are further apart are not the same. Rows so near the model's threshold need not be found at all."""
LEAD_MARGIN = 0.05
"""Pixels where another class is so near the winner, in score times mask probability, may belong to either."""
MIN_ROWS = 10
"""With fewer detections on all pictures together, these say nothing of a model."""
MIN_SHARE = 0.05
"""Of the pixels, that must show a class, and another than the most frequent one, for the same reason."""
BEST = 10
"""Queries of each picture whose logits are compared where detections say nothing."""
# Beyond it a mask's probability is 0 or 1 but for 0.0003, and a difference is none that is seen.
_CLIP = 8.0
_MOST_DECIBELS = 99.0

Float32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Run = Callable[[Float32], tuple[Array, Array]]
"""From a normalized image float32 (1, 3, h, w) to mask_logits (1, Q, h', w') and class_logits (1, Q, K)."""
_RunAll = Callable[[Sequence[Array]], list[tuple[Array, Array]]]


@dataclass(frozen=True)
class Verdict:
    """How near a low precision is to fp32, and whether that is near enough.

    Attributes:
        metric: "panoptic quality", "pixel accuracy", or "signal-to-noise ratio".
        value, limit: of the metric, 0..1, the signal-to-noise ratio in dB; it holds where the value is not less.
        unit: "" or " dB".
        of: what was compared, in words: "38 detections", "the logits of the 60 surest queries".
        pictures: what it was compared on, in words.
        note: why the pictures say little, or "".
    """

    metric: str
    value: float
    limit: float
    unit: str
    of: str
    pictures: str
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.value >= self.limit

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.value:.4g}{self.unit} ({'at least' if self.holds else 'less than'} "
            f"{self.limit:g}{self.unit}) of {self.of} on {self.pictures}"
            + (f"; {self.note}" if self.note else "")
        )

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {**dataclasses.asdict(self), "holds": self.holds}

    @classmethod
    def from_dict(cls, items: Mapping[str, Any]) -> Verdict:
        """What :meth:`to_dict` gave."""
        return cls(**{field.name: items[field.name] for field in dataclasses.fields(cls)})


def normalized(frame: Any, spec: ModelSpec, size: tuple[int, int]) -> npt.NDArray[Any]:
    """A picture as a network takes it, (1, 3, height, width), float32: resized and normalized as its record says.

    Of several crops it is the one in the middle.
    """
    config = spec.config
    if sees_crops(spec):
        return middle_crop(frame, spec, size)
    return preprocess_frame(
        frame,
        size,
        mean=config.pixel_mean,
        std=config.pixel_std,
        resize=getattr(config, "resize", "stretch"),
    )[0]


def verify(
    candidate: Engine | Run,
    reference: Engine | Run,
    pictures: Pictures,
    spec: ModelSpec,
    *,
    size: tuple[int, int] | None = None,
    num_threads: int | None = None,
) -> Verdict:
    """Runs two precisions of a network on pictures and compares what they find.

    Args:
        candidate: in the low precision: an engine, or a function of normalized images float32 (1, 3, h, w) that returns
            mask_logits and class_logits.
        reference: the same in fp32.
        pictures: to run on; all of them are.
        spec: of the model, which says what is normalized how, and what counts as found.
        size: (h, w) of the network's input; None where `candidate` is an engine, which knows it.
        num_threads: of preprocessing and postprocessing.

    Raises:
        ValueError: the outputs have different shapes.
        EngineError: an engine failed.
        What reading the pictures raises.
    """
    if size is None:
        if not hasattr(candidate, "inputs"):
            raise ValueError("size: got None with a function, expected (height, width)")
        height, width = candidate.inputs[0].shape[2:]
        size = height, width
    found = Comparison(spec, size, num_threads)
    images = (normalized(frame, spec, size) for frame in pictures.frames())
    with _running(candidate) as (run, batch), _running(reference) as (exact, other):
        while group := list(islice(images, max(batch, other))):
            for pair in zip(run(group), exact(group), strict=True):
                found.add(*pair)
    return found.verdict(pictures.source)


class Comparison:
    """What two precisions find, picture after picture.

    Args:
        spec: of the model.
        size: (h, w) in which masks are compared: the network's input's.
        num_threads: of postprocessing.
    """

    def __init__(self, spec: ModelSpec, size: tuple[int, int], num_threads: int | None = None) -> None:
        self._spec = spec
        self._size = size
        self._num_threads = num_threads
        threshold = spec.config.threshold
        # Rows between the two are near the threshold.
        self._unsure = max(threshold - SCORE_MARGIN, 0.0)
        self._sure = min(threshold + SCORE_MARGIN, (1 + threshold) / 2)
        self._overlap = 0.0
        self._matched = self._missed = self._invented = 0
        self._area = self._pixels = self._equal = 0
        self._per_class = np.zeros(spec.config.num_classes, np.int64)
        self._ratios: list[float] = []

    def add(self, low: tuple[Array, Array], exact: tuple[Array, Array]) -> None:
        """One picture's mask_logits (1, Q, h, w) and class_logits (1, Q, K), in both precisions.

        Raises ValueError where their shapes differ.
        """
        ours, theirs = _logits(low), _logits(exact)
        for name, array, expected in zip(("mask_logits", "class_logits"), ours, theirs, strict=True):
            if array.shape != expected.shape:
                raise ValueError(
                    f"{name}: got shape {array.shape}, expected the reference's {expected.shape}"
                )
        self._ratios += _signal_to_noise(ours, theirs, self._spec.config.cls_sigmoid)
        if self._spec.config.predict_all_pixels:
            config = self._spec.config
            segments = _sums if rules_of(self._spec.config).combine == "sum" else _segments
            self._add_pixels(segments(ours, config.cls_sigmoid), segments(theirs, config.cls_sigmoid))
        else:
            self._add_rows(self._found(ours), self._found(theirs))

    def verdict(self, pictures: str) -> Verdict:
        """Of all pictures that were added; `pictures` says in words which."""
        if self._spec.config.predict_all_pixels:
            share = self._pixels / max(1, self._area)
            rarer = 1 - self._per_class.max() / max(1, self._pixels)
            if share >= MIN_SHARE and rarer >= MIN_SHARE:
                value = self._equal / self._pixels
                return Verdict(
                    "pixel accuracy", value, MIN_PIXEL_ACCURACY, "", f"{share:.0%} of the pixels", pictures
                )
            what = f"a class for {share:.0%} of the pixels" if share < MIN_SHARE else "little but one class"
        else:
            rows = self._matched + self._missed + self._invented
            if rows >= MIN_ROWS:
                quality = self._overlap / (self._matched + 0.5 * (self._missed + self._invented))
                return Verdict(
                    "panoptic quality", quality, MIN_PANOPTIC_QUALITY, "", f"{rows} detections", pictures
                )
            what = f"{rows} detection{'' if rows == 1 else 's'}"
        return Verdict(
            "signal-to-noise ratio",
            float(np.percentile(self._ratios, 25)),
            MIN_SIGNAL_TO_NOISE,
            " dB",
            f"the logits of the {len(self._ratios)} surest queries",
            pictures,
            f"the pictures show little of what this model finds ({what}), so that logits were compared: pictures= that "
            "show it say more",
        )

    def _found(self, logits: Logits) -> Detections:
        """Also what is a little below the threshold."""
        return postprocess(
            logits.masks,
            logits.classes,
            self._size,
            threshold=self._unsure,
            **arguments_of(self._spec.config),
            num_threads=self._num_threads,
        )

    def _add_rows(self, found: Detections, expected: Detections) -> None:
        sure, true_sure = found.confidence > self._sure, expected.confidence > self._sure
        pairs = _pairs(found, expected)
        for ours, theirs, overlap in pairs:
            if sure[ours] or true_sure[theirs]:
                self._overlap += overlap
                self._matched += 1
            sure[ours] = true_sure[theirs] = False
        self._missed += int(true_sure.sum())
        self._invented += int(sure.sum())

    def _add_pixels(self, found: Segments, expected: Segments) -> None:
        counted = np.zeros(found.classes.shape, np.bool_)
        for segments in (found, expected):
            counted |= (segments.scores > self._sure) & (segments.leads > LEAD_MARGIN)
        # What is sure in one may not be far below the threshold in the other.
        lower = np.minimum(found.scores, expected.scores) > self._unsure
        self._area += counted.size
        self._pixels += int(counted.sum())
        self._equal += int((counted & lower & (found.classes == expected.classes)).sum())
        self._per_class += np.bincount(expected.classes[counted], minlength=len(self._per_class))


class Logits(NamedTuple):
    """Of one picture: masks (Q, h, w) and classes (Q, K)."""

    masks: Float32
    classes: Float32


def _logits(outputs: tuple[Array, Array]) -> Logits:
    """Of what is maybe float16, which float32 holds exactly."""
    masks, classes = (np.asarray(array)[0].astype(np.float32) for array in outputs)
    return Logits(masks, classes)


def _pairs(found: Detections, expected: Detections) -> list[tuple[int, int, float]]:
    """Rows of both with the same class, scores and masks alike: their indices and the masks' IoU; each row once."""
    alike = []
    masks, true_masks = found.crops(), expected.crops()
    boxes, true_boxes = found.xyxy.astype(int).tolist(), expected.xyxy.astype(int).tolist()
    areas, true_areas = [int(mask.sum()) for mask in masks], [int(mask.sum()) for mask in true_masks]
    same = found.class_id[:, None] == expected.class_id
    near = np.abs(found.confidence[:, None] - expected.confidence) <= SCORE_MARGIN
    for ours, theirs in np.argwhere(same & near).tolist():
        (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes[ours], true_boxes[theirs]
        left, top, right, bottom = max(x1, u1), max(y1, v1), min(x2, u2), min(y2, v2)
        if left >= right or top >= bottom:
            continue
        common = (
            masks[ours][top - y1 : bottom - y1, left - x1 : right - x1]
            & true_masks[theirs][top - v1 : bottom - v1, left - u1 : right - u1]
        )
        both = int(common.sum())
        overlap = both / (areas[ours] + true_areas[theirs] - both)
        if overlap > 0.5:
            alike.append((ours, theirs, overlap))
    pairs, used, true_used = [], set(), set()
    for ours, theirs, overlap in sorted(alike, key=lambda pair: -pair[2]):
        if ours not in used and theirs not in true_used:
            pairs.append((ours, theirs, overlap))
            used.add(ours)
            true_used.add(theirs)
    return pairs


class Segments(NamedTuple):
    """Of each pixel of the masks (h, w): the class that wins it, that query's score, and by how much it wins.

    The lead is over the best query of another class, in score times mask probability, of which the largest wins. Where
    classes win by the sum over queries, the score is that sum, and the lead is over that of another class.
    """

    classes: npt.NDArray[np.int64]
    scores: Float32
    leads: Float32


def _segments(logits: Logits, sigmoid: bool) -> Segments:
    """At the resolution of the masks, where a pixel stands for a few of the picture's."""
    probabilities = _probabilities(logits.classes, sigmoid)
    scores, classes = probabilities.max(-1), probabilities.argmax(-1)
    with np.errstate(invalid="ignore"):
        shares = scores[:, None, None] * _sigmoid(logits.masks)
    # As in postprocessing, a query with a NaN takes no pixel.
    shares[np.isnan(shares).any((1, 2))] = -1
    winners = shares.argmax(0)
    best = shares.max(0)
    won = classes[winners]
    shares[classes[:, None, None] == won] = -1
    return Segments(won, np.where(best < 0, -1, scores[winners]), best - np.maximum(shares.max(0), 0))


def _sums(logits: Logits, sigmoid: bool) -> Segments:
    """As :func:`_segments`, where each pixel goes to the class with the largest sum over queries."""
    probabilities = _probabilities(logits.classes, sigmoid)
    with np.errstate(invalid="ignore"):
        masks = _sigmoid(logits.masks)
    # As in postprocessing, a query with a NaN has no say.
    lost = np.isnan(masks).any((1, 2)) | np.isnan(probabilities).any(1)
    sums = np.tensordot(probabilities[~lost].T, masks[~lost], 1)
    won = sums.argmax(0)
    best = sums.max(0)
    np.put_along_axis(sums, won[None], -1, 0)
    return Segments(won, best, best - np.maximum(sums.max(0), 0))


def _signal_to_noise(low: Logits, exact: Logits, sigmoid: bool) -> list[float]:
    """For each of the queries that fp32 is surest of the ratio of fp32's logits to what differs, in dB.

    Of masks and classes, the smaller ratio.
    """
    probabilities = _probabilities(exact.classes, sigmoid)
    best = np.argsort(-np.nan_to_num(probabilities.max(-1), nan=-np.inf), kind="stable")[:BEST]
    ratios = []
    for query in best:
        masks = [np.clip(logits.masks[query], -_CLIP, _CLIP) for logits in (low, exact)]
        classes = [logits.classes[query] for logits in (low, exact)]
        if not sigmoid:
            # A softmax does not see what all classes have in common.
            with np.errstate(invalid="ignore"):
                classes = [logits - logits.mean() for logits in classes]
        ratios.append(min(_decibels(*masks), _decibels(*classes)))
    return ratios


def _decibels(low: Float32, exact: Float32) -> float:
    with np.errstate(invalid="ignore"):  # NaN and infinity count as noise
        noise = float(np.square(np.subtract(low, exact, dtype=np.float64)).sum())
    signal = float(np.square(exact, dtype=np.float64).sum())
    if not np.isfinite(noise):
        return -_MOST_DECIBELS
    if noise == 0:
        return _MOST_DECIBELS
    return float(np.clip(10 * np.log10(max(signal, 1e-30) / noise), -_MOST_DECIBELS, _MOST_DECIBELS))


def _probabilities(logits: Float32, sigmoid: bool) -> Float32:
    """Of classes (Q, C), without 'no object'."""
    with np.errstate(invalid="ignore"):
        if sigmoid:
            return _sigmoid(logits)
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        result: Float32 = (exponents / exponents.sum(-1, keepdims=True))[:, :-1]
    return result


def _sigmoid(logits: Float32) -> Float32:
    # By way of tanh, which does not overflow.
    result: Float32 = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return result


@contextmanager
def _running(what: Engine | Run) -> Iterator[tuple[_RunAll, int]]:
    """A function of several images' arrays (1, 3, h, w), and how many it takes at once."""
    if not hasattr(what, "context"):
        yield lambda images: [what(image) for image in images], 1
        return
    context = what.context()
    batch = len(context.images)

    def run(images: Sequence[Array]) -> list[tuple[Array, Array]]:
        found = []
        for start in range(0, len(images), batch):
            group = images[start : start + batch]
            context.images[: len(group)] = np.concatenate(group)
            context.run()
            # The next run overwrites them.
            masks, classes = context.mask_logits.copy(), context.class_logits.copy()
            found += [(masks[i : i + 1], classes[i : i + 1]) for i in range(len(group))]
        return found

    try:
        yield run, batch
    finally:
        context.close()
