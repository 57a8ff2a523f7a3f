"""The JSON of FocoosAI's library, ``FocoosDetections``, made of results and read back.

Each function is the method of the same name of :class:`fai_fast.Detections`, which says what it gives.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fai_fast._arguments import MAX_SIDE, check_int, check_names, check_number, check_size
from fai_fast._foreign import explained
from fai_fast.detections.arrays import Bool, Int64
from fai_fast.detections.formats import _require
from fai_fast.detections.masks import PackedMasks

if TYPE_CHECKING:
    from fai_fast.detections.result import Detections, Latency

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Rows of a file, and bytes of its text: far above those of any frame.
_MOST_ROWS = 1 << 16
_MOST_BYTES = 1 << 28


def to_focoos(detections: Detections) -> dict[str, Any]:
    boxes = _pixel_boxes(detections)
    texts: list[str | None] = [None] * len(detections)
    if (packed := detections.packed) is not None:
        pixels = packed.boxes[:, 2] > 0
        boxes[pixels] = packed.boxes[pixels]
        for i, (lines, (x1, y1, x2, y2)) in enumerate(
            zip(packed._masks().scanlines(), boxes.tolist(), strict=True)
        ):
            width, height = x2 - x1, y2 - y1
            content = _png(lines or bytes(height * (1 + (width + 7) // 8)), width, height)
            texts[i] = base64.b64encode(content).decode("ascii")
    columns: dict[str, Sequence[Any]] = {
        "bbox": (boxes - [0, 0, 1, 1]).tolist(),
        "conf": detections.confidence.tolist(),
        "cls_id": detections.class_id.tolist(),
        "label": detections.class_name.tolist(),
        "mask": texts,
    }
    if detections.tracker_id is not None:
        columns["tracker_id"] = detections.tracker_id.tolist()
    latency = detections.latency
    seconds = None
    if latency is not None:
        seconds = {
            "inference": latency.engine / 1e3,
            "preprocess": (latency.decode + latency.preprocess) / 1e3,
            "postprocess": latency.postprocess / 1e3,
        }
    rows = zip(*columns.values(), strict=True)
    return {"detections": [dict(zip(columns, row, strict=True)) for row in rows], "latency": seconds}


def _pixel_boxes(detections: Detections) -> Int64:
    """The pixels that each xyxy touches, at least one and inside the frame, as half-open edges."""
    last = np.array([detections.size[1], detections.size[0]]) - 1
    first = np.clip(np.floor(detections.xyxy[:, :2]), 0, last)
    end = np.clip(np.ceil(detections.xyxy[:, 2:]), first + 1, last + 1)
    return np.concatenate([first, end], axis=1).astype(np.int64)


def _png(lines: bytes, width: int, height: int) -> bytes:
    """A PNG of one bit a pixel; `lines` are its rows, each after the number of its filter."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    # Most bytes of a smooth mask's lines are zero. To look for nothing but runs is the fastest, and the smallest too.
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    data = deflate.compress(lines) + deflate.flush()
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in chunks
    )


# ------------------------------------------------------------------------------------------------------ back


class _FocoosRow(NamedTuple):
    box: tuple[int, int, int, int]  # half-open
    confidence: float
    class_id: int
    label: str | None
    tracker_id: int | None
    mask: _Mask | None


class _Mask(NamedTuple):
    left: int
    top: int
    pixels: Bool


def from_focoos(
    cls: type[Detections],
    source: object,
    latency_of: type[Latency],
    size: Sequence[int] | None,
    class_names: Sequence[str] | None,
) -> Detections:
    document = _document(source)
    frame = None if size is None else check_size("size", size)
    names = check_names("class_names", class_names)
    items = document.get("detections")
    if not isinstance(items, (list, tuple)):
        raise TypeError(f"detections: got {type(items).__name__}, expected a list of detections")
    if len(items) > _MOST_ROWS:
        raise ValueError(f"detections: got {len(items)}, expected at most {_MOST_ROWS}")
    latency = _latency(document.get("latency"), latency_of)
    rows = []
    pixels = 0
    for i, item in enumerate(items):
        row = _row(_fields(item, f"detections[{i}]"), f"detections[{i}]", frame, _MOST_BYTES - pixels)
        pixels += 0 if row.mask is None else row.mask.pixels.size
        rows.append(row)
    with_masks = sum(row.mask is not None for row in rows)
    if 0 < with_masks < len(rows):
        raise ValueError(f"mask: got {with_masks} in {len(rows)} detections, expected one in all or in none")
    if frame is None:
        # The least frame that they lie in.
        frame = (max((row.box[3] for row in rows), default=1), max((row.box[2] for row in rows), default=1))
    trackers = [row.tracker_id for row in rows if row.tracker_id is not None]
    if 0 < len(trackers) < len(rows):
        raise ValueError("tracker_id: got some detections without one, expected one in all or in none")
    result = cls(
        xyxy=np.array([row.box for row in rows], np.float32).reshape(-1, 4),
        confidence=[row.confidence for row in rows],
        class_id=[row.class_id for row in rows],
        size=frame,
        class_names=_names(rows) if names is None else names,
        tracker_id=trackers or None,
        packed=_packed(rows, frame) if with_masks else None,
    )
    return result if latency is None else result._with_latency(latency)


def _document(source: object) -> Mapping[str, Any]:
    """The object in a text of JSON, in a dict, or in an instance of FocoosAI's class (pydantic's)."""
    if isinstance(source, (str, bytes, bytearray)):
        if len(source) > 4 * _MOST_BYTES:
            raise ValueError(f"source: got {len(source)} characters, expected at most {4 * _MOST_BYTES}")
        try:
            source = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"source: got a text that is not JSON: {error}") from None
    return _fields(source, "source")


def _fields(value: object, name: str) -> Mapping[str, Any]:
    dump = getattr(value, "model_dump", None)
    if not isinstance(value, Mapping) and callable(dump):
        value = dump()
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name}: got {type(value).__name__}, expected an object as FocoosAI's library writes it"
        )
    return value


def _latency(value: object, latency_of: type[Latency]) -> Latency | None:
    if value is None:
        return None
    stages = _fields(value, "latency")
    seconds = []
    for name in ("preprocess", "inference", "postprocess"):
        stage = stages.get(name)
        seconds.append(0.0 if stage is None else check_number(f"latency.{name}", stage))
    return latency_of(0.0, *(1e3 * stage for stage in seconds))


def _row(item: Mapping[str, Any], name: str, frame: tuple[int, int] | None, budget: int) -> _FocoosRow:
    corners = item.get("bbox")
    if not isinstance(corners, (list, tuple)) or len(corners) != 4:
        raise TypeError(f"{name}.bbox: got {_short(corners)}, expected [x1, y1, x2, y2]")
    # Older versions wrote floats.
    x1, y1, x2, y2 = (int(check_number(f"{name}.bbox", corner)) for corner in corners)
    height, width = (MAX_SIDE, MAX_SIDE) if frame is None else frame
    if not (0 <= x1 <= x2 < width and 0 <= y1 <= y2 < height):
        raise ValueError(
            f"{name}.bbox: got [{x1}, {y1}, {x2}, {y2}], expected corners in a frame of {height} x {width} (their last "
            "pixel included)"
        )
    confidence, class_id = item.get("conf"), item.get("cls_id")
    label, text, tracker = item.get("label"), item.get("mask"), item.get("tracker_id")
    if label is not None and not isinstance(label, str):
        raise TypeError(f"{name}.label: got {type(label).__name__}, expected a str or null")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{name}.mask: got {type(text).__name__}, expected a base64 PNG or null")
    box = (x1, y1, x2 + 1, y2 + 1)
    return _FocoosRow(
        box,
        1.0 if confidence is None else check_number(f"{name}.conf", confidence),
        -1 if class_id is None else check_int(f"{name}.cls_id", class_id),
        label,
        None if tracker is None else check_int(f"{name}.tracker_id", tracker),
        _mask(text, f"{name}.mask", box, (height, width), budget) if text else None,
    )


def _mask(text: str, name: str, box: tuple[int, int, int, int], frame: tuple[int, int], budget: int) -> _Mask:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: got a text that is not base64: {error}") from None
    # The size is known before anything is unpacked.
    if len(content) < 33 or not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR":
        raise ValueError(f"{name}: got {len(content)} bytes that are not a PNG")
    width, height = struct.unpack(">II", content[16:24])
    left = _start(box[0], box[2], width)
    top = _start(box[1], box[3], height)
    if left is None or top is None or left + width > frame[1] or top + height > frame[0]:
        raise ValueError(
            f"{name}: got a PNG of {height} x {width} pixels, expected {box[3] - box[1]} x {box[2] - box[0]}, its bbox"
        )
    if height * width > budget:
        raise ValueError(f"{name}: got more than {_MOST_BYTES} pixels with those before, expected fewer")
    image = _require("PIL.Image", "from_focoos", "focoos")
    try:
        with image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            one_bit = picture.mode == "1"
            pixels = np.asarray(picture) if one_bit else np.asarray(picture.convert("L")) > 0
    except Exception as error:
        if not (explained(error, "PIL", "zlib", "struct") or isinstance(error, image.DecompressionBombError)):
            raise
        raise ValueError(f"{name}: got a damaged PNG: {error}") from None
    return _Mask(left, top, pixels)


def _start(first: int, end: int, length: int) -> int | None:
    """Where a mask's `length` pixels begin, on one axis of a box of pixels first to end - 1; None where they cannot.

    What :meth:`to_focoos` writes is the box's own pixels. FocoosAI's library leaves out the last one, and some of its
    versions add one before the box and one or two after it, as far as the frame goes.
    """
    extent = end - first
    if length in (extent, max(extent - 1, 1)):
        return first
    return max(first - 1, 0) if length in (extent + 1, extent + 2) else None


def _packed(rows: Sequence[_FocoosRow], size: tuple[int, int]) -> PackedMasks:
    parts = []
    for row in rows:
        assert row.mask is not None
        parts.append(PackedMasks._placed(row.mask.pixels, row.mask.left, row.mask.top, size))
    return PackedMasks.concatenate(parts)


def _names(rows: Sequence[_FocoosRow]) -> list[str] | None:
    """The names of classes as far as rows tell them; the number of one that no row is of."""
    known: dict[int, str] = {}
    for i, row in enumerate(rows):
        if row.label is None or not 0 <= row.class_id <= MAX_SIDE or row.label == str(row.class_id):
            continue
        if known.setdefault(row.class_id, row.label) != row.label:
            raise ValueError(
                f"detections[{i}].label: got {row.label!r} for class {row.class_id}, which is "
                f"{known[row.class_id]!r} in others"
            )
    return [known.get(i, str(i)) for i in range(max(known) + 1)] if known else None


def _short(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, (list, tuple)) else type(value).__name__
