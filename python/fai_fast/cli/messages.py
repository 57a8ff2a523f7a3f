"""What a user reads: errors as one sentence, the library's log, tables, and JSON that goes to a file or to stdout."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from fai_fast._files import replacing
from fai_fast._redaction import scrubbed
from fai_fast.cli.words import in_own_words
from fai_fast.errors import FaiFastError

__all__ = [
    "UsageError",
    "complain",
    "counted",
    "given",
    "hint",
    "said_by_the_library",
    "sentence",
    "table",
    "without_secrets",
    "write_json",
    "write_line",
]

STDOUT = "-"
# The command line of the command that runs.
given: ContextVar[tuple[str, ...]] = ContextVar("given", default=())


class UsageError(Exception):
    """The command line asks for something that there is not."""


def sentence(error: BaseException) -> str:
    """One line of an error that a user can act on."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    expected = (FaiFastError, UsageError, ValueError, TypeError, OSError, ImportError)
    if not text or not isinstance(error, expected):
        text = f"{type(error).__name__}: {text} (--traceback shows where it came from)"
    return " ".join(text.split())


def without_secrets(text: str) -> str:
    """A text without secrets of addresses, those on the command line first, whatever a library made of them."""
    parts = [part for item in given.get() for part in (item, item.partition("=")[2])]
    return scrubbed(text, *(part for part in parts if "@" in part or "://" in part))


def complain(text: str) -> None:
    """An error, on stderr, without secrets of addresses in it, whoever wrote it."""
    with suppress(OSError, ValueError):  # nobody reads it: the exit code has to do
        write_line(f"fai-fast: error: {without_secrets(in_own_words(text))}", sys.stderr)


def hint(text: str, *, quiet: bool) -> None:
    """How to say it today, on stderr; nothing if quiet."""
    if not quiet:
        with suppress(OSError, ValueError):
            write_line(f"fai-fast: hint: {without_secrets(text)}", sys.stderr)


def write_line(line: str, file: TextIO | None = None) -> None:
    """A line on stdout, or another file; above a progress bar if there is one."""
    file = sys.stdout if file is None else file
    if file is None:  # pythonw, or started with the file closed
        return
    if "tqdm" in sys.modules:
        from tqdm import tqdm  # type: ignore[import-untyped]

        tqdm.write(line, file=file)
    else:
        print(line, file=file)


@contextmanager
def said_by_the_library(*, quiet: bool, verbose: bool = False, level: int = logging.INFO) -> Iterator[None]:
    """Shows what the library logs and Python's warnings as lines on stderr.

    Args:
        quiet: nothing but errors.
        verbose: all of it.
        level: with neither, from this level on, and that something takes long.
    """
    logger, progress = logging.getLogger("fai_fast"), logging.getLogger("fai_fast.progress")
    handler = _Lines()
    before = logger.level, progress.level
    level = logging.ERROR if quiet else logging.DEBUG if verbose else level
    logger.setLevel(level)
    progress.setLevel(logging.ERROR if quiet else min(level, logging.INFO))
    logger.addHandler(handler)

    def show(message: Warning | str, *_: object, **__: object) -> None:
        logger.warning("%s", message)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        progress.setLevel(before[1])


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        with suppress(OSError, ValueError):
            text = without_secrets(in_own_words(" ".join(record.getMessage().split())))
            write_line(f"fai-fast: {kind}{text}", sys.stderr)


def counted(number: int, what: str) -> str:
    """ "1 file", "2 files"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of text in columns, the first `left` of them flush left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_json(target: str, document: Any) -> None:
    """JSON to a file, which then is there as a whole or not at all, or to stdout for "-"."""
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if target == STDOUT:
        if sys.stdout is not None:
            sys.stdout.write(text)
    else:
        with replacing(Path(target)) as temporary:
            temporary.write_text(text, "utf-8")
