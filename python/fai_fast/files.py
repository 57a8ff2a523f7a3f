"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to, which takes its place when the block ends without an error.

    Whoever reads ``path`` meanwhile sees the old content; after an error nothing of the new one is left.

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
    # The suffix stays, by which libraries tell the format; the name is short, whatever the length of the other.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
