"""Checks of plain Python arguments: each error names the argument, what came and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, SupportsIndex, TypeVar, cast

import numpy as np

from fai_fast._foreign import explained

MAX_SIDE = 32767
# A year. Clocks of Python and of C++ overflow beyond centuries, in the thread that waits.
LONGEST_WAIT = 365 * 86400.0
_MAX_ITEMS = 2**20
_Choice = TypeVar("_Choice", bound=str)


def check_bool(name: str, value: object) -> bool:
    """`value` as a bool; TypeError unless it is one (Python's or NumPy's)."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name}: got {_show(value)}, expected a bool")


def check_number(name: str, value: object) -> float:
    """`value` as a finite float; TypeError for anything but a real number, ValueError for NaN and infinity."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: got {_show(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    except Exception as error:  # whatever a foreign __float__ raises, the argument is at fault
        if not explained(error):
            raise
        raise TypeError(f"{name}: got {_show(value)}, expected a number") from None
    if not np.isfinite(number):
        raise ValueError(f"{name}: got {_show(value)}, expected a finite number")
    return number


def check_threshold(name: str, value: object) -> float:
    """`value` as a float of at most 1, since 50 would find nothing in silence; below 0 it keeps everything.

    Raises TypeError unless it is a number, ValueError otherwise.
    """
    number = check_number(name, value)
    if number > 1:
        raise ValueError(f"{name}: got {_show(value)}, expected at most 1")
    return number


def check_fraction(name: str, value: object) -> float:
    """`value` as a float of 0 to 1, such as a threshold; TypeError unless it is a number, ValueError otherwise."""
    number = check_number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: got {_show(value)}, expected 0 to 1")
    return number


def check_wait(name: str, value: object) -> float:
    """`value`, finite seconds, as a float that every clock takes; TypeError, ValueError as :func:`check_number`."""
    return min(check_number(name, value), LONGEST_WAIT)


def check_int(name: str, value: object) -> int:
    """`value` as an int; TypeError for anything that is not an integer."""
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(cast(SupportsIndex, value))
        except Exception as error:  # whatever a foreign __index__ raises, the argument is at fault
            if not explained(error):
                raise
    raise TypeError(f"{name}: got {_show(value)}, expected an integer")


def check_size(name: str, value: object) -> tuple[int, int]:
    """`value` as (height, width), each 1 to 32767; TypeError, ValueError otherwise."""
    sides = check_items(name, value, "(height, width)")
    if len(sides) != 2:
        raise ValueError(f"{name}: got {len(sides)} values, expected (height, width)")
    height, width = (check_int(name, side) for side in sides)
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"{name}: got ({_show(height)}, {_show(width)}), expected sides of 1 to {MAX_SIDE}")
    return height, width


def check_channels(name: str, value: object) -> tuple[float, float, float]:
    """`value`, a number or one for each of R, G and B, as three floats; TypeError, ValueError otherwise."""
    if isinstance(value, Real):
        number = check_number(name, value)
        return number, number, number
    numbers = [check_number(name, item) for item in check_items(name, value, "a number or (R, G, B)")]
    if len(numbers) != 3:
        raise ValueError(f"{name}: got {len(numbers)} values, expected a number or (R, G, B)")
    return numbers[0], numbers[1], numbers[2]


def check_choice(name: str, value: object, choices: Sequence[_Choice]) -> _Choice:
    """`value` where it is one of `choices`; TypeError unless it is a str, ValueError otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {_show(value)}, expected one of {', '.join(map(repr, choices))}")
    if value not in choices:
        raise ValueError(f"{name}: got {_show(value)}, expected one of {', '.join(map(repr, choices))}")
    return cast(_Choice, value)


def check_threads(name: str, value: object) -> int:
    """`value`, None (all cores) or a positive int, as an int with 0 for None; TypeError, ValueError otherwise."""
    if value is None:
        return 0
    threads = check_int(name, value)
    if threads < 1:
        raise ValueError(f"{name}: got {_show(threads)}, expected a positive integer or None for all cores")
    return min(threads, MAX_SIDE)


def check_names(name: str, value: object) -> tuple[str, ...] | None:
    """`value`, None or a sequence of str, as a tuple; TypeError otherwise."""
    if value is None:
        return None
    names = tuple(check_items(name, value, "a sequence of str"))
    for item in names:
        if not isinstance(item, str):
            raise TypeError(f"{name}: got {_show(item)} in it, expected a sequence of str")
    return names


def check_items(name: str, value: object, expected: str) -> list[Any]:
    """The items of a sequence or one-dimensional array; TypeError for anything else, str and bytes too."""
    if isinstance(value, np.ndarray) or (
        isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))
    ):
        try:
            if len(value) <= _MAX_ITEMS:
                return list(value)
        except Exception as error:  # whatever a foreign sequence raises, the argument is at fault
            if not explained(error):
                raise
        else:
            raise ValueError(f"{name}: got {len(value)} items, expected {expected}")
    raise TypeError(f"{name}: got {_show(value)}, expected {expected}")


def _show(value: object) -> str:
    """A short text of any object: its value where that is a plain scalar, else its type."""
    if isinstance(value, (bool, int, float, str, type(None))):
        try:
            text = repr(value)
        except ValueError as error:  # an int of thousands of digits
            if not explained(error):
                raise
            text = ""
        if 0 < len(text) <= 60:
            return text
    return type(value).__name__
