"""The pictures that a low precision is tried on: the caller's, or drawn ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast import _scenes
from fai_fast._redaction import redacted
from fai_fast.images import SUFFIXES, is_encoded, read_image

__all__ = ["DRAWN", "MOST", "Pictures"]

DRAWN = 4
"""How many are drawn: some twenty-five shapes. A large network on two cores takes seconds for each."""
MOST = 32
"""How many of the caller's are looked at, spread evenly over those that there are."""


@dataclass(frozen=True)
class Pictures:
    """Pictures to run a network on.

    Attributes:
        source: where they are from, in words: "6 drawn pictures".
        digest: of their content, which verdicts in the cache depend on; taken when it is first asked for.
        frames: reads or draws them, one after the other; arrays as :func:`fai_fast.preprocess` takes them, RGB.
            Raises what :func:`fai_fast.images.read_image` raises.
        count: how many there are.
        argument: what gives the same pictures again, in another process: a folder's absolute path, a list, or None.
    """

    source: str
    digest: Callable[[], str]
    frames: Callable[[], Iterator[Any]]
    count: int
    argument: Any = None

    @classmethod
    def drawn(cls, size: tuple[int, int]) -> Pictures:
        """Shapes on a ground, in the size of the network's input (h, w). They are the same everywhere."""
        return cls(
            f"{DRAWN} drawn pictures",
            lambda: f"drawn, version {_scenes.VERSION}",
            lambda: (_scenes.draw(seed, size) for seed in range(DRAWN)),
            DRAWN,
        )

    @classmethod
    def given(cls, pictures: Any, most: int = MOST) -> Pictures:
        """The caller's.

        Args:
            pictures: a folder, of which all files that are pictures by their names count; or an iterable of pictures,
                each as :meth:`fai_fast.Model.infer` takes it. An iterator is read up to `most`, of others as many are
                taken, evenly spread.
            most: how many to look at.

        Raises:
            TypeError, ValueError, FileNotFoundError: it is neither, or there are no pictures; the text names it.
        """
        argument: Any = pictures
        if isinstance(pictures, (str, os.PathLike)):
            folder = Path(os.fsdecode(pictures))
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"pictures: no such folder: {redacted(str(folder))}; expected a folder, or a list of pictures"
                )
            items: list[Any] = sorted(
                item
                for item in folder.iterdir()
                if item.suffix.lower() in SUFFIXES and not item.name.startswith(".") and item.is_file()
            )
            argument, where = str(folder.absolute()), f" of {redacted(str(folder))}"
        elif isinstance(pictures, (bytes, bytearray, np.ndarray)) or not isinstance(pictures, Iterable):
            raise TypeError(
                f"pictures: got {type(pictures).__name__}, expected a folder, or several pictures: paths or arrays"
            )
        else:
            items = list(islice(pictures, most) if isinstance(pictures, Iterator) else pictures)
            items = [_absolute(item) for item in items]
            argument, where = items, ""
        if not items:
            raise ValueError(f"pictures: got none{where}, expected at least one")
        if gone := [item for item in items if isinstance(item, Path) and not item.is_file()]:
            raise FileNotFoundError(f"pictures: no such file: {redacted(str(gone[0]))}")
        chosen = [items[index] for index in np.linspace(0, len(items) - 1, min(most, len(items))).astype(int)]
        if argument is items:
            argument = chosen
        source = f"{len(chosen)} picture{'s' if len(chosen) > 1 else ''}{where}"
        return cls(source, lambda: _digest(chosen), lambda: map(_frame, chosen), len(chosen), argument)


def _absolute(item: Any) -> Any:
    return Path(os.fsdecode(item)).absolute() if isinstance(item, (str, os.PathLike)) else item


def _frame(item: Any) -> Any:
    return read_image(item) if is_encoded(item) else item


def _digest(items: Iterable[Any]) -> str:
    """Of the files' bytes, and the pixels of what lies in memory."""
    total = hashlib.sha256()
    for item in items:
        if isinstance(item, Path):
            content = item.read_bytes()
        elif isinstance(item, (bytes, bytearray)):
            content = bytes(item)
        else:
            pixels: npt.NDArray[Any] = np.asarray(_frame(item))
            content = f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()
