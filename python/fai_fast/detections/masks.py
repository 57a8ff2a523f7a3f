"""The masks of a frame: :class:`PackedMasks`, and those that are still the winning query of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from fai_fast import _core
from fai_fast._arguments import check_size, check_threads
from fai_fast.detections.arrays import Bool, Int32, Int64, Segments, UInt64, _array, _rows

__all__ = ["PackedMasks"]


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
    """N masks of one frame at one bit per pixel, each cropped to its box. Immutable; its arrays are read-only.

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

    __slots__ = ("_checked", "bits", "boxes", "offsets", "size")
    bits: UInt64
    offsets: Int64
    boxes: Int32
    size: tuple[int, int]
    _checked: _core.Masks | None

    def __init__(self, bits: UInt64, offsets: Int64, boxes: Int32, size: Sequence[int]) -> None:
        size = check_size("size", size)
        _core.Masks(bits, offsets, boxes, size)
        # Checked again as copies, which nobody else can change.
        copies = np.array(bits), np.array(offsets), np.array(boxes)
        checked = _core.Masks(*copies, size)
        checked.check_form()
        self._set(bits=copies[0], offsets=copies[1], boxes=copies[2], size=size, _checked=checked)

    @classmethod
    def _wrap(cls, bits: UInt64, offsets: Int64, boxes: Int32, size: tuple[int, int]) -> PackedMasks:
        """Takes arrays over that are known to be right and that nobody else writes to."""
        self = cls.__new__(cls)
        self._set(bits=bits, offsets=offsets, boxes=boxes, size=size, _checked=None)
        return self

    @classmethod
    def _of(cls, masks: _core.Masks) -> PackedMasks:
        """Takes masks over that nobody else writes to."""
        self = cls.__new__(cls)
        self._set(bits=masks.bits, offsets=masks.offsets, boxes=masks.boxes, size=masks.size, _checked=masks)
        return self

    def _masks(self) -> _core.Masks:
        """The arrays as compiled code has checked them, which it does once."""
        if self._checked is None:
            self._set(_checked=_core.Masks(self.bits, self.offsets, self.boxes, self.size))
        assert self._checked is not None
        return self._checked

    @classmethod
    def from_bool(cls, mask: Bool, *, num_threads: int | None = None) -> PackedMasks:
        """Packs bool masks (N, H, W) of any strides. Raises TypeError, ValueError for anything else."""
        return cls._of(_core.Masks.encode(mask, num_threads=check_threads("num_threads", num_threads)))

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
            TypeError, ValueError: an argument has another dtype or shape, or a query is not a value of
                ``segments``.
        """
        threads = check_threads("num_threads", num_threads)
        return cls._of(_core.Masks.from_segments(segments, queries, num_threads=threads))

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

    @classmethod
    def _placed(cls, pixels: Bool, left: int, top: int, size: tuple[int, int]) -> PackedMasks:
        """One mask of a frame of `size` from a part of it, bool (h, w), that begins at left, top."""
        height, width = pixels.shape
        # Words begin at columns that 64 divides.
        first = left // 64 * 64
        frame = np.zeros((1, height, left - first + width), bool)
        frame[0, :, left - first :] = pixels
        part = cls.from_bool(frame)
        has_pixels = part.boxes[:, 2:3] > 0
        boxes = np.where(has_pixels, part.boxes + np.array([first, top, first, top], np.int32), np.int32(0))
        return cls._wrap(part.bits, part.offsets, boxes.astype(np.int32), size)

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
        return self._masks().decode(out=out, num_threads=threads)

    def crops(self) -> list[Bool]:
        """Each mask as bool (y2 - y1, x2 - x1), cropped to its box."""
        return self._masks().crops()

    def area(self) -> Int64:
        """int64 (N,), pixels of each mask."""
        return self._masks().area()

    def to_rle(self, *, num_threads: int | None = None) -> list[dict[str, Any]]:
        """COCO's compressed RLE of each mask, ``{"size": [H, W], "counts": bytes}``; pycocotools' bytes."""
        threads = check_threads("num_threads", num_threads)
        counts = self._masks().rle(num_threads=threads)
        return [{"size": list(self.size), "counts": text} for text in counts]

    def compact(self) -> PackedMasks:
        """A copy with bits of its own, dense and in order."""
        return PackedMasks._of(self._masks().compact())

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
