"""The colors of classes and of objects: those that data sets are customarily shown in, and ones that differ."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_choice, check_int
from fai_fast.detections.arrays import Int64

__all__ = ["PALETTES", "color", "colors_of"]

Color = tuple[int, int, int]
Colors = npt.NDArray[np.uint8]

UNKNOWN = (150, 150, 150)  # class -1

# RRGGBB of classes 0, 1, ... The 150 classes of ADE20K's scene parsing, as its own color150 has them.
_ADE20K = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
# The 19 classes of Cityscapes that are evaluated.
_CITYSCAPES = """
804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046
003c64 005064 0000e6 770b20
"""
# The 80 things of COCO, as its panoptic categories have them.
_COCO = """
dc143c 770b20 00008e 0000e6 6a00e4 003c64 005064 000046 0000c0 faaa1e 64aa1e dcdc00 af74af fa001e a52a2a
ff4dff 00e2fc b6b6ff 005200 78a69d 6e4c00 ae39ff c76400 480076 ffb3f0 007d5c d10097 bcd0b6 00dcb0 ff63a4
5c0049 8581ff 4eb4ff 00e400 aefff3 2d59ff 868667 9194ae ffd0ba c5e2ff ab8601 6d3f36 cf8aff 97005f 09503d
546933 4a4169 a6c466 d0c3d2 ff6d41 008f95 b300c2 d1636a 057900 e3ffcd 93bad0 994501 035fa1 a3ff00 7700aa
00b6c7 00a578 b78258 5f2000 827287 6e8185 a64a76 db8eb9 4fd272 b25a3e 41460f 7fa773 3b696a 8e6c2d c4ac00
5f3650 804cff c93901 f6007a bfa2d0
"""

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


def _table(text: str) -> Colors:
    table = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 3)
    return table


# The name of each, its colors, and by which classes it is known: some of them, with their numbers.
_KNOWN: dict[str, tuple[Colors, dict[int, str]]] = {
    "ade20k": (_table(_ADE20K), {0: "wall", 1: "building", 2: "sky", 149: "flag"}),
    "cityscapes": (_table(_CITYSCAPES), {0: "road", 1: "sidewalk", 18: "bicycle"}),
    "coco": (_table(_COCO), {0: "person", 1: "bicycle", 79: "toothbrush"}),
}
PALETTES = (*_KNOWN, "distinct")


def colors_of(
    ids: Int64, class_names: tuple[str, ...] | None, palette: str | Sequence[Sequence[int]] | Colors | None
) -> Colors:
    """uint8 (N, 3), the RGB color of each of some ids, of classes or of objects.

    Args:
        ids: integers (N,), -1 or more; what has no color in the palette has that of :func:`color`.
        class_names: which tell the palette where that is None.
        palette: one of PALETTES, colors (K, 3) of 0..255, or None.

    Raises:
        TypeError, ValueError: ``palette`` is something else.
    """
    table = _chosen(class_names, palette)
    colors = np.array([color(i) for i in ids.tolist()], np.uint8).reshape(-1, 3)
    known = (ids >= 0) & (ids < len(table))
    colors[known] = table[ids[known]]
    return colors


def _chosen(class_names: tuple[str, ...] | None, palette: Any) -> Colors:
    if palette is None:
        return _customary(class_names)
    if isinstance(palette, str):
        check_choice("palette", palette, PALETTES)
        return _KNOWN[palette][0] if palette in _KNOWN else np.empty((0, 3), np.uint8)
    try:
        table = np.asarray(palette)
    except ValueError:  # rows of different lengths
        table = np.empty(0)
    if table.ndim != 2 or table.shape[1] != 3 or table.dtype.kind not in "iu":
        raise TypeError(
            f"palette: got {type(palette).__name__}, expected {', '.join(PALETTES)}, or integers (K, 3) of 0..255"
        )
    if table.size and (table.min() < 0 or table.max() > 255):
        raise ValueError(f"palette: got {table.min()}..{table.max()}, expected 0..255")
    return table.astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _customary(class_names: tuple[str, ...] | None) -> Colors:
    """The colors that the data set of these classes is shown in; none where it is not known."""
    for table, names in _KNOWN.values():
        if (
            class_names is not None
            and len(class_names) == len(table)
            and all(class_names[i].strip() == name for i, name in names.items())
        ):
            return table
    return np.empty((0, 3), np.uint8)


@functools.lru_cache(maxsize=4096)
def color(class_id: int) -> Color:
    """The RGB color of a class, always the same: hues a golden angle apart, so that any few classes differ.

    Raises TypeError unless ``class_id`` is an integer. Gray for -1 and below.
    """
    class_id = check_int("class_id", class_id)
    if class_id < 0:
        return UNKNOWN
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


def _linear_rgb(lightness: float, a: float, b: float) -> npt.NDArray[np.float64]:
    rgb: npt.NDArray[np.float64] = _LMS_TO_RGB @ (_OKLAB_TO_LMS @ [lightness, a, b]) ** 3
    return rgb
