"""Panoptic quality: how well the segments of pictures are those of the truth. Knows label maps, no files and no models.

Source: Kirillov et al., "Panoptic Segmentation" (https://arxiv.org/abs/1801.00868), section 4, and COCO's panopticapi,
whose rules about void and crowds the paper leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast.evaluate.report import ClassQuality, Figures, Int64

__all__ = ["Segments", "Tally", "tally"]

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]
# Two segments are the same where more than this of their union is common: then no other can be.
_OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of a picture.

    Attributes:
        rows: integers (H, W), the place of each pixel's segment among them; their number where there is none: void.
        classes: int64 (N,), of each.
        crowds: bool (N,), which stand for several things that nobody told apart; None where none does.
    """

    rows: npt.NDArray[Any]
    classes: Int64
    crowds: Bool | None = None


@dataclass(frozen=True, eq=False)
class Tally:
    """What was counted, of each class; tallies of pictures are added.

    Attributes:
        overlap: float64 (C,), the sum of the intersections over union of what was found.
        found, wrong, missed: int64 (C,), segments that are in both, in the prediction only, in the truth only.
    """

    overlap: Float64
    found: Int64
    wrong: Int64
    missed: Int64

    @classmethod
    def empty(cls, classes: int) -> Tally:
        return cls(np.zeros(classes), *(np.zeros(classes, np.int64) for _ in range(3)))

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.overlap + other.overlap,
            self.found + other.found,
            self.wrong + other.wrong,
            self.missed + other.missed,
        )

    def of_classes(self) -> list[ClassQuality]:
        """The quality of each class."""
        counts = np.stack([self.found, self.wrong, self.missed], 1).tolist()
        return [
            ClassQuality(*(values if sum(numbers) else (None, None, None)), *numbers)
            for values, numbers in zip(self._qualities().tolist(), counts, strict=True)
        ]

    def mean(self, chosen: Bool | None = None) -> ClassQuality:
        """The mean, and the numbers, over those of the `chosen` classes, bool (C,), with anything to measure."""
        counted = self.found + self.wrong + self.missed > 0
        if chosen is not None:
            counted &= chosen
        numbers = [int(values[counted].sum()) for values in (self.found, self.wrong, self.missed)]
        if not counted.any():
            return ClassQuality(None, None, None, *numbers)
        return ClassQuality(*self._qualities()[counted].mean(0).tolist(), *numbers)

    def figures(self, things: Bool) -> Figures:
        """The metrics of a report: of all classes, of things, and of stuff."""
        figures: Figures = {}
        for suffix, mean in (("", self.mean()), ("th", self.mean(things)), ("st", self.mean(~things))):
            figures |= {
                f"panoptic/PQ{suffix}": mean.pq,
                f"panoptic/SQ{suffix}": mean.sq,
                f"panoptic/RQ{suffix}": mean.rq,
            }
        return figures

    def _qualities(self) -> Float64:
        """(C, 3), percent; zeros where there is nothing to measure."""
        size = self.found + 0.5 * (self.wrong + self.missed)
        recognized = self.found / np.where(size > 0, size, 1)
        similar = self.overlap / np.where(self.found > 0, self.found, 1)
        return 100 * np.stack([self.overlap / np.where(size > 0, size, 1), similar, recognized], 1)


def tally(truth: Segments, prediction: Segments, classes: int) -> Tally:
    """Counts one picture.

    A segment of the prediction is one of the truth's where both have the same class and their intersection over union
    is above 0.5; pixels that are void in the truth belong to no union. Crowds are never found. What was not found is
    missed, unless it is a crowd. What was found nowhere is wrong, unless more than half of it lies on void and on the
    crowd of its class: of several crowds of a class in a picture on the last one, as in panopticapi. Areas are numbers
    of pixels.

    Args:
        truth, prediction: of one size.
        classes: C, their number.
    """
    n, m = len(truth.classes), len(prediction.classes)
    pairs = truth.rows.astype(np.int64) * (m + 1) + prediction.rows
    common = np.bincount(pairs.ravel(), minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
    true_area, area = common.sum(1)[:n], common.sum(0)[:m]
    both, void = common[:n, :m], common[n, :m]
    union = true_area[:, None] + area - both - void
    crowds = np.zeros(n, np.bool_) if truth.crowds is None else truth.crowds
    same = (truth.classes[:, None] == prediction.classes) & ~crowds[:, None] & (both > 0)
    overlap = both / np.where(union > 0, union, 1)
    matches = same & (overlap > _OVERLAP)

    crowd_of = np.full(classes, n)
    crowd_of[truth.classes[crowds]] = np.flatnonzero(crowds)
    crowd = crowd_of[prediction.classes]
    # Of a class without a crowd none of it: that row is void's, which is counted already.
    ignored = void + np.where(crowd < n, common[crowd, np.arange(m)], 0)
    unmatched = ~matches.any(0) & ~(ignored / np.where(area > 0, area, 1) > _OVERLAP)
    missed = ~matches.any(1) & ~crowds

    at, of = np.nonzero(matches)
    return Tally(
        np.bincount(truth.classes[at], weights=overlap[at, of], minlength=classes).astype(np.float64),
        np.bincount(truth.classes[at], minlength=classes),
        np.bincount(prediction.classes[unmatched], minlength=classes),
        np.bincount(truth.classes[missed], minlength=classes),
    )
