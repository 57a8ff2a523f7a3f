"""What processes of their own print, but for what this machine makes the libraries of others print."""

from __future__ import annotations

import functools
import subprocess
import sys

_OTHERS = """
try:
    import openvino
    openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
except ImportError:
    pass
try:
    import onnxruntime
    onnxruntime.get_available_providers()
except ImportError:
    pass
"""


@functools.cache
def _noise() -> frozenset[str]:
    done = subprocess.run([sys.executable, "-c", _OTHERS], capture_output=True, text=True, check=True)
    return frozenset(done.stderr.splitlines())


def complaints(stderr: str) -> list[str]:
    """The lines on stderr but those that the engines' packages print without us.

    Where there is no /sys, for instance, OpenVINO's library of topologies says so.
    """
    lines = stderr.splitlines()
    return [line for line in lines if line not in _noise()] if lines else []
