"""Files that are there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to, which takes its place when the block ends without an error.

    Whoever reads ``path`` meanwhile sees the old content; after an error nothing of the new one is left. Of a symlink
    it is the target that is replaced, and the file's mode stays as it was. What is there but is not a regular file (a
    FIFO, /dev/stdout) is written to, not replaced.

    Raises:
        OSError: the folder is not there, or cannot be written to.

    Example:
        >>> with replacing("found.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file's name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")
    # A loop of links is an OSError in new versions of Python, and a RuntimeError before.
    try:
        target = path.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        with tempfile.TemporaryDirectory(prefix="fai_fast-") as folder:
            temporary = Path(folder) / f"content{path.suffix}"
            yield temporary
            with temporary.open("rb") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {target.parent}, where {path} points to")
    # The suffix stays, by which libraries tell the format; the name is short, whatever the length of the other.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        yield temporary
        if mode is not None:
            temporary.chmod(stat.S_IMODE(mode))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
