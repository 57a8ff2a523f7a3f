"""Which rows of a result are wanted: by class, by score, the best few."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fai_fast._arguments import check_fraction, check_int, check_items, check_number
from fai_fast.detections.arrays import Bool, Float32, Int64

if TYPE_CHECKING:
    from fai_fast.detections.result import Detections

__all__ = ["Selection", "check_count", "class_ids_of", "rows_of", "threshold_of_classes"]

_CLASSES = "a sequence of class names or ids"


@dataclass(frozen=True, eq=False)
class Selection:
    """What is wanted of a result beyond one threshold for all.

    Attributes:
        classes: bool (C,), the classes that are wanted; None for all.
        thresholds: float32 (C,), the score that a row of each class must be above; None for one for all, which
            postprocessing has applied.
        top_k: rows at most, the best of those that are left; None for all.
    """

    classes: Bool | None = None
    thresholds: Float32 | None = None
    top_k: int | None = None

    @property
    def is_by_class(self) -> bool:
        """Whether the classes of rows matter."""
        return self.classes is not None or self.thresholds is not None

    def apply(self, detections: Detections) -> Detections:
        """The rows that are wanted; the result itself where those are all."""
        if self.is_by_class:
            class_id = detections.class_id
            kept = np.ones(len(class_id), bool) if self.classes is None else self.classes[class_id]
            if self.thresholds is not None:
                kept &= detections.confidence > self.thresholds[class_id]
            if not kept.all():
                detections = detections[kept]
        if self.top_k is not None and len(detections) > self.top_k:
            # Postprocessing gives rows in falling order of score.
            detections = detections[: self.top_k]
        return detections


def check_count(name: str, value: object) -> int:
    """`value` as a number of rows, 1 or more; TypeError, ValueError otherwise."""
    count = check_int(name, value)
    if count < 1:
        raise ValueError(f"{name}: got {count}, expected 1 or more")
    return count


def class_ids_of(name: str, classes: object, class_names: Sequence[str] | None) -> list[int]:
    """The ids of classes that are given by name or by id; a name that several have means all of them.

    Raises TypeError, ValueError: it is not a sequence of names and ids, or one of them is not among `class_names`.
    """
    ids: list[int] = []
    for item in check_items(name, classes, _CLASSES):
        ids += _ids_of(name, item, class_names)
    return ids


def _ids_of(name: str, item: Any, class_names: Sequence[str] | None) -> list[int]:
    if not isinstance(item, str):
        try:
            class_id = check_int(name, item)
        except TypeError:
            raise TypeError(f"{name}: got {type(item).__name__} in it, expected {_CLASSES}") from None
        last = np.iinfo(np.int64).max if class_names is None else len(class_names) - 1
        if not -1 <= class_id <= last:
            raise ValueError(f"{name}: got class {class_id}, expected ids of 0 to {last}")
        return [class_id]
    if class_names is None:
        raise ValueError(f"{name}: got {item!r}, expected ids: these classes have no names")
    # ADE20K's "window " is one of FocoosAI's names.
    ids = [i for i, known in enumerate(class_names) if known == item or known.strip() == item.strip()]
    if not ids:
        near = difflib.get_close_matches(item, class_names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"such as {class_names[0]!r}"
        raise ValueError(f"{name}: got {item!r}, which is none of the {len(class_names)} classes; {hint}")
    return ids


def threshold_of_classes(value: Mapping[Any, Any], otherwise: float, class_names: Sequence[str]) -> Float32:
    """float32 (C,), the threshold of each class: `value`'s, by name or id, and `otherwise` for those it does not list.

    Raises TypeError, ValueError: a key is no class, or a value no threshold.
    """
    thresholds = np.full(len(class_names), otherwise, np.float64)
    for key, item in value.items():
        number = check_fraction("threshold", item)
        for class_id in _ids_of("threshold", key, class_names):
            if class_id < 0:
                raise ValueError(
                    f"threshold: got class {class_id}, expected ids of 0 to {len(class_names) - 1}"
                )
            thresholds[class_id] = number
    return thresholds.astype(np.float32)


def rows_of(detections: Detections, classes: object, min_confidence: object, min_area: object) -> Int64:
    """The rows that :meth:`fai_fast.Detections.filter` keeps."""
    kept = np.ones(len(detections), bool)
    if classes is not None:
        kept &= np.isin(detections.class_id, class_ids_of("classes", classes, detections.class_names))
    if min_confidence is not None:
        # In float32, as scores are: a row of exactly that score stays.
        kept &= detections.confidence >= np.float32(check_number("min_confidence", min_confidence))
    if min_area is not None:
        kept &= detections.area >= check_number("min_area", min_area)
    return np.flatnonzero(kept)
