"""A stream's frames on their way: those that wait for the model, those in it, and which of them give way."""

from __future__ import annotations

from collections import deque

from fai_fast._foreign import from_signal_handler
from fai_fast._pipelines import InferFuture
from fai_fast.detections import Detections
from fai_fast.stream.source import _FrameError, _SourceFrame


class _InFlightFrame:
    """A frame in the model, or an error in the place of one."""

    def __init__(
        self, id: int, came: _SourceFrame | None, future: InferFuture | None, error: Exception | None
    ) -> None:
        self.id = id
        self.came = came
        self._future = future
        self._error = error

    def result(self) -> Detections:
        """Blocks until the model has a result. Raises what went wrong with the frame."""
        if self._error is not None:
            raise self._error
        assert self._future is not None
        return self._future.result()

    def forget(self) -> None:
        """Lets go of the error, whose traceback holds this. Does not block."""
        self._future = self._error = None

    def done(self) -> bool:
        """Whether there is a result; an error is none. Does not block."""
        if self._future is None or not self._future.done():
            return False
        return self.failure() is None

    def failure(self) -> Exception | None:
        """The frame's error, None where there is a result. Blocks until the model has one.

        Raises what is not of the frame, such as what a signal handler raises meanwhile; ask again then.
        """
        if self._error is not None:
            return self._error
        assert self._future is not None
        try:
            self._future.result()
        except Exception as error:
            if from_signal_handler(error) is not None or not self._future.done():
                raise
            return error
        return None


class _FrameQueue:
    """Frames between the source and the loop: first they wait for the model, then they are in it.

    No method blocks, and none takes a lock: whoever calls one holds the stream's.

    Attributes:
        latest: whether newer frames take the place of those that wait; None until the source is open, where that
            decides.
        dropped: frames that newer ones took the place of.
    """

    def __init__(self, depth: int, latest: bool | None) -> None:
        self.latest = latest
        self.dropped = 0
        self._depth = depth
        self._waiting: deque[tuple[int, _SourceFrame | _FrameError]] = deque()
        self._in_flight: deque[_InFlightFrame] = deque()
        self._submitting = False  # a frame is between the two
        self._began: float | None = None

    def give_way(self) -> None:
        """Drops the frames that wait where only the latest counts. Errors stay."""
        if self.latest:
            kept = [other for other in self._waiting if isinstance(other[1], _FrameError)]
            self.dropped += len(self._waiting) - len(kept)
            self._waiting = deque(kept)

    @property
    def has_room(self) -> bool:
        """Whether another frame may wait."""
        return len(self._waiting) < self._depth

    def put(self, number: int, item: _SourceFrame | _FrameError) -> None:
        """Adds a frame to those that wait, for which there is room."""
        self._waiting.append((number, item))

    @property
    def is_waiting(self) -> bool:
        """Whether a frame waits for the model."""
        return bool(self._waiting)

    @property
    def can_submit(self) -> bool:
        """Whether a frame waits, and the model has room for it."""
        return self.is_waiting and len(self._in_flight) < self._depth

    def first_waiting(self) -> _SourceFrame | _FrameError | None:
        """What the model would get next."""
        return self._waiting[0][1] if self._waiting else None

    def restart(self, now: float) -> None:
        """Counts from now on: until `now` there was no model that could have kept up."""
        self.dropped = 0
        # A live source's newest frame is as old as it is; one that waits for the model has no pace of its own.
        self._began = None if self.latest else now

    def take(self) -> tuple[int, _SourceFrame | _FrameError]:
        """The frame that has waited longest, to be handed to the model; :meth:`submitted` must follow."""
        self._submitting = True
        number, item = self._waiting.popleft()
        if self._began is not None and isinstance(item, _SourceFrame) and item.captured < self._began:
            item = item._replace(captured=self._began)
        return number, item

    def submitted(self, frame: _InFlightFrame) -> None:
        """Adds the frame that was taken to those in the model."""
        self._in_flight.append(frame)
        self._submitting = False

    def in_flight(self) -> list[_InFlightFrame]:
        """The frames in the model, in their order."""
        return list(self._in_flight)

    def retire(self, frame: _InFlightFrame, *, overtaken: bool = False) -> None:
        """Takes a frame out, whose result was handed out or overtaken; it may be gone already."""
        if frame in self._in_flight:
            self._in_flight.remove(frame)
        self.dropped += overtaken

    @property
    def is_empty(self) -> bool:
        """Whether no frame is on its way."""
        return not (self._waiting or self._submitting or self._in_flight)

    def forget_waiting(self) -> None:
        """Lets go of the frames that wait, and of one that was taken."""
        self._waiting.clear()
        self._submitting = False

    def forget_in_flight(self) -> list[_InFlightFrame]:
        """Lets go of the frames in the model, and gives them back to be waited for."""
        frames = list(self._in_flight)
        self._in_flight.clear()
        return frames
