"""Arrays next to a page that may not be touched: reading one byte too far ends the process."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(array, side):
    """A C-contiguous copy whose last ("end") or first ("start") byte lies at a forbidden page."""
    page = mmap.PAGESIZE
    room = -(-array.nbytes // page) * page
    area = mmap.mmap(-1, room + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if side == "end":
        forbidden, offset = address + room, room - array.nbytes
    else:
        forbidden, offset = address, page
    if _libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(area, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


def run_to_done(script: str) -> None:
    """Runs a script in a process of its own, where a touched page kills only that; it must end by printing "done"."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
