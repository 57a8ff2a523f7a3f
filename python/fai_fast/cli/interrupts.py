"""Ctrl-C, SIGTERM, and a terminal that goes away: a command ends, and what it has finished stays whole and readable."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupt"]

# Seconds in which a second signal is the first one again: what runs a command often passes on what the terminal has
# sent to it too.
ECHO = 1.0


class Interrupt:
    """SIGINT, SIGTERM and SIGHUP as KeyboardInterrupt, but not while something is written.

    Another signal, later than an echo of the first, ends at once what is still being written.

    Attributes:
        signal: the one that came, None without one.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at = 0.0
        self._later = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def came(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @property
    def code(self) -> int:
        """The exit code that shells give to a process that the signal ended: 130 for SIGINT."""
        return 128 + (self.signal or signal.SIGINT)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Lets a signal wait for the end of the block, where it is raised unless the block has raised already."""
        self._later += 1
        try:
            yield
        finally:
            self._later -= 1
        if self.came and not self._later:
            raise KeyboardInterrupt

    @contextmanager
    def noted(self) -> Iterator[None]:
        """As :meth:`later`, and the signal is not raised at the end either: ask :attr:`came`."""
        self._later += 1
        try:
            yield
        finally:
            self._later -= 1

    def hold(self) -> None:
        """From here to the end of the command, as in :meth:`noted`: files are being ended."""
        self._later += 1

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            # Whoever ignores a signal, such as a shell for its background jobs, wants it ignored.
            usually: list[tuple[signal.Signals, Any]] = [
                (signal.SIGINT, signal.default_int_handler),
                (signal.SIGTERM, signal.SIG_DFL),
            ]
            if hasattr(signal, "SIGHUP"):  # not on Windows
                usually.append((signal.SIGHUP, signal.SIG_DFL))
            for kind, usual in usually:
                if signal.getsignal(kind) == usual:
                    self._before[kind] = signal.signal(kind, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _handle(self, number: int, *_: object) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._at = signal.Signals(number), now
            if not self._later:
                raise KeyboardInterrupt
        elif now - self._at > ECHO:
            raise KeyboardInterrupt
