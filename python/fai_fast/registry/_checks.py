"""Checks that the records of several rooms of the registry share."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from fai_fast._arguments import check_int

__all__ = ["LARGEST", "check_count", "check_fixed", "check_text", "record_of"]

LARGEST = 1 << 20

_Record = TypeVar("_Record")


def check_count(name: str, value: object, least: int = 1, largest: int = LARGEST, multiple: int = 1) -> int:
    count = check_int(name, value)
    if not least <= count <= largest:
        raise ValueError(f"{name}: got {count}, expected {least} to {largest}")
    if count % multiple:
        raise ValueError(f"{name}: got {count}, expected a multiple of {multiple}")
    return count


def check_fixed(name: str, value: object, *expected: object) -> None:
    if value not in expected:
        raise ValueError(f"{name}: got {value!r}, expected {expected[0]!r}: no other kind is supported")


def check_text(name: str, value: object) -> str:
    """`value` as text that says something; TypeError, ValueError otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a str")
    if not value.strip() or "\0" in value:
        raise ValueError(f"{name}: got {value!r}, expected text")
    return value


def record_of(
    record_type: type[_Record], name: str, items: Mapping[str, Any], needed: Collection[str] = ()
) -> _Record:
    """A dataclass from the mapping of its fields, of which those that are None count as left out.

    Args:
        record_type: the dataclass.
        name: what errors call it.
        items: the fields.
        needed: those that must be there although the dataclass has a default for them.

    Raises:
        TypeError, ValueError: a field is missing, unknown, or not as it must be.
    """
    if not isinstance(items, Mapping):
        raise TypeError(f"{name}: got {type(items).__name__}, expected a mapping")
    fields = {item.name: item for item in dataclasses.fields(record_type) if item.name[0] != "_"}  # type: ignore[arg-type]
    if unknown := [key for key in items if key not in fields]:
        raise ValueError(
            f"{name}: got unknown fields {', '.join(map(repr, unknown[:5]))}, expected {', '.join(fields)}"
        )
    given = {key: value for key, value in items.items() if value is not None}
    required = [
        key
        for key, item in fields.items()
        if (item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING)
        or key in needed
    ]
    if missing := [key for key in required if key not in given]:
        raise ValueError(f"{name}: {', '.join(missing)} missing")
    return record_type(**given)
