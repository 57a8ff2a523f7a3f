"""Faults, orders and counters of the emulator that a compiled module contains (see emulator.h)."""

from __future__ import annotations

import contextlib
import ctypes


class Emulator:
    """The emulator inside the shared library at `path`; `Emulator(_core.__file__)` in a build with
    FAI_FAST_CUDA=EMULATED. Raises AttributeError for a library without it."""

    def __init__(self, path):
        library = ctypes.CDLL(str(path))
        self._set, self._get = library.cuda_emulator_set, library.cuda_emulator_get
        self._set.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        self._get.argtypes, self._get.restype = [ctypes.c_char_p], ctypes.c_longlong

    def set(self, name, value=""):
        if self._set(name.encode(), str(value).encode()) != 0:
            raise ValueError(
                f"{name}={value!r} is no setting of the emulator; see tests/cuda_emulator/emulator.h"
            )

    def get(self, counter):
        value = self._get(counter.encode())
        if value < 0:
            raise ValueError(f"{counter!r} is no counter of the emulator; see Counters in emulator.h")
        return value

    @contextlib.contextmanager
    def settings(self, **values):
        """With these settings; after it those of the environment, and a device without errors."""
        try:
            for name, value in values.items():
                self.set(name, value)
            yield self
        finally:
            self.set("reset")
