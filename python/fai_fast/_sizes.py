"""Sizes of networks' inputs: what they may be, how they are written, and which one fits a frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fai_fast._arguments import MAX_SIDE, check_int, check_size

__all__ = [
    "LARGEST_SIDE",
    "STRIDE",
    "aspects_differ",
    "check_input_size",
    "fit_size",
    "sides_of",
    "size_text",
    "square_or_sides",
    "step_of",
]

# Of the coarsest features of every network here: an input's sides are multiples of it.
STRIDE = 32
# Of an input's sides; memory grows with their product.
LARGEST_SIDE = 8192
# Longer frames get an input of this aspect: a side of a few steps of STRIDE leaves the coarsest features no context.
LONGEST_ASPECT = 4.0
# How far apart two aspects are that count as different, as their ratio.
ASPECT_TOLERANCE = 1.2

ImSize = int | tuple[int, int]


def check_input_size(name: str, value: object, largest: int = MAX_SIDE, multiple: int = 1) -> ImSize:
    """An int for a square or (height, width), as :func:`square_or_sides` has it.

    Args:
        name: the argument's, for errors.
        value: what came; a sequence or array of two integers, or an integer.
        largest: of a side.
        multiple: of which each side must be one.

    Raises:
        TypeError, ValueError: it is neither, or a side is out of its range.
    """
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes, bytearray)):
        sides: tuple[int, ...] = (check_int(name, value),)
    else:
        if len(value) != 2:
            raise ValueError(
                f"{name}: got {len(value)} values, expected an int for a square or (height, width)"
            )
        sides = tuple(check_int(name, side) for side in value)
    shown = sides[0] if len(sides) == 1 else sides
    wanted = "for a square" if len(sides) == 1 else "each for (height, width)"
    for side in sides:
        if not 1 <= side <= largest:
            raise ValueError(f"{name}: got {shown}, expected 1 to {largest} {wanted}")
    for side in sides:
        if side % multiple:
            raise ValueError(f"{name}: got {shown}, expected a multiple of {multiple} {wanted}")
    return square_or_sides((sides[0], sides[-1]))


def square_or_sides(size: tuple[int, int]) -> ImSize:
    """The side of a square, or (height, width): each size has one form, so that equal ones compare and print alike."""
    height, width = size
    return height if height == width else (height, width)


def sides_of(im_size: ImSize) -> tuple[int, int]:
    """(height, width) of what :func:`check_input_size` gave."""
    return (im_size, im_size) if isinstance(im_size, int) else im_size


def size_text(im_size: ImSize, times: str = "x") -> str:
    """``192x320``: height, then width."""
    height, width = sides_of(im_size)
    return f"{height}{times}{width}"


def aspects_differ(one: tuple[int, int], other: tuple[int, int], tolerance: float = ASPECT_TOLERANCE) -> bool:
    """Whether one of two sizes (height, width) is more than `tolerance` times as long as the other for its height."""
    across, down = one[1] * other[0], one[0] * other[1]
    return across > tolerance * down or down > tolerance * across


def step_of(stride: int) -> int:
    """The multiple of a network's stride by which its inputs' sides are chosen: the smallest that is 32 or more."""
    return stride * -(-STRIDE // stride)


def fit_size(frame: Sequence[int], *, area: int = 640 * 640, multiple: int = STRIDE) -> tuple[int, int]:
    """The size of a network's input that fits frames of a camera: their aspect, about so many pixels.

    Of all sizes whose sides are multiples of 32 (or of another number), the one with the least ``2 * |log(aspect / the
    frame's)| + |log(pixels / area)|``: a picture stretched by 10 % weighs as much as 20 % more or fewer pixels. So the
    aspect is within a few percent where the area leaves the choice, and the nearest there is where it is small. A frame
    longer than 4:1 gets the size for 4:1, in which it is stretched for the rest, since networks know no narrower
    pictures.

    Args:
        frame: (height, width) of the frames, pixels, as in ``array.shape[:2]``; higher than wide for portrait.
        area: pixels that the input should have, h * w: those of the size that the model was trained at.
        multiple: of which the sides are multiples, 16 to 1024.

    Returns:
        (h, w), for ``im_size`` of :func:`fai_fast.load` and :func:`fai_fast.export`.

    Raises:
        TypeError, ValueError: ``frame`` is not two positive integers, ``area`` not 1 to 8192 * 8192, or ``multiple``
            out of its range.

    Example:
        >>> fai_fast.fit_size((1080, 1920), area=640 * 640)
        (480, 864)
        >>> fai_fast.fit_size((1920, 1080), area=640 * 640)
        (864, 480)
    """
    height, width = check_size("frame", frame)
    area = check_int("area", area)
    if not 1 <= area <= LARGEST_SIDE * LARGEST_SIDE:
        raise ValueError(f"area: got {area}, expected 1 to {LARGEST_SIDE * LARGEST_SIDE} pixels")
    multiple = check_int("multiple", multiple)
    if not 16 <= multiple <= 1024:
        raise ValueError(f"multiple: got {multiple}, expected 16 to 1024")
    # Turned, so that portrait is landscape exactly, ties included.
    shorter, longer = sorted((height, width))
    aspect = min(longer / shorter, LONGEST_ASPECT)
    sides = np.arange(multiple, LARGEST_SIDE + 1, multiple)
    logs = np.log(sides)
    stretch = np.abs(logs - logs[:, None] - math.log(aspect))
    badness = 2 * stretch + np.abs(logs + logs[:, None] - math.log(area))
    # Rounded, so that of sizes that are equally good the smallest is taken on every machine.
    badness = badness.round(9)
    low, long = min(
        ((int(sides[i]), int(sides[j])) for i, j in np.argwhere(badness == badness.min())),
        key=lambda size: size[0] * size[1],
    )
    return (low, long) if height <= width else (long, low)
