"""What a stream's threads share, and where each of them waits: the reader, the sender, and the loop.

It does not know the stream, which can therefore go while its threads run; they then end. Frames stay the decoder's own
planes all the way to preprocessing. The lock is here; what it protects (queue.py, reconnect.py, statistics.py) never
waits for anything.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from enum import Enum
from fractions import Fraction
from itertools import pairwise
from typing import Any, NoReturn

from fai_fast._forks import ProcessGuard
from fai_fast._pipelines import InferFuture
from fai_fast._redaction import scrubbed
from fai_fast.stream.queue import _FrameQueue, _InFlightFrame
from fai_fast.stream.reconnect import _Reconnector
from fai_fast.stream.source import _CorruptFrame, _FrameError, _Opener, _SourceFrame, _SourceItem, _stalled
from fai_fast.stream.statistics import StreamStats, _StatisticsRecorder

_log = logging.getLogger("fai_fast")


class _State(Enum):
    """Where a stream is in its life; it only ever moves on."""

    IDLE = "no frame was asked for yet"
    RUNNING = "the source gives frames, or is being opened"
    DRAINING = "the source has ended or failed; what came before is on its way"
    STOPPED = "closed, or everything was handed out"


class _Feed:
    """The frames of a stream between its threads. Any thread may call any method, each of which says whether it blocks.

    Attributes:
        rate: frames per second that the source says it has; None where it does not, or is not open yet.
    """

    def __init__(
        self,
        submit: Callable[..., InferFuture] | None,
        opener: _Opener,
        queue: _FrameQueue,
        reconnector: _Reconnector,
        *,
        stride: int,
        infer: Mapping[str, Any],
    ) -> None:
        self.opener = opener
        self.rate: Fraction | None = None
        self._submit = submit
        self._infer = infer
        self._stride = stride
        self._guard = ProcessGuard("stream", "the stream was made; load the model and make the stream")
        # Reentrant: garbage collection may call stop() in a thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._queue = queue
        self._reconnector = reconnector
        self._statistics = _StatisticsRecorder()
        self._state = _State.IDLE
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._sending = False
        self._reader: object = None  # whose frames count: one that was given up may come back

    # ------------------------------------------------------------------------------------------- the reader's

    def ready(self, reader: object, delay: float) -> bool:
        """Blocks for `delay` seconds, before the source is opened; False where the reader is not wanted any more."""
        until = time.monotonic() + delay
        with self._changed:
            while self._is_current(reader) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            if not self._is_current(reader):
                return False
            self._reset_watchdog()
            return True

    def opened(self, reader: object, live: bool, rate: Fraction | None) -> None:
        """Notes what the open source says of itself. Does not block."""
        with self._changed:
            if not self._is_current(reader):
                return
            self._reconnector.live, self.rate = live, rate
            if self._queue.latest is None:
                self._queue.latest = live
            self._statistics.reconnects += self._reconnector.is_again
            self._reset_watchdog()

    def put(self, reader: object, item: _SourceItem) -> bool:
        """Takes a frame; False where the reader is not wanted any more. Blocks while there is no room for it."""
        with self._changed:
            if not self._is_current(reader):
                return False
            if isinstance(item, _CorruptFrame):
                self._statistics.damaged += 1
                return True
            self._reconnector.came()
            number = self._statistics.decoded
            self._statistics.decoded += 1
            if number % self._stride:
                self._statistics.skipped += 1
                self._reset_watchdog()
                return True
            self._queue.give_way()
            while not self._queue.has_room:
                self._reconnector.pause_watchdog()
                self._changed.wait()
                if not self._is_current(reader):
                    return False
            self._queue.put(number, item)
            self._reset_watchdog()
            self._changed.notify_all()
            return True

    def lost(self, reader: object, error: BaseException | None) -> float | None:
        """Seconds to wait before a source that ended or failed is opened again, None for never. Does not block."""
        with self._changed:
            if not self._is_current(reader):
                return None
            self._reconnector.pause_watchdog()
            delay = self._reconnector.delay(error)
            if delay is None:
                self._end(error)
                return None
        why = "it ended" if error is None else scrubbed(str(error))
        _log.info("stream: lost %s (%s); opening it again in %.1f s", self.opener.name, why, delay)
        return delay

    def _end(self, error: BaseException | None) -> None:
        if self._state is not _State.STOPPED:
            self._state, self._error = _State.DRAINING, error
        self._changed.notify_all()

    def _is_current(self, reader: object) -> bool:
        return reader is self._reader and self._state is not _State.STOPPED

    def _reset_watchdog(self) -> None:
        if self._reconnector.reset_watchdog():
            # The sender waits without an end.
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------- the sender's

    def submit_next(self) -> bool:
        """Hands a frame to the model; False at the end. Blocks until there is a frame, and room for it in the model."""
        with self._changed:
            while not self._queue.can_submit:
                if self._state is _State.STOPPED:
                    return False
                if self._state is _State.DRAINING and not self._queue.is_waiting:
                    return False
                left = self._silence_left()
                if left is not None and left <= 0:
                    self._give_up()
                    continue
                self._changed.wait(left)
            if self._state is _State.STOPPED:
                return False
            number, item = self._queue.take()
            self._changed.notify_all()
        frame = self._submit_frame(number, item)
        with self._changed:
            self._queue.submitted(frame)
            self._changed.notify_all()
        return True

    def failed(self, error: BaseException) -> None:
        """Ends the stream with what no frame is to blame for, after the results on their way. Does not block."""
        with self._changed:
            self._reader = None
            self._queue.forget_waiting()
            self._end(error)

    def _silence_left(self) -> float | None:
        """Seconds until the source counts as lost; None while it does not matter."""
        deadline = self._reconnector.deadline
        if deadline is None or self._queue.is_waiting or self._state is not _State.RUNNING:
            return None
        return deadline - time.monotonic()

    def _submit_frame(self, number: int, item: _SourceFrame | _FrameError) -> _InFlightFrame:
        """Blocks while the model has no room."""
        if isinstance(item, _FrameError):
            return _InFlightFrame(number, None, None, item.error)
        with self._changed:
            self._statistics.submitted(time.perf_counter(), item.captured)
        try:
            assert self._submit is not None
            future = self._submit(item.pixels, **item.layout, **self._infer)
        except Exception as error:
            return _InFlightFrame(number, item, None, error)
        return _InFlightFrame(number, item, future, None)

    def _give_up(self) -> None:
        """Leaves a reader that has been silent for too long to itself."""
        delay = self.lost(self._reader, _stalled(self.opener.name, self._reconnector.patience))
        self._reader = None
        if delay is None:
            return
        try:
            self._start_reader(delay)
        except RuntimeError as error:  # no more threads
            self._end(error)

    # --------------------------------------------------------------------------------------------- the loop's

    def check_process(self) -> None:
        """EngineError in a forked child, which has none of the threads. Does not block."""
        self._guard.check()

    def first_frame(self) -> _SourceFrame | None:
        """The frame that the model will get first; None where the source failed or ended before, or in its place.

        Starts the source alone, and blocks until one of that is known.
        """
        self._guard.check()
        with self._changed:
            self._start_reading()
            while self._state is _State.RUNNING and not self._queue.is_waiting:
                # The sender, which looks after a source that is silent, is not there yet.
                left = self._silence_left()
                if left is not None and left <= 0:
                    self._give_up()
                    continue
                self._changed.wait(left)
            item = self._queue.first_waiting()
        return item if isinstance(item, _SourceFrame) else None

    def serve(self, submit: Callable[..., InferFuture], infer: Mapping[str, Any]) -> None:
        """Brings the model, which the feed was made without, before the first frame is asked for. Does not block."""
        with self._changed:
            self._submit = submit
            self._infer = {**self._infer, **infer}
            self._queue.restart(time.perf_counter())

    def next_frame(self) -> _InFlightFrame | None:
        """The frame whose result is next; None at the end. Blocks until the model has it, but not for its result.

        Raises what ended the source, once.
        """
        self._guard.check()
        with self._changed:
            self._start()
            while self._state is not _State.STOPPED and not self._queue.in_flight():
                if self._state is _State.DRAINING and self._queue.is_empty:
                    self._state = _State.STOPPED
                    if self._error is not None:
                        _raise_last(self)
                    break
                self._changed.wait()
            if self._state is _State.STOPPED:
                return None
            frames = self._queue.in_flight()
        if self._queue.latest:
            for older, newer in pairwise(frames):
                if not (older.done() and newer.done()):
                    return older
                # The loop is slower than the model: its result was overtaken while it waited.
                self.retire(older, overtaken=True)
            return frames[-1]
        return frames[0]

    def retire(
        self,
        frame: _InFlightFrame,
        *,
        done: bool = False,
        overtaken: bool = False,
        model: float | None = None,
    ) -> None:
        """Makes room for another frame after this one was `done`, was `overtaken`, or failed. Does not block.

        `model` is the milliseconds that the model took for it, where it says so.
        """
        now = time.perf_counter()
        with self._changed:
            self._queue.retire(frame, overtaken=overtaken)
            if done and frame.came is not None:
                self._statistics.handed_out(now, frame.came.captured, model)
            self._changed.notify_all()

    @property
    def latest(self) -> bool | None:
        """Whether newer frames take the place of older ones; None until that is known. Does not block."""
        return self._queue.latest

    @property
    def dropped(self) -> int:
        """Frames that newer ones took the place of. Does not block."""
        return self._queue.dropped

    def stats(self) -> StreamStats:
        """How the stream keeps up. Does not block."""
        # In a forked child nobody else changes what is noted, and nobody may ever release the lock.
        lock: AbstractContextManager[Any] = nullcontext() if self._guard.inherited else self._changed
        with lock:
            recorded = self._statistics.copied(self._queue.dropped)
        return recorded.summary()

    # --------------------------------------------------------------------------------------------- start, stop

    def _start(self) -> None:
        if self._sending or self._state is _State.STOPPED:
            return
        self._sending = True
        try:
            self._run(_submit, self)
            self._start_reading()
        except BaseException:  # no more threads, or Ctrl-C: half a stream would wait for the other half
            self.stop()
            raise

    def _start_reading(self) -> None:
        if self._state is not _State.IDLE:
            return
        self._state = _State.RUNNING
        _running.add(self)
        try:
            self._start_reader(0.0)
        except BaseException:
            self.stop()
            raise

    def _start_reader(self, delay: float) -> None:
        self._reader = object()
        # Nothing is heard from it before it begins.
        self._reconnector.pause_watchdog()
        self._run(_read, self, self._reader, delay)

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        # Daemons: one that is stuck in a driver must not keep the process.
        thread = threading.Thread(
            target=target, args=arguments, name=f"fai_fast-{target.__name__[1:]}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Ends the threads, soon, and lets go of the frames that wait. Does not block."""
        if self._guard.inherited:
            return
        with self._changed:
            self._state = _State.STOPPED
            self._queue.forget_waiting()
            self._changed.notify_all()

    def join(self, grace: float) -> None:
        """Blocks until the threads have ended, `grace` seconds at most, and then for the frames in the model."""
        if self._guard.inherited:
            return
        until = time.monotonic() + grace
        for thread in self._threads:
            # One that could not be started has no number, and cannot be waited for.
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            frames = self._queue.forget_in_flight()
        for frame in frames:
            frame.failure()


# Threads that decode while the interpreter goes down would crash it.
_running: weakref.WeakSet[_Feed] = weakref.WeakSet()


def _stop_all() -> None:
    """Blocks until the streams of this process have ended, half a second for the threads of each at most."""
    feeds = list(_running)
    for feed in feeds:
        feed.stop()
    for feed in feeds:
        feed.join(0.5)


atexit.register(_stop_all)


def _submit(feed: _Feed) -> None:
    try:
        while feed.submit_next():
            pass
    except BaseException as error:  # without this thread the loop would wait for ever
        feed.failed(error)


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
