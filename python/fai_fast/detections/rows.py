"""Rows of a result one at a time, the choice among them, and their masks one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fai_fast._arguments import check_bool, check_fraction, check_int
from fai_fast.detections.arrays import Bool, Float32, Int64
from fai_fast.detections.masks import PackedMasks, _SegmentSource
from fai_fast.detections.selection import check_count, rows_of

if TYPE_CHECKING:
    from fai_fast.detections.result import Detections

__all__ = ["MaskSequence", "Row"]


class Row:
    """One row of a result in Python's own types, for printing and for logic; from :meth:`fai_fast.Detections.rows`.

    Attributes:
        index: its place in the result.
        class_id: int, -1 where unknown.
        class_name: str; the number of a class that has no name.
        confidence: float.
        xyxy: (x1, y1, x2, y2), floats, half-open pixel edges.
        query: int, the network's query, -1 where unknown.
        tracker_id: int or None.
        is_thing: bool, whether it is a thing or stuff, in a panoptic result; else None.

    Example:
        >>> d = Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.9], class_id=[0], size=(6, 8), class_names=["cat"])
        >>> [f"{row.class_name} {row.confidence:.2f}" for row in d.rows()]
        ['cat 0.90']
    """

    __slots__ = (
        "_detections",
        "class_id",
        "class_name",
        "confidence",
        "index",
        "is_thing",
        "query",
        "tracker_id",
        "xyxy",
    )

    def __init__(
        self,
        detections: Detections,
        index: int,
        class_id: int,
        class_name: str,
        confidence: float,
        xyxy: tuple[float, float, float, float],
        query: int,
        tracker_id: int | None,
        is_thing: bool | None = None,
    ) -> None:
        self._detections = detections
        self.index = index
        self.class_id = class_id
        self.class_name = class_name
        self.confidence = confidence
        self.xyxy = xyxy
        self.query = query
        self.tracker_id = tracker_id
        self.is_thing = is_thing

    @property
    def area(self) -> int | float:
        """Pixels of the mask; of the box where there are boxes only."""
        area: int | float = self._detections.area[self.index].item()
        return area

    @property
    def mask(self) -> Bool:
        """bool (H, W), decoded anew at each call, yours to change. Raises ValueError for boxes only."""
        return self._detections.masks[self.index]

    @property
    def crop(self) -> Bool:
        """The mask cropped to its own tight box, bool (h, w). Raises ValueError for boxes only."""
        return self._detections[self.index].crops()[0]

    def __repr__(self) -> str:
        corners = ", ".join(f"{edge:g}" for edge in self.xyxy)
        tracker = "" if self.tracker_id is None else f"#{self.tracker_id} "
        return f"Row({tracker}{self.class_name} {self.confidence:.2f} at {corners})"


class MaskSequence(Sequence[Bool]):
    """The masks of a result, each decoded when it is asked for: ``masks[0]``, ``masks[2:5]``, iteration.

    ``masks[i]`` is bool (H, W), made anew, yours to change; a slice is a sequence again, without decoding anything.
    ``np.asarray(masks)`` decodes all of them, bool (N, H, W).
    """

    __slots__ = ("_packed",)

    def __init__(self, packed: PackedMasks) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> Bool: ...
    @overload
    def __getitem__(self, index: slice) -> MaskSequence: ...
    def __getitem__(self, index: int | slice) -> Bool | MaskSequence:
        """Raises IndexError, and TypeError for what is neither an integer nor a slice."""
        if isinstance(index, slice):
            return MaskSequence(self._packed[index])
        mask: Bool = self._packed[check_int("i", index)].decode()[0]
        return mask

    def __call__(self, i: int) -> Bool:
        """The mask of row i, as ``masks[i]``."""
        return self[i]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            raise ValueError("copy: got False, expected None or True: masks are decoded")
        stack = self._packed.decode()
        return stack if dtype is None else stack.astype(dtype)

    def __repr__(self) -> str:
        height, width = self._packed.size
        return f"MaskSequence({len(self)} in {height}x{width})"


class _Rows:
    """A part of Detections: its rows and the choice among them; `self` is always one."""

    __slots__ = ()

    def rows(self: Any) -> Iterator[Row]:
        """The rows, each as a :class:`fai_fast.Row` of plain numbers and texts; masks are decoded when asked for."""
        n = len(self)
        columns = zip(
            self.class_id.tolist(),
            self.class_name.tolist(),
            self.confidence.tolist(),
            self.xyxy.tolist(),
            self.query.tolist(),
            [None] * n if self.tracker_id is None else self.tracker_id.tolist(),
            [None] * n if self.is_thing is None else self.is_thing.tolist(),
            strict=True,
        )
        for index, (class_id, name, confidence, xyxy, query, tracker_id, is_thing) in enumerate(columns):
            yield Row(self, index, class_id, name, confidence, tuple(xyxy), query, tracker_id, is_thing)

    def filter(
        self: Any,
        *,
        classes: Sequence[str | int] | None = None,
        min_confidence: float | None = None,
        min_area: float | None = None,
    ) -> Detections:
        """The rows that meet all of these conditions, in their order.

        In a semantic or panoptic result the pixels of rows that are left out have no label (-1 in ``label_map``).

        Args:
            classes: names or ids; None for all. ADE20K's names may be given without the blank at their end.
            min_confidence: the least score.
            min_area: the least ``area``: pixels of the mask, or of the box where there are boxes only.

        Raises:
            TypeError, ValueError: an argument is wrong, or a name is none of ``class_names``.

        Example:
            >>> d = Detections(xyxy=[[0, 0, 4, 2], [1, 1, 3, 3]], confidence=[0.9, 0.6], class_id=[1, 0],
            ...                size=(6, 8), class_names=["cat", "dog"])
            >>> d.filter(classes=["cat"], min_confidence=0.5)
            Detections(1 in 6x8: cat 1)
        """
        kept: Detections = self[rows_of(self, classes, min_confidence, min_area)]
        return kept

    def top_k(self: Any, n: int) -> Detections:
        """The n rows of the highest scores, the best first; all of them where there are fewer.

        In a semantic or panoptic result the pixels of rows that are left out have no label (-1 in ``label_map``).

        Raises TypeError, ValueError unless n is an integer of at least 1.
        """
        best: Detections = self[np.argsort(-self.confidence, kind="stable")[: check_count("n", n)]]
        return best

    def nms(self: Any, *, iou: float = 0.5, class_agnostic: bool = False) -> Detections:
        """The rows without duplicates (non-maximum suppression), in their order.

        From the highest score to the lowest, a row stays unless its mask and that of one that stays have an
        intersection over union above ``iou``; boxes count where there are boxes only. Regions of a semantic or panoptic
        result do not overlap: all of them stay.

        Args:
            iou: 0 to 1.
            class_agnostic: whether rows of different classes can be duplicates too.

        Raises:
            TypeError, ValueError: an argument is wrong.
        """
        limit = check_fraction("iou", iou)
        groups = (
            np.zeros_like(self.class_id) if check_bool("class_agnostic", class_agnostic) else self.class_id
        )
        order = np.argsort(-self.confidence, kind="stable")
        if self.packed is None:
            kept = _nms_of_boxes(self.xyxy, order, groups, limit)
        else:
            kept = self.packed._masks().nms(order=order, groups=groups, iou=limit)
        unique: Detections = self[kept]
        return unique

    def clean(self: Any, *, min_area: int = 16, largest_part: bool = False) -> Detections:
        """The rows without the small parts of their masks: stray pixels, which make boxes far too large.

        A part is a set of pixels that touch, at corners too. ``xyxy`` of a mask that lost some is the box of what is
        left, and a row of which nothing is left goes. In a semantic or panoptic result the pixels that go have no label
        (-1 in ``label_map``).

        Args:
            min_area: parts of fewer pixels go.
            largest_part: whether all parts but the largest of each mask go; objects behind others have several.

        Raises:
            TypeError, ValueError: an argument is wrong, or there are boxes only.

        Example:
            >>> mask = np.zeros((1, 6, 8), bool)
            >>> mask[0, 1:5, 1:6] = mask[0, 0, 7] = True
            >>> d = Detections(xyxy=[[1, 0, 8, 5]], confidence=[0.9], class_id=[0], size=(6, 8), mask=mask)
            >>> d.clean(min_area=4).xyxy.tolist()
            [[1.0, 1.0, 6.0, 5.0]]
        """
        packed: PackedMasks = self._masks()
        # Beyond the frame's pixels there are no parts; larger numbers than int64 are not needed to say so.
        least = min(check_count("min_area", min_area), 2**62)
        cleaned = PackedMasks._of(
            packed._masks().clean(min_area=least, largest=check_bool("largest_part", largest_part))
        )
        area = cleaned.area()
        changed = area != packed.area()
        kept = np.flatnonzero(area)
        xyxy = self.xyxy.copy()
        xyxy[changed] = cleaned.boxes[changed]
        source = self._source
        if source is not None:
            source = _without(source, packed, cleaned, np.flatnonzero(changed), self.query[kept])
        fields = {name: getattr(self, name) for name in self.__slots__}
        left: Detections = self._make(
            **{
                **fields,
                "xyxy": xyxy[kept],
                "confidence": self.confidence[kept],
                "class_id": self.class_id[kept],
                "query": self.query[kept],
                "tracker_id": None if self.tracker_id is None else self.tracker_id[kept],
                "is_thing": None if self.is_thing is None else self.is_thing[kept],
                "masks_device": None,
                "_packed": cleaned._take(kept),
                "_source": source,
                "_source_rows": None if source is None else np.arange(len(kept)),
                "_area": area[kept],
            }
        )
        return left


def _without(
    source: _SegmentSource, before: PackedMasks, after: PackedMasks, rows: Int64, queries: Int64
) -> _SegmentSource:
    """The label image in which nobody has the pixels that the masks of `rows` lost."""
    segments = source.segments.copy()
    for row in rows.tolist():
        lost = before[row].decode()[0] & ~after[row].decode()[0]
        segments[lost] = np.iinfo(segments.dtype).max
    return _SegmentSource(segments, queries)


def _nms_of_boxes(xyxy: Float32, order: Int64, groups: Int64, iou: float) -> Bool:
    boxes = xyxy.astype(np.float64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.zeros(len(boxes), bool)
    left = order
    while len(left):
        best, others = left[0], left[1:]
        kept[best] = True
        sides = np.minimum(boxes[others, 2:], boxes[best, 2:]) - np.maximum(
            boxes[others, :2], boxes[best, :2]
        )
        common = np.clip(sides, 0, None).prod(axis=1)
        same = (groups[others] == groups[best]) & (common > 0)
        left = others[~(same & (common > iou * (area[others] + area[best] - common)))]
    return kept
