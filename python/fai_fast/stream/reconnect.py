"""When a silent source counts as lost, and when a lost one is opened again."""

from __future__ import annotations

import random
import time

from fai_fast.stream.source import _Opener


class _Reconnector:
    """The watchdog of a source, and the pauses before it is opened again.

    No method blocks, and none takes a lock: whoever calls one holds the stream's.

    Attributes:
        deadline: when a silent source counts as lost, on the clock of ``time.monotonic``; None while nothing is
            expected of it.
        live: whether the source goes on whether or not somebody looks; None until it is open, where that decides.
    """

    def __init__(
        self,
        opener: _Opener,
        *,
        enabled: bool,
        timeout: float | None,
        live_timeout: float,
        backoff: tuple[float, float],
        retries: int | None,
    ) -> None:
        self.deadline: float | None = None
        self.live = opener.live
        self._opener = opener
        self._enabled = enabled
        self._timeout = timeout
        self._live_timeout = live_timeout
        self._backoff = backoff
        self._retries = retries
        self._attempts = 0  # since the last frame

    @property
    def is_again(self) -> bool:
        """Whether the source was lost since its last frame."""
        return self._attempts > 0

    @property
    def patience(self) -> float:
        """Seconds that a source may be silent, where it may not be for ever."""
        return self._live_timeout if self._timeout is None else self._timeout

    def reset_watchdog(self) -> bool:
        """Counts the silence from now on; says whether it was not counted before."""
        limit = self._timeout
        if limit is None and (self._opener.pipe or (self.live is not False and self._opener.again)):
            limit = self._live_timeout
        begun = self.deadline is None and limit is not None
        self.deadline = None if limit is None else time.monotonic() + limit
        return begun

    def pause_watchdog(self) -> None:
        """Nothing is expected of the source until the watchdog is reset."""
        self.deadline = None

    def came(self) -> None:
        """Notes that the source gave a frame: it is as good as new."""
        self._attempts = 0

    def delay(self, error: BaseException | None) -> float | None:
        """Seconds to wait before a source that ended or failed is opened again; None for never."""
        again = self._enabled and self.live is not False and isinstance(error, Exception | None)
        if not again or (self._retries is not None and self._attempts >= self._retries):
            return None
        first, most = self._backoff
        # Drawn, so that many streams of one server do not come back at the same moment.
        delay = min(most, first * 2.0 ** min(self._attempts, 60)) * random.uniform(0.5, 1.0)
        self._attempts += 1
        return delay
