"""What a source is, by what the user gave: a file, an address, a camera, pictures, or something to iterate over.

FFmpeg takes whatever has a colon in it for an address, also of protocols that join files and open others. What exists
is a file here whatever it is called, and reaches FFmpeg as one; an address is what has ``://`` in it, and nothing else.
"""

from __future__ import annotations

import glob
import io
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import numpy as np

from fai_fast._redaction import redacted
from fai_fast.images import SUFFIXES, pixel_limit, read_animation, read_image
from fai_fast.stream.containers import _pyav, _Video
from fai_fast.stream.ffmpeg import check_names
from fai_fast.stream.pixels import _ColorOverrides, decoded_pixels
from fai_fast.stream.source import _FrameError, _Opened, _Opener, _SourceFrame, _SourceItem

# Addresses that never have an end of their own; of the others the container tells.
_ALWAYS_LIVE = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp")
# Addresses behind a certificate.
_TLS = ("https", "rtsps", "rtmps", "tls", "ftps")
_FILE_ADDRESS = re.compile(r"file:(?://(?:localhost)?(?=/))?", re.IGNORECASE)
_STANDARD_INPUT = re.compile(r"-|pipe:[0-9]*")
_NUMBERED = re.compile(r"%0?[0-9]*d")
_log = logging.getLogger("fai_fast")


def local_path(source: str) -> str:
    """The path that a file's address means, percent-encoded or as it is; anything else unchanged.

    Example:
        >>> local_path("file:///videos/a%20b.mp4")
        '/videos/a b.mp4'
    """
    address = _FILE_ADDRESS.match(source)
    if address is None or os.path.exists(source):
        return source
    plain = source[address.end() :]
    decoded = url2pathname(plain)
    return plain if os.path.exists(plain) and not os.path.exists(decoded) else decoded


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
        text = local_path(text)
    elif isinstance(source, (int, np.integer)) and not isinstance(source, bool):
        if not sys.platform.startswith("linux"):
            raise ValueError(
                f"source: got camera {source}, expected a number on Linux only; elsewhere give the device's name and "
                "format, such as format='avfoundation' or 'dshow'"
            )
        text = f"/dev/video{source}"
    elif _is_file_object(source):
        if isinstance(source, io.TextIOBase) or isinstance(getattr(source, "file", None), io.TextIOBase):
            raise TypeError("source: got a file in text mode, expected one in binary mode")
        told = getattr(source, "name", None)
        text = told if isinstance(told, str) else f"the {type(source).__name__}"
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray, memoryview, Mapping)):
        name = f"the {type(source).__name__}"
        _check_unused(name, format, options)
        return _Opener(name, lambda opened: _iterate(source, overrides, opened, ours=False), False, False)
    elif callable(source):
        name = f"{getattr(source, '__name__', type(source).__name__)}()"
        _check_unused(name, format, options)
        return _Opener(name, lambda opened: _iterate(source(), overrides, opened, ours=True), True, True)
    else:
        raise TypeError(
            f"source: got {type(source).__name__}, expected a path, an address, a camera's number, a binary file, an "
            "iterable of frames or of (timestamp, frame), or a function that returns one"
        )

    def video(live: bool | None, target: Any = text, format: str | None = format, **more: str) -> _Opener:
        av = _pyav()  # where it is missing, that is told now
        check_names(options)
        name = redacted(text)
        file = _Video(
            av,
            target,
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

    if _is_file_object(source):
        return video(False, source)
    path = Path(text)
    if os.path.exists(text):
        if path.is_dir():
            _check_unused(redacted(text), format, options)
            paths = sorted(item for item in path.iterdir() if _is_picture(item))
            return _pictures(text, paths, overrides, max_pixels)
        if stat.S_ISCHR(path.stat().st_mode):
            return video(True, format=format or "v4l2")
        if format is None and path.suffix.lower() in SUFFIXES - {".gif"}:  # which alone is a video
            _check_unused(redacted(text), format, options)
            return _pictures(text, [path], overrides, max_pixels, read_animation)
        return video(False, f"file:{text}")._replace(pipe=path.is_fifo(), path=text)
    if scheme := re.match(r"([A-Za-z][\w+.-]*)://", text):
        kind = scheme[1].lower()
        if kind in _TLS and "tls_verify" not in options:
            _log.warning(
                "stream: the certificate of %s is not checked; options={'tls_verify': '1', 'ca_file': ...} lets FFmpeg "
                "check it",
                redacted(text),
            )
        # Over UDP, FFmpeg's default, most cameras lose packets of large frames.
        transport = {"rtsp_transport": "tcp"} if kind.startswith("rtsp") else {}
        return video(True if kind in _ALWAYS_LIVE else None, **transport)
    if _STANDARD_INPUT.fullmatch(text):
        return video(False, "pipe:0" if text in ("-", "pipe:") else text)._replace(pipe=True)
    if format is not None:  # a device that has no file, such as FFmpeg's lavfi and avfoundation
        return video(True)
    if glob.has_magic(text):
        _check_unused(redacted(text), format, options)
        paths = sorted(item for item in map(Path, glob.glob(text, recursive=True)) if _is_picture(item))
        return _pictures(text, paths, overrides, max_pixels)
    if path.is_absolute() and path.parts[1:2] == ("dev",):  # it may be plugged in later
        return video(True, format="v4l2")
    if _NUMBERED.search(text):
        raise ValueError(
            f"source: got the numbers' pattern {redacted(text)!r}, expected a folder, or a pattern such as 'image*.png'"
        )
    raise FileNotFoundError(f"source: no such file, folder or camera: {redacted(text)}")


def _name_again(source: Any) -> str | None:
    """By what a source's frames are found again: a file's absolute path, or a name without secrets; None without one.

    Of live ones it says where the frames are from; they do not come again.
    """
    if isinstance(source, (int, np.integer)):
        return f"/dev/video{source}"
    if not isinstance(source, (str, os.PathLike)):
        return None
    text = local_path(os.fspath(source))
    if os.path.exists(text):
        return os.path.abspath(text)
    return None if _STANDARD_INPUT.fullmatch(text) else redacted(text)


def _check_unused(name: str, format: str | None, options: Mapping[str, str]) -> None:
    """ValueError for options of FFmpeg's where it opens nothing; their values may be secrets."""
    for argument, names in (("format", [format] if format else []), ("options", sorted(options))):
        if names:
            came = ", ".join(map(repr, names))
            raise ValueError(f"{argument}: got {came} for {name}, expected none: FFmpeg does not open it")


def _is_file_object(source: Any) -> bool:
    """Whether bytes can be read from it; a camera of somebody's may have a read() too."""
    return hasattr(source, "read") and (isinstance(source, io.IOBase) or hasattr(source, "seek"))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _first_picture(path: Path, *, max_pixels: int | None) -> Iterator[tuple[Any, float | None]]:
    yield read_image(path, max_pixels=max_pixels), None


def _pictures(
    name: str,
    paths: list[Path],
    overrides: _ColorOverrides,
    max_pixels: int | None,
    read: Callable[..., Iterator[tuple[Any, float | None]]] = _first_picture,
) -> _Opener:
    if not paths:
        raise FileNotFoundError(f"source: no pictures in {redacted(name)}")

    def frames(opened: _Opened) -> Generator[_SourceItem, None, None]:
        opened(False, None)
        for path in paths:
            began = time.perf_counter()
            try:
                for picture, seconds in read(path, max_pixels=max_pixels):
                    yield _SourceFrame(picture, overrides.layout("rgb"), seconds, began, str(path))
                    began = time.perf_counter()
            except (OSError, ValueError) as error:
                yield _FrameError(error)

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
