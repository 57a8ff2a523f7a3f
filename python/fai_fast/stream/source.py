"""What a source is to the threads: how it is opened, and what comes from it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from fractions import Fraction
from typing import Any, NamedTuple

from fai_fast._options import FrameLayout


class _SourceFrame(NamedTuple):
    """A frame as a source gives it; `path` is the file that it is of, where that is not the source itself."""

    pixels: Any
    layout: FrameLayout
    pts: float | None
    captured: float
    path: str | None = None


class _FrameError(NamedTuple):
    """A frame that the source could not give, while there may be others after it."""

    error: Exception


class _CorruptFrame(NamedTuple):
    """A frame of a live source that was lost on its way."""


_SourceItem = _SourceFrame | _FrameError | _CorruptFrame
_Opened = Callable[[bool, Fraction | None], None]


class _Opener(NamedTuple):
    """A source that is not open yet.

    Attributes:
        name: what messages call it, without secrets.
        frames: opens it, says whether it is live and its rate, and gives frames until it ends or fails.
        live: whether it goes on whether or not somebody looks; None where that is known once it is open.
        again: whether it can be opened again.
        pipe: whether somebody else has to write it, who may never come.
        path: the file that it is; None for what is no file.
    """

    name: str
    frames: Callable[[_Opened], Generator[_SourceItem, None, None]]
    live: bool | None
    again: bool
    pipe: bool = False
    path: str | None = None


def _stalled(name: str, seconds: float) -> TimeoutError:
    return TimeoutError(f"source: no frame from {name} for {seconds:g} s")
