"""Checks that the records of several rooms of the registry share."""

from __future__ import annotations

from fai_fast._arguments import check_int

__all__ = ["LARGEST", "check_count", "check_fixed"]

LARGEST = 1 << 20


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
