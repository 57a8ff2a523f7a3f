"""The one line that a long job writes: silence for seconds looks like a program that hangs.

Where nobody configured logging of fai_fast at INFO, the line goes to standard error once the job has taken two
seconds; else it is a record like every other, written when the job begins. ``logging.getLogger("fai_fast")`` at ERROR
or above means that even this line is not wanted.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

__all__ = ["job", "working"]

DELAY = 2.0

_log = logging.getLogger("fai_fast.progress")


class _Job:
    def __init__(self, text: str) -> None:
        self._text = text
        self._timer: threading.Timer | None = None
        self._began = False

    def begin(self) -> None:
        if self._began:
            return
        self._began = True
        if _log.isEnabledFor(logging.INFO):
            _log.info("%s", self._text)
        elif _log.isEnabledFor(logging.WARNING):
            self._timer = threading.Timer(DELAY, self._tell)
            self._timer.daemon = True
            # Where there is no room for another thread, the job matters more than the line.
            with suppress(RuntimeError):
                self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        with suppress(OSError, ValueError):  # nobody reads it
            if sys.stderr is not None:
                print(f"fai_fast: {self._text}", file=sys.stderr, flush=True)


_current: ContextVar[_Job | None] = ContextVar("fai_fast_job", default=None)


@contextmanager
def job(text: str) -> Iterator[None]:
    """Something that may take long; a job within another one is part of it, and says nothing of its own.

    Args:
        text: what is being done, of which model, and whether it is done once.
    """
    if _current.get() is not None:
        yield
        return
    here = _Job(text)
    token = _current.set(here)
    try:
        yield
    finally:
        _current.reset(token)
        here.end()


def working() -> None:
    """Says that the job at hand does something that takes time, in place of finding all of it in the cache."""
    here = _current.get()
    if here is not None:
        here.begin()
