"""Which options FFmpeg has: what it does not know it ignores in silence, and PyAV does not say what was left over.

FFmpeg tells it by a call of its C interface that is the same in all its versions, in the library that PyAV has loaded.
"""

from __future__ import annotations

import ctypes
import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

__all__ = ["check_names"]

# AV_OPT_SEARCH_CHILDREN | AV_OPT_SEARCH_FAKE_OBJ: in every format and protocol, of which there is no object yet.
_EVERYWHERE = 1 | 2


def check_names(options: Mapping[str, str]) -> None:
    """ValueError for an option that no format and no protocol of FFmpeg's has; needs PyAV to be imported.

    One that belongs to another format than the source's is still ignored. Their values are not shown: they may be
    secrets.
    """
    for name in options:
        if not _is_known(name):
            near = difflib.get_close_matches(name, _names(), n=1, cutoff=0.6)
            more = f", did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"options: got {name!r:.60}, which FFmpeg has not for any input{more}")


def _is_known(name: str) -> bool:
    found = _libraries()
    if found is None or "\0" in name:
        return found is None
    avformat, avutil = found
    # What stands for an object is a pointer to the pointer to its class.
    described = ctypes.c_void_p(avformat.avformat_get_class())
    return bool(avutil.av_opt_find(ctypes.byref(described), name.encode(), None, 0, _EVERYWHERE))


@cache
def _names() -> tuple[str, ...]:
    """All of them, without the words that are values of some."""
    found = _libraries()
    if found is None:
        return ()
    avformat, avutil = found
    return tuple(sorted(filter(_is_known, set(_options_of(avutil, avformat.avformat_get_class())))))


def _options_of(avutil: ctypes.CDLL, described: int) -> Iterator[str]:
    fake = ctypes.c_void_p(described)
    option = avutil.av_opt_next(ctypes.byref(fake), None)
    while option:
        # Its name is the first thing in it.
        yield ctypes.cast(option, ctypes.POINTER(ctypes.c_char_p))[0].decode()
        option = avutil.av_opt_next(ctypes.byref(fake), ctypes.c_void_p(option))
    place = ctypes.c_void_p()
    while child := avutil.av_opt_child_class_iterate(ctypes.c_void_p(described), ctypes.byref(place)):
        yield from _options_of(avutil, child)


@cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL] | None:
    """libavformat and libavutil as this process has loaded them; None where they are not libraries of their own."""
    found: dict[str, ctypes.CDLL] = {}
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:  # no Linux, or a sandbox
        return None
    for line in lines:
        path = line.partition("/")
        name = re.match(r"lib(avformat|avutil)\b[^/]*\.so", line.rpartition("/")[2])
        if name is not None and path[1]:
            found[name[1]] = ctypes.CDLL(f"/{path[2]}")
    if len(found) < 2:
        return None
    avformat, avutil = found["avformat"], found["avutil"]
    avformat.avformat_get_class.restype = ctypes.c_void_p
    avutil.av_opt_find.restype = ctypes.c_void_p
    avutil.av_opt_find.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_int,
    ]
    avutil.av_opt_next.restype = ctypes.c_void_p
    avutil.av_opt_next.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    avutil.av_opt_child_class_iterate.restype = ctypes.c_void_p
    avutil.av_opt_child_class_iterate.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return avformat, avutil
