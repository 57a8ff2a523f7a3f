"""What the sources of a command mean, and what their outputs are called."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fai_fast._redaction import redacted
from fai_fast.images import SUFFIXES, VIDEO_SUFFIXES

__all__ = ["Moving", "find_sources", "identity", "moving", "output_names", "stream_source"]

# Those that pictures and videos are written in; others become JPEG and MP4.
_KEPT = (".jpg", ".jpeg", ".png", ".webp")
_KEPT_VIDEO = (".mp4", ".mkv", ".mov")


class Moving(NamedTuple):
    """A source of many frames: a video, an address, a camera.

    Attributes:
        source: what :meth:`fai_fast.Model.stream` takes.
        name: what messages and results call it, without secrets.
        path: the file, or a name for one where there is none, by which its outputs are called.
    """

    source: str | int
    name: str
    path: Path


def stream_source(text: str) -> str | int:
    """What :meth:`fai_fast.Model.stream` takes for it: a camera's number is one, unless a file is called so."""
    return int(text) if text.isdecimal() and not os.path.exists(text) else text


def moving(text: str) -> Moving | None:
    """The source of many frames that is meant; None where it is pictures, or nothing at all."""
    from fai_fast.stream.opening import local_path

    source = stream_source(text)
    if isinstance(source, int):
        return Moving(source, f"camera {source}", Path(f"camera-{source}.mp4"))
    text = local_path(text)
    if os.path.exists(text):
        mode = os.stat(text).st_mode
        if Path(text).suffix.lower() not in VIDEO_SUFFIXES and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return None
        return None if stat.S_ISDIR(mode) else Moving(text, text, Path(text))
    if text == "-" or text.startswith("pipe:"):
        return Moving(text, "standard input", Path("stdin.mp4"))
    device = Path(text).is_absolute() and Path(text).parts[1:2] == ("dev",)
    if device or "://" in text:
        name = redacted(text)
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:80]
        return Moving(text, name, Path(f"{plain or 'stream'}.mp4"))
    return None


def find_sources(
    inputs: Sequence[str], *, recursive: bool, leave_out: Sequence[Path]
) -> tuple[list[Path | Moving], list[str]]:
    """What is meant: in the inputs' order, the pictures of a folder or pattern sorted, no file twice.

    Args:
        inputs: files, which are taken whatever they are called; folders, of which the pictures are taken, by suffix;
            patterns, of which pictures and videos are; addresses and cameras.
        recursive: whether a folder means the folders in it too.
        leave_out: folders that are or were written to; what lies in them counts only if it is named as a file.

    Returns:
        A path for each picture, a :class:`Moving` for each other source; and a sentence for each input that gives none.
    """
    found: dict[object, Path | Moving] = {}
    problems = []
    for text in inputs:
        path = Path(text)
        paths: list[Path] = []
        if not text:  # which pathlib takes for the folder that the process is in
            problem = "'': no such file or folder"
        elif (many := moving(text)) is not None:
            file = isinstance(many.source, str) and os.path.exists(many.source)
            found.setdefault(identity(many.path) if file else many.source, many)
            continue
        elif path.is_dir():
            paths = _pictures_in(path, recursive, leave_out)
            problem = f"{text}: no pictures in this folder{'' if recursive else ' itself; see --recursive'}"
        elif path.exists():
            paths, problem = ([path] if path.is_file() else []), f"{text}: no file and no folder"
        elif glob.has_magic(text):
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            paths = [match for match in matches if _is_meant(match, leave_out)]
            problem = f"{redacted(text)}: no pictures and no videos match this pattern"
        else:
            problem = f"{redacted(text)}: no such file or folder"
        if not paths:
            problems.append(problem)
        for item in paths:
            found.setdefault(identity(item), moving(str(item)) or item)
    return list(found.values()), problems


def output_names(paths: Iterable[Path]) -> dict[Path, Path]:
    """For each picture or video the relative path to write to, no two alike on any file system.

    It keeps its name. Of several with the same, each gets its folders' names from where they part, then its suffix, and
    at last a number.
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
    lower = path.suffix.lower()
    if lower in VIDEO_SUFFIXES:
        suffix = path.suffix if lower in _KEPT_VIDEO else ".mp4"
    else:
        suffix = path.suffix if lower in _KEPT else ".jpg"
    if form == 0:
        return Path(path.stem + suffix)
    if form == 1:
        return path.with_name(path.stem + suffix)
    number = "" if form == 2 else f"-{form - 1}"
    return path.with_name(f"{path.name}{number}{suffix}")


def _pictures_in(folder: Path, recursive: bool, leave_out: Sequence[Path]) -> list[Path]:
    entries = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in entries if _is_file(path, SUFFIXES) and not _inside(path, leave_out))


def _is_meant(path: Path, leave_out: Sequence[Path]) -> bool:
    return _is_file(path, SUFFIXES | VIDEO_SUFFIXES) and not _inside(path, leave_out)


def _is_file(path: Path, suffixes: frozenset[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def _inside(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
