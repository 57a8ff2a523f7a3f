"""Video in, results out: sources, what to do when they are faster than the model, and :class:`Stream`.

One thread decodes, one hands frames to the model, the model works on several, and the loop takes the results in order::

    source -> reader -> waiting -> sender -> in flight (model.submit) -> the loop

Here is what users hold; feed.py has what the threads share, with queue.py, reconnect.py and statistics.py; opening.py
finds out what a source is, containers.py reads videos, and pixels.py what their frames say of themselves.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_bool, check_choice, check_int, check_wait
from fai_fast._foreign import from_signal_handler
from fai_fast._options import (
    ON_ERROR,
    POLICIES,
    Color,
    FrameLayout,
    OnError,
    Policy,
    YuvMatrix,
    YuvRange,
)
from fai_fast._pipelines import InferFuture
from fai_fast.detections import Detections, Source
from fai_fast.errors import FaiFastError
from fai_fast.images import check_max_pixels, is_encoded, read_image
from fai_fast.ops import preprocess_frame
from fai_fast.stream.feed import _Feed
from fai_fast.stream.opening import _name_again, _opener
from fai_fast.stream.pixels import _ColorOverrides
from fai_fast.stream.pixels import decoded_pixels as decoded_pixels
from fai_fast.stream.queue import _FrameQueue
from fai_fast.stream.reconnect import _Reconnector
from fai_fast.stream.statistics import StreamStats
from fai_fast.stream.tracking import Tracking

if TYPE_CHECKING:
    import asyncio

__all__ = ["Frame", "Stream", "StreamStats"]
LIVE_TIMEOUT = 10.0
# How long close() waits for a reader that is stuck in its source.
_GRACE = 2.0


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a stream, its pixels as they came.

    A video's pixels are views of the decoder's memory, which stays taken as long as the frame is kept.

    Attributes:
        id: its number in the source, from 0; frames that were dropped or skipped have one too.
        pts: its presentation time, seconds, as the source counts them; None where it does not.
        size: (height, width), pixels.
        pixels: what :meth:`fai_fast.Model.infer` takes with ``**frame.layout``: of a video the planes, uint8 (Y, U, V),
            (Y, UV) or one array, read-only; of an iterator what came from it; of a picture RGB (H, W, 3).
        layout: ``color``, ``yuv_matrix`` and ``yuv_range`` of the pixels. Of a video's pixels that are RGB, the matrix
            and range that they were converted by ("bt601" also where it was one that only FFmpeg knows, as BT.2020's).
        captured: when it came, on the clock of ``time.perf_counter``, seconds.
        max_pixels: the stream's.
        path: the file that it is of, a picture or a video; None for cameras, addresses and iterables.
    """

    id: int
    pts: float | None
    size: tuple[int, int]
    pixels: Any
    layout: FrameLayout
    captured: float
    max_pixels: int | None = None
    path: str | None = None

    def __repr__(self) -> str:
        place = "" if self.pts is None else f" at {self.pts:.3f} s"
        of = "" if self.path is None else f" of {self.path!r}"
        return f"<fai_fast.Frame {self.id}{place}{of} {self.size[0]}x{self.size[1]} {self.layout['color']}>"

    def image(self) -> npt.NDArray[np.uint8]:
        """The frame as RGB uint8 (H, W, 3), as the network sees it: a contiguous array of its own, yours to draw on.

        Made anew at each call. Raises TypeError for a frame in a GPU's memory.
        """
        pixels = self.pixels
        if is_encoded(pixels):
            pixels = read_image(pixels, max_pixels=self.max_pixels)
        if isinstance(pixels, np.ndarray) and self.layout["color"] == "rgb":
            return np.array(pixels, order="C")
        tensor, _ = preprocess_frame(pixels, self.size, mean=0, std=1, **self.layout)
        picture = np.empty((*self.size, 3), np.uint8)
        # Where it lies, then as bytes: a third of the time that rounding while transposing takes.
        np.rint(tensor, out=tensor)
        for channel, plane in enumerate(tensor[0].astype(np.uint8)):
            picture[:, :, channel] = plane
        return picture


class SupportsSubmit(Protocol):
    """What a stream needs of a model."""

    @property
    def submit(self) -> Callable[..., InferFuture]: ...


class Stream:
    """The frames of a source with what was found in them, in order: see :meth:`fai_fast.Model.stream`.

    An iterator of (:class:`Frame`, :class:`fai_fast.Detections`), and a context manager, which closes it; for ``async
    for`` and ``async with`` too. The source is
    opened when the first frame is asked for. A stream that nobody holds any more stops by itself.

    A frame that fails raises in its place, its number in the text; asking on gives the frames after it. When the source
    itself fails, the results of all frames before come first.

    Attributes:
        policy: "latest" or "all"; None until the source is open, where that decides.
        rate: frames per second that the source says it has; None where it does not, or is not open yet.
    """

    def __init__(
        self,
        model: SupportsSubmit | None,
        source: Any,
        *,
        policy: Policy | None = None,
        depth: int = 2,
        stride: int = 1,
        on_error: OnError = "raise",
        timeout: float | None = None,
        backoff: tuple[float, float] = (0.5, 30.0),
        retries: int | None = None,
        color: Color = "rgb",
        yuv_matrix: YuvMatrix | None = None,
        yuv_range: YuvRange | None = None,
        frame_threads: bool = False,
        format: str | None = None,
        options: Mapping[str, str] | None = None,
        max_pixels: int | None = None,
        track: Any = False,
        infer: Mapping[str, Any] | None = None,
    ) -> None:
        if policy is not None:
            check_choice("policy", policy, POLICIES)
        check_choice("on_error", on_error, ON_ERROR)
        overrides = _ColorOverrides(color, yuv_matrix, yuv_range)
        if timeout is not None:
            timeout = _positive("timeout", timeout)
        self._max_pixels = check_max_pixels(max_pixels)
        if format is not None and not isinstance(format, str):
            raise TypeError(f"format: got {type(format).__name__}, expected a str or None")
        opener = _opener(
            source,
            overrides,
            timeout,
            LIVE_TIMEOUT,
            check_bool("frame_threads", frame_threads),
            format,
            _ffmpeg_options(options),
            self._max_pixels,
        )
        if on_error == "reconnect" and not opener.again:
            raise ValueError(
                f"on_error: got 'reconnect' for {opener.name}, expected an address, a camera, or a function that "
                "returns an iterator: nothing else can be opened again"
            )
        self._feed = _Feed(
            None if model is None else model.submit,
            opener,
            _FrameQueue(_at_least_one("depth", depth), None if policy is None else policy == "latest"),
            _Reconnector(
                opener,
                enabled=on_error == "reconnect",
                timeout=timeout,
                live_timeout=LIVE_TIMEOUT,
                backoff=_backoff(backoff),
                retries=None if retries is None else _at_least_one("retries", retries),
            ),
            stride=_at_least_one("stride", stride),
            infer={**(infer or {}), "max_pixels": self._max_pixels},
        )
        self._tracking = None if track is False or track is None else Tracking(track)
        self._stride = stride
        self._turn = threading.Lock()
        # What a task was waiting for when it was cancelled: the frame comes when it, or another, asks again.
        self._ahead: asyncio.Future[tuple[Frame, Detections] | None] | None = None
        # With any of these, the frames that are read again could be others.
        as_it_is = color == "rgb" and yuv_matrix is None and yuv_range is None and not format and not options
        self._again = _name_again(source) if as_it_is else None
        weakref.finalize(self, self._feed.stop).atexit = False

    def _first_size(self) -> tuple[int, int] | None:
        """(height, width) of the frame that the model will get first; None where the source gives none.

        For a stream that was made without a model, which this may help to choose: :meth:`_serve` brings it. Starts the
        source, and blocks until it has given a frame, failed or ended; what went wrong is raised by ``next``.
        """
        frame = self._feed.first_frame()
        if frame is None:
            return None
        try:
            pixels = frame.pixels
            if is_encoded(pixels):
                pixels = read_image(pixels, max_pixels=self._max_pixels)
            _, letterbox = preprocess_frame(pixels, (1, 1), mean=0, std=1, **frame.layout)
        except (OSError, TypeError, ValueError):
            return None
        return letterbox.frame

    def _serve(self, model: SupportsSubmit, infer: Mapping[str, Any]) -> None:
        """Brings the model. Frames that were dropped until now are not counted. Does not block."""
        self._feed.serve(model.submit, infer)

    @property
    def policy(self) -> Policy | None:
        latest = self._feed.latest
        return None if latest is None else "latest" if latest else "all"

    @property
    def rate(self) -> Fraction | None:
        return self._feed.rate

    @property
    def dropped(self) -> int:
        """Frames that newer ones took the place of; always 0 with policy "all". Does not block."""
        return self._feed.dropped

    def stats(self) -> StreamStats:
        """How the stream keeps up; at any time, from any thread. Does not block."""
        return self._feed.stats()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[Frame, Detections]:
        """The next frame and what was found in it. Blocks until the model has a result, and while another thread asks.

        Raises:
            EngineError: this is a forked child of the process that made the stream.
            What the source or the frame raised.
        """
        feed = self._feed
        # Before the lock, which a thread that a forked child does not have may hold.
        feed.check_process()
        with self._turn:
            flight = feed.next_frame()
            if flight is None:
                raise StopIteration
            error = flight.failure()
            if error is not None:
                feed.retire(flight)
                number = flight.id
                # The model may keep its error, which knows this call; neither must keep the stream.
                flight.forget()
                del self, feed, flight
                _raise_of_frame(error, number)
            detections = flight.result()
            if self._again is not None:
                detections._with_source(Source(self._again, flight.id))
            # Not before: a loop that is interrupted while it waits gets this frame when it goes on.
            latency = detections.latency
            feed.retire(flight, done=True, model=None if latency is None else latency.total)
            if self._tracking is not None:
                # Here, where frames are in their order.
                detections = self._tracking.numbered(detections, float(feed.rate or 30) / self._stride)
        came = flight.came
        assert came is not None
        return Frame(
            flight.id,
            came.pts,
            detections.size,
            came.pixels,
            came.layout,
            came.captured,
            self._max_pixels,
            came.path or feed.opener.path,
        ), detections

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> tuple[Frame, Detections]:
        """As ``next``, for ``async for``: the event loop goes on meanwhile. Waits in the loop's default executor.

        A task that is cancelled while it waits loses no frame: whoever asks next gets it.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        if self._ahead is None or self._ahead.get_loop() is not loop:
            self._ahead = loop.run_in_executor(None, self._next_or_end)
        ahead = self._ahead
        try:
            found = await asyncio.shield(ahead)
        finally:
            if ahead.done():
                self._ahead = None
        if found is None:
            raise StopAsyncIteration
        return found

    def _next_or_end(self) -> tuple[Frame, Detections] | None:
        return next(self, None)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Stops the threads and gives the source back. Blocks until the frames on their way have ended. Idempotent.

        A camera or connection that is stuck is given back when its driver returns, or when ``timeout`` is over. In a
        forked child, which has none of the threads, nothing is done.
        """
        self._feed.stop()
        self._feed.join(_GRACE)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<fai_fast.Stream {self._feed.opener.name} policy={self.policy} frames={self.stats().frames}>"


def _raise_of_frame(error: Exception, number: int) -> NoReturn:
    """Raises an error of the same type that says which frame it is of."""
    told = error
    if isinstance(error, (FaiFastError, TypeError, ValueError)) and len(error.args) == 1:
        try:
            told = type(error)(f"frame {number}: {error}")
        except Exception as refused:  # a type with a constructor of its own
            if from_signal_handler(refused) is not None:
                raise
    try:
        if told is error:
            raise told
        raise told from error
    finally:
        # Held by its own traceback, it would stay until garbage is collected.
        del told, error


def _positive(name: str, value: object) -> float:
    number = check_wait(name, value)
    if number <= 0:
        raise ValueError(f"{name}: got {number}, expected seconds above 0")
    return number


def _at_least_one(name: str, value: object) -> int:
    number = check_int(name, value)
    if number < 1:
        raise ValueError(f"{name}: got {number}, expected 1 or more")
    return number


def _ffmpeg_options(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"options: got {type(value).__name__}, expected a mapping of str to str")
    for key, item in value.items():
        if not (isinstance(key, str) and isinstance(item, str)):
            # Neither is shown: an option may be a password.
            raise TypeError(
                f"options: got {type(item).__name__} under {type(key).__name__}, expected a mapping of str to str"
            )
    return dict(value)


def _backoff(value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"backoff: got {type(value).__name__}, expected (first, longest) in seconds")
    first, most = _positive("backoff", value[0]), _positive("backoff", value[1])
    if math.isinf(first) or most < first:
        raise ValueError(f"backoff: got ({first}, {most}), expected the longest not below the first")
    return first, most
