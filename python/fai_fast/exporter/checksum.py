"""The checksum that an exported file carries of itself: it travels to machines where nothing else would notice damage.

It covers every byte of the file but its own 64 digits, which count as zeros; so it depends on no serialization.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["KEY", "PLACEHOLDER", "stamp", "verdict"]

KEY = "fai_fast.sha256"
PLACEHOLDER = "0" * 64
# A metadata entry in protobuf's encoding: field 1 of the key's length, then field 2 of 64 bytes.
_ENTRY = re.compile(re.escape(b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12\x40") + rb"([0-9a-f]{64})")


def stamp(serialized: bytes) -> bytes:
    """A serialized model whose metadata has KEY with the PLACEHOLDER, with its checksum there."""
    start = _place(serialized)
    if start is None or serialized[start : start + 64] != PLACEHOLDER.encode():
        raise AssertionError("the model to stamp has no place for a checksum")
    return serialized[:start] + _digest(serialized, start) + serialized[start + 64 :]


def verdict(serialized: bytes) -> bool | None:
    """Whether a file's content is what was exported; None where it carries no checksum."""
    start = _place(serialized)
    if start is None:
        return None
    return serialized[start : start + 64] == _digest(serialized, start)


def _place(serialized: bytes) -> int | None:
    """Where the digits begin. Metadata comes last: only there is what looks like the entry the entry."""
    begin = serialized.rfind(KEY.encode()) - 2
    match = _ENTRY.match(serialized, begin) if begin >= 0 else None
    return None if match is None else match.start(1)


def _digest(serialized: bytes, start: int) -> bytes:
    digest = hashlib.sha256(memoryview(serialized)[:start])
    digest.update(PLACEHOLDER.encode())
    digest.update(memoryview(serialized)[start + 64 :])
    return digest.hexdigest().encode()
