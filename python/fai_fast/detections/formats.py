"""Results as other libraries hold them, and back: COCO, supervision, polygons, JSON's types.

Each function is the method of the same name of :class:`fai_fast.Detections`, which says what it gives.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_bool, check_int, check_items
from fai_fast._coco import category_ids_of
from fai_fast._extras import install
from fai_fast.detections.arrays import _MAX_INT16, Int32, Int64, Segments, _segments
from fai_fast.detections.masks import _SegmentSource

if TYPE_CHECKING:
    from fai_fast.detections.result import Detections

# Our keys in a supervision.Detections, each with a value per row. All results have the same, and none has anything in
# `metadata`: supervision merges rows of frames, tiles and models, and refuses keys that differ and facts that conflict.
_SV_QUERY = "fai_fast_query"
_SV_SEMANTIC = "fai_fast_semantic"
_SV_KIND = "fai_fast_kind"
_THING, _STUFF, _NEITHER = 1, 0, -1
_SV_CLASS_NAME = "class_name"  # supervision's own


def to_polygons(detections: Detections) -> list[list[Int32]]:
    cv2 = _require("cv2", "to_polygons", "polygons")
    packed = detections._masks()
    polygons = []
    for crop, box in zip(packed.crops(), packed.boxes.tolist(), strict=True):
        contours: Sequence[Int32] = ()
        if crop.size:
            contours, _ = cv2.findContours(
                crop.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(box[0], box[1])
            )
        polygons.append([np.asarray(contour, np.int32).reshape(-1, 2) for contour in contours])
    return polygons


def to_dict(detections: Detections) -> dict[str, Any]:
    n = len(detections)
    columns: dict[str, Sequence[Any]] = {
        "xyxy": detections.xyxy.tolist(),
        "confidence": detections.confidence.tolist(),
        "class_id": detections.class_id.tolist(),
        "class_name": detections.class_name.tolist(),
        "query": detections.query.tolist(),
        "tracker_id": [None] * n if detections.tracker_id is None else detections.tracker_id.tolist(),
        "area": detections.area.tolist(),
        "mask": _json_rle(detections),
    }
    if detections.is_thing is not None:
        columns["is_thing"] = detections.is_thing.tolist()
    rows = zip(*columns.values(), strict=True)
    return {
        "size": list(detections.size),
        "class_names": None if detections.class_names is None else list(detections.class_names),
        "detections": [dict(zip(columns, row, strict=True)) for row in rows],
    }


def to_json(detections: Detections, indent: int | None) -> str:
    import json  # not with the package, whose import it would make longer

    return json.dumps(to_dict(detections), indent=indent, allow_nan=False)


def to_coco(
    detections: Detections, image_id: int | str, category_ids: Sequence[int] | Mapping[int, int] | None
) -> list[dict[str, Any]]:
    image_id = check_image_id(image_id)
    columns = zip(
        categories_of(detections, category_ids),
        detections.xyxy.tolist(),
        detections.confidence.tolist(),
        detections.area.tolist(),
        _json_rle(detections),
        strict=True,
    )
    annotations = []
    for category_id, (x1, y1, x2, y2), score, area, rle in columns:
        annotation = {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
            "area": area,
            "iscrowd": 0,
        }
        annotations.append(annotation if rle is None else {**annotation, "segmentation": rle})
    return annotations


def check_image_id(image_id: object) -> int | str:
    """A picture's id in a file of COCO's. Raises TypeError, ValueError."""
    if isinstance(image_id, str):
        return image_id
    try:
        return check_int("image_id", image_id)
    except TypeError as error:
        raise TypeError(f"{error} or a str") from None


def categories_of(
    detections: Detections, category_ids: Sequence[int] | Mapping[int, int] | None
) -> list[int]:
    """The category of each row."""
    class_ids: list[int] = detections.class_id.tolist()
    known: Mapping[int, int]
    if category_ids is None:
        ids = category_ids_of(detections.class_names)
        if ids is None:
            return class_ids
        known = dict(enumerate(ids))
    elif isinstance(category_ids, Mapping):
        known = {
            check_int("category_ids", key): check_int("category_ids", value)
            for key, value in category_ids.items()
        }
    else:
        items = check_items("category_ids", category_ids, "an id of each class, or a mapping from class ids")
        known = {class_id: check_int("category_ids", item) for class_id, item in enumerate(items)}
    for class_id in class_ids:
        if class_id not in known:
            raise ValueError(f"category_ids: got none for class {class_id}, expected an id of each class")
    return [known[class_id] for class_id in class_ids]


def _json_rle(detections: Detections) -> Sequence[dict[str, Any] | None]:
    if detections.packed is None:
        return [None] * len(detections)
    return [{**rle, "counts": rle["counts"].decode("ascii")} for rle in detections.to_rle()]


def to_supervision(detections: Detections, compact: bool = False) -> Any:
    supervision = _require("supervision", "to_supervision", "plot")
    mask: Any = None
    if check_bool("compact", compact) and detections.packed is not None:
        if not hasattr(supervision, "CompactMask"):
            raise ImportError(
                "compact: this supervision has no CompactMask: pip install --upgrade supervision"
            )
        # By the masks' own boxes, as an object's box may be a detector's and cut it.
        corners = detections.packed.boxes.astype(np.float32)
        mask = supervision.CompactMask.from_coco_rle(detections.to_rle(), corners, detections.size)
    else:
        mask = detections.mask
    return supervision.Detections(
        xyxy=detections.xyxy.copy(),
        mask=mask,
        confidence=detections.confidence.copy(),
        class_id=detections.class_id.copy(),
        tracker_id=None if detections.tracker_id is None else detections.tracker_id.copy(),
        data={
            _SV_CLASS_NAME: detections.class_name,
            _SV_QUERY: detections.query.copy(),
            _SV_SEMANTIC: np.full(len(detections), detections._source is not None),
            _SV_KIND: np.full(len(detections), _NEITHER, np.int8)
            if detections.is_thing is None
            else np.where(detections.is_thing, _THING, _STUFF).astype(np.int8),
        },
    )


def from_supervision(
    cls: type[Detections], detections: Any, size: Sequence[int] | None, class_names: Sequence[str] | None
) -> Detections:
    for name in ("xyxy", "mask", "confidence", "class_id", "tracker_id", "data"):
        if not hasattr(detections, name):
            raise TypeError(f"detections: got {type(detections).__name__}, expected supervision's")
    n = len(detections.xyxy)
    data = detections.data
    mask = None if detections.mask is None else np.asarray(detections.mask)
    if size is None and mask is not None:
        size = mask.shape[1:]
    if size is None:
        raise ValueError("size: got None, expected (height, width): there are no masks to tell it")
    class_id = np.full(n, -1) if detections.class_id is None else detections.class_id
    if class_names is None:
        class_names = _names_of_rows(class_id, data.get(_SV_CLASS_NAME, ()))
    kinds = np.asarray(data.get(_SV_KIND, ()))
    self = cls(
        xyxy=detections.xyxy,
        confidence=np.ones(n, np.float32) if detections.confidence is None else detections.confidence,
        class_id=class_id,
        size=size,
        query=data.get(_SV_QUERY),
        class_names=class_names,
        tracker_id=detections.tracker_id,
        mask=mask,
        is_thing=kinds == _THING if n and len(kinds) == n and (kinds != _NEITHER).all() else None,
    )
    if mask is not None and n and np.all(data.get(_SV_SEMANTIC, False)):
        segments = _joined(mask, self.query)
        if segments is not None:
            source = _SegmentSource(_segments(segments, self.query, self.class_id, self.size), self.query)
            self._set(_source=source, _source_rows=np.arange(n))
    return self


def _joined(mask: npt.NDArray[np.bool_], query: Int64) -> Segments | None:
    """The query of each pixel; None where masks overlap, or are of the same query or none: no label map then."""
    if len(np.unique(query)) < len(query) or query.min() < 0 or query.max() >= np.iinfo(np.uint16).max:
        return None
    dtype = np.uint8 if query.max() < np.iinfo(np.uint8).max else np.uint16
    segments: Segments = np.full(mask.shape[1:], np.iinfo(dtype).max, dtype)
    taken = np.zeros(mask.shape[1:], bool)
    for row, value in zip(mask, query.tolist(), strict=True):
        if (taken & row).any():
            return None
        taken |= row
        segments[row] = value
    return segments


def _require(module: str, method: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        text = f"{method} needs {module.partition('.')[0]}: {install(extra)}"
        raise ImportError(text) from error


def _names_of_rows(class_id: npt.NDArray[Any], names: Sequence[Any]) -> list[str] | None:
    """Class names, as far as rows tell them; the number of a class that no row, or more than one name, is of."""
    known: dict[int, set[str]] = {}
    for i, name in zip(class_id, names, strict=False):
        # A class without a name was called by its number.
        if 0 <= i <= _MAX_INT16 and str(name) != str(i):
            known.setdefault(int(i), set()).add(str(name))
    if not known:
        return None
    return [found.pop() if len(found := known.get(i, set())) == 1 else str(i) for i in range(max(known) + 1)]
