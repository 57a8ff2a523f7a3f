"""Results as files of labeling tools and trainers hold them, and back: COCO, YOLO, LabelMe, label images, CSV, JSON.

Each function is the method of the same name of :class:`fai_fast.Detections`, which says what it gives. What is read is
checked field by field, and nothing is unpacked before its size is known to fit.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_bool, check_choice, check_int, check_names, check_number, check_size
from fai_fast._coco import category_ids_of
from fai_fast.detections import formats
from fai_fast.detections.arrays import Int32
from fai_fast.detections.masks import PackedMasks
from fai_fast.detections.png import gray_png, read_gray_png

if TYPE_CHECKING:
    from fai_fast.detections.result import Detections

_MOST_ROWS = 1 << 16
COLUMNS = (
    "file", "time", "row", "class_id", "class_name", "confidence", "x1", "y1", "x2", "y2", "area", "tracker_id", "rle",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- JSON, COCO


def from_dict(cls: type[Detections], content: object) -> Detections:
    fields = _object(content, "content")
    size = check_size("size", fields.get("size"))
    rows = [
        _object(row, f"detections[{i}]")
        for i, row in enumerate(_list(fields.get("detections"), "detections"))
    ]
    masks = [
        None if row.get("mask") is None else _rle_mask(row["mask"], size, f"detections[{i}].mask")
        for i, row in enumerate(rows)
    ]
    return cls(
        xyxy=_columns(rows, "xyxy", 4),
        confidence=_column(rows, "confidence"),
        class_id=_column(rows, "class_id"),
        query=_column(rows, "query", -1),
        size=size,
        class_names=check_names("class_names", fields.get("class_names")),
        tracker_id=_trackers([row.get("tracker_id") for row in rows]),
        is_thing=_things([row.get("is_thing") for row in rows]),
        packed=_packed(masks),
    )


def from_coco(
    cls: type[Detections],
    annotations: object,
    size: Sequence[int],
    class_names: Sequence[str] | None,
    category_ids: Sequence[int] | Mapping[int, int] | None,
) -> Detections:
    frame = check_size("size", size)
    names = check_names("class_names", class_names)
    classes = _class_of_category(names, category_ids)
    boxes, scores, class_ids, masks = [], [], [], []
    for i, item in enumerate(_list(annotations, "annotations")):
        name = f"annotations[{i}]"
        row = _object(item, name)
        x, y, width, height = _numbers(row.get("bbox"), f"{name}.bbox", 4)
        boxes.append([x, y, x + width, y + height])
        scores.append(check_number(f"{name}.score", row.get("score", 1.0)))
        category = check_int(f"{name}.category_id", row.get("category_id"))
        if classes is not None and category not in classes:
            raise ValueError(f"{name}.category_id: got {category}, expected one of category_ids")
        class_ids.append(category if classes is None else classes[category])
        masks.append(_segmentation(row.get("segmentation"), frame, f"{name}.segmentation"))
    return cls(
        xyxy=np.array(boxes, np.float64).reshape(-1, 4),
        confidence=scores,
        class_id=class_ids,
        size=frame,
        class_names=names,
        packed=_packed(masks),
    )


def _class_of_category(
    names: tuple[str, ...] | None, category_ids: Sequence[int] | Mapping[int, int] | None
) -> dict[int, int] | None:
    ids = category_ids_of(names) if category_ids is None else category_ids
    if ids is None:
        return None
    pairs = ids.items() if isinstance(ids, Mapping) else enumerate(ids)
    return {check_int("category_ids", category): check_int("category_ids", key) for key, category in pairs}


def _segmentation(value: object, size: tuple[int, int], name: str) -> PackedMasks | None:
    """A mask of run lengths or of polygons; None where there is none."""
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return None
    if isinstance(value, Mapping):
        return _rle_mask(value, size, name)
    parts = []
    for part in _list(value, name):
        flat = _numbers(part, name, None)
        if len(flat) < 6 or len(flat) % 2:
            raise ValueError(f"{name}: got {len(flat)} numbers, expected x and y of three corners or more")
        parts.append(np.reshape(flat, (-1, 2)))
    return _filled(parts, size)


def _rle_mask(value: object, size: tuple[int, int], name: str) -> PackedMasks:
    """The mask of COCO's run lengths, compressed (str or bytes) or as a list of numbers."""
    fields = _object(value, name)
    sides = fields.get("size")
    if not isinstance(sides, (list, tuple)) or list(sides) != list(size):
        raise ValueError(f"{name}.size: got {sides!s:.60}, expected {list(size)}, the frame's")
    counts = fields.get("counts")
    if isinstance(counts, (str, bytes)):
        if isinstance(counts, str) and not counts.isascii():
            raise ValueError(f"{name}.counts: got a text that is not COCO's compressed run lengths")
        runs = _uncompressed(counts.encode("ascii") if isinstance(counts, str) else counts, name)
    else:
        numbers = _list(counts, f"{name}.counts", 2 * size[0] * size[1] + 2)
        runs = np.array([check_int(f"{name}.counts", item) for item in numbers], np.int64)
    if (runs < 0).any() or runs.sum() != size[0] * size[1] or (runs > size[0] * size[1]).any():
        raise ValueError(f"{name}.counts: got runs of another number of pixels, expected {size[0] * size[1]}")
    # Runs go down the columns; those on both sides of the mask need not be unpacked.
    ends = np.cumsum(runs)
    inside = np.flatnonzero((np.arange(len(runs)) % 2 == 1) & (runs > 0))
    if not len(inside):
        return PackedMasks._placed(np.zeros((1, 1), bool), 0, 0, size)
    begin, end = ends[inside[0]] - runs[inside[0]], ends[inside[-1]]
    left, right = begin // size[0], -(-end // size[0])
    edges = np.clip(np.concatenate([[0], ends]), left * size[0], right * size[0])
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(edges))
    return PackedMasks._placed(pixels.reshape(right - left, size[0]).T, int(left), 0, size)


def _uncompressed(text: bytes, name: str) -> npt.NDArray[np.int64]:
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if ((digits < 0) | (digits > 63)).any() or (len(digits) and digits[-1] & 32):
        raise ValueError(f"{name}.counts: got a text that is not COCO's compressed run lengths")
    ends = np.flatnonzero((digits & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    if (ends - starts > 8).any():
        raise ValueError(f"{name}.counts: got a run of more than 2**40 pixels")
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    sums = np.zeros(len(ends), np.int64)
    np.add.at(sums, np.repeat(np.arange(len(ends)), ends - starts + 1), (digits & 31) << (5 * place))
    # The highest digit has the sign.
    sums -= np.where(digits[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    # Each run but the first three is written as its difference to the run before last.
    sums[1::2] = np.cumsum(sums[1::2])
    sums[2::2] = np.cumsum(sums[2::2])
    return sums


# ---------------------------------------------------------------------------------------------------- polygons


def to_yolo(detections: Detections, confidence: bool) -> str:
    height, width = detections.size
    if len(detections) and detections.class_id.min() < 0:
        raise ValueError(
            "class_id: got rows of class -1, expected classes of 0 or more in YOLO's label files"
        )
    parts = None if detections.packed is None else formats.to_polygons(detections)
    lines = []
    for i, row in enumerate(detections.rows()):
        if parts is None:
            x1, y1, x2, y2 = row.xyxy
            numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        else:
            outline = _joined(parts[i])
            if len(outline) < 3:
                continue
            # A pixel's corner is that of its square; its center is half a pixel further.
            numbers = ((outline + 0.5) / [width, height]).clip(0, 1).ravel().tolist()
        score = f" {row.confidence:.6g}" if confidence else ""
        lines.append(f"{row.class_id} " + " ".join(f"{number:.6f}" for number in numbers) + score)
    return "".join(f"{line}\n" for line in lines)


def _joined(parts: Sequence[Int32]) -> Int32:
    """The parts of a mask as one outline, which walks from one to the next and back."""
    if not parts:
        return np.zeros((0, 2), np.int32)
    largest = sorted(parts, key=len, reverse=True)
    path = list(largest)
    back = [part[:1] for part in largest[-2::-1]]
    return (
        np.concatenate([np.concatenate([part, part[:1]]) for part in path] + back)
        if len(path) > 1
        else path[0]
    )


def from_yolo(
    cls: type[Detections], text: str, size: Sequence[int], class_names: Sequence[str] | None
) -> Detections:
    height, width = frame = check_size("size", size)
    if not isinstance(text, str):
        raise TypeError(f"text: got {type(text).__name__}, expected the text of a label file")
    boxes: list[list[float]] = []
    masks: list[PackedMasks | None] = []
    class_ids, scores = [], []
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) > _MOST_ROWS:
        raise ValueError(f"text: got {len(lines)} lines, expected at most {_MOST_ROWS}")
    for number, words in enumerate(lines, 1):
        try:
            class_id, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError as error:
            raise ValueError(f"text: line {number} has what is not a number: {error}") from None
        if not np.isfinite(values).all():
            raise ValueError(f"text: line {number} has NaN or infinity, expected numbers of 0 to 1")
        polygon = len(values) >= 6
        # With a score, a box has five numbers, and an outline an odd number of them.
        scored = len(values) % 2 == 1
        if len(values) not in (4, 5) and not polygon:
            raise ValueError(
                f"text: line {number} has {len(values)} numbers after the class, expected a box (4), or x and y of "
                "three corners or more, and a score after them or none"
            )
        scores.append(values.pop() if scored else 1.0)
        class_ids.append(class_id)
        if polygon:
            corners = np.reshape(values, (-1, 2)) * [width, height]
            mask = _filled([corners - 0.5], frame)
            masks.append(mask)
            boxes.append(_box_of(mask, corners))
        else:
            x, y, w, h = values
            masks.append(None)
            boxes.append(
                [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            )
    return cls(
        xyxy=np.array(boxes, np.float64).reshape(-1, 4),
        confidence=scores,
        class_id=class_ids,
        size=frame,
        class_names=class_names,
        packed=_packed(masks),
    )


def to_labelme(detections: Detections, image_path: str, exact: bool) -> dict[str, Any]:
    shapes: list[dict[str, Any]] = []
    parts = None if detections.packed is None or exact else formats.to_polygons(detections)
    for i, row in enumerate(detections.rows()):
        base = {
            "label": row.class_name,
            "group_id": i if row.tracker_id is None else row.tracker_id,
            "description": f"{row.confidence:.6g}",
            "flags": {},
        }
        if detections.packed is None:
            x1, y1, x2, y2 = row.xyxy
            shapes.append({**base, "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle", "mask": None})
        elif parts is None:
            x1, y1, x2, y2 = (int(edge) for edge in detections.packed.boxes[i])
            if x2 > x1:
                content = base64.b64encode(gray_png(row.crop.astype(np.uint8) * np.uint8(255))).decode()
                corners = [[x1, y1], [x2 - 1, y2 - 1]]
                shapes.append({**base, "points": corners, "shape_type": "mask", "mask": content})
        else:
            for part in parts[i]:
                # Three corners at least; a single pixel has one.
                points = part[[0, 0, 0]] if len(part) == 1 else part[[0, 1, 0]] if len(part) == 2 else part
                shapes.append({**base, "points": points.tolist(), "shape_type": "polygon", "mask": None})
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": detections.size[0],
        "imageWidth": detections.size[1],
    }


def from_labelme(cls: type[Detections], content: object, class_names: Sequence[str] | None) -> Detections:
    fields = _object(content, "content")
    size = check_size("imageHeight, imageWidth", [fields.get("imageHeight"), fields.get("imageWidth")])
    names = None if class_names is None else list(check_names("class_names", class_names) or ())
    labels: list[str] = []
    rows: dict[Any, tuple[str, list[PackedMasks], list[list[float]], float]] = {}
    for i, item in enumerate(_list(fields.get("shapes"), "shapes")):
        name = f"shapes[{i}]"
        shape = _object(item, name)
        label = shape.get("label")
        if not isinstance(label, str):
            raise TypeError(f"{name}.label: got {type(label).__name__}, expected a str")
        points = np.array(
            [_numbers(point, f"{name}.points", 2) for point in _list(shape.get("points"), f"{name}.points")]
        ).reshape(-1, 2)
        kind = shape.get("shape_type", "polygon")
        masks: list[PackedMasks] = []
        if kind == "polygon" and len(points) >= 3:
            masks = [_filled([points], size)]
            box = _box_of(masks[0], points)
        elif kind == "mask" and len(points) == 2:
            masks = [_labelme_mask(shape.get("mask"), points, size, f"{name}.mask")]
            box = _box_of(masks[0], points)
        elif kind == "rectangle" and len(points) == 2:
            box = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
        else:
            raise ValueError(
                f"{name}: got shape_type {kind!r:.40} of {len(points)} points, expected a polygon, rectangle or mask"
            )
        group = shape.get("group_id")
        key = (label, group) if isinstance(group, int) else (label, None, i)
        known = rows.setdefault(key, (label, [], [], _score(shape.get("description"))))
        known[1].extend(masks)
        known[2].append(box)
        if label not in labels:
            labels.append(label)
    if names is None:
        names = labels
    elif unknown := [label for label in labels if label not in names]:
        raise ValueError(f"shapes: got label {unknown[0]!r}, expected one of class_names")
    found = list(rows.values())
    corners = [np.concatenate([np.min(b, axis=0)[:2], np.max(b, axis=0)[2:]]) for _, _, b, _ in found]
    return cls(
        xyxy=np.array(corners).reshape(-1, 4),
        confidence=[score for *_, score in found],
        class_id=[names.index(label) for label, *_ in found],
        size=size,
        class_names=names or None,
        packed=_packed([_united(m) if m else None for _, m, _, _ in found]),
    )


def _score(text: object) -> float:
    """The score that :func:`to_labelme` puts into a description; 1 where somebody wrote something else."""
    try:
        score = float(text) if isinstance(text, str) else 1.0
    except ValueError:
        return 1.0
    return score if 0 <= score <= 1 else 1.0


def _labelme_mask(text: object, points: npt.NDArray[Any], size: tuple[int, int], name: str) -> PackedMasks:
    if not isinstance(text, str):
        raise TypeError(f"{name}: got {type(text).__name__}, expected a base64 PNG")
    x1, y1 = (int(edge) for edge in points[0])
    x2, y2 = (int(edge) for edge in points[1])
    if not (0 <= x1 <= x2 < size[1] and 0 <= y1 <= y2 < size[0]):
        raise ValueError(f"{name}: got corners outside the picture of {size[0]} x {size[1]}")
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"{name}: got a text that is not base64: {error}") from None
    pixels = read_gray_png(content, name, (y2 - y1 + 1, x2 - x1 + 1))
    return PackedMasks._placed(pixels > 0, x1, y1, size)


def _united(masks: Sequence[PackedMasks]) -> PackedMasks:
    """The pixels of any of some masks, each alone in its PackedMasks, as one mask."""
    present = [mask for mask in masks if mask.boxes[0, 2] > 0]
    if len(present) < 2:
        return (present or masks)[0]
    boxes = np.concatenate([mask.boxes for mask in present])
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    pixels = np.zeros((bottom - top, right - left), bool)
    for mask, (x1, y1, x2, y2) in zip(present, boxes.tolist(), strict=True):
        pixels[y1 - top : y2 - top, x1 - left : x2 - left] |= mask.crops()[0]
    return PackedMasks._placed(pixels, left, top, present[0].size)


def _box_of(mask: PackedMasks, corners: npt.NDArray[Any]) -> list[float]:
    """The tight box of a mask; where it has no pixels, that of its corners."""
    box = mask.boxes[0]
    if box[2] > 0:
        return [float(edge) for edge in box]
    return [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]


def _filled(parts: Sequence[npt.NDArray[Any]], size: tuple[int, int]) -> PackedMasks:
    """The pixels whose centers are inside outlines, and those on them."""
    cv2 = formats._require("cv2", "polygons", "polygons")
    limit = 4 * max(size)
    outlines = [np.rint(np.clip(part, -limit, limit)).astype(np.int32) for part in parts]
    corners = np.concatenate(outlines)
    # Nothing is drawn beyond the corners: a picture with many small outlines is not drawn anew for each.
    first = np.clip(corners.min(axis=0), 0, [size[1] - 1, size[0] - 1])
    width, height = np.clip(corners.max(axis=0) + 1, first + 1, [size[1], size[0]]) - first
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [(outline - first).astype(np.int32).reshape(-1, 1, 2) for outline in outlines], 1)
    return PackedMasks._placed(mask.view(np.bool_), int(first[0]), int(first[1]), size)


# ------------------------------------------------------------------------------------------------ label images


def to_label_image(detections: Detections, values: str) -> npt.NDArray[Any]:
    check_choice("values", values, ("class", "row"))
    n = len(detections)
    of_class = values == "class"
    numbers = detections.class_id if of_class else np.arange(n) + 1
    if of_class and n and numbers.min() < 0:
        raise ValueError("values: got 'class' for rows of class -1, expected classes of 0 or more")
    # The largest value of a label image is nobody's.
    largest = int(numbers.max(initial=0))
    if largest >= np.iinfo(np.uint16).max:
        raise ValueError(f"values: got a label of {largest}, expected less than {np.iinfo(np.uint16).max}")
    dtype = np.uint8 if largest < np.iinfo(np.uint8).max else np.uint16
    image = np.full(detections.size, np.iinfo(dtype).max if of_class else 0, dtype)
    packed = detections._masks()
    boxes = packed.boxes.tolist()
    # The best score is drawn last, and stays.
    for i in np.argsort(detections.confidence, kind="stable").tolist():
        x1, y1, x2, y2 = boxes[i]
        np.copyto(image[y1:y2, x1:x2], dtype(numbers[i]), where=packed[i].crops()[0])
    return image


def to_label_png(detections: Detections, values: str) -> bytes:
    return gray_png(to_label_image(detections, values))


def from_label_png(
    cls: type[Detections], content: object, class_names: Sequence[str] | None, max_pixels: int
) -> Detections:
    if not isinstance(content, (bytes, bytearray)):
        raise TypeError(f"content: got {type(content).__name__}, expected the bytes of a PNG")
    pixels = read_gray_png(bytes(content), "content", None, max_pixels)
    dtype = np.uint8 if pixels.dtype == np.uint8 else np.uint16
    labels = np.ascontiguousarray(pixels.astype(dtype))
    nobody = np.iinfo(dtype).max
    found = [int(value) for value in np.unique(labels) if value != nobody]
    packed = PackedMasks.from_segments(labels, np.array(found, np.int64))
    return cls(
        xyxy=packed.boxes,
        confidence=np.ones(len(found)),
        class_id=found,
        query=found,
        size=labels.shape,
        class_names=class_names,
        label_source=labels,
    )


# ----------------------------------------------------------------------------------------------------- tables


def to_csv(detections: Detections, file: str, time: str | float | None, header: bool) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    rles = formats._json_rle(detections)
    for row, rle in zip(detections.rows(), rles, strict=True):
        writer.writerow(
            [
                file, "" if time is None else time, row.index, row.class_id, row.class_name, repr(row.confidence),
                *(repr(edge) for edge in row.xyxy), row.area, "" if row.tracker_id is None else row.tracker_id,
                "" if rle is None else rle["counts"],
            ]
        )  # fmt: skip
    return text.getvalue()


def to_json_line(detections: Detections, file: str | None, time: str | float | None) -> str:
    content = formats.to_dict(detections)
    return json.dumps({"file": file, "time": time, **content}, allow_nan=False) + "\n"


# ----------------------------------------------------------------------------------------------------- checks


def _object(value: object, name: str) -> Mapping[str, Any]:
    if isinstance(value, (str, bytes)) and name == "content":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: got a text that is not JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an object")
    return value


def _list(value: object, name: str, most: int = _MOST_ROWS) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a list")
    if len(value) > most:
        raise ValueError(f"{name}: got {len(value)} items, expected at most {most}")
    return value


def _numbers(value: object, name: str, length: int | None) -> list[float]:
    items = _list(value, name, 1 << 24)
    if length is not None and len(items) != length:
        raise ValueError(f"{name}: got {len(items)} numbers, expected {length}")
    return [check_number(name, item) for item in items]


def _column(rows: Sequence[Mapping[str, Any]], name: str, otherwise: object = None) -> list[Any]:
    kind = check_number if name == "confidence" else check_int
    return [kind(f"detections[{i}].{name}", row.get(name, otherwise)) for i, row in enumerate(rows)]


def _columns(rows: Sequence[Mapping[str, Any]], name: str, length: int) -> npt.NDArray[np.float64]:
    values = [_numbers(row.get(name), f"detections[{i}].{name}", length) for i, row in enumerate(rows)]
    return np.array(values, np.float64).reshape(-1, length)


def _trackers(values: Sequence[Any]) -> list[int] | None:
    known = [check_int("tracker_id", value) for value in values if value is not None]
    if 0 < len(known) < len(values):
        raise ValueError("tracker_id: got some rows without one, expected one in all or in none")
    return known or None


def _things(values: Sequence[Any]) -> list[bool] | None:
    known = [check_bool("is_thing", value) for value in values if value is not None]
    if 0 < len(known) < len(values):
        raise ValueError("is_thing: got some rows without it, expected it in all or in none")
    return known or None


def _packed(masks: Sequence[PackedMasks | None]) -> PackedMasks | None:
    present = [mask for mask in masks if mask is not None]
    if 0 < len(present) < len(masks):
        raise ValueError(f"mask: got {len(present)} for {len(masks)} rows, expected one in all or in none")
    return PackedMasks.concatenate(present) if present else None
