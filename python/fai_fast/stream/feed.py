"""What a stream's threads share: the frames that wait, those in the model, and the counts.

It does not know the stream, which can therefore go while its threads run; they then end. Frames stay the decoder's own
planes all the way to preprocessing.
"""

from __future__ import annotations

import atexit
import logging
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fai_fast.detections import Detections
from fai_fast.pipelines import Ticket
from fai_fast.stream.source import _CorruptFrame, _FrameError, _Opener, _SourceFrame, _SourceItem, _stalled

# Results that the statistics look back on.
_WINDOW = 256
_log = logging.getLogger("fai_fast")


class StreamStats(NamedTuple):
    """How a stream keeps up; the rates are those of the last results.

    Attributes:
        frames: results handed out.
        decoded: frames that came from the source.
        dropped: frames that newer ones took the place of.
        skipped: frames left out by ``stride``.
        damaged: frames that a live source sent damaged, and that were left out or repaired by the decoder.
        reconnects: how often the source was opened again.
        fps: results a second.
        p50, p90, p99: milliseconds from capture to result that half, 90 % and 99 % of the results stay below.
        queue_age: milliseconds that half of the frames waited at most until the model took them.
    """

    frames: int
    decoded: int
    dropped: int
    skipped: int
    damaged: int
    reconnects: int
    fps: float
    p50: float
    p90: float
    p99: float
    queue_age: float


class _InFlightFrame:
    """A frame in the model, or an error in the place of one."""

    def __init__(
        self, id: int, came: _SourceFrame | None, ticket: Ticket | None, error: Exception | None
    ) -> None:
        self.id = id
        self.came = came
        self._ticket = ticket
        self._error = error

    def result(self) -> Detections:
        if self._error is not None:
            raise self._error
        assert self._ticket is not None
        return self._ticket.result()

    def forget(self) -> None:
        """Lets go of the error, whose traceback holds this."""
        self._ticket = self._error = None

    def done(self) -> bool:
        """Whether there is a result; an error is none."""
        if self._ticket is None or not self._ticket.done():
            return False
        try:
            self._ticket.result()
        except Exception:
            return False
        return True


class _Feed:
    """What reader, sender and loop share: frames that wait, frames in flight, and the counts."""

    def __init__(
        self,
        submit: Callable[..., Ticket],
        opener: _Opener,
        *,
        latest: bool | None,
        depth: int,
        stride: int,
        reconnect: bool,
        timeout: float | None,
        live_timeout: float,
        backoff: tuple[float, float],
        retries: int | None,
        infer: Mapping[str, Any],
    ) -> None:
        self.opener = opener
        self.latest = latest
        self.live = opener.live
        self.rate: Fraction | None = None
        self.dropped = 0
        self._submit = submit
        self._infer = infer
        self._depth = depth
        self._stride = stride
        self._reconnect = reconnect
        self._timeout = timeout
        self._live_timeout = live_timeout
        self._backoff = backoff
        self._retries = retries
        # Reentrant: garbage collection may call stop() in a thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[tuple[int, _SourceFrame | _FrameError]] = deque()
        self._flying: deque[_InFlightFrame] = deque()
        self._sending = False  # a frame is between the two
        self._started = self._stopped = self._ended = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._reader: object = None  # whose frames count: one that was given up may come back
        self._deadline: float | None = None  # when a silent source counts as lost
        self._tries = 0
        self._frames = self._decoded = self._skipped = self._damaged = self._reconnects = 0
        # When each of the last results was handed out, and its milliseconds from capture to result.
        self._handed: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._ages: deque[float] = deque(maxlen=_WINDOW)

    # ------------------------------------------------------------------------------------------- the reader's

    def ready(self, reader: object, delay: float) -> bool:
        """Waits before the source is opened; False where the reader is not wanted any more."""
        until = time.monotonic() + delay
        with self._changed:
            while self._is_current(reader) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            if not self._is_current(reader):
                return False
            self._reset_watchdog()
            return True

    def opened(self, reader: object, live: bool, rate: Fraction | None) -> None:
        with self._changed:
            if not self._is_current(reader):
                return
            self.live, self.rate = live, rate
            if self.latest is None:
                self.latest = live
            self._reconnects += self._tries > 0
            self._reset_watchdog()

    def put(self, reader: object, item: _SourceItem) -> bool:
        """Takes a frame; False where the reader is not wanted any more."""
        with self._changed:
            if not self._is_current(reader):
                return False
            if isinstance(item, _CorruptFrame):
                self._damaged += 1
                return True
            self._tries = 0
            number = self._decoded
            self._decoded += 1
            if number % self._stride:
                self._skipped += 1
                self._reset_watchdog()
                return True
            if self.latest:
                kept = [other for other in self._waiting if isinstance(other[1], _FrameError)]
                self.dropped += len(self._waiting) - len(kept)
                self._waiting = deque(kept)
            while len(self._waiting) >= self._depth:
                self._deadline = None
                self._changed.wait()
                if not self._is_current(reader):
                    return False
            self._waiting.append((number, item))
            self._reset_watchdog()
            self._changed.notify_all()
            return True

    def lost(self, reader: object, error: BaseException | None) -> float | None:
        """The source has ended, or failed: seconds to wait before it is opened again, None for never."""
        with self._changed:
            if not self._is_current(reader):
                return None
            again = self._reconnect and self.live is not False and isinstance(error, Exception | None)
            if not again or (self._retries is not None and self._tries >= self._retries):
                self._ended, self._error = True, error
                self._deadline = None
                self._changed.notify_all()
                return None
            first, most = self._backoff
            # Drawn, so that many streams of one server do not come back at the same moment.
            delay = min(most, first * 2.0 ** min(self._tries, 60)) * random.uniform(0.5, 1.0)
            self._tries += 1
            self._deadline = None
        why = "it ended" if error is None else error
        _log.info("stream: lost %s (%s); opening it again in %.1f s", self.opener.name, why, delay)
        return delay

    def _is_current(self, reader: object) -> bool:
        return reader is self._reader and not self._stopped

    def _reset_watchdog(self) -> None:
        limit = self._timeout
        if limit is None and (self.opener.pipe or (self.live is not False and self.opener.again)):
            limit = self._live_timeout
        if self._deadline is None and limit is not None:
            # The sender waits without an end.
            self._changed.notify_all()
        self._deadline = None if limit is None else time.monotonic() + limit

    # ------------------------------------------------------------------------------------------- the sender's

    def send(self) -> bool:
        """Waits for a frame and for room in the model, and hands it over; False at the end."""
        with self._changed:
            while not (self._waiting and len(self._flying) < self._depth):
                if self._stopped or (self._ended and not self._waiting):
                    return False
                left = None
                if self._deadline is not None and not self._waiting and not self._ended:
                    left = self._deadline - time.monotonic()
                    if left <= 0:
                        self._give_up()
                        continue
                self._changed.wait(left)
            if self._stopped:
                return False
            number, item = self._waiting.popleft()
            self._sending = True
            self._changed.notify_all()
        flight = self._submit_frame(number, item)
        with self._changed:
            self._flying.append(flight)
            self._sending = False
            self._changed.notify_all()
        return True

    def _submit_frame(self, number: int, item: _SourceFrame | _FrameError) -> _InFlightFrame:
        if isinstance(item, _FrameError):
            return _InFlightFrame(number, None, None, item.error)
        with self._changed:
            self._ages.append(1e3 * (time.perf_counter() - item.captured))
        try:
            return _InFlightFrame(number, item, self._submit(item.pixels, **item.layout, **self._infer), None)
        except Exception as error:
            return _InFlightFrame(number, item, None, error)

    def _give_up(self) -> None:
        """Leaves a reader that has been silent for too long to itself."""
        limit = self._live_timeout if self._timeout is None else self._timeout
        delay = self.lost(self._reader, _stalled(self.opener.name, limit))
        self._reader = None
        if delay is not None:
            self._read(delay)

    # --------------------------------------------------------------------------------------------- the loop's

    def first(self) -> _InFlightFrame | None:
        """The frame whose result is next; None at the end. Raises what ended the source, once."""
        with self._changed:
            self._start()
            while not self._stopped and not self._flying:
                if self._ended and not self._waiting and not self._sending:
                    if self._error is not None:
                        _raise_last(self)
                    return None
                self._changed.wait()
            if self._stopped:
                return None
            flights = list(self._flying)
        if self.latest:
            for older, newer in pairwise(flights):
                if not (older.done() and newer.done()):
                    return older
                # The loop is slower than the model: its result was overtaken while it waited.
                self.land(older, overtaken=True)
            return flights[-1]
        return flights[0]

    def land(self, flight: _InFlightFrame, *, done: bool = False, overtaken: bool = False) -> None:
        now = time.perf_counter()
        with self._changed:
            with suppress(ValueError):  # stopped meanwhile
                self._flying.remove(flight)
            self.dropped += overtaken
            if done and flight.came is not None:
                self._frames += 1
                self._handed.append((now, 1e3 * (now - flight.came.captured)))
            self._changed.notify_all()

    def stats(self) -> StreamStats:
        with self._changed:
            counts = (
                self._frames,
                self._decoded,
                self.dropped,
                self._skipped,
                self._damaged,
                self._reconnects,
            )
            handed, ages = np.array(self._handed), np.array(self._ages)
        if len(handed) == 0:
            return StreamStats(*counts, 0.0, 0.0, 0.0, 0.0, 0.0)
        span = float(handed[-1, 0] - handed[0, 0])
        p50, p90, p99 = np.percentile(handed[:, 1], (50, 90, 99)).tolist()
        fps = (len(handed) - 1) / span if span > 0 else 0.0
        return StreamStats(*counts, fps, p50, p90, p99, float(np.median(ages)))

    # --------------------------------------------------------------------------------------------- start, stop

    def _start(self) -> None:
        if self._started or self._stopped:
            return
        self._started = True
        _running.add(self)
        self._run(_send, self)
        self._read(0.0)

    def _read(self, delay: float) -> None:
        self._reader = object()
        # Nothing is heard from it before it begins.
        self._deadline = None
        self._run(_read, self, self._reader, delay)

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads = [*self._threads[:1], *(thread for thread in self._threads[1:] if thread.is_alive())]
        # Daemons: one that is stuck in a driver must not keep the process.
        thread = threading.Thread(
            target=target, args=arguments, name=f"fai_fast-{target.__name__[1:]}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Ends the threads, soon, and lets go of the frames; does not wait."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()

    def join(self, grace: float) -> None:
        """Waits for the threads, `grace` seconds at most, and for the frames in flight."""
        until = time.monotonic() + grace
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            flights = list(self._flying)
            self._flying.clear()
        for flight in flights:
            with suppress(Exception):
                flight.result()


# Threads that decode while the interpreter goes down would crash it.
_running: weakref.WeakSet[_Feed] = weakref.WeakSet()


def _stop_all() -> None:
    feeds = list(_running)
    for feed in feeds:
        feed.stop()
    for feed in feeds:
        feed.join(0.5)


atexit.register(_stop_all)


def _send(feed: _Feed) -> None:
    while feed.send():
        pass


def _read(feed: _Feed, reader: object, delay: float | None) -> None:
    def opened(live: bool, rate: Fraction | None) -> None:
        feed.opened(reader, live, rate)

    while delay is not None and feed.ready(reader, delay):
        try:
            with closing(feed.opener.frames(opened)) as frames:
                for item in frames:
                    if not feed.put(reader, item):
                        return
        except BaseException as error:  # the loop gets it, whatever a source of the user's raises
            delay = feed.lost(reader, error)
        else:
            delay = feed.lost(reader, None)


def _raise_last(feed: _Feed) -> NoReturn:
    error, feed._error = feed._error, None
    assert error is not None
    try:
        raise error
    finally:
        del error
