"""Detections drawn on their picture, with Pillow: :func:`draw` makes the picture, :func:`save` writes it."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_bool, check_int, check_number
from fai_fast._files import replacing
from fai_fast.detections import Detections

if TYPE_CHECKING:
    from PIL import ImageFont
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

__all__ = ["SUFFIXES", "color", "draw", "save"]

Picture = npt.NDArray[np.uint8]
Color = tuple[int, int, int]
Box = tuple[int, int, int, int]

SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""What :func:`save` writes: the suffix, in any case, and Pillow's name of the format."""

_UNKNOWN = (150, 150, 150)  # class -1
_DARK, _LIGHT = (16, 16, 16), (255, 255, 255)
_LEGEND_OPACITY = 0.65
# Oklab to linear sRGB, from Björn Ottosson, "A perceptual color space for image processing" (2020).
_OKLAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def draw(
    image: Picture,
    detections: Detections,
    *,
    masks: bool = True,
    boxes: bool = True,
    labels: bool = True,
    opacity: float = 0.5,
) -> Picture:
    """A copy of a picture with what was found in it.

    Each object gets its mask with a contour, its box, and its class and score; small objects lie above large ones.
    Semantic results (those with a ``label_map``) are colored by class, with a legend in place of boxes and labels. A
    class has the same color in every picture. Masks are drawn one at a time, never as an (N, H, W) stack.

    Args:
        image: the frame, uint8 RGB (H, W, 3); not modified.
        detections: what was found in it, of the same size.
        masks: whether to draw masks, where there are any.
        boxes: whether to draw boxes.
        labels: whether to draw labels, or the legend.
        opacity: of the masks' color, 0 to 1. Contours are opaque.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        TypeError, ValueError: an argument has another type, dtype, shape or value; the text names it.

    Example:
        >>> save("found.jpg", draw(frame, model(frame)))  # doctest: +SKIP
    """
    _check_picture("image", image)
    if not isinstance(detections, Detections):
        raise TypeError(f"detections: got {type(detections).__name__}, expected Detections")
    if image.shape != (*detections.size, 3):
        raise ValueError(f"image: got shape {image.shape}, expected {(*detections.size, 3)} as in detections")
    masks, boxes, labels = (
        check_bool("masks", masks),
        check_bool("boxes", boxes),
        check_bool("labels", labels),
    )
    opacity = check_number("opacity", opacity)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: got {opacity}, expected 0 to 1")

    from PIL import Image, ImageDraw

    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    style = _style(detections.size)
    label_map = detections.label_map
    if label_map is not None:
        if masks:
            _paint_classes(canvas, label_map, detections.class_id, opacity, style.line)
        if labels:
            _write_legend(canvas, pen, detections, style)
    else:
        area = np.asarray(detections.area)
        order = np.argsort(-area, kind="stable").tolist()
        if masks and detections.packed is not None:
            _paint_objects(canvas, detections, order, opacity, style.line)
        if boxes:
            _outline(pen, detections, order, style.line)
        if labels:
            _write_labels(pen, detections, style)
    return np.array(canvas)


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


@functools.cache
def color(class_id: int) -> Color:
    """The RGB color of a class, always the same: hues a golden angle apart, so that any few classes differ.

    Raises TypeError unless ``class_id`` is an integer. Gray for -1 and below.
    """
    class_id = check_int("class_id", class_id)
    if class_id < 0:
        return _UNKNOWN
    # Neighbors in hue, 8, 13 and 21 classes apart, differ in lightness.
    lightness = (0.70, 0.58, 0.82)[class_id % 3]
    hue = math.radians((25 + 137.508 * class_id) % 360)
    for chroma in np.arange(0.19, 0, -0.01):  # as vivid as sRGB allows
        linear = _linear_rgb(lightness, chroma * math.cos(hue), chroma * math.sin(hue))
        if linear.min() >= 0 and linear.max() <= 1:
            break
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.clip(linear, 0, 1) ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.clip(np.rint(255 * rgb), 0, 255))
    return red, green, blue


class _Style(NamedTuple):
    """Widths in pixels that look alike on pictures of every size."""

    line: int
    padding: int
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    text_height: int
    top: int  # of the text, below where Pillow starts it


class _Label(NamedTuple):
    text: str
    box: Box
    fill: Color


def _linear_rgb(lightness: float, a: float, b: float) -> npt.NDArray[np.float64]:
    rgb: npt.NDArray[np.float64] = _LMS_TO_RGB @ (_OKLAB_TO_LMS @ [lightness, a, b]) ** 3
    return rgb


@functools.lru_cache(maxsize=16)
def _style(size: tuple[int, int]) -> _Style:
    from PIL import ImageFont

    scale = math.sqrt(size[0] * size[1])
    font_size = max(12, round(scale / 72))
    font = ImageFont.load_default(font_size)
    # The height of every line is that of a text with ascenders and descenders.
    top, bottom = font.getbbox("Ágj")[1::2]
    return _Style(max(1, round(scale / 550)), max(2, round(font_size / 5)), font, int(bottom - top), int(top))


def _paint_objects(
    canvas: Image, detections: Detections, order: Sequence[int], opacity: float, line: int
) -> None:
    from PIL import Image

    packed = detections.packed
    assert packed is not None
    fill = round(255 * opacity)
    crops, corners = detections.crops(), packed.boxes[:, :2].tolist()
    classes = detections.class_id.tolist()
    for i in order:
        crop = crops[i]
        if crop.size == 0:
            continue
        inner = _inner(crop, line)
        alpha = crop.view(np.uint8) * np.uint8(255) - inner.view(np.uint8) * np.uint8(255 - fill)
        canvas.paste(color(classes[i]), tuple(corners[i]), Image.fromarray(alpha))


def _inner(mask: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.bool_]:
    """The pixels of a mask that are more than `width` steps away from its edge."""
    for _ in range(width):
        eroded = np.zeros_like(mask)
        middle = eroded[1:-1, 1:-1]
        np.logical_and(mask[:-2, 1:-1], mask[2:, 1:-1], out=middle)
        for neighbor in (mask[1:-1, :-2], mask[1:-1, 2:], mask[1:-1, 1:-1]):
            np.logical_and(middle, neighbor, out=middle)
        mask = eroded
    return mask


def _paint_classes(
    canvas: Image,
    label_map: npt.NDArray[np.int16],
    class_ids: npt.NDArray[np.int64],
    opacity: float,
    line: int,
) -> None:
    from PIL import Image

    # The last row is for -1, which NumPy's indexing takes from there: transparent.
    table = np.zeros((int(class_ids.max(initial=-1)) + 2, 4), np.uint8)
    for class_id in np.unique(class_ids).tolist():
        if class_id >= 0:
            table[class_id] = (*color(class_id), round(255 * opacity))
    overlay = np.take(table.view(np.uint32)[:, 0], label_map, mode="wrap").view(np.uint8)
    overlay = overlay.reshape(*label_map.shape, 4)
    # Borders are opaque, on one side of them: where there are two classes either, else that of the class.
    known = label_map >= 0
    for here, there in (
        (np.s_[line:], np.s_[:-line]),
        (np.s_[:, line:], np.s_[:, :-line]),
    ):
        border = label_map[here] != label_map[there]
        np.copyto(overlay[here][..., 3], 255, where=border & known[here])
        np.copyto(overlay[there][..., 3], 255, where=border & ~known[here])
    layer = Image.fromarray(overlay)
    canvas.paste(layer, (0, 0), layer)


def _corners(detections: Detections) -> list[list[int]]:
    """The boxes in whole pixels; far outside the frame they end just outside."""
    height, width = detections.size
    beyond = 64
    inside = np.clip(detections.xyxy, -beyond, np.array([width, height, width, height]) + beyond)
    corners: list[list[int]] = np.rint(inside).astype(np.int64).tolist()
    return corners


def _outline(pen: ImageDraw, detections: Detections, order: Sequence[int], line: int) -> None:
    corners, classes = _corners(detections), detections.class_id.tolist()
    for i in order:
        x1, y1, x2, y2 = corners[i]
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color(classes[i]), width=line)


def _write_labels(pen: ImageDraw, detections: Detections, style: _Style) -> None:
    height, width = detections.size
    trackers = detections.tracker_id
    columns = zip(
        detections.class_name.tolist(),
        detections.confidence.tolist(),
        detections.class_id.tolist(),
        _corners(detections),
        [""] * len(detections) if trackers is None else [f"#{i} " for i in trackers.tolist()],
        strict=True,
    )
    placed: list[_Label] = []
    rows = sorted(columns, key=lambda row: -row[1])  # the surest have the first choice of place
    for name, score, class_id, corners, tracker in rows:
        text = f"{tracker}{name} {score:.2f}"
        size = (
            math.ceil(style.font.getlength(text)) + 2 * style.padding,
            style.text_height + 2 * style.padding,
        )
        box = _free_place(corners, size, (width, height), [label.box for label in placed])
        placed.append(_Label(text, box, color(class_id)))
    for label in reversed(placed):
        x1, y1, x2, y2 = label.box
        pen.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=style.padding, fill=label.fill)
        place = x1 + style.padding, y1 + style.padding - style.top
        pen.text(place, label.text, fill=_contrast(label.fill), font=style.font)


def _free_place(
    corners: Sequence[int], size: tuple[int, int], frame: tuple[int, int], taken: Sequence[Box]
) -> Box:
    """Where a label of `size` (width, height) goes: above its box, else in it or below, where it covers least."""
    x1, y1, x2, y2 = corners
    w, h = size
    best: tuple[int, Box] | None = None
    for x, y in ((x1, y1 - h), (x1, y1), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x1, y2 - h)):
        inside = max(0, min(x, frame[0] - w)), max(0, min(y, frame[1] - h))
        box = (inside[0], inside[1], inside[0] + w, inside[1] + h)
        covered = sum(_overlap(box, other) for other in taken)
        # A place that had to move into the frame lies on the object; prefer one that did not.
        cost = 2 * covered + (abs(inside[0] - x) + abs(inside[1] - y)) * min(w, h) // 4
        if best is None or cost < best[0]:
            best = cost, box
        if cost == 0:
            break
    assert best is not None
    return best[1]


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _write_legend(canvas: Image, pen: ImageDraw, detections: Detections, style: _Style) -> None:
    from PIL import Image

    entries = _class_shares(detections)
    if not entries:
        return
    height = detections.size[0]
    margin, padding = 2 * style.padding, 2 * style.padding
    row = style.text_height + padding
    fitting = max(1, (height - 2 * margin - padding) // row)
    if len(entries) > fitting:
        rest = entries[fitting - 1 :]
        share = sum(entry[1] for entry in rest)
        entries = [*entries[: fitting - 1], (f"{len(rest)} more", share, _UNKNOWN)]
    length = style.font.getlength
    percents = [f"{100 * share:.0f}%" if share >= 0.01 else "<1%" for _, share, _ in entries]
    swatch = style.text_height
    name_width = math.ceil(max(length(name) for name, _, _ in entries))
    percent_width = math.ceil(max(length(percent) for percent in percents))
    panel = swatch + name_width + percent_width + 4 * padding, row * len(entries) + padding
    left, top = margin, max(0, height - margin - panel[1])
    canvas.paste(_DARK, (left, top), Image.new("L", panel, round(255 * _LEGEND_OPACITY)))
    right = left + panel[0] - padding
    for i, ((name, _, fill), percent) in enumerate(zip(entries, percents, strict=True)):
        x, y = left + padding, top + padding + i * row
        pen.rounded_rectangle((x, y, x + swatch - 1, y + swatch - 1), radius=style.padding, fill=fill)
        pen.text((x + swatch + padding, y - style.top), name, fill=_LIGHT, font=style.font)
        pen.text((right - length(percent), y - style.top), percent, fill=_LIGHT, font=style.font)


def _class_shares(detections: Detections) -> list[tuple[str, float, Color]]:
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
    return [(names[i], pixels[i] / total, color(i)) for i in ordered]


def _contrast(fill: Color) -> Color:
    """Black or white, whichever differs more from `fill` by WCAG's relative luminance."""
    linear = [v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in fill]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _DARK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else _LIGHT


def _check_picture(name: str, picture: object) -> None:
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        came = f"dtype {picture.dtype}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise TypeError(f"{name}: got {came}, expected a uint8 array (H, W, 3)")
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"{name}: got shape {picture.shape}, expected (H, W, 3)")
