"""Texts as values: what ``serve run`` and a query string have are words, what a configuration file has may be more.

Each function takes the argument's name, for the error, and what came: a text, or a value that is one already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fai_fast._arguments import check_choice, check_int, check_items, check_number, check_threshold

__all__ = ["choice", "count", "names", "number", "share", "side_or_size", "text", "threshold"]

# Longer ones are nobody's, and Python takes its time with numbers of thousands of digits.
_MOST_DIGITS = 18
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")


def text(name: str, value: Any) -> str:
    """`value` as a text that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a str")
    if not value:
        raise ValueError(f"{name}: got nothing, expected a text")
    return value


def count(name: str, value: Any, least: int = 1) -> int:
    """`value` as an integer of `least` or more."""
    if isinstance(value, str):
        if not re.fullmatch(rf"[+-]?\d{{1,{_MOST_DIGITS}}}", value, re.ASCII):
            raise ValueError(f"{name}: got {_shown(value)}, expected an integer")
        value = int(value)
    number = check_int(name, value)
    if number < least:
        raise ValueError(f"{name}: got {number}, expected {least} or more")
    return number


def number(name: str, value: Any) -> float:
    """`value` as a finite float."""
    if isinstance(value, str):
        if len(value) > 40 or not _NUMBER.fullmatch(value):
            raise ValueError(f"{name}: got {_shown(value)}, expected a number")
        value = float(value)
    return check_number(name, value)


def share(name: str, value: Any) -> float:
    """`value` as a finite float of 0 or more, such as CPUs or seconds."""
    found = number(name, value)
    if found < 0:
        raise ValueError(f"{name}: got {found:g}, expected 0 or more")
    return found


def threshold(name: str, value: Any) -> float:
    """`value` as a threshold of scores, at most 1."""
    return check_threshold(name, number(name, value))


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value` where it is one of `choices`."""
    if isinstance(value, str) and value not in choices:
        raise ValueError(f"{name}: got {_shown(value)}, expected one of {', '.join(choices)}")
    return check_choice(name, value, choices)


def names(name: str, value: Any) -> tuple[str, ...]:
    """`value`, a text or several, as a tuple of texts; commas are for whoever knows which names have some."""
    items = [value] if isinstance(value, (str, int)) else check_items(name, value, "names or ids of classes")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (str, int)):
            raise TypeError(f"{name}: got {type(item).__name__} in it, expected names or ids of classes")
    return tuple(text(name, str(item)) for item in items)


def side_or_size(name: str, value: Any) -> int | tuple[int, int]:
    """`value` as an input's size: ``640``, ``480x640`` (height and width), or numbers."""
    if isinstance(value, str):
        sides = value.lower().split("x")
        if len(sides) == 1:
            return count(name, value)
        if len(sides) != 2:
            raise ValueError(f"{name}: got {_shown(value)}, expected 640, or 480x640 for height and width")
        return count(name, sides[0]), count(name, sides[1])
    if isinstance(value, Sequence):
        sides = check_items(name, value, "(height, width)")
        if len(sides) != 2:
            raise ValueError(f"{name}: got {len(sides)} numbers, expected height and width")
        return count(name, sides[0]), count(name, sides[1])
    return count(name, value)


def _shown(value: str) -> str:
    """What came, as an error may repeat it: it is somebody's from outside."""
    return repr(value) if len(value) <= 40 else f"{value[:40]!r}..."
