"""What a source is, by what the user gave: a file, an address, a camera, pictures, or something to iterate over."""

from __future__ import annotations

import glob
import os
import re
import stat
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from fai_fast._redaction import redacted
from fai_fast.images import SUFFIXES, pixel_limit, read_image
from fai_fast.stream.containers import _pyav, _Video
from fai_fast.stream.pixels import _ColorOverrides, decoded_pixels
from fai_fast.stream.source import _FrameError, _Opened, _Opener, _SourceFrame, _SourceItem

# Addresses that never have an end of their own; of the others the container tells.
_ALWAYS_LIVE = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp")


def _opener(
    source: Any,
    overrides: _ColorOverrides,
    timeout: float | None,
    live_timeout: float,
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
        return _Opener(name, lambda opened: _iterate(source, overrides, opened, ours=False), False, False)
    elif callable(source):
        name = f"{getattr(source, '__name__', type(source).__name__)}()"
        return _Opener(name, lambda opened: _iterate(source(), overrides, opened, ours=True), True, True)
    else:
        raise TypeError(
            f"source: got {type(source).__name__}, expected a path, an address, a camera's number, an iterable of "
            "frames or of (timestamp, frame), or a function that returns one"
        )

    def video(live: bool | None, format: str | None = format, **more: str) -> _Opener:
        av = _pyav()  # where it is missing, that is told now
        name = redacted(text)
        file = _Video(
            av,
            text,
            name,
            overrides,
            live,
            # A reader that was given up must end too.
            None if live is False else timeout or live_timeout,
            live_timeout,
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
        return _pictures(text, paths, overrides, max_pixels)
    if path.exists():
        if stat.S_ISCHR(path.stat().st_mode):
            return video(True, format or "v4l2")
        if format is None and path.suffix.lower() in SUFFIXES - {".gif"}:  # which alone is a video
            return _pictures(text, [path], overrides, max_pixels)
        return video(False)._replace(pipe=path.is_fifo())
    if format is not None:  # a device that has no file, such as FFmpeg's lavfi and avfoundation
        return video(True)
    if glob.has_magic(text):
        paths = sorted(item for item in map(Path, glob.glob(text, recursive=True)) if _is_picture(item))
        return _pictures(text, paths, overrides, max_pixels)
    if path.is_absolute() and path.parts[1:2] == ("dev",):  # it may be plugged in later
        return video(True, "v4l2")
    raise FileNotFoundError(f"source: no such file, folder or camera: {redacted(text)}")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _pictures(name: str, paths: list[Path], overrides: _ColorOverrides, max_pixels: int | None) -> _Opener:
    if not paths:
        raise FileNotFoundError(f"source: no pictures in {redacted(name)}")

    def frames(opened: _Opened) -> Generator[_SourceItem, None, None]:
        opened(False, None)
        for path in paths:
            began = time.perf_counter()
            try:
                picture = read_image(path, max_pixels=max_pixels)
            except (OSError, ValueError) as error:
                yield _FrameError(error)
            else:
                yield _SourceFrame(picture, overrides.layout("rgb"), None, began)

    return _Opener(redacted(name), frames, False, False)


def _iterate(
    source: Iterable[Any], overrides: _ColorOverrides, opened: _Opened, *, ours: bool
) -> Generator[_SourceItem, None, None]:
    frames = iter(source)
    try:
        opened(ours, None)
        for frame in frames:
            captured = time.perf_counter()
            pts = None
            # Planes are a tuple too, but never one that begins with a number.
            if isinstance(frame, (tuple, list)) and len(frame) == 2 and isinstance(frame[0], Real):
                pts, frame = float(frame[0]), frame[1]
            layout = overrides.layout()
            if type(frame).__module__.startswith("av.") and hasattr(frame, "planes"):
                pts = frame.time if pts is None else pts
                overrides.warn_of_hdr(f"the {type(source).__name__}", getattr(frame, "color_trc", None))
                frame, layout = decoded_pixels(frame, overrides)
            yield _SourceFrame(frame, layout, pts, captured)
    finally:
        # What the user holds stays usable; what a function made for us goes now.
        if ours and hasattr(frames, "close"):
            frames.close()
