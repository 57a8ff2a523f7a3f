"""Loads the compiled module and another library in one order, and compares the numbers that each writes.

python load.py MODULE LIBRARY ORDER, where ORDER is one of _ORDERS. The module comes from its file, without the package.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import sys

import numpy as np

_module, _library, _order = sys.argv[1:]


def ours(flags: int):
    before = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_NOW)
    try:
        loader = importlib.machinery.ExtensionFileLoader("fai_fast._core", _module)
        spec = importlib.util.spec_from_file_location("fai_fast._core", _module, loader=loader)
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    finally:
        sys.setdlopenflags(before)
    return module


def theirs(flags: int):
    return ctypes.CDLL(_library, mode=flags | os.RTLD_NOW)


def check_ours(core) -> None:
    def refused(size: tuple[int, int], std: float) -> str:
        image = np.zeros((8, 8, 3), np.uint8)
        try:
            core.preprocess(
                image, size, (0, 0, 0), (std, 1, 1), "rgb", "stretch", "float32", None, "bt601", "limited"
            )
        except ValueError as error:
            return str(error)
        return "nothing was refused"

    expected = "size: got 1234567 x 8, expected sides of 1 to 32767 and at most 268435456 pixels"
    assert refused((1234567, 8), 1.0) == expected, refused((1234567, 8), 1.0)
    expected = "std: got 1.5e-39, expected finite numbers other than 0"
    assert refused((4, 4), 1.5e-39) == expected, refused((4, 4), 1.5e-39)


def check_theirs(library) -> None:
    text = ctypes.create_string_buffer(100)
    library.write_numbers(text, len(text))
    assert text.value == b"1234567 0.5 -8 1", text.value


_ORDERS = {
    "ours first": (ours, os.RTLD_LOCAL, theirs, os.RTLD_LOCAL),
    "ours first, theirs for all": (ours, os.RTLD_LOCAL, theirs, os.RTLD_GLOBAL),
    "ours first, for all": (ours, os.RTLD_GLOBAL, theirs, os.RTLD_LOCAL),
    "theirs first": (theirs, os.RTLD_LOCAL, ours, os.RTLD_LOCAL),
    "theirs first, for all": (theirs, os.RTLD_GLOBAL, ours, os.RTLD_LOCAL),
    "theirs first, both for all": (theirs, os.RTLD_GLOBAL, ours, os.RTLD_GLOBAL),
}
_CHECKS = {ours: check_ours, theirs: check_theirs}

if __name__ == "__main__":
    first, first_flags, second, second_flags = _ORDERS[_order]
    a = first(first_flags)
    _CHECKS[first](a)
    b = second(second_flags)
    for _ in range(2):
        _CHECKS[second](b)
        _CHECKS[first](a)
