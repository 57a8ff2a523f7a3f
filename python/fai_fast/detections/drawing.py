"""Detections drawn on their picture: :func:`draw` makes the picture, :func:`save` writes it.

Masks are painted by compiled code, on the packed bits; texts are rendered by Pillow once, and laid on as pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_bool, check_choice, check_number
from fai_fast._files import replacing
from fai_fast.detections import Detections, PackedMasks, lettering
from fai_fast.detections.lettering import DARK, LIGHT, Style
from fai_fast.detections.palettes import UNKNOWN, Color, Colors, color, colors_of

__all__ = ["SUFFIXES", "color", "draw", "save"]

Picture = npt.NDArray[np.uint8]
ColorBy = Literal["class", "instance"]
Order = Literal["rgb", "bgr", "gray"]
Palette = Literal["ade20k", "cityscapes", "coco", "distinct"]


class DrawOptions(TypedDict, total=False):
    """The options of :func:`draw`, which explains them."""

    masks: bool
    boxes: bool
    labels: bool
    opacity: float
    color_by: ColorBy | None
    palette: Palette | Sequence[Sequence[int]] | Picture | None
    color: Order


SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""What :func:`save` writes: the suffix, in any case, and Pillow's name of the format."""


def draw(
    image: Picture,
    detections: Detections,
    *,
    masks: bool = True,
    boxes: bool = True,
    labels: bool = True,
    opacity: float = 0.5,
    color_by: ColorBy | None = None,
    palette: Palette | Sequence[Sequence[int]] | Picture | None = None,
    color: Order = "rgb",
) -> Picture:
    """A copy of a picture with what was found in it.

    Each object gets its mask with a contour, its box, and its class and score; small objects lie above large ones.
    Labels stay inside the picture, and off each other as long as there is room. Semantic results (those with a
    ``label_map``) are colored by class, and have a legend beside the picture in place of boxes and labels: the result
    is wider then, by as much for every result of one model and frame size. Things of a panoptic result are drawn as
    objects are, over its stuff, which is colored by class, without contours, and in the legend. A class has the same
    color in every picture.

    Args:
        image: the frame, uint8 (H, W, 3), or (H, W) for gray; any strides, not modified.
        detections: what was found in it, of the same size.
        masks: whether to draw masks, where there are any.
        boxes: whether to draw boxes.
        labels: whether to draw labels, or the legend.
        opacity: of the masks' color, 0 to 1. Contours are opaque.
        color_by: "class", or "instance" for objects of one class that differ: by their track where they have one, else
            by their row; stuff is by class always. None for tracks where there are some, and classes otherwise.
        palette: of classes, "ade20k", "cityscapes", "coco", as their pictures customarily are; "distinct", in which any
            few classes differ; or colors (K, 3) of 0..255, RGB, for classes 0, 1, ... None for that of the data set
            whose classes these are, else "distinct". Objects by instance are always "distinct" or of given colors.
        color: what the frame is: "rgb", "bgr" or "gray".

    Returns:
        uint8 (H, W, 3), or (H, W + legend, 3), a new array; BGR for "bgr", else RGB.

    Raises:
        TypeError, ValueError: an argument has another type, dtype, shape or value; the text names it.

    Example:
        >>> save("found.jpg", draw(frame, model(frame)))  # doctest: +SKIP
    """
    order = check_choice("color", color, get_args(Order))
    _check_picture("image", image, gray=order == "gray")
    if not isinstance(detections, Detections):
        raise TypeError(f"detections: got {type(detections).__name__}, expected Detections")
    expected = detections.size if order == "gray" else (*detections.size, 3)
    if image.shape != expected:
        raise ValueError(f"image: got shape {image.shape}, expected {expected} as in detections")
    masks, boxes, labels = (
        check_bool("masks", masks),
        check_bool("boxes", boxes),
        check_bool("labels", labels),
    )
    opacity = check_number("opacity", opacity)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: got {opacity}, expected 0 to 1")
    stuff = _stuff_of(detections)
    by = None if color_by is None else check_choice("color_by", color_by, get_args(ColorBy))
    if by == "instance" and detections.is_thing is None and stuff is not None:
        raise ValueError("color_by: got 'instance' for a semantic result, expected 'class' or None")
    turn = slice(None, None, -1) if order == "bgr" else slice(None)

    picture = np.repeat(image[:, :, None], 3, axis=2) if order == "gray" else np.array(image, order="C")
    style = lettering.style_of(detections.size)
    alpha = round(255 * opacity)
    legend = None
    if stuff is not None:
        if masks:
            # Contours are for what can be counted, where there is any.
            line = style.line if detections.is_thing is None else 0
            _paint_classes(picture, stuff, palette, turn, alpha, line)
        if labels:
            legend = _legend(stuff, palette, turn, style)
    if stuff is None or detections.is_thing is not None:
        objects = detections if stuff is None else detections[np.asarray(detections.is_thing)]
        _draw_objects(picture, objects, by, palette, turn, alpha, style, masks, boxes, labels)
    return picture if legend is None else np.hstack([picture, legend])


def _stuff_of(detections: Detections) -> Detections | None:
    """The rows that are drawn as areas; None where all are objects."""
    if detections.is_thing is not None:
        return detections[~detections.is_thing]
    return None if detections._source is None else detections


def _paint_classes(
    picture: Picture, areas: Detections, palette: Any, turn: slice, alpha: int, line: int
) -> None:
    label_map = areas.label_map
    if label_map is None:
        # Of a panoptic result that was read from masks.
        paints = np.ascontiguousarray(colors_of(areas.class_id, areas.class_names, palette)[:, turn])
        if areas.packed is not None:
            _paint(picture, areas.packed, paints, np.arange(len(areas)), alpha, line)
        return
    classes = np.unique(areas.class_id[areas.class_id >= 0])
    regions = PackedMasks.from_segments(label_map.view(np.uint16), classes)
    paints = colors_of(classes, areas.class_names, palette)[:, turn]
    _paint(picture, regions, paints, np.arange(len(classes)), alpha, line)


def _draw_objects(
    picture: Picture,
    detections: Detections,
    by: ColorBy | None,
    palette: Any,
    turn: slice,
    alpha: int,
    style: Style,
    masks: bool,
    boxes: bool,
    labels: bool,
) -> None:
    paints = np.ascontiguousarray(_row_colors(detections, by, palette)[:, turn])
    rows = np.argsort(-np.asarray(detections.area), kind="stable")
    if masks and detections.packed is not None:
        _paint(picture, detections.packed, paints, rows, alpha, style.line)
    if boxes:
        _outline(picture, detections, rows, paints, style.line)
    if labels:
        _label(picture, detections, paints, style)


def save(path: str | os.PathLike[str], picture: Picture) -> None:
    """Writes a picture in the format that the suffix names, at once: nobody sees half a file.

    Args:
        path: ends with .jpg, .jpeg, .png or .webp, in any case.
        picture: uint8 RGB (H, W, 3).

    Raises:
        TypeError, ValueError: ``picture`` is none, the suffix is another one, or the format cannot hold the size.
        OSError: the folder is not there, or cannot be written to.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: got {type(path).__name__}, expected a str or a path")
    _check_picture("picture", picture)
    path = Path(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"path: got {path.name!r}, expected a name that ends with {', '.join(SUFFIXES)}")

    from PIL import Image

    options: dict[str, Any] = {"PNG": {"compress_level": 3}, "JPEG": {"quality": 92, "subsampling": 0}}.get(
        kind, {"quality": 90}
    )
    with replacing(path) as temporary:
        try:
            Image.fromarray(picture).save(temporary, format=kind, **options)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            height, width = picture.shape[:2]
            raise ValueError(f"picture: {kind} cannot hold {height}x{width} pixels: {error}") from error


def _row_colors(detections: Detections, by: ColorBy | None, palette: Any) -> Colors:
    trackers = detections.tracker_id
    if by == "class" or (by is None and trackers is None):
        return colors_of(detections.class_id, detections.class_names, palette)
    objects = np.arange(len(detections)) if trackers is None else np.maximum(trackers, -1)
    return colors_of(objects, None, "distinct" if isinstance(palette, str) else palette)


def _paint(
    picture: Picture, packed: PackedMasks, colors: Colors, rows: npt.NDArray[np.int64], alpha: int, line: int
) -> None:
    packed._masks().paint(picture, np.ascontiguousarray(colors), rows, alpha=alpha, line=line)


def _corners(detections: Detections) -> list[list[int]]:
    """The boxes in whole pixels; far outside the frame they end just outside."""
    height, width = detections.size
    beyond = 64
    inside = np.clip(detections.xyxy, -beyond, np.array([width, height, width, height]) + beyond)
    corners: list[list[int]] = np.rint(inside).astype(np.int64).tolist()
    return corners


def _outline(
    picture: Picture, detections: Detections, rows: npt.NDArray[np.int64], colors: Colors, line: int
) -> None:
    corners = _corners(detections)
    for i in rows.tolist():
        x1, y1, x2, y2 = corners[i]
        x2, y2 = max(x1 + 1, x2), max(y1 + 1, y2)
        paint = tuple(colors[i].tolist())
        across, down = min(line, x2 - x1), min(line, y2 - y1)
        for side in ((x1, y1, x2, y1 + down), (x1, y2 - down, x2, y2)):
            lettering.fill(picture, side, paint)
        for side in ((x1, y1, x1 + across, y2), (x2 - across, y1, x2, y2)):
            lettering.fill(picture, side, paint)


def _label(picture: Picture, detections: Detections, colors: Colors, style: Style) -> None:
    height, width = detections.size
    corners, trackers = _corners(detections), detections.tracker_id
    names, scores = detections.class_name.tolist(), detections.confidence.tolist()
    tracks = [""] * len(detections) if trackers is None else [f"#{i} " for i in trackers.tolist()]
    placed: list[tuple[lettering.Box, Picture, Color]] = []
    # The surest have the first choice of place.
    for i in np.argsort(-detections.confidence, kind="stable").tolist():
        line = lettering.written(f"{tracks[i]}{names[i]} {scores[i]:.2f}", style, width)
        size = line.shape[1], line.shape[0]
        box = lettering.free_place(corners[i], size, (width, height), [other for other, _, _ in placed])
        red, green, blue = colors[i].tolist()
        placed.append((box, line, (red, green, blue)))
    for box, line, ground in reversed(placed):
        lettering.put(picture, line, box[0], box[1], lettering.contrast(ground), ground)


def _legend(detections: Detections, palette: Any, turn: slice, style: Style) -> Picture:
    """The classes that have pixels and their share of the picture, the largest first; uint8 (H, w, 3).

    As wide as the longest of all class names needs, so that a video's pictures have one size.
    """
    height, width = detections.size
    gap = 2 * style.padding
    row, swatch = style.text_height + gap, style.text_height
    room = max(width, 8 * swatch)
    longest = max(
        (lettering.written(name, style, room).shape[1] for name in _possible_names(detections)), default=0
    )
    percent = lettering.written("100%", style, room).shape[1]
    panel = np.empty((height, gap + swatch + longest + percent + gap, 3), np.uint8)
    panel[:] = DARK
    entries = _class_shares(detections, palette, turn)
    fitting = max(1, (height - gap) // row)
    if len(entries) > fitting:
        rest = entries[fitting - 1 :]
        share = sum(entry[1] for entry in rest)
        entries = [*entries[: fitting - 1], (f"{len(rest)} more", share, UNKNOWN)]
    for i, (name, share, paint) in enumerate(entries):
        y = style.padding + i * row
        top = y + style.padding
        lettering.fill(panel, (gap, top, gap + swatch, top + swatch), paint)
        lettering.put(panel, lettering.written(name, style, longest), gap + swatch, y, LIGHT, DARK)
        text = lettering.written(f"{100 * share:.0f}%" if share >= 0.01 else "<1%", style, room)
        lettering.put(panel, text, panel.shape[1] - gap - text.shape[1], y, LIGHT, DARK)
    return panel


def _possible_names(detections: Detections) -> Sequence[str]:
    """Of all classes that a picture of this model may have, and what stands for those that do not fit."""
    return [*(detections.class_names or ()), *set(detections.class_name.tolist()), "999 more"]


def _class_shares(detections: Detections, palette: Any, turn: slice) -> list[tuple[str, float, Color]]:
    """Name, share of the picture's pixels, and color of each class that has pixels, the largest first."""
    pixels: dict[int, int] = {}
    names: dict[int, str] = {}
    columns = (
        detections.class_id.tolist(),
        detections.class_name.tolist(),
        np.asarray(detections.area).tolist(),
    )
    for class_id, name, area in zip(*columns, strict=True):
        pixels[class_id] = pixels.get(class_id, 0) + int(area)
        names[class_id] = name
    total = detections.size[0] * detections.size[1]
    ordered = sorted((i for i in pixels if pixels[i]), key=lambda i: (-pixels[i], i))
    paints = colors_of(np.array(ordered, np.int64), detections.class_names, palette)[:, turn].tolist()
    return [(names[i], pixels[i] / total, tuple(paint)) for i, paint in zip(ordered, paints, strict=True)]


def _check_picture(name: str, picture: object, *, gray: bool = False) -> None:
    expected = "(H, W)" if gray else "(H, W, 3)"
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        came = f"dtype {picture.dtype}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise TypeError(f"{name}: got {came}, expected a uint8 array {expected}")
    if picture.ndim != (2 if gray else 3) or 0 in picture.shape or (not gray and picture.shape[2] != 3):
        raise ValueError(f"{name}: got shape {picture.shape}, expected {expected}")
