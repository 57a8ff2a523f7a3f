"""What a network found in a frame: :class:`Detections`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fai_fast import _core
from fai_fast._arguments import check_names, check_size
from fai_fast.detections.arrays import (
    Bool,
    Float32,
    Float64,
    Int16,
    Int64,
    Segments,
    _boxes,
    _flags,
    _ids,
    _rows,
    _scores,
    _segments,
)
from fai_fast.detections.conversions import _Conversions
from fai_fast.detections.masks import PackedMasks, _check_packed, _Immutable, _packed_mask, _SegmentSource
from fai_fast.detections.rows import MaskSequence, _Rows
from fai_fast.detections.showing import _Showing
from fai_fast.detections.source import Source

__all__ = ["Detections", "Latency"]


class Latency(NamedTuple):
    """What each stage of a frame took, milliseconds.

    Attributes:
        decode: opening and decoding a picture's file; 0 for frames in memory.
        preprocess: from the frame to the network's input.
        engine: the network.
        postprocess: from the network's outputs to :class:`Detections`.
    """

    decode: float
    preprocess: float
    engine: float
    postprocess: float

    @property
    def total(self) -> float:
        """The sum of the stages."""
        return sum(self)

    def __repr__(self) -> str:
        stages = ", ".join(f"{name}={round(value, 3)}" for name, value in self._asdict().items())
        return f"Latency({stages}, total={round(self.total, 3)})"


class Detections(_Rows, _Conversions, _Showing, _Immutable):
    """What was found in one frame: N rows of boxes, scores, classes and masks.

    Immutable; its arrays are read-only. Masks are held packed (:class:`PackedMasks`) and decoded each time
    they are asked for. Rows are selected as NumPy does: ``d[d.confidence > 0.8]``, ``d[:5]``, ``d[[3, 0]]``;
    ``d[0]`` and iteration give results of one row, :meth:`rows` plain numbers. Not hashable.

    A semantic result has a ``label_map`` beside its rows, of which each pixel belongs to one at most. Whatever leaves
    rows out leaves their pixels without a label (-1); no other row gets them. A panoptic result is one whose rows are
    things, such as each car, and stuff, such as the road, which ``is_thing`` tells apart.

    Attributes:
        xyxy: float32 (N, 4), half-open pixel edges x1, y1, x2, y2: ``mask[y1:y2, x1:x2]`` is the whole
            object.
        confidence: float32 (N,).
        class_id: int64 (N,), -1 where unknown.
        query: int64 (N,), the network's query behind each row, -1 where unknown.
        class_names: the names of classes 0, 1, ..., or None.
        size: (H, W) of the frame, pixels.
        tracker_id: int64 (N,) or None.
        is_thing: of a panoptic result bool (N,), whether each row is a thing, one of several that can be counted; False
            for stuff, of which a class has one row. None for other results.
        latency: what finding them took, where a :class:`fai_fast.Model` did it, else None. No part of equality.
        source: where the frame is (its ``path`` and, of a stream, its ``frame`` number), where a model was given a file
            or a stream's source by name, else None. No part of equality; the pixels are held by :meth:`with_picture`
            alone.
        masks_device: bool (N, H, W) in a GPU's memory, where :meth:`fai_fast.Model.infer` was asked for it, else
            None: an object with ``__dlpack__`` and ``__cuda_array_interface__``, for ``torch.from_dlpack``,
            ``cupy.asarray`` and the like. A selection of rows does not keep it.

    Args:
        xyxy: numbers (N, 4), finite, x1 <= x2 and y1 <= y2.
        confidence: finite numbers (N,).
        class_id: integers (N,), -1 or more.
        size: (H, W) of the frame.
        query: integers (N,), -1 or more; None for unknown.
        class_names: a sequence of str, or None. A class without a name is called by its number.
        tracker_id: integers (N,), or None.
        mask: bool (N, H, W), or None.
        packed: the masks as :class:`PackedMasks`, or None.
        label_source: for semantic results, uint8 or uint16 (H, W): the query that won each pixel, the dtype's
            largest value for none. Masks are made from it; every row needs its ``query``. At most one of ``mask``,
            ``packed`` and ``label_source`` is given; none of them gives a result of boxes only.
        is_thing: for panoptic results, bool (N,), or None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype, shape or value; the text names it.

    Example:
        >>> d = Detections(xyxy=[[0, 0, 4, 2], [1, 1, 3, 3]], confidence=[0.9, 0.6], class_id=[1, 0],
        ...                size=(6, 8), class_names=["cat", "dog"])
        >>> d[d.class_name == "dog"].xyxy.tolist()
        [[0.0, 0.0, 4.0, 2.0]]
        >>> print(d)
        2 detections in 6x8
        class  count  best score
        dog        1       0.900
        cat        1       0.600
    """

    __slots__ = (
        "_area",
        "_packed",
        "_picture",
        "_source",
        "_source_rows",
        "class_id",
        "class_names",
        "confidence",
        "is_thing",
        "latency",
        "masks_device",
        "query",
        "size",
        "source",
        "tracker_id",
        "xyxy",
    )
    xyxy: Float32
    confidence: Float32
    class_id: Int64
    query: Int64
    class_names: tuple[str, ...] | None
    size: tuple[int, int]
    tracker_id: Int64 | None
    is_thing: Bool | None
    latency: Latency | None
    source: Source | None
    masks_device: Any
    _packed: PackedMasks | None
    _picture: npt.NDArray[np.uint8] | None
    _source: _SegmentSource | None
    _source_rows: Int64 | None
    _area: Int64 | None

    def __init__(
        self,
        *,
        xyxy: npt.ArrayLike,
        confidence: npt.ArrayLike,
        class_id: npt.ArrayLike,
        size: Sequence[int],
        query: npt.ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
        tracker_id: npt.ArrayLike | None = None,
        mask: Bool | None = None,
        packed: PackedMasks | None = None,
        label_source: Segments | None = None,
        is_thing: npt.ArrayLike | None = None,
    ) -> None:
        size = check_size("size", size)
        boxes = _boxes(xyxy)
        n = len(boxes)
        classes = _ids("class_id", class_id, n, minimum=-1)
        queries = np.full(n, -1, np.int64) if query is None else _ids("query", query, n, minimum=-1)
        if sum(item is not None for item in (mask, packed, label_source)) > 1:
            raise ValueError("mask, packed, label_source: got more than one of them, expected at most one")
        source = None
        if mask is not None:
            packed = _packed_mask(mask, n, size)
        elif packed is not None:
            _check_packed(packed, n, size)
        elif label_source is not None:
            if query is None:
                raise ValueError("query: got None, expected one a row, since label_source is given")
            source = _SegmentSource(_segments(label_source, queries, classes, size), queries)
        self._set(
            xyxy=boxes,
            confidence=_scores(confidence, n),
            class_id=classes,
            query=queries,
            class_names=check_names("class_names", class_names),
            size=size,
            tracker_id=None if tracker_id is None else _ids("tracker_id", tracker_id, n),
            is_thing=None if is_thing is None else _flags("is_thing", is_thing, n),
            _packed=packed,
            _source=source,
            _source_rows=None if source is None else np.arange(n),
            _area=None,
            latency=None,
            source=None,
            _picture=None,
            masks_device=None,
        )

    @classmethod
    def _make(cls, **fields: Any) -> Detections:
        """All fields, known to be right, in arrays that nobody else writes to."""
        self = cls.__new__(cls)
        self._set(**{"is_thing": None, "source": None, "_picture": None, **fields})
        return self

    @classmethod
    def _from_core(
        cls,
        rows: Mapping[str, Any],
        size: tuple[int, int],
        class_names: tuple[str, ...] | None,
        stuff: Sequence[int] | None = None,
    ) -> Detections:
        """A result of ``_core.postprocess``, whose arrays are taken over; `stuff` of a panoptic one are its classes."""
        boxes = rows["boxes"]
        source = packed = None
        if "segments" in rows:
            source = _SegmentSource(rows["segments"], rows["query"])
        else:
            packed = PackedMasks._wrap(rows["bits"], rows["offsets"], boxes, size)
        return cls._make(
            xyxy=boxes.astype(np.float32),
            confidence=rows["confidence"],
            class_id=rows["class_id"],
            query=rows["query"],
            class_names=class_names,
            size=size,
            tracker_id=None,
            is_thing=None if stuff is None else ~np.isin(rows["class_id"], np.array(stuff, np.int64)),
            _packed=packed,
            _source=source,
            _source_rows=None if source is None else np.arange(len(boxes)),
            _area=rows["area"],
            latency=None,
            masks_device=None,
        )

    @classmethod
    def empty(cls, size: Sequence[int], class_names: Sequence[str] | None = None) -> Detections:
        """No detections in a frame of ``size`` (H, W); its ``mask`` is (0, H, W)."""
        size = check_size("size", size)
        mask = np.zeros((0, *size), bool)
        return cls(xyxy=[], confidence=[], class_id=[], size=size, class_names=class_names, mask=mask)

    @classmethod
    def merge(cls, detections: Sequence[Detections]) -> Detections:
        """All rows of several results of one frame, in order.

        Results without rows only contribute their size and class names. Label maps are not kept, since they
        may contradict each other; the masks are.

        Args:
            detections: at least one; all of one ``size``; ``class_names`` equal where they are not None;
                masks, tracker ids, and ``is_thing``, in all of them that have rows or in none.

        Raises:
            TypeError, ValueError: they do not go together.

        Example:
            >>> both = Detections.merge([people, vehicles])  # doctest: +SKIP
        """
        parts = list(detections)
        for part in parts:
            if not isinstance(part, Detections):
                raise TypeError(f"detections: got {type(part).__name__} in it, expected Detections")
        if not parts:
            raise ValueError("detections: got none, expected at least one, such as Detections.empty(size)")
        sizes = {part.size for part in parts}
        if len(sizes) > 1:
            raise ValueError(f"detections: got sizes {sorted(sizes)}, expected one")
        names = {part.class_names for part in parts} - {None}
        if len(names) > 1:
            raise ValueError("detections: got different class_names, expected one list of them")
        parts = [part for part in parts if len(part)] or parts[:1]
        packed = [part.packed for part in parts]
        sources = {part.source for part in parts}
        trackers = [part.tracker_id for part in parts]
        things = [part.is_thing for part in parts]
        return cls._make(
            xyxy=np.concatenate([part.xyxy for part in parts]),
            confidence=np.concatenate([part.confidence for part in parts]),
            class_id=np.concatenate([part.class_id for part in parts]),
            query=np.concatenate([part.query for part in parts]),
            class_names=names.pop() if names else None,
            size=sizes.pop(),
            tracker_id=np.concatenate(ids) if (ids := _all_or_none("tracker_id", trackers)) else None,
            is_thing=np.concatenate(kinds) if (kinds := _all_or_none("is_thing", things)) else None,
            _packed=PackedMasks.concatenate(masks) if (masks := _all_or_none("masks", packed)) else None,
            _source=None,
            _source_rows=None,
            _area=None,
            latency=None,
            source=sources.pop() if len(sources) == 1 else None,
            _picture=None,
            masks_device=None,
        )

    # ------------------------------------------------------------------------------------------------ rows

    def __len__(self) -> int:
        return len(self.xyxy)

    def is_empty(self) -> bool:
        """Whether there are no rows."""
        return len(self) == 0

    def __iter__(self) -> Iterator[Detections]:
        """The rows, each as Detections of one row; :meth:`rows` gives plain numbers."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Detections:
        """The rows that NumPy's indexing of the first axis gives; an int gives one row.

        Args:
            index: int, slice, bool (N,) or integer array or list.

        Raises:
            IndexError: out of range, a boolean index of another length, or no index of one axis.
        """
        rows = _rows(index, len(self))
        return self._make(
            xyxy=self.xyxy[rows],
            confidence=self.confidence[rows],
            class_id=self.class_id[rows],
            query=self.query[rows],
            class_names=self.class_names,
            size=self.size,
            tracker_id=None if self.tracker_id is None else self.tracker_id[rows],
            is_thing=None if self.is_thing is None else self.is_thing[rows],
            _packed=None if self._packed is None else self._packed._take(rows),
            _source=self._source,
            _source_rows=None if self._source_rows is None else self._source_rows[rows],
            _area=None if self._area is None else self._area[rows],
            latency=self.latency,
            source=self.source,
            _picture=self._picture,
            masks_device=None,
        )

    def with_tracker_id(self, tracker_id: npt.ArrayLike | None) -> Detections:
        """A copy with these tracker ids, integers (N,), or without any for None. Masks are shared."""
        ids = None if tracker_id is None else _ids("tracker_id", tracker_id, len(self))
        fields = {name: getattr(self, name) for name in self.__slots__}
        return self._make(**{**fields, "tracker_id": ids})

    def with_picture(self, image: Any) -> Detections:
        """A copy that holds its frame's pixels, for :meth:`plot`, :meth:`show` and :meth:`save` without an image.

        Selections of rows hold them, too; a pickle does not. :attr:`source` is not looked at any more.

        Args:
            image: uint8 RGB (H, W, 3), such as ``frame.image()``, which is held and not copied, or a Pillow image.

        Raises:
            TypeError, ValueError: ``image`` is of another type, dtype or shape than the frame; the text has both.
        """
        if hasattr(image, "convert") and hasattr(image, "mode"):
            image = np.asarray(image.convert("RGB"))
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = f"{image.dtype} array" if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"image: got {kind}, expected a uint8 array (H, W, 3) or a Pillow image")
        if image.shape != (*self.size, 3):
            raise ValueError(f"image: got shape {image.shape}, expected {(*self.size, 3)}, the frame's")
        fields = {name: getattr(self, name) for name in self.__slots__}
        return self._make(**{**fields, "_picture": image})

    def _with_latency(self, latency: Latency, masks_device: Any = None) -> Detections:
        """This result, which nobody else has seen yet, with what it took and its masks on the device."""
        self._set(latency=latency, masks_device=masks_device)
        return self

    def _with_source(self, source: Source | None) -> Detections:
        """This result, which nobody else has seen yet, with where its frame is."""
        self._set(source=source)
        return self

    @property
    def class_name(self) -> npt.NDArray[np.str_]:
        """str (N,), the name of each row's class; its number where it has no name."""
        return np.array([self._name(class_id) for class_id in self.class_id.tolist()], np.str_)

    def _name(self, class_id: int) -> str:
        names = self.class_names or ()
        return names[class_id] if 0 <= class_id < len(names) else str(class_id)

    # ----------------------------------------------------------------------------------------------- masks

    @property
    def packed(self) -> PackedMasks | None:
        """The masks as they are held, or None for boxes only."""
        if self._packed is None and self._source is not None:
            assert self._source_rows is not None
            self._set(_packed=self._source.packed()._take(self._source_rows))
        return self._packed

    @property
    def mask(self) -> Bool | None:
        """bool (N, H, W), decoded anew at each call, yours to change; None for boxes only."""
        packed = self.packed
        return None if packed is None else packed.decode()

    @property
    def masks(self) -> MaskSequence:
        """The masks, each decoded when it is asked for: ``d.masks[0]`` is bool (H, W).

        Raises ValueError for boxes only.
        """
        return MaskSequence(self._masks())

    def crops(self) -> list[Bool]:
        """Each mask cropped to its own tight box, bool (h, w); (0, 0) for a mask without pixels.

        Raises ValueError for boxes only.
        """
        return self._masks().crops()

    def _masks(self) -> PackedMasks:
        packed = self.packed
        if packed is None:
            raise ValueError("masks: these Detections hold boxes only, expected masks")
        return packed

    @property
    def label_map(self) -> Int16 | None:
        """int16 (H, W), the class of the row that each pixel belongs to, -1 for none of the rows.

        None unless the result is semantic or panoptic. Made anew at each call.
        """
        if self._source is None:
            return None
        return _core.label_map(self._source.segments, self.query, self.class_id)

    @property
    def area(self) -> Int64 | Float64:
        """int64 (N,), pixels of each mask; for boxes only, ``box_area`` (as supervision does)."""
        if self._area is None and (packed := self.packed) is not None:
            self._set(_area=packed.area())
        return self.box_area if self._area is None else self._area

    @property
    def box_area(self) -> Float64:
        """float64 (N,), area of each box in pixels."""
        sides = self.xyxy[:, 2:].astype(np.float64) - self.xyxy[:, :2]
        return sides[:, 0] * sides[:, 1]

    # ----------------------------------------------------------------------------------- equality and text

    def __eq__(self, other: object) -> bool:
        """Whether all fields, and all pixels of masks and label maps, are equal."""
        if not isinstance(other, Detections):
            return NotImplemented
        # Masks, queries and classes determine the label map, if there is one.
        return (
            self.size == other.size
            and self.class_names == other.class_names
            and (self._source is None) == (other._source is None)
            and _equal_or_none(self.tracker_id, other.tracker_id)
            and _equal_or_none(self.is_thing, other.is_thing)
            and all(
                np.array_equal(getattr(self, name), getattr(other, name))
                for name in ("xyxy", "confidence", "class_id", "query")
            )
            and self.packed == other.packed
        )

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {
            name: getattr(self, name)
            for name in (
                "xyxy", "confidence", "class_id", "query", "class_names", "size", "tracker_id", "is_thing",
            )
        }  # fmt: skip
        if self._source is None:
            fields["packed"] = self._packed
        else:
            fields["label_source"] = self._source.segments
        return _rebuild, (fields, self.latency, self.source)

    def _counts(self) -> list[tuple[str, int, float]]:
        """(class, rows, best score), most rows first, then the best score."""
        best: dict[str, tuple[int, float]] = {}
        for name, score in zip(self.class_name.tolist(), self.confidence.tolist(), strict=True):
            count, top = best.get(name, (0, score))
            best[name] = count + 1, max(top, score)
        rows = [(name, count, score) for name, (count, score) in best.items()]
        return sorted(rows, key=lambda row: (-row[1], -row[2], row[0]))

    def _kinds(self) -> str:
        """How many rows are things, where that is known."""
        if self.is_thing is None or self.is_empty():
            return ""
        things = int(self.is_thing.sum())
        return f", {things} thing{'' if things == 1 else 's'} and {len(self) - things} stuff"

    def __repr__(self) -> str:
        counts = self._counts()
        shown = [f"{name} {count}" for name, count, _ in counts[:5]]
        if len(counts) > 5:
            shown.append(f"{len(counts) - 5} more classes")
        inside = f": {', '.join(shown)}" if shown else ""
        return f"Detections({len(self)} in {self.size[0]}x{self.size[1]}{self._kinds()}{inside})"

    def __str__(self) -> str:
        frame = f"{self.size[0]}x{self.size[1]}"
        if self.is_empty():
            return f"no detections in {frame}"
        counts = self._counts()
        width = max(len("class"), *(len(name) for name, _, _ in counts))
        lines = [f"{len(self)} detection{'s' if len(self) > 1 else ''} in {frame}{self._kinds()}"]
        lines.append(f"{'class':<{width}}  count  best score")
        lines += [f"{name:<{width}}  {count:>5}  {score:>10.3f}" for name, count, score in counts]
        return "\n".join(lines)

    # ------------------------------------------------------------------------------------- other libraries


def _equal_or_none(a: Int64 | Bool | None, b: Int64 | Bool | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _rebuild(
    fields: dict[str, Any], latency: Latency | None = None, source: Source | None = None
) -> Detections:
    self = Detections(**fields)._with_source(source)
    return self if latency is None else self._with_latency(latency)


def _all_or_none(name: str, values: Sequence[Any]) -> Sequence[Any] | None:
    missing = sum(value is None for value in values)
    if missing == len(values):
        return None
    if missing:
        raise ValueError(f"detections: got some with {name} and some without, expected all or none")
    return values
