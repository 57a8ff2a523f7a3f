"""Video in, results out: sources, what to do when they are faster than the model, and :class:`Stream`.

One thread decodes, one hands frames to the model, the model works on several, and the loop takes the results in order::

    source -> reader -> waiting -> sender -> in flight (model.submit) -> the loop

What they share is :class:`_Feed`. It does not know the stream, which can therefore go while its threads run; they then
end. Frames stay the decoder's own planes all the way to preprocessing.
"""

from __future__ import annotations

import atexit
import glob
import logging
import math
import os
import random
import re
import stat
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from fai_fast.arguments import check_bool, check_choice, check_int, check_number
from fai_fast.detections import Detections
from fai_fast.errors import FaiFastError
from fai_fast.images import SUFFIXES, check_max_pixels, is_encoded, pixel_limit, read_image, too_large
from fai_fast.ops import preprocess_frame
from fai_fast.pipelines import Ticket

__all__ = ["Frame", "Stream", "StreamStats"]

# Addresses that never have an end of their own; of the others the container tells.
_ALWAYS_LIVE = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp")

# Pixel formats of FFmpeg that preprocessing reads as they are: its name for them, bytes a pixel of each plane.
_AS_THEY_ARE = {
    "yuv420p": ("i420", (1, 1, 1)),
    "yuvj420p": ("i420", (1, 1, 1)),
    "nv12": ("nv12", (1, 2)),
    "rgb24": ("rgb", (3,)),
    "bgr24": ("bgr", (3,)),
    "rgba": ("rgba", (4,)),
    "bgra": ("bgra", (4,)),
    "gray": ("gray", (1,)),
    "yuyv422": ("yuyv", (2,)),
    "uyvy422": ("uyvy", (2,)),
}
# AVColorSpace. Unspecified, 2, is read as FFmpeg's own converter and OpenCV read it.
_MATRICES = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601"}
_FULL_RANGE = 2  # AVColorRange
# FFmpeg counts a coded picture, whose sides decoders round up to whole blocks: 64 * (65536 + 65536) pixels at most.
_BLOCKS = 1 << 23
_YUV = ("i420", "nv12", "yuyv", "uyvy")

LIVE_TIMEOUT = 10.0
# How long close() waits for a reader that is stuck in its source.
_GRACE = 2.0
# Results that the statistics look back on.
_WINDOW = 256

_log = logging.getLogger("fai_fast")


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
        layout: ``color``, ``yuv_matrix`` and ``yuv_range`` of the pixels.
        captured: when it came, on the clock of ``time.perf_counter``, seconds.
        max_pixels: the stream's.
    """

    id: int
    pts: float | None
    size: tuple[int, int]
    pixels: Any
    layout: Mapping[str, str]
    captured: float
    max_pixels: int | None = None

    def image(self) -> npt.NDArray[np.uint8]:
        """The frame as RGB uint8 (H, W, 3), as the network sees it; it may share memory with ``pixels``.

        Made anew at each call. Raises TypeError for a frame in a GPU's memory.
        """
        pixels = self.pixels
        if is_encoded(pixels):
            pixels = read_image(pixels, max_pixels=self.max_pixels)
        if isinstance(pixels, np.ndarray) and self.layout["color"] == "rgb":
            return pixels
        tensor, _ = preprocess_frame(pixels, self.size, mean=0, std=1, **self.layout)
        picture = np.empty((*self.size, 3), np.uint8)
        np.rint(tensor[0].transpose(1, 2, 0), out=picture, casting="unsafe")
        return picture


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


class Submits(Protocol):
    """What a stream needs of a model."""

    @property
    def submit(self) -> Callable[..., Ticket]: ...


class Stream:
    """The frames of a source with what was found in them, in order: see :meth:`fai_fast.Model.stream`.

    An iterator of (:class:`Frame`, :class:`fai_fast.Detections`), and a context manager, which closes it. The source is
    opened when the first frame is asked for. A stream that nobody holds any more stops by itself.

    A frame that fails raises in its place, its number in the text; asking on gives the frames after it. When the source
    itself fails, the results of all frames before come first.

    Attributes:
        policy: "latest" or "all"; None until the source is open, where that decides.
        rate: frames a second that the source says it has; None where it does not, or is not open yet.
    """

    def __init__(
        self,
        model: Submits,
        source: Any,
        *,
        policy: str | None = None,
        depth: int = 2,
        stride: int = 1,
        on_error: str = "raise",
        timeout: float | None = None,
        backoff: tuple[float, float] = (0.5, 30.0),
        retries: int | None = None,
        color: str = "rgb",
        yuv_matrix: str | None = None,
        yuv_range: str | None = None,
        frame_threads: bool = False,
        format: str | None = None,
        options: Mapping[str, str] | None = None,
        max_pixels: int | None = None,
        infer: Mapping[str, Any] | None = None,
    ) -> None:
        if policy is not None:
            check_choice("policy", policy, ("latest", "all"))
        check_choice("on_error", on_error, ("raise", "reconnect"))
        colours = _Colours(color, yuv_matrix, yuv_range)
        if timeout is not None:
            timeout = _positive("timeout", timeout)
        self._max_pixels = check_max_pixels(max_pixels)
        opener = _opener(
            source,
            colours,
            timeout,
            check_bool("frame_threads", frame_threads),
            format,
            dict(options or {}),
            self._max_pixels,
        )
        if on_error == "reconnect" and not opener.again:
            raise ValueError(
                f"on_error: got 'reconnect' for {opener.name}, expected an address, a camera, or a function that "
                "returns an iterator: nothing else can be opened again"
            )
        self._feed = _Feed(
            model.submit,
            opener,
            latest=None if policy is None else policy == "latest",
            depth=_at_least_one("depth", depth),
            stride=_at_least_one("stride", stride),
            reconnect=on_error == "reconnect",
            timeout=timeout,
            backoff=_backoff(backoff),
            retries=None if retries is None else _at_least_one("retries", retries),
            infer={**(infer or {}), "max_pixels": self._max_pixels},
        )
        self._turn = threading.Lock()
        weakref.finalize(self, self._feed.stop).atexit = False

    @property
    def policy(self) -> str | None:
        latest = self._feed.latest
        return None if latest is None else "latest" if latest else "all"

    @property
    def rate(self) -> Fraction | None:
        return self._feed.rate

    @property
    def dropped(self) -> int:
        """Frames that newer ones took the place of; always 0 with policy "all"."""
        return self._feed.dropped

    def stats(self) -> StreamStats:
        """How the stream keeps up; at any time, from any thread."""
        return self._feed.stats()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[Frame, Detections]:
        feed = self._feed
        with self._turn:
            flight = feed.first()
            if flight is None:
                raise StopIteration
            try:
                detections = flight.result()
            except Exception as error:
                feed.land(flight)
                number = flight.id
                # The model may keep its error, which knows this call; neither must keep the stream.
                flight.forget()
                del self, feed, flight
                _raise_of_frame(error, number)
            # Not before: a loop that is interrupted while it waits gets this frame when it goes on.
            feed.land(flight, done=True)
        came = flight.came
        assert came is not None
        return Frame(
            flight.id, came.pts, detections.size, came.pixels, came.layout, came.captured, self._max_pixels
        ), detections

    def close(self) -> None:
        """Stops the threads and gives the source back; frames on their way are waited for. Does nothing twice.

        A camera or connection that is stuck is given back when its driver returns, or when ``timeout`` is over.
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


# ------------------------------------------------------------------------------------------------ the threads


class _Came(NamedTuple):
    """A frame as a source gives it."""

    pixels: Any
    layout: Mapping[str, str]
    pts: float | None
    captured: float


class _Failed(NamedTuple):
    """A frame that the source could not give, while there may be others after it."""

    error: Exception


class _Damaged(NamedTuple):
    """A frame of a live source that was lost on its way."""


_Item = _Came | _Failed | _Damaged


class _Flight:
    """A frame in the model, or an error in the place of one."""

    def __init__(self, id: int, came: _Came | None, ticket: Ticket | None, error: Exception | None) -> None:
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
        self._backoff = backoff
        self._retries = retries
        # Reentrant: garbage collection may call stop() in a thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[tuple[int, _Came | _Failed]] = deque()
        self._flying: deque[_Flight] = deque()
        self._sending = False  # a frame is between the two
        self._started = self._stopped = self._ended = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._reader: object = None  # whose frames count: one that was given up may come back
        self._due: float | None = None  # when a silent source counts as lost
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
            while self._wanted(reader) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            if not self._wanted(reader):
                return False
            self._heard()
            return True

    def opened(self, reader: object, live: bool, rate: Fraction | None) -> None:
        with self._changed:
            if not self._wanted(reader):
                return
            self.live, self.rate = live, rate
            if self.latest is None:
                self.latest = live
            self._reconnects += self._tries > 0
            self._heard()

    def put(self, reader: object, item: _Item) -> bool:
        """Takes a frame; False where the reader is not wanted any more."""
        with self._changed:
            if not self._wanted(reader):
                return False
            if isinstance(item, _Damaged):
                self._damaged += 1
                return True
            self._tries = 0
            number = self._decoded
            self._decoded += 1
            if number % self._stride:
                self._skipped += 1
                self._heard()
                return True
            if self.latest:
                kept = [other for other in self._waiting if isinstance(other[1], _Failed)]
                self.dropped += len(self._waiting) - len(kept)
                self._waiting = deque(kept)
            while len(self._waiting) >= self._depth:
                self._due = None
                self._changed.wait()
                if not self._wanted(reader):
                    return False
            self._waiting.append((number, item))
            self._heard()
            self._changed.notify_all()
            return True

    def lost(self, reader: object, error: BaseException | None) -> float | None:
        """The source has ended, or failed: seconds to wait before it is opened again, None for never."""
        with self._changed:
            if not self._wanted(reader):
                return None
            again = self._reconnect and self.live is not False and isinstance(error, Exception | None)
            if not again or (self._retries is not None and self._tries >= self._retries):
                self._ended, self._error = True, error
                self._due = None
                self._changed.notify_all()
                return None
            first, most = self._backoff
            # Drawn, so that many streams of one server do not come back at the same moment.
            delay = min(most, first * 2.0 ** min(self._tries, 60)) * random.uniform(0.5, 1.0)
            self._tries += 1
            self._due = None
        why = "it ended" if error is None else error
        _log.info("stream: lost %s (%s); opening it again in %.1f s", self.opener.name, why, delay)
        return delay

    def _wanted(self, reader: object) -> bool:
        return reader is self._reader and not self._stopped

    def _heard(self) -> None:
        limit = self._timeout
        if limit is None and (self.opener.pipe or (self.live is not False and self.opener.again)):
            limit = LIVE_TIMEOUT
        if self._due is None and limit is not None:
            # The sender waits without an end.
            self._changed.notify_all()
        self._due = None if limit is None else time.monotonic() + limit

    # ------------------------------------------------------------------------------------------- the sender's

    def send(self) -> bool:
        """Waits for a frame and for room in the model, and hands it over; False at the end."""
        with self._changed:
            while not (self._waiting and len(self._flying) < self._depth):
                if self._stopped or (self._ended and not self._waiting):
                    return False
                left = None
                if self._due is not None and not self._waiting and not self._ended:
                    left = self._due - time.monotonic()
                    if left <= 0:
                        self._give_up()
                        continue
                self._changed.wait(left)
            if self._stopped:
                return False
            number, item = self._waiting.popleft()
            self._sending = True
            self._changed.notify_all()
        flight = self._depart(number, item)
        with self._changed:
            self._flying.append(flight)
            self._sending = False
            self._changed.notify_all()
        return True

    def _depart(self, number: int, item: _Came | _Failed) -> _Flight:
        if isinstance(item, _Failed):
            return _Flight(number, None, None, item.error)
        with self._changed:
            self._ages.append(1e3 * (time.perf_counter() - item.captured))
        try:
            return _Flight(number, item, self._submit(item.pixels, **item.layout, **self._infer), None)
        except Exception as error:
            return _Flight(number, item, None, error)

    def _give_up(self) -> None:
        """Leaves a reader that has been silent for too long to itself."""
        limit = LIVE_TIMEOUT if self._timeout is None else self._timeout
        delay = self.lost(self._reader, _stalled(self.opener.name, limit))
        self._reader = None
        if delay is not None:
            self._read(delay)

    # --------------------------------------------------------------------------------------------- the loop's

    def first(self) -> _Flight | None:
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

    def land(self, flight: _Flight, *, done: bool = False, overtaken: bool = False) -> None:
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
        self._due = None
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


# ---------------------------------------------------------------------------------------------------- sources

_Opened = Callable[[bool, Fraction | None], None]


class _Opener(NamedTuple):
    """A source that is not open yet.

    Attributes:
        name: what messages call it, without a password.
        frames: opens it, says whether it is live and its rate, and gives frames until it ends or fails.
        live: whether it goes on whether or not somebody looks; None where that is known once it is open.
        again: whether it can be opened again.
        pipe: whether somebody else has to write it, who may never come.
    """

    name: str
    frames: Callable[[_Opened], Generator[_Item, None, None]]
    live: bool | None
    again: bool
    pipe: bool = False


class _Colours:
    """How pixels are to be read, as far as the user says."""

    def __init__(self, color: str, matrix: str | None, range: str | None) -> None:
        self.matrix = None if matrix is None else check_choice("yuv_matrix", matrix, ("bt601", "bt709"))
        self.range = None if range is None else check_choice("yuv_range", range, ("limited", "full"))
        self._color = color

    def layout(
        self, color: str | None = None, matrix: str = "bt601", range: str = "limited"
    ) -> dict[str, str]:
        """Of pixels that say themselves what they are, or of the user's."""
        return {
            "color": self._color if color is None else color,
            "yuv_matrix": self.matrix or matrix,
            "yuv_range": self.range or range,
        }


def _opener(
    source: Any,
    colours: _Colours,
    timeout: float | None,
    frame_threads: bool,
    format: str | None,
    options: dict[str, str],
    max_pixels: int | None,
) -> _Opener:
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if not isinstance(text, str):
            raise TypeError(f"source: got a path of {type(text).__name__}, expected one of str")
        if not text:  # which pathlib takes for the folder that the process is in
            raise ValueError("source: got '', expected a path or an address")
    elif isinstance(source, (int, np.integer)) and not isinstance(source, bool):
        if not sys.platform.startswith("linux"):
            raise ValueError(
                f"source: got camera {source}, expected a number on Linux only; elsewhere give the device's name and "
                "format, such as format='avfoundation' or 'dshow'"
            )
        text = f"/dev/video{source}"
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray, memoryview, Mapping)):
        name = f"the {type(source).__name__}"
        return _Opener(name, lambda opened: _iterate(source, colours, opened, ours=False), False, False)
    elif callable(source):
        name = f"{getattr(source, '__name__', type(source).__name__)}()"
        return _Opener(name, lambda opened: _iterate(source(), colours, opened, ours=True), True, True)
    else:
        raise TypeError(
            f"source: got {type(source).__name__}, expected a path, an address, a camera's number, an iterable of "
            "frames or of (timestamp, frame), or a function that returns one"
        )

    def video(live: bool | None, format: str | None = format, **more: str) -> _Opener:
        av = _pyav()  # where it is missing, that is told now
        name = re.sub(r"(?<=://)[^/@]*@", "", text)
        file = _Video(
            av,
            text,
            name,
            colours,
            live,
            # A reader that was given up must end too.
            None if live is False else timeout or LIVE_TIMEOUT,
            "SLICE" if live is not False or not frame_threads else "AUTO",
            format,
            {**more, **options},
            pixel_limit(max_pixels),
        )
        return _Opener(name, file.frames, live, live is not False)

    if scheme := re.match(r"([A-Za-z][\w+.-]*)://", text):
        kind = scheme[1].lower()
        # Over UDP, FFmpeg's default, most cameras lose packets of large frames.
        transport = {"rtsp_transport": "tcp"} if kind.startswith("rtsp") else {}
        return video(False if kind == "file" else True if kind in _ALWAYS_LIVE else None, **transport)
    path = Path(text)
    if path.is_dir():
        paths = sorted(item for item in path.iterdir() if _is_picture(item))
        return _pictures(text, paths, colours, max_pixels)
    if path.exists():
        if stat.S_ISCHR(path.stat().st_mode):
            return video(True, format or "v4l2")
        if format is None and path.suffix.lower() in SUFFIXES - {".gif"}:  # which alone is a video
            return _pictures(text, [path], colours, max_pixels)
        return video(False)._replace(pipe=path.is_fifo())
    if format is not None:  # a device that has no file, such as FFmpeg's lavfi and avfoundation
        return video(True)
    if glob.has_magic(text):
        paths = sorted(item for item in map(Path, glob.glob(text, recursive=True)) if _is_picture(item))
        return _pictures(text, paths, colours, max_pixels)
    if path.is_absolute() and path.parts[1:2] == ("dev",):  # it may be plugged in later
        return video(True, "v4l2")
    raise FileNotFoundError(f"source: no such file, folder or camera: {text}")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _pictures(name: str, paths: list[Path], colours: _Colours, max_pixels: int | None) -> _Opener:
    if not paths:
        raise FileNotFoundError(f"source: no pictures in {name}")

    def frames(opened: _Opened) -> Generator[_Item, None, None]:
        opened(False, None)
        for path in paths:
            began = time.perf_counter()
            try:
                picture = read_image(path, max_pixels=max_pixels)
            except (OSError, ValueError) as error:
                yield _Failed(error)
            else:
                yield _Came(picture, colours.layout("rgb"), None, began)

    return _Opener(name, frames, False, False)


def _iterate(
    source: Iterable[Any], colours: _Colours, opened: _Opened, *, ours: bool
) -> Generator[_Item, None, None]:
    frames = iter(source)
    try:
        opened(ours, None)
        for frame in frames:
            captured = time.perf_counter()
            pts = None
            # Planes are a tuple too, but never one that begins with a number.
            if isinstance(frame, (tuple, list)) and len(frame) == 2 and isinstance(frame[0], Real):
                pts, frame = float(frame[0]), frame[1]
            layout = colours.layout()
            if type(frame).__module__.startswith("av.") and hasattr(frame, "planes"):
                pts = frame.time if pts is None else pts
                frame, layout = decoded_pixels(frame, colours)
            yield _Came(frame, layout, pts, captured)
    finally:
        # What the user holds stays usable; what a function made for us goes now.
        if ours and hasattr(frames, "close"):
            frames.close()


@dataclass(frozen=True)
class _Video:
    """What FFmpeg opens."""

    av: Any
    target: str
    name: str
    colours: _Colours
    live: bool | None
    timeout: float | None
    threads: str
    format: str | None
    options: dict[str, str]
    limit: int

    def frames(self, opened: _Opened) -> Generator[_Item, None, None]:
        # Frames are decoded already to find out what is in a file.
        most = {"max_pixels": str(self.limit + _BLOCKS)}
        try:
            container = self.av.open(
                self.target, format=self.format, options={**most, **self.options}, timeout=self.timeout
            )
        except self.av.FFmpegError as error:
            raise self._translated(error, "is no video that FFmpeg can read") from None
        with container:
            if not container.streams.video:
                raise ValueError(f"source: {self.name} has no video in it")
            stream = container.streams.video[0]
            # Threads that share a frame add no delay, and lose no frame beside a damaged one.
            stream.thread_type = self.threads
            codec = stream.codec_context
            codec.options = most
            if codec.width * codec.height > self.limit:
                raise ValueError(f"source: {self.name} {too_large(codec.width, codec.height, self.limit)}")
            live = container.duration is None if self.live is None else self.live
            opened(live, stream.average_rate or stream.guessed_rate or None)
            try:
                yield from self._decode(container, stream, live)
            except self.av.FFmpegError as error:
                raise self._translated(error, "is damaged") from None

    def _decode(self, container: Any, stream: Any, live: bool) -> Generator[_Item, None, None]:
        packets = given = 0
        for packet in container.demux(stream):
            captured = time.perf_counter()
            packets += packet.size > 0
            try:
                frames = packet.decode()
            except self.av.error.EOFError:  # asked again after its end
                continue
            except self.av.FFmpegError as error:
                # A decoder that refuses a picture's size forgets it. One that waits for a live source's first whole
                # picture has none either, but another error.
                refused = stream.codec_context.width == 0
                if refused and not given and (not live or isinstance(error, self.av.error.ArgumentError)):
                    raise ValueError(self._refused()) from None
                if live:
                    yield _Damaged()
                    continue
                if refused:
                    yield _Failed(ValueError(self._refused()))
                    continue
                place = "" if packet.pts is None else f" at {float(packet.pts * packet.time_base):.3f} s"
                yield _Failed(self._translated(error, f"is damaged{place}"))
                continue
            for frame in frames:
                if frame.is_corrupt and live:
                    yield _Damaged()
                if frame.width * frame.height > self.limit:
                    what = too_large(frame.width, frame.height, self.limit)
                    yield _Failed(ValueError(f"source: {self.name} {what}"))
                    continue
                given += 1
                pixels, layout = decoded_pixels(frame, self.colours)
                yield _Came(pixels, layout, frame.time, captured)
        if not live and packets < stream.frames:
            _log.warning("stream: %s ended after %d of %d frames", self.name, packets, stream.frames)

    def _refused(self) -> str:
        return (
            f"source: {self.name} has pictures that are too large, or of no size at all: expected at most {self.limit} "
            "pixels; raise max_pixels= for one that you trust"
        )

    def _translated(self, error: Any, what: str) -> Exception:
        """FFmpeg's error as Python's, without the address's password, which its text holds."""
        reason = error.strerror or type(error).__name__
        if isinstance(error, self.av.error.ExitError):
            return _stalled(self.name, self.timeout or LIVE_TIMEOUT)
        if isinstance(error, OSError) and error.errno is not None:
            return OSError(error.errno, reason, self.name)
        if isinstance(error, (ValueError, EOFError)):
            return ValueError(f"source: {self.name} {what}: {reason}")
        return OSError(f"source: {self.name}: {reason}")


def decoded_pixels(frame: Any, colours: _Colours) -> tuple[Any, dict[str, str]]:
    """A PyAV frame's planes, uint8 and read-only, in the decoder's own memory, and how to read them.

    Formats that preprocessing does not know, and frames that are to be turned, become RGB once.
    """
    name = frame.format.name
    matrix = _MATRICES.get(int(frame.colorspace))
    full = name.startswith("yuvj") or int(frame.color_range) == _FULL_RANGE
    color, channels = _AS_THEY_ARE.get(name, ("", ()))
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if (
        not color
        or turns
        or (color in _YUV and matrix is None)
        or (color in ("yuyv", "uyvy") and frame.width % 2)
        or any(plane.line_size < 0 for plane in frame.planes)  # upside down
    ):
        frame = frame.reformat(format="rgb24")
        color, channels = "rgb", (3,)
    planes = [_view(plane, count) for plane, count in zip(frame.planes, channels, strict=True)]
    if turns:
        planes = [np.ascontiguousarray(np.rot90(planes[0], turns))]
    pixels = planes[0] if len(planes) == 1 else tuple(planes)
    return pixels, colours.layout(color, matrix or "bt601", "full" if full else "limited")


def _view(plane: Any, channels: int) -> npt.NDArray[np.uint8]:
    """A plane as (h, w) or (h, w, channels); rows are as far apart as the decoder put them."""
    rows: npt.NDArray[np.uint8] = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    # The decoder goes on reading these bytes to predict other frames from.
    rows.flags.writeable = False
    pixels = rows[:, : plane.width * channels]
    return pixels if channels == 1 else pixels.reshape(plane.height, plane.width, channels)


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"source: video needs PyAV ({error}): pip install 'fai-fast[video]'") from error
    return av


# ----------------------------------------------------------------------------------------- errors, arguments


def _stalled(name: str, seconds: float) -> TimeoutError:
    return TimeoutError(f"source: no frame from {name} for {seconds:g} s")


def _raise_of_frame(error: Exception, number: int) -> NoReturn:
    """Raises an error of the same type that says which frame it is of."""
    told = error
    if isinstance(error, (FaiFastError, TypeError, ValueError)) and len(error.args) == 1:
        with suppress(Exception):  # a type with a constructor of its own
            told = type(error)(f"frame {number}: {error}")
    try:
        if told is error:
            raise told
        raise told from error
    finally:
        # Held by its own traceback, it would stay until garbage is collected.
        del told, error


def _raise_last(feed: _Feed) -> NoReturn:
    error, feed._error = feed._error, None
    assert error is not None
    try:
        raise error
    finally:
        del error


def _positive(name: str, value: object) -> float:
    number = check_number(name, value)
    if number <= 0:
        raise ValueError(f"{name}: got {number}, expected seconds above 0")
    return number


def _at_least_one(name: str, value: object) -> int:
    number = check_int(name, value)
    if number < 1:
        raise ValueError(f"{name}: got {number}, expected 1 or more")
    return number


def _backoff(value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"backoff: got {type(value).__name__}, expected (first, longest) in seconds")
    first, most = _positive("backoff", value[0]), _positive("backoff", value[1])
    if math.isinf(first) or most < first:
        raise ValueError(f"backoff: got ({first}, {most}), expected the longest not below the first")
    return first, most
