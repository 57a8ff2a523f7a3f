"""JSON that is whole at every moment, however its command ends: also where it is killed, or the machine goes down.

A file takes the place of an older one with its first entry, and grows from there.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fai_fast._files import replacing
from fai_fast.cli.messages import STDOUT

__all__ = ["Document", "Lines"]


class _Growing:
    """Bytes that are written as they come, to a file or to stdout.

    Attributes:
        target: the file; "-" for stdout.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._file: IO[bytes] | None = None
        # A pipe takes no word back.
        self._again = False

    def _begin(self, content: bytes) -> None:
        """The first bytes, in place of an older file's."""
        path = Path(self.target)
        if path.exists() and not path.is_file():  # a FIFO, /dev/stdout
            self._file = path.open("wb")
            self._file.write(content)
            self._file.flush()
            return
        with replacing(path) as temporary:
            temporary.write_bytes(content)
            # Before it has the mode of the older file, which may be read-only.
            self._file = temporary.open("r+b", buffering=0)
            self._file.seek(len(content))
        self._again = True

    def _to_stdout(self, content: bytes) -> None:
        if sys.stdout is not None:  # started without one
            sys.stdout.write(content.decode())
            sys.stdout.flush()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


class Lines(_Growing):
    """A line of JSON for each entry, in the file as soon as it is written."""

    def __enter__(self) -> Lines:
        return self

    def open(self) -> None:
        """An empty file, where no entry has come."""
        if self._file is None and self.target != STDOUT:
            self._begin(b"")

    def write(self, entry: dict[str, Any]) -> None:
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        if self.target == STDOUT:
            self._to_stdout(line)
            return
        if self._file is None:
            self._begin(line)
            return
        before = self._file.tell() if self._again else 0
        try:
            _write(self._file, line)
        except OSError:
            # A full disk takes half a line.
            if self._again:
                with suppress(OSError):
                    self._file.truncate(before)
            raise


class Document(_Growing):
    """One object with a list of entries; until :meth:`end` it says that it was interrupted.

    Attributes:
        entries: how many there are.
    """

    def __init__(self, target: str, name: str) -> None:
        super().__init__(target)
        self.entries = 0
        self._name = name
        # Where the next entry goes.
        self._place = 0

    def __enter__(self) -> Document:
        return self

    def write(self, head: dict[str, Any], entry: dict[str, Any]) -> None:
        """One more entry; before the first one the fields of `head`, later on not used."""
        text = json.dumps(entry, allow_nan=False)
        if self.entries == 0:
            start = json.dumps(head, allow_nan=False)[:-1]
            text = f"{start}{', ' if head else ''}{json.dumps(self._name)}: [\n{text}"
        else:
            text = f",\n{text}"
        self._grow(text.encode())
        self.entries += 1

    def end(self, *, interrupted: bool) -> None:
        """What is there is all there is; without an entry, nothing is written."""
        if not self.entries:
            return
        tail = _INTERRUPTED if interrupted else _COMPLETE
        if self.target == STDOUT:
            self._to_stdout(tail)
        elif self._file is not None and self._again:
            self._file.seek(self._place)
            _write(self._file, tail)
            self._file.truncate()
        elif self._file is not None:
            _write(self._file, tail)
        self._close()

    def _grow(self, content: bytes) -> None:
        if self.target == STDOUT:
            self._to_stdout(content)
        elif self._file is None:
            pipe = os.path.exists(self.target) and not os.path.isfile(self.target)
            self._begin(content if pipe else content + _INTERRUPTED)
        elif self._again:
            self._file.seek(self._place)
            try:
                _write(self._file, content + _INTERRUPTED)
            except OSError:
                # A full disk: what stood here has room.
                with suppress(OSError):
                    self._file.truncate(self._place)
                    self._file.seek(self._place)
                    _write(self._file, _INTERRUPTED)
                raise
        else:
            _write(self._file, content)
        self._place += len(content)


_COMPLETE = b"\n]}\n"
_INTERRUPTED = b'\n], "interrupted": true}\n'


def _write(file: IO[bytes], content: bytes) -> None:
    """All of it: a file without a buffer may take less at once."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
    file.flush()
