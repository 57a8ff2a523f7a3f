"""Results beside each other, and such as are there at once."""

from __future__ import annotations

import numpy as np


def same_bits(a, b):
    """Two results are the same to the last bit."""
    for name in ("query", "class_id", "confidence", "xyxy", "mask", "area", "label_map"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            x, y = np.asarray(x), np.asarray(y)
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            assert x.tobytes() == y.tobytes(), name


class Ticket:
    """What a submit() returns that has no work to do."""

    def __init__(self, found):
        self._found = found

    def result(self, timeout=None):
        return self._found
