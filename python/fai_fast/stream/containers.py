"""Videos, as FFmpeg opens and decodes them through PyAV."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from fai_fast._extras import install
from fai_fast._redaction import scrubbed_error
from fai_fast.images import too_large
from fai_fast.stream.pixels import _ColorOverrides, decoded_pixels
from fai_fast.stream.source import _CorruptFrame, _FrameError, _Opened, _SourceFrame, _SourceItem, _stalled

# FFmpeg counts a coded picture, whose sides decoders round up to whole blocks: 64 * (65536 + 65536) pixels at most.
_BLOCKS = 1 << 23
# Containers without a count of their frames whose header says how long they last; others are measured by FFmpeg, which
# finds what is there. Seconds that may be missing.
_SAY_DURATION = {"matroska", "webm", "flv", "asf"}
_TOLERANCE = 0.5
_log = logging.getLogger("fai_fast")


@dataclass(frozen=True, repr=False)
class _Video:
    """What FFmpeg opens, an address or a file object; both and the options may hold secrets, which no repr() tells."""

    av: Any
    target: Any
    name: str
    overrides: _ColorOverrides
    live: bool | None
    timeout: float | None
    live_timeout: float
    threads: str
    format: str | None
    options: dict[str, str]
    limit: int

    def frames(self, opened: _Opened) -> Generator[_SourceItem, None, None]:
        # Frames are decoded already to find out what is in a file.
        most = {"max_pixels": str(self.limit + _BLOCKS)}
        try:
            container = self.av.open(
                self.target, format=self.format, options={**most, **self.options}, timeout=self.timeout
            )
        except self.av.FFmpegError as error:
            raise self._translated(error, "is no video that FFmpeg can read") from None
        with container:
            stream = self._chosen(container)
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

    def _chosen(self, container: Any) -> Any:
        """FFmpeg's own choice among the videos, of which a cover is none."""
        covers = self.av.stream.Disposition.attached_pic
        videos = [stream for stream in container.streams.video if not stream.disposition & covers]
        if not videos:
            what = "no video in it, only a cover" if container.streams.video else "no video in it"
            raise ValueError(f"source: {self.name} has {what}")
        best = container.streams.best("video")
        return next(
            (stream for stream in videos if best is not None and stream.index == best.index), videos[0]
        )

    def _decode(self, container: Any, stream: Any, live: bool) -> Generator[_SourceItem, None, None]:
        packets = given = 0
        ending = _Ending(container, stream, self.name) if not live else None
        for packet in container.demux(stream if ending is None else ending.streams):
            captured = time.perf_counter()
            if ending is not None:
                ending.came(packet)
            if packet.stream.index != stream.index:
                continue
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
                    yield _CorruptFrame()
                    continue
                if refused:
                    yield _FrameError(ValueError(self._refused()))
                    continue
                place = "" if packet.pts is None else f" at {float(packet.pts * packet.time_base):.3f} s"
                yield _FrameError(self._translated(error, f"is damaged{place}"))
                continue
            for frame in frames:
                if frame.is_corrupt and live:
                    yield _CorruptFrame()
                if frame.width * frame.height > self.limit:
                    what = too_large(frame.width, frame.height, self.limit)
                    yield _FrameError(ValueError(f"source: {self.name} {what}"))
                    continue
                given += 1
                # PyAV before 16 has it of the codec only.
                transfer = getattr(frame, "color_trc", stream.codec_context.color_trc)
                self.overrides.warn_of_hdr(self.name, transfer)
                pixels, layout = decoded_pixels(frame, self.overrides)
                yield _SourceFrame(pixels, layout, frame.time, captured)
        if ending is not None:
            ending.warn(packets)

    def _refused(self) -> str:
        return (
            f"source: {self.name} has pictures that are too large, or of no size at all: expected at most {self.limit} "
            "pixels; raise max_pixels= for one that you trust"
        )

    def _translated(self, error: Any, what: str) -> Exception:
        """FFmpeg's error as Python's, both without the address's secrets."""
        if isinstance(self.target, str):
            scrubbed_error(error, self.target)
        reason = error.strerror or type(error).__name__
        if isinstance(error, self.av.error.ExitError):
            return _stalled(self.name, self.timeout or self.live_timeout)
        if isinstance(error, OSError) and error.errno is not None:
            return OSError(error.errno, reason, self.name)
        if isinstance(error, (ValueError, EOFError)):
            return ValueError(f"source: {self.name} {what}: {reason}")
        return OSError(f"source: {self.name}: {reason}")


class _Ending:
    """Whether a file gave all that its header says.

    Attributes:
        streams: those whose packets tell, the video's among them.
    """

    def __init__(self, container: Any, stream: Any, name: str) -> None:
        self.streams = [stream]
        self._name = name
        self._frames = stream.frames
        self._last = 0.0
        self._duration: float | None = None
        said = container.duration
        if not self._frames and said is not None and _SAY_DURATION & set(container.format.name.split(",")):
            # Of the whole file, whose sound may last longer than its pictures.
            self._duration = said / 1e6
            self.streams += [other for other in container.streams if other.type in ("audio", "subtitle")]

    def came(self, packet: Any) -> None:
        if self._duration is not None and packet.pts is not None:
            self._last = max(self._last, float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def warn(self, packets: int) -> None:
        if packets < self._frames:
            _log.warning("stream: %s ended after %d of %d frames", self._name, packets, self._frames)
        elif self._duration is not None and self._last < self._duration - _TOLERANCE:
            _log.warning("stream: %s ended after %.1f of %.1f s", self._name, self._last, self._duration)


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"source: video needs PyAV ({error}): {install('video')}") from error
    return av
