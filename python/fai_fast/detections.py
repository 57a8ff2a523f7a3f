"""What a network found in a frame: :class:`Detections`, which holds its masks as :class:`PackedMasks`."""

from __future__ import annotations

import base64
import importlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from fai_fast import _core
from fai_fast.arguments import check_int, check_names, check_size, check_threads

__all__ = ["Detections", "Latency", "PackedMasks"]

Bool = npt.NDArray[np.bool_]
Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Segments = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

# Our keys in a supervision.Detections: one array a row in `data`, one value a frame in `metadata`.
_SV_QUERY = "fai_fast_query"
_SV_SIZE = "fai_fast_size"
_SV_CLASS_NAMES = "fai_fast_class_names"
_SV_SEGMENTS = "fai_fast_segments"
_SV_CLASS_NAME = "class_name"  # supervision's own

_MAX_INT16 = 32767


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


class _Immutable:
    __slots__ = ()

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name}: {type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name}: {type(self).__name__} is immutable")


class PackedMasks(_Immutable):
    """N masks of one frame at one bit a pixel, each cropped to its box. Immutable; its arrays are read-only.

    Attributes:
        bits: uint64 (words,). Mask i occupies rows y1..y2-1 of its box; a row is ``ceil(x2/64) -
            floor(x1/64)`` words, and bit b (lowest first) of its word k is frame column ``64*(floor(x1/64)+k)
            + b``. Bits outside [x1, x2) are zero. A selection shares the bits of what it was taken from.
        offsets: int64 (N,), the first word of each mask.
        boxes: int32 (N, 4), tight half-open pixel boxes x1, y1, x2, y2; zeros for a mask without pixels.
        size: (H, W) of the frame.

    Args:
        bits, offsets, boxes, size: as above; copied.

    Raises:
        TypeError, ValueError: an argument has another dtype or shape, or does not describe masks in the form
            above.

    Example:
        >>> mask = np.zeros((2, 480, 640), bool)
        >>> mask[0, 10:20, 30:50] = True
        >>> packed = PackedMasks.from_bool(mask)
        >>> packed.boxes.tolist(), packed.area().tolist()
        ([[30, 10, 50, 20], [0, 0, 0, 0]], [200, 0])
    """

    __slots__ = ("bits", "boxes", "offsets", "size")
    bits: UInt64
    offsets: Int64
    boxes: Int32
    size: tuple[int, int]

    def __init__(self, bits: UInt64, offsets: Int64, boxes: Int32, size: Sequence[int]) -> None:
        size = check_size("size", size)
        _core.masks_check(bits, offsets, boxes, size)
        # Checked again as copies, which nobody else can change.
        copies = np.array(bits), np.array(offsets), np.array(boxes)
        _core.masks_check(*copies, size)
        self._set(bits=copies[0], offsets=copies[1], boxes=copies[2], size=size)

    @classmethod
    def _wrap(cls, bits: UInt64, offsets: Int64, boxes: Int32, size: tuple[int, int]) -> PackedMasks:
        """Takes arrays over that are known to be right and that nobody else writes to."""
        self = cls.__new__(cls)
        self._set(bits=bits, offsets=offsets, boxes=boxes, size=size)
        return self

    @classmethod
    def from_bool(cls, mask: Bool, *, num_threads: int | None = None) -> PackedMasks:
        """Packs bool masks (N, H, W) of any strides. Raises TypeError, ValueError for anything else."""
        packed = _core.masks_encode(mask, num_threads=check_threads("num_threads", num_threads))
        return cls._wrap(*packed, (mask.shape[1], mask.shape[2]))

    @classmethod
    def from_segments(
        cls, segments: Segments, queries: Int64, *, num_threads: int | None = None
    ) -> PackedMasks:
        """The pixels of a label image that equal each of some labels.

        Args:
            segments: uint8 or uint16 (H, W), C-contiguous.
            queries: int64 (N,), values of ``segments``.
            num_threads: at most this many threads; None for all cores.

        Raises:
            TypeError, ValueError: an argument has another dtype or shape, or a query is no value of
                ``segments``.
        """
        packed = _core.masks_from_segments(
            segments, queries, num_threads=check_threads("num_threads", num_threads)
        )
        return cls._wrap(*packed, (segments.shape[0], segments.shape[1]))

    @classmethod
    def concatenate(cls, parts: Sequence[PackedMasks]) -> PackedMasks:
        """The masks of all parts, in order. Raises ValueError unless there are parts, all of one size."""
        sizes = {part.size for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"parts: got masks of sizes {sorted(sizes)}, expected one size")
        dense = [part.compact() for part in parts]
        starts = np.cumsum([0] + [part.bits.size for part in dense[:-1]])
        return cls._wrap(
            np.concatenate([part.bits for part in dense]),
            np.concatenate([part.offsets + start for part, start in zip(dense, starts, strict=True)]),
            np.concatenate([part.boxes for part in dense]),
            sizes.pop(),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> PackedMasks:
        """The masks that NumPy's indexing of the first axis gives; an int gives one mask. Shares ``bits``."""
        return self._take(_rows(index, len(self)))

    def _take(self, rows: Int64) -> PackedMasks:
        return PackedMasks._wrap(self.bits, self.offsets[rows], self.boxes[rows], self.size)

    def decode(self, *, out: Bool | None = None, num_threads: int | None = None) -> Bool:
        """The masks as bool (N, H, W).

        Args:
            out: a writable C-contiguous bool array (N, H, W) to write to and return. Without it memory that
                the system has zeroed is used, of which only the boxes are touched.
            num_threads: at most this many threads; None for all cores.

        Raises:
            TypeError, ValueError: ``out`` does not fit.
        """
        threads = check_threads("num_threads", num_threads)
        return _core.masks_decode(
            self.bits, self.offsets, self.boxes, self.size, out=out, num_threads=threads
        )

    def crops(self) -> list[Bool]:
        """Each mask as bool (y2 - y1, x2 - x1), cropped to its box."""
        return _core.masks_crops(self.bits, self.offsets, self.boxes, self.size)

    def area(self) -> Int64:
        """int64 (N,), pixels of each mask."""
        return _core.masks_area(self.bits, self.offsets, self.boxes, self.size)

    def to_rle(self, *, num_threads: int | None = None) -> list[dict[str, Any]]:
        """COCO's compressed RLE of each mask, ``{"size": [H, W], "counts": bytes}``; pycocotools' bytes."""
        threads = check_threads("num_threads", num_threads)
        counts = _core.masks_rle(self.bits, self.offsets, self.boxes, self.size, num_threads=threads)
        return [{"size": list(self.size), "counts": text} for text in counts]

    def compact(self) -> PackedMasks:
        """A copy with bits of its own, dense and in order."""
        return PackedMasks._wrap(
            *_core.masks_compact(self.bits, self.offsets, self.boxes, self.size), self.size
        )

    def __eq__(self, other: object) -> bool:
        """Whether the sizes and all pixels are equal."""
        if not isinstance(other, PackedMasks):
            return NotImplemented
        return (
            self.size == other.size
            and np.array_equal(self.boxes, other.boxes)
            and np.array_equal(self.compact().bits, other.compact().bits)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        dense = self.compact()
        return PackedMasks, (dense.bits, dense.offsets, dense.boxes, dense.size)

    def __repr__(self) -> str:
        return f"PackedMasks({len(self)} in {self.size[0]}x{self.size[1]})"


class _SegmentSource(_Immutable):
    """The winning query of each pixel, and the masks of some queries, packed when first asked for.

    Selections of a result share one source, so that its masks are packed once.
    """

    __slots__ = ("_packed", "queries", "segments")
    segments: Segments
    queries: Int64
    _packed: PackedMasks | None

    def __init__(self, segments: Segments, queries: Int64) -> None:
        self._set(segments=segments, queries=queries, _packed=None)

    def packed(self) -> PackedMasks:
        if self._packed is None:
            self._set(_packed=PackedMasks.from_segments(self.segments, self.queries))
        assert self._packed is not None
        return self._packed


class Detections(_Immutable):
    """What was found in one frame: N rows of boxes, scores, classes and masks.

    Immutable; its arrays are read-only. Masks are held packed (:class:`PackedMasks`) and decoded each time
    they are asked for. Rows are selected as NumPy does: ``d[d.confidence > 0.8]``, ``d[:5]``, ``d[[3, 0]]``;
    ``d[0]`` and iteration give results of one row. Not hashable.

    Attributes:
        xyxy: float32 (N, 4), half-open pixel edges x1, y1, x2, y2: ``mask[y1:y2, x1:x2]`` is the whole
            object.
        confidence: float32 (N,).
        class_id: int64 (N,), -1 where unknown.
        query: int64 (N,), the network's query behind each row, -1 where unknown.
        class_names: the names of classes 0, 1, ..., or None.
        size: (H, W) of the frame, pixels.
        tracker_id: int64 (N,) or None.
        latency: what finding them took, where a :class:`fai_fast.Model` did it, else None. No part of equality.
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
            largest value for none. Masks are made from it; every row needs its ``query``.
        At most one of ``mask``, ``packed``, ``label_source``; none of them gives a result of boxes only.

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
        "_source",
        "_source_rows",
        "class_id",
        "class_names",
        "confidence",
        "latency",
        "masks_device",
        "query",
        "size",
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
    latency: Latency | None
    masks_device: Any
    _packed: PackedMasks | None
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
            _packed=packed,
            _source=source,
            _source_rows=None if source is None else np.arange(n),
            _area=None,
            latency=None,
            masks_device=None,
        )

    @classmethod
    def _make(cls, **fields: Any) -> Detections:
        """All fields, known to be right, in arrays that nobody else writes to."""
        self = cls.__new__(cls)
        self._set(**fields)
        return self

    @classmethod
    def _from_core(
        cls, rows: Mapping[str, Any], size: tuple[int, int], class_names: tuple[str, ...] | None
    ) -> Detections:
        """A result of ``_core.postprocess``, whose arrays are taken over."""
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
                masks, and tracker ids, in all of them that have rows or in none.

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
        trackers = [part.tracker_id for part in parts]
        return cls._make(
            xyxy=np.concatenate([part.xyxy for part in parts]),
            confidence=np.concatenate([part.confidence for part in parts]),
            class_id=np.concatenate([part.class_id for part in parts]),
            query=np.concatenate([part.query for part in parts]),
            class_names=names.pop() if names else None,
            size=sizes.pop(),
            tracker_id=np.concatenate(ids) if (ids := _all_or_none("tracker_id", trackers)) else None,
            _packed=PackedMasks.concatenate(masks) if (masks := _all_or_none("masks", packed)) else None,
            _source=None,
            _source_rows=None,
            _area=None,
            latency=None,
            masks_device=None,
        )

    # ------------------------------------------------------------------------------------------------ rows

    def __len__(self) -> int:
        return len(self.xyxy)

    def is_empty(self) -> bool:
        """Whether there are no rows."""
        return len(self) == 0

    def __iter__(self) -> Iterator[Detections]:
        """The rows, each as Detections of one row."""
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
            _packed=None if self._packed is None else self._packed._take(rows),
            _source=self._source,
            _source_rows=None if self._source_rows is None else self._source_rows[rows],
            _area=None if self._area is None else self._area[rows],
            latency=self.latency,
            masks_device=None,
        )

    def with_tracker_id(self, tracker_id: npt.ArrayLike | None) -> Detections:
        """A copy with these tracker ids, integers (N,), or without any for None. Masks are shared."""
        ids = None if tracker_id is None else _ids("tracker_id", tracker_id, len(self))
        fields = {name: getattr(self, name) for name in self.__slots__}
        return self._make(**{**fields, "tracker_id": ids})

    def _with_latency(self, latency: Latency, masks_device: Any = None) -> Detections:
        """This result, which nobody else has seen yet, with what it took and its masks on the device."""
        self._set(latency=latency, masks_device=masks_device)
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

    def masks(self, i: int) -> Bool:
        """The mask of row i, bool (H, W). Raises IndexError, and ValueError for boxes only."""
        mask: Bool = self._masks()[check_int("i", i)].decode()[0]
        return mask

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

        None unless the result is semantic. Made anew at each call.
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
            and all(
                np.array_equal(getattr(self, name), getattr(other, name))
                for name in ("xyxy", "confidence", "class_id", "query")
            )
            and self.packed == other.packed
        )

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {
            name: getattr(self, name)
            for name in ("xyxy", "confidence", "class_id", "query", "class_names", "size", "tracker_id")
        }
        if self._source is None:
            fields["packed"] = self._packed
        else:
            fields["label_source"] = self._source.segments
        return _rebuild, (fields, self.latency)

    def _counts(self) -> list[tuple[str, int, float]]:
        """(class, rows, best score), most rows first, then the best score."""
        best: dict[str, tuple[int, float]] = {}
        for name, score in zip(self.class_name.tolist(), self.confidence.tolist(), strict=True):
            count, top = best.get(name, (0, score))
            best[name] = count + 1, max(top, score)
        rows = [(name, count, score) for name, (count, score) in best.items()]
        return sorted(rows, key=lambda row: (-row[1], -row[2], row[0]))

    def __repr__(self) -> str:
        counts = self._counts()
        shown = [f"{name} {count}" for name, count, _ in counts[:5]]
        if len(counts) > 5:
            shown.append(f"{len(counts) - 5} more classes")
        inside = f": {', '.join(shown)}" if shown else ""
        return f"Detections({len(self)} in {self.size[0]}x{self.size[1]}{inside})"

    def __str__(self) -> str:
        frame = f"{self.size[0]}x{self.size[1]}"
        if self.is_empty():
            return f"no detections in {frame}"
        counts = self._counts()
        width = max(len("class"), *(len(name) for name, _, _ in counts))
        lines = [f"{len(self)} detection{'s' if len(self) > 1 else ''} in {frame}"]
        lines.append(f"{'class':<{width}}  count  best score")
        lines += [f"{name:<{width}}  {count:>5}  {score:>10.3f}" for name, count, score in counts]
        return "\n".join(lines)

    # ------------------------------------------------------------------------------------- other libraries

    def to_rle(self, *, num_threads: int | None = None) -> list[dict[str, Any]]:
        """COCO's compressed RLE of each full-frame mask, ``{"size": [H, W], "counts": bytes}``.

        The same bytes as ``pycocotools.mask.encode``. Raises ValueError for boxes only.
        """
        return self._masks().to_rle(num_threads=num_threads)

    def to_polygons(self) -> list[list[Int32]]:
        """The outer contours of each mask: int32 (M, 2) of x, y pixels in the frame. Holes are left out.

        Raises ImportError without OpenCV, ValueError for boxes only.
        """
        cv2 = _require("cv2", "to_polygons", "polygons")
        packed = self._masks()
        polygons = []
        for crop, box in zip(packed.crops(), packed.boxes.tolist(), strict=True):
            contours: Sequence[Int32] = ()
            if crop.size:
                contours, _ = cv2.findContours(
                    crop.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(box[0], box[1])
                )
            polygons.append([np.asarray(contour, np.int32).reshape(-1, 2) for contour in contours])
        return polygons

    def to_dict(self) -> dict[str, Any]:
        """Everything but the label map, in JSON's types.

        ``mask`` is RLE with its counts as str, None for boxes only.

        Example:
            >>> d = Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[7], size=(6, 8))
            >>> d.to_dict()["detections"]  # doctest: +NORMALIZE_WHITESPACE
            [{'xyxy': [0.0, 0.0, 4.0, 2.0], 'confidence': 0.5, 'class_id': 7, 'class_name': '7',
              'query': -1, 'tracker_id': None, 'area': 8.0, 'mask': None}]
        """
        n = len(self)
        columns: dict[str, Sequence[Any]] = {
            "xyxy": self.xyxy.tolist(),
            "confidence": self.confidence.tolist(),
            "class_id": self.class_id.tolist(),
            "class_name": self.class_name.tolist(),
            "query": self.query.tolist(),
            "tracker_id": [None] * n if self.tracker_id is None else self.tracker_id.tolist(),
            "area": self.area.tolist(),
            "mask": self._json_rle(),
        }
        rows = zip(*columns.values(), strict=True)
        return {
            "size": list(self.size),
            "class_names": None if self.class_names is None else list(self.class_names),
            "detections": [dict(zip(columns, row, strict=True)) for row in rows],
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO's annotations of the rows, in JSON's types.

        Each has ``image_id``, ``category_id`` (the class id), ``bbox`` [x, y, width, height], ``score``,
        ``area``, ``iscrowd`` 0 and, where there are masks, ``segmentation`` (RLE, its counts as str).
        """
        columns = zip(
            self.class_id.tolist(),
            self.xyxy.tolist(),
            self.confidence.tolist(),
            self.area.tolist(),
            self._json_rle(),
            strict=True,
        )
        annotations = []
        for class_id, (x1, y1, x2, y2), score, area, rle in columns:
            annotation = {
                "image_id": image_id,
                "category_id": class_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                "area": area,
                "iscrowd": 0,
            }
            annotations.append(annotation if rle is None else {**annotation, "segmentation": rle})
        return annotations

    def _json_rle(self) -> Sequence[dict[str, Any] | None]:
        if self.packed is None:
            return [None] * len(self)
        return [{**rle, "counts": rle["counts"].decode("ascii")} for rle in self.to_rle()]

    def to_focoos(self) -> dict[str, Any]:
        """The JSON that FocoosAI's ``FocoosDetections`` reads.

        ``{"detections": [{"bbox", "conf", "cls_id", "label", "mask"}, ...], "latency": None}``. ``bbox``
        holds the inclusive integer corners x1, y1, x2, y2 of the mask, or of ``xyxy`` where there is none;
        ``mask`` is a base64 PNG, 0 or 255, of (y2 - y1 + 1) x (x2 - x1 + 1) pixels, the whole object, or None
        for boxes only.

        Raises ImportError without Pillow where there are masks.
        """
        boxes = self._pixel_boxes()
        texts: list[str | None] = [None] * len(self)
        if (packed := self.packed) is not None:
            image = _require("PIL.Image", "to_focoos", "focoos")
            pixels = packed.boxes[:, 2] > 0
            boxes[pixels] = packed.boxes[pixels]
            for i, crop in enumerate(packed.crops()):
                x1, y1, x2, y2 = boxes[i].tolist()
                content = crop if crop.size else np.zeros((y2 - y1, x2 - x1), bool)
                file = io.BytesIO()
                image.fromarray(content.astype(np.uint8) * np.uint8(255)).save(file, format="PNG")
                texts[i] = base64.b64encode(file.getvalue()).decode("ascii")
        rows = zip(
            (boxes - [0, 0, 1, 1]).tolist(),
            self.confidence.tolist(),
            self.class_id.tolist(),
            self.class_name.tolist(),
            texts,
            strict=True,
        )
        keys = ("bbox", "conf", "cls_id", "label", "mask")
        return {"detections": [dict(zip(keys, row, strict=True)) for row in rows], "latency": None}

    def _pixel_boxes(self) -> Int64:
        """The pixels that each xyxy touches, at least one and inside the frame, as half-open edges."""
        last = np.array([self.size[1], self.size[0]]) - 1
        first = np.clip(np.floor(self.xyxy[:, :2]), 0, last)
        end = np.clip(np.ceil(self.xyxy[:, 2:]), first + 1, last + 1)
        return np.concatenate([first, end], axis=1).astype(np.int64)

    def to_supervision(self) -> Any:
        """A ``supervision.Detections`` of its own arrays.

        ``data["class_name"]`` holds the names; the query of each row, and the frame's size, class names and
        semantic segments travel in ``data`` and ``metadata`` under names with the prefix ``fai_fast_``, so
        that :meth:`from_supervision` gives the same Detections back, also after rows were selected.

        Raises ImportError without supervision.
        """
        supervision = _require("supervision", "to_supervision", "plot")
        metadata: dict[str, Any] = {_SV_SIZE: self.size, _SV_CLASS_NAMES: self.class_names}
        if self._source is not None:
            metadata[_SV_SEGMENTS] = self._source.segments
        return supervision.Detections(
            xyxy=self.xyxy.copy(),
            mask=self.mask,
            confidence=self.confidence.copy(),
            class_id=self.class_id.copy(),
            tracker_id=None if self.tracker_id is None else self.tracker_id.copy(),
            data={_SV_CLASS_NAME: self.class_name, _SV_QUERY: self.query.copy()},
            metadata=metadata,
        )

    @classmethod
    def from_supervision(
        cls, detections: Any, *, size: Sequence[int] | None = None, class_names: Sequence[str] | None = None
    ) -> Detections:
        """Detections from a ``supervision.Detections``, of :meth:`to_supervision` or of anybody else.

        Where supervision has None, ``confidence`` becomes 1 and ``class_id`` -1. A label map comes back while
        the masks are still those that it gives.

        Args:
            detections: a ``supervision.Detections``.
            size: (H, W) of the frame; by default what ``to_supervision`` noted, else the masks' size.
            class_names: by default what ``to_supervision`` noted, else those in ``data["class_name"]``.

        Raises:
            TypeError, ValueError: something in it does not fit, or the size is not known.
        """
        for name in ("xyxy", "mask", "confidence", "class_id", "tracker_id", "data", "metadata"):
            if not hasattr(detections, name):
                raise TypeError(f"detections: got {type(detections).__name__}, expected supervision's")
        n = len(detections.xyxy)
        data, metadata = detections.data, detections.metadata
        mask = None if detections.mask is None else np.asarray(detections.mask)
        if size is None:
            size = metadata.get(_SV_SIZE) if mask is None else metadata.get(_SV_SIZE, mask.shape[1:])
        if size is None:
            raise ValueError("size: got None, expected (height, width): there are no masks to tell it")
        class_id = np.full(n, -1) if detections.class_id is None else detections.class_id
        if class_names is None:
            class_names = metadata.get(_SV_CLASS_NAMES)
        if class_names is None and _SV_CLASS_NAMES not in metadata:
            class_names = _names_of_rows(class_id, data.get(_SV_CLASS_NAME, ()))
        self = cls(
            xyxy=detections.xyxy,
            confidence=np.ones(n, np.float32) if detections.confidence is None else detections.confidence,
            class_id=class_id,
            size=size,
            query=data.get(_SV_QUERY),
            class_names=class_names,
            tracker_id=detections.tracker_id,
            mask=mask,
        )
        segments = metadata.get(_SV_SEGMENTS)
        if segments is not None and _SV_QUERY in data and self.packed is not None:
            source = _SegmentSource(_segments(segments, self.query, self.class_id, self.size), self.query)
            if source.packed() == self.packed:
                self._set(_source=source, _source_rows=np.arange(n))
        return self

    def plot(self, image: Any) -> npt.NDArray[np.uint8]:
        """A new picture of the frame with masks, boxes and labels on it, through supervision.

        Args:
            image: the frame, uint8 RGB (H, W, 3) or a Pillow image; not modified.

        Returns:
            uint8 RGB (H, W, 3).

        Raises:
            ImportError: without supervision.
            TypeError, ValueError: ``image`` is of another dtype or shape than (H, W, 3) of ``size``.
        """
        if hasattr(image, "convert") and hasattr(image, "mode"):
            image = np.asarray(image.convert("RGB"))
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            came = f"dtype {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"image: got {came}, expected a uint8 array (H, W, 3) or a Pillow image")
        if image.shape != (*self.size, 3):
            raise ValueError(f"image: got shape {image.shape}, expected {(*self.size, 3)}")
        supervision = _require("supervision", "plot", "plot")
        found = self.to_supervision()
        # supervision has no colour for class -1.
        unknown = bool((self.class_id < 0).any())
        lookup = supervision.ColorLookup.INDEX if unknown else supervision.ColorLookup.CLASS
        labels = [
            f"{name} {score:.2f}"
            for name, score in zip(self.class_name.tolist(), self.confidence.tolist(), strict=True)
        ]
        if self.tracker_id is not None:
            labels = [f"#{i} {label}" for i, label in zip(self.tracker_id.tolist(), labels, strict=True)]
        # supervision draws in OpenCV's order of colours, in place.
        scene = image[:, :, ::-1].copy()
        if found.mask is not None:
            scene = supervision.MaskAnnotator(color_lookup=lookup).annotate(scene, found)
        scene = supervision.BoxAnnotator(color_lookup=lookup).annotate(scene, found)
        scene = supervision.LabelAnnotator(color_lookup=lookup).annotate(scene, found, labels=labels)
        return np.ascontiguousarray(scene[:, :, ::-1])


def _equal_or_none(a: Int64 | None, b: Int64 | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _rebuild(fields: dict[str, Any], latency: Latency | None = None) -> Detections:
    self = Detections(**fields)
    return self if latency is None else self._with_latency(latency)


def _rows(index: Any, n: int) -> Int64:
    """The rows that NumPy's indexing of an axis of length n gives. Raises IndexError as NumPy does."""
    rows = np.arange(n)[index]
    if rows.ndim > 1:
        raise IndexError(f"index: got {type(index).__name__} that adds a dimension, expected rows")
    return np.atleast_1d(rows)


def _require(module: str, method: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        text = f"{method} needs {module.partition('.')[0]}: pip install 'fai-fast[{extra}]'"
        raise ImportError(text) from error


def _array(name: str, value: object, expected: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}") from error


def _numbers(name: str, value: object, shape: tuple[int, ...], kinds: str, expected: str) -> npt.NDArray[Any]:
    """`value` as an array of `shape` whose dtype is of one of `kinds`; no values have any dtype."""
    array = _array(name, value, expected)
    if array.size and array.dtype.kind not in kinds:
        raise TypeError(f"{name}: got dtype {array.dtype}, expected {expected}")
    if array.shape != shape and (array.size or 0 not in shape):
        raise ValueError(f"{name}: got shape {array.shape}, expected {expected} of shape {shape}")
    # No values of some other dtype (structured, object) do not convert; none of this one do.
    return array.reshape(shape) if array.dtype.kind in kinds else np.empty(shape, f"{kinds[0]}8")


def _ids(name: str, value: object, n: int, minimum: int | None = None) -> Int64:
    array = _numbers(name, value, (n,), "iu", "integers")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: got {array.max()}, expected values of int64")
    ids = array.astype(np.int64)
    if minimum is not None and ids.size and ids.min() < minimum:
        raise ValueError(f"{name}: got {ids.min()}, expected {minimum} or more")
    return ids


def _finite(name: str, array: npt.NDArray[Any]) -> Float32:
    with np.errstate(over="ignore"):
        values: Float32 = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: got NaN, infinity or a value beyond float32, expected finite numbers")
    return values


def _scores(value: object, n: int) -> Float32:
    return _finite("confidence", _numbers("confidence", value, (n,), "iuf", "numbers"))


def _boxes(value: object) -> Float32:
    array = _array("xyxy", value, "numbers (N, 4)")
    n = len(array) if array.ndim else 0
    boxes = _finite("xyxy", _numbers("xyxy", array, (n, 4), "iuf", "numbers"))
    if (boxes[:, :2] > boxes[:, 2:]).any():
        row = int(np.flatnonzero((boxes[:, :2] > boxes[:, 2:]).any(axis=1))[0])
        raise ValueError(f"xyxy: got {boxes[row].tolist()} in row {row}, expected x1 <= x2 and y1 <= y2")
    return boxes


def _packed_mask(mask: object, n: int, size: tuple[int, int]) -> PackedMasks:
    array = _array("mask", mask, "bool (N, H, W)")
    if array.dtype != np.bool_:
        raise TypeError(f"mask: got dtype {array.dtype}, expected bool")
    if array.shape != (n, *size):
        raise ValueError(f"mask: got shape {array.shape}, expected {(n, *size)}")
    return PackedMasks.from_bool(array)


def _check_packed(packed: object, n: int, size: tuple[int, int]) -> None:
    if not isinstance(packed, PackedMasks):
        raise TypeError(f"packed: got {type(packed).__name__}, expected PackedMasks")
    if len(packed) != n or packed.size != size:
        raise ValueError(f"packed: got {len(packed)} masks of {packed.size}, expected {n} of {size}")


def _segments(value: object, queries: Int64, class_ids: Int64, size: tuple[int, int]) -> Segments:
    array = _array("label_source", value, "uint8 or uint16 (H, W)")
    if array.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"label_source: got dtype {array.dtype}, expected uint8 or uint16")
    if array.shape != size:
        raise ValueError(f"label_source: got shape {array.shape}, expected size {size}")
    nobody = np.iinfo(array.dtype).max
    if queries.size and not (queries.min() >= 0 and queries.max() < nobody):
        raise ValueError(
            f"query: got {queries.min()} to {queries.max()}, expected 0 to {nobody - 1} with label_source"
        )
    if class_ids.size and class_ids.max() > _MAX_INT16:
        raise ValueError(f"class_id: got {class_ids.max()}, expected at most {_MAX_INT16} with label_source")
    # In the machine's byte order, whatever came.
    if array.dtype == np.uint8:
        return np.array(array, np.uint8, order="C")
    return np.array(array, np.uint16, order="C")


def _all_or_none(name: str, values: Sequence[Any]) -> Sequence[Any] | None:
    missing = sum(value is None for value in values)
    if missing == len(values):
        return None
    if missing:
        raise ValueError(f"detections: got some with {name} and some without, expected all or none")
    return values


def _names_of_rows(class_id: npt.NDArray[Any], names: Sequence[Any]) -> list[str] | None:
    """Class names, as far as rows tell them; the number of a class that no row is of."""
    known = {int(i): str(name) for i, name in zip(class_id, names, strict=False) if 0 <= i <= _MAX_INT16}
    return [known.get(i, str(i)) for i in range(max(known) + 1)] if known else None
