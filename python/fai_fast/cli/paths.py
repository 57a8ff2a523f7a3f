"""Which files the inputs of a command mean, and what their outputs are called."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fai_fast._redaction import redacted
from fai_fast.images import SUFFIXES

__all__ = ["find_pictures", "identity", "output_names"]

# Those that pictures are written in; others become JPEG.
_KEPT = (".jpg", ".jpeg", ".png", ".webp")


def find_pictures(inputs: Sequence[str], *, recursive: bool, leave_out: Path) -> tuple[list[Path], list[str]]:
    """The files that are meant: in the inputs' order, those of a folder or pattern sorted, none twice.

    Args:
        inputs: files, which are taken whatever they are called; folders and patterns, of which the pictures are
            taken, by suffix.
        recursive: whether a folder means the folders in it too.
        leave_out: a folder that is written to; what lies in it counts only if it is named as a file.

    Returns:
        The files, and a sentence for each input that gives none.
    """
    found: dict[tuple[int, int], Path] = {}
    problems = []
    for text in inputs:
        path = Path(text)
        if not text:  # which pathlib takes for the folder that the process is in
            paths, problem = [], "'': no such file or folder"
        elif path.is_dir():
            paths = _pictures_in(path, recursive, leave_out)
            problem = f"{text}: no pictures in this folder{'' if recursive else ' itself; see --recursive'}"
        elif path.exists():
            paths, problem = ([path] if path.is_file() else []), f"{text}: no file and no folder"
        elif glob.has_magic(text):
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            paths = [match for match in matches if _is_picture(match) and not _inside(match, leave_out)]
            problem = f"{redacted(text)}: no pictures match this pattern"
        else:
            paths, problem = [], f"{redacted(text)}: no such file or folder"
        if not paths:
            problems.append(problem)
        for item in paths:
            found.setdefault(identity(item), item)
    return list(found.values()), problems


def output_names(paths: Iterable[Path]) -> dict[Path, Path]:
    """For each picture the relative path to write to, no two alike on any file system.

    A picture keeps its name. Of several with the same, each gets its folders' names from where they part, then its
    suffix, and at last a number.
    """
    paths = list(paths)
    whole = {path: path.absolute() for path in paths}
    root = Path(os.path.commonpath([path.parent for path in whole.values()])) if paths else Path()
    forms = dict.fromkeys(paths, 0)
    while True:
        names = {path: _name(whole[path].relative_to(root), forms[path]) for path in paths}
        # Some file systems take a.jpg and A.JPG for one.
        uses = Counter(str(name).casefold() for name in names.values())
        clashes = [path for path in paths if uses[str(names[path]).casefold()] > 1]
        if not clashes:
            return names
        for number, path in enumerate(clashes):
            forms[path] = forms[path] + 1 if forms[path] < 2 else forms[path] + 1 + number


def identity(path: Path) -> tuple[int, int]:
    """What is equal for two names of one file. Raises OSError for none."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _name(path: Path, form: int) -> Path:
    suffix = path.suffix if path.suffix.lower() in _KEPT else ".jpg"
    if form == 0:
        return Path(path.stem + suffix)
    if form == 1:
        return path.with_name(path.stem + suffix)
    number = "" if form == 2 else f"-{form - 1}"
    return path.with_name(f"{path.name}{number}{suffix}")


def _pictures_in(folder: Path, recursive: bool, leave_out: Path) -> list[Path]:
    entries = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in entries if _is_picture(path) and not _inside(path, leave_out))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
