"""Pictures that come with the package, by name: to try a model with, in documents and in tests.

>>> import fai_fast.samples
>>> fai_fast.samples.names()
('shapes.jpg',)
>>> fai_fast.samples.path("shapes.jpg").is_file()
True
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["names", "path"]

_FOLDER = Path(__file__).parent / "registry" / "samples"


def names() -> tuple[str, ...]:
    """The names of all of them, in alphabetical order."""
    return tuple(sorted(file.name for file in _FOLDER.iterdir() if file.is_file()))


def path(name: str) -> Path:
    """Where a picture lies, to be read and not to be written to.

    Args:
        name: one of :func:`names`. ``shapes.jpg`` is what the model ``fai-mf-n-shapes`` was made for.

    Raises:
        TypeError: the name is not a str.
        ValueError: there is none of that name; the text lists those that are there.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: got {type(name).__name__}, expected a str")
    if name not in names():
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(map(repr, names()))}")
    return _FOLDER / name
