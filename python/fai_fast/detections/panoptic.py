"""Panoptic results as COCO's files have them, and back: a PNG of segments' ids, and a record of what each segment is.

Each function is the method of the same name of :class:`fai_fast.Detections`, which says what it gives. Source of the
format: https://cocodataset.org/#format-data, "panoptic segmentation". An id is R + 256 G + 65536 B; 0 is no segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_bool, check_fraction, check_int, check_items, check_names
from fai_fast.detections import formats, labels
from fai_fast.detections.arrays import Bool, Int32, Int64
from fai_fast.detections.masks import PackedMasks
from fai_fast.detections.png import read_rgb_png, rgb_png

if TYPE_CHECKING:
    from fai_fast.detections.result import Detections

__all__ = ["check_id", "image_of_ids", "read_ids"]

MOST_IDS = 1 << 24
"""Ids are less than this: three bytes of a pixel."""
# A segment's label in 16 bits; the largest value is nobody's.
_MOST_SEGMENTS = np.iinfo(np.uint16).max


def segment_map(detections: Detections) -> Int32:
    source = detections._source
    if source is None:
        rows: Int32 = labels.to_label_image(detections, "row").astype(np.int32)
        return rows
    ids = np.zeros(np.iinfo(source.segments.dtype).max + 1, np.int32)
    # Of a row that was selected twice the first has the pixels.
    ids[detections.query[::-1]] = np.arange(len(detections), 0, -1)
    return ids[source.segments]


def panoptic_png(detections: Detections) -> bytes:
    _things(detections, "panoptic_png")
    return rgb_png(image_of_ids(segment_map(detections)))


def to_coco_panoptic(
    detections: Detections,
    image_id: int | str,
    file_name: str | None,
    category_ids: Sequence[int] | Mapping[int, int] | None,
) -> dict[str, Any]:
    things = _things(detections, "to_coco_panoptic")
    image_id = formats.check_image_id(image_id)
    if file_name is not None and not isinstance(file_name, str):
        raise TypeError(f"file_name: got {type(file_name).__name__}, expected a str or None")
    ids = segment_map(detections)
    n = len(detections)
    packed = PackedMasks.from_segments(ids.astype(np.uint16), np.arange(1, n + 1))
    columns = zip(
        formats.categories_of(detections, category_ids),
        things.tolist(),
        packed.area().tolist(),
        packed.boxes.tolist(),
        detections.confidence.tolist(),
        strict=True,
    )
    segments = [
        {
            "id": i,
            "category_id": category_id,
            "isthing": int(is_thing),
            "area": area,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": 0,
            "score": score,
        }
        for i, (category_id, is_thing, area, (x1, y1, x2, y2), score) in enumerate(columns, 1)
        # Readers expect every segment to have pixels.
        if area
    ]
    name = f"{image_id}.png" if file_name is None else file_name
    return {"image_id": image_id, "file_name": name, "segments_info": segments}


def from_coco_panoptic(
    cls: type[Detections],
    annotation: object,
    png: object,
    class_names: Sequence[str] | None,
    category_ids: Sequence[int] | Mapping[int, int] | None,
    stuff: Sequence[int] | None,
    max_pixels: int,
) -> Detections:
    names = check_names("class_names", class_names)
    record = labels._object(annotation, "annotation")
    classes = labels._class_of_category(names, category_ids)
    stuffs = None
    if stuff is not None:
        stuffs = {check_int("stuff", item) for item in check_items("stuff", stuff, "a sequence of class ids")}
    segments = labels._list(record.get("segments_info"), "segments_info", _MOST_SEGMENTS - 1)
    ids, class_ids, things, scores = [], [], [], []
    for i, item in enumerate(segments):
        name = f"segments_info[{i}]"
        segment = labels._object(item, name)
        ids.append(check_id(f"{name}.id", segment.get("id")))
        category = check_int(f"{name}.category_id", segment.get("category_id"))
        if classes is not None and category not in classes:
            raise ValueError(f"{name}.category_id: got {category}, expected one of category_ids")
        class_ids.append(category if classes is None else classes[category])
        things.append(_is_thing(segment, class_ids[-1], stuffs, name))
        scores.append(check_fraction(f"{name}.score", segment.get("score", 1.0)))
    if not isinstance(png, (bytes, bytearray)):
        raise TypeError(f"png: got {type(png).__name__}, expected the bytes of a PNG")
    image = read_ids(bytes(png), "png", max_pixels=max_pixels)
    rows = rows_of_ids(image, np.array(ids, np.int64), "png", "segments_info")
    nobody = len(ids)
    dtype = np.uint8 if nobody <= np.iinfo(np.uint8).max else np.uint16
    source: npt.NDArray[Any] = np.where(rows == nobody, np.iinfo(dtype).max, rows).astype(dtype)
    packed = PackedMasks.from_segments(source, np.arange(nobody))
    return cls(
        xyxy=packed.boxes,
        confidence=scores,
        class_id=class_ids,
        query=np.arange(nobody),
        size=image.shape,
        class_names=names,
        is_thing=things,
        label_source=source,
    )


def image_of_ids(ids: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, 3), the pixels of the format's PNG, of ids (H, W)."""
    little = np.ascontiguousarray(ids, "<u4")
    return np.ascontiguousarray(little.view(np.uint8).reshape(*ids.shape, 4)[..., :3])


def read_ids(
    content: bytes, name: str, expected: tuple[int, int] | None = None, max_pixels: int = 1 << 28
) -> Int32:
    """int32 (H, W), the ids in a PNG of the format. Arguments and errors as of :func:`read_rgb_png`."""
    pixels = read_rgb_png(content, name, expected, max_pixels)
    ids = pixels[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= pixels[..., channel]
    return ids


def rows_of_ids(image: npt.NDArray[np.integer[Any]], ids: Int64, png: str, record: str) -> Int64:
    """The place (H, W) among `ids` of each pixel's id, and their number where it is 0.

    Raises:
        ValueError: an id is there twice, or in only one of the two; the text calls them `png` and `record`.
    """
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    if (twice := ordered[1:][ordered[1:] == ordered[:-1]]).size:
        raise ValueError(f"{record}: got id {twice[0]} more than once, expected each once")
    # Of each run of equal pixels in a row after the other the first one: there are few, and as many as can be unlike.
    flat = image.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    found, inverse = np.unique(flat[starts], return_inverse=True)
    at = np.minimum(np.searchsorted(ordered, found), max(len(ids) - 1, 0))
    known = ordered[at] == found if len(ids) else np.zeros(len(found), bool)
    if (unknown := found[~known & (found != 0)]).size:
        raise ValueError(
            f"{png}: got pixels of id {unknown[0]} (R + 256 G + 65536 B), which {record} does not list"
        )
    if (lacking := np.setdiff1d(ordered, found)).size:
        raise ValueError(f"{record}: got id {lacking[0]}, which no pixel of {png} has")
    places = np.where(known, order[at] if len(ids) else 0, len(ids))
    rows: Int64 = np.repeat(places[inverse], np.diff(starts, append=flat.size)).reshape(image.shape)
    return rows


def check_id(name: str, value: object) -> int:
    """`value` as a segment's id. Raises TypeError, ValueError."""
    number = check_int(name, value)
    if not 1 <= number < MOST_IDS:
        raise ValueError(f"{name}: got {number}, expected 1 to {MOST_IDS - 1}")
    return number


def _is_thing(segment: Mapping[str, Any], class_id: int, stuff: set[int] | None, name: str) -> bool:
    if stuff is not None:
        return class_id not in stuff
    said = segment.get("isthing")
    if said is None:
        raise ValueError(
            f"{name}.isthing: missing, expected 0 or 1, or stuff=, the ids of the classes that are stuff"
        )
    if isinstance(said, bool):
        return check_bool(f"{name}.isthing", said)
    if check_int(f"{name}.isthing", said) not in (0, 1):
        raise ValueError(f"{name}.isthing: got {said}, expected 0 or 1")
    return bool(said)


def _things(detections: Detections, method: str) -> Bool:
    if detections.is_thing is None:
        raise ValueError(f"{method}: got a result that is not panoptic, expected one with is_thing")
    return detections.is_thing
