"""What is made once and kept: where it is, what it depends on, and whether it is still whole.

Beside every file lies a small JSON, its record, with what the file was made of, its size and its SHA-256. A file whose
record says something else than what is wanted is made again, with one log line that gives the reason.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fai_fast._core import __version__
from fai_fast._foreign import explained
from fai_fast.errors import FaiFastError

__all__ = [
    "Artefact",
    "Kept",
    "Record",
    "artefact",
    "cache_folder",
    "forget_hashes",
    "list_artefacts",
    "lock",
    "record_path",
    "remembered_sha256",
    "remove",
    "remove_leftovers",
    "sha256_of",
]

PARTIAL_SUFFIX = ".part"
_CHUNK = 1 << 20
# Where files lie in the cache, each in a folder of its own.
_KINDS = ("models", "weights")
# In every folder that the cache has made.
_MARKER = ".fai_fast-cache"
# What a download says of its unfinished file, and what a remembered hash is of.
_PARTIAL_KEYS = {"url", "from", "etag", "last_modified", "total"}
_IDENTITY_KEYS = {"path", "device", "inode", "size", "mtime_ns", "ctime_ns"}
# FAT's clock ticks every two seconds; no other file system's is coarser.
_TICK_NS = 2_000_000_000

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class Artefact:
    """A file that is as it should be.

    Attributes:
        path: where it is.
        built: whether this call built it.
        reason: why it was built; None if it was there.
        info: what the build said of it, JSON types.
        sha256: of its content.
        size: bytes.
    """

    path: Path
    built: bool
    reason: str | None
    info: dict[str, Any]
    sha256: str
    size: int


@dataclass(frozen=True)
class Kept:
    """One file in the cache, for whoever wants to look or to tidy up.

    Attributes:
        path: where it is.
        size: bytes, with its record.
        complete: False for a download that was interrupted.
        created: ISO 8601, UTC; None if no record says.
        depends: what it was made of.
        info: what the build said of it.
    """

    path: Path
    size: int
    complete: bool
    created: str | None
    depends: dict[str, Any]
    info: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What the JSON beside a file says of it."""

    depends: dict[str, Any]
    size: int
    sha256: str
    info: dict[str, Any]
    created: str
    mtime_ns: int = 0

    @classmethod
    def of(cls, path: Path, depends: Mapping[str, Any], info: Mapping[str, Any] | None = None) -> Record:
        """The record of a file as it is now."""
        return cls(
            depends=dict(depends),
            size=path.stat().st_size,
            sha256=sha256_of(path),
            info=dict(info or {}),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            mtime_ns=path.stat().st_mtime_ns,
        )

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record at `path`. FileNotFoundError if there is none, ValueError if it is not readable as one."""
        try:
            items = json.loads(path.read_text("utf-8"))
            record = cls(
                **{key: items[key] for key in ("depends", "size", "sha256", "info", "created", "mtime_ns")}
            )
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not a record: {error!r}") from None
        expected = (dict, int, str, dict, str, int)
        values = (record.depends, record.size, record.sha256, record.info, record.created, record.mtime_ns)
        if any(type(value) is not kind for value, kind in zip(values, expected, strict=True)):
            raise ValueError("not a record: a field has another type than expected")
        return record

    def write(self, path: Path) -> None:
        """Puts the record at `path`, as a whole or not at all."""
        text = json.dumps({**self.__dict__, "fai_fast": __version__}, indent=1, allow_nan=False)
        # Named as what it is of: whoever builds that again removes what a killed process has left.
        of = path.with_name(path.name.removesuffix(".json"))
        temporary = path.with_name(f"{_prefix(of)}{os.urandom(4).hex()}.json")
        try:
            temporary.write_text(text, "utf-8")
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder for weights, graphs and compiled engines; it need not exist yet.

    Args:
        cache_dir: the folder; None for ``FAI_FAST_CACHE`` in the environment, else the platform's usual place.

    Raises:
        TypeError: `cache_dir` is not a path.
        FaiFastError: nothing says where it is to be, and the user has no home folder.
    """
    if cache_dir is not None:
        if not isinstance(cache_dir, (str, os.PathLike)) or not os.fspath(cache_dir):
            raise TypeError(f"cache_dir: got {cache_dir!r}, expected a folder or None")
        return _expanded("cache_dir", os.fsdecode(cache_dir))
    if folder := os.environ.get("FAI_FAST_CACHE"):
        return _expanded("FAI_FAST_CACHE", folder)
    import platformdirs

    try:
        found = platformdirs.user_cache_path("fai_fast", appauthor=False)
    except RuntimeError:  # pathlib's, where it finds no home
        found = Path("~")
    # os.path.expanduser() leaves it as it is, and a folder called "~" would be made where the process happens to be.
    if not found.is_absolute() or "~" in found.parts[:1]:
        raise FaiFastError(
            "cache: this user has no home folder (HOME is not set, and the user is not in the system's list): set "
            "FAI_FAST_CACHE or cache_dir= to a folder that can be written to"
        )
    return found


def _expanded(name: str, folder: str) -> Path:
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise FaiFastError(
            f"{name}: got {folder!r}, but no home folder is known for it: give a path without ~"
        ) from None


def artefact(
    path: str | os.PathLike[str],
    depends: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any] | None],
) -> Artefact:
    """The file at `path`, built first where it is not there, stale or corrupt. Two processes never build it at once.

    Args:
        path: of the file. Files that depend on different things and are in use at the same time need different paths.
        depends: what it is made of, JSON types; other values than those on record make it stale.
        build: writes the file to the path that it is given, which is in the same folder and has the same suffix; what
            it returns, JSON types, is kept as the artefact's info. After an error of it all is as it was.

    Raises:
        TypeError, ValueError: `depends`, or what `build` returned, is not JSON.
        FaiFastError: the folder cannot be written to, or the disk is full.
        Exception: whatever `build` raises.

    Example:
        >>> kept = artefact(folder / "a.txt", {"words": 2}, lambda path: path.write_text("two words") and None)
        >>> kept.built, kept.reason
        (True, 'not there yet')
    """
    path = Path(path)
    depends = _as_json("depends", depends)
    found = _check(path, depends)
    if isinstance(found, Artefact):
        return found
    with _writing(path), lock(path, "builds"):
        found = _check(path, depends)
        if isinstance(found, Artefact):
            return found
        return _build(path, depends, build, found)


def list_artefacts(folder: str | os.PathLike[str] | None = None) -> list[Kept]:
    """Every file that the cache has made or fetched, and downloads that were interrupted, in the order of their paths.

    A cache may lie in a folder of the user's own. Only what is in the cache's own places counts, and there only what
    has a record of the cache's; no link is followed.

    Args:
        folder: the cache; None for :func:`cache_folder`'s.
    """
    root = cache_folder(folder)
    found = []
    for kind in _KINDS:
        for place in _folders_in(root / kind):
            marked = _is_file(place / _MARKER)
            found += [kept for path in sorted(place.iterdir()) if (kept := _kept(path, kind, marked))]
    return found


def _folders_in(folder: Path) -> list[Path]:
    """The folders in a folder; none where it is a link, or one of them is."""
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return []
        return sorted(item for item in folder.iterdir() if stat.S_ISDIR(item.lstat().st_mode))
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    """Whether it is a regular file itself, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _kept(path: Path, kind: str, marked: bool) -> Kept | None:
    """The file as one of the cache's, None for anything else.

    Args:
        path: in a folder of the cache's places.
        kind: the place.
        marked: whether the cache has made the folder; those of older versions have no mark.
    """
    beside = record_path(path)
    if not (_is_file(path) and _is_file(beside)):
        return None
    try:
        size = path.stat().st_size
        whole = size + beside.stat().st_size
        if path.suffix == PARTIAL_SUFFIX:
            said = json.loads(beside.read_text("utf-8"))
            ours = kind == "weights" and isinstance(said, dict) and said.keys() == _PARTIAL_KEYS
            return Kept(path, whole, False, None, {}, {}) if ours else None
        record = Record.read(beside)
        # Files of fai_fast.export have records too, and are their owner's wherever they lie.
        if "targets" in record.depends:
            return None
        if not marked and (
            record.size != size
            or (record.mtime_ns != path.stat().st_mtime_ns and record.sha256 != sha256_of(path))
        ):
            return None
    except (OSError, ValueError, RecursionError):  # no record, or one that another process just removed
        return None
    return Kept(path, whole, True, record.created, record.depends, record.info)


def remove(path: str | os.PathLike[str]) -> int:
    """Removes one file of :func:`list_artefacts` and its record; waits for a process that is building it.

    Returns:
        The bytes that this freed; 0 if it was not there.

    Raises:
        FaiFastError: the folder cannot be written to.
    """
    path = Path(path)
    if not path.parent.is_dir():
        return 0
    freed = 0
    target = path.with_suffix("") if path.suffix == PARTIAL_SUFFIX else path
    # The lock's file stays: a process may be waiting for it.
    with _writing(path), lock(target, "uses"):
        for item in (path, record_path(path), *_leftovers(path)):
            with suppress(FileNotFoundError):
                freed += item.stat().st_size
                item.unlink()
    return freed


def forget_hashes(folder: Path) -> None:
    """Lets go of what :func:`remembered_sha256` keeps in this cache; the files themselves are nobody's here."""
    place = folder / "hashes"
    if place.is_symlink() or not place.is_dir():
        return
    for kept in place.iterdir():
        if not (re.fullmatch(r"[0-9a-f]+-[0-9a-f]+\.json", kept.name) and _is_file(kept)):
            continue
        with suppress(OSError, ValueError):
            if Record.read(kept).depends.keys() == _IDENTITY_KEYS:
                kept.unlink()


@contextmanager
def lock(path: Path, doing: str) -> Iterator[None]:
    """Keeps other processes from writing `path`; the kernel releases it when the process dies.

    Args:
        path: what is locked; the lock is a file beside it.
        doing: what the other process does with it, for the log line while waiting.
    """
    import filelock

    _make(path.parent)
    guard = filelock.FileLock(str(lock_path(path)))
    try:
        guard.acquire(timeout=0)
    except filelock.Timeout:
        _log.warning("waiting for another process that %s %s", doing, path)
        guard.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        guard.release()


def _make(folder: Path) -> None:
    """Makes a folder of the cache's; one that was there already is somebody else's, and gets no mark."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    (folder / _MARKER).write_text("This folder is part of fai_fast's cache: see `fai-fast cache`.\n", "utf-8")


def lock_path(path: Path) -> Path:
    """The lock file of `path`."""
    return path.with_name(f".{path.name}.lock")


def record_path(path: Path) -> Path:
    """The record of `path`."""
    return path.with_name(f"{path.name}.json")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remembered_sha256(path: Path, folder: Path) -> str:
    """:func:`sha256_of` for a file that is not the cache's own, such as a user's checkpoint; the cache remembers it.

    It is taken anew when path, inode, size, modification time, or the inode's own time of change differs; no program
    can set the last one, where there is one (not on Windows). A file that had just been changed when it was read is
    read again the next time, as a second change in the same tick of the file system's clock would not show.

    Args:
        path: the file.
        folder: the cache; see :func:`cache_folder`.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    identity = _identity(path, status)
    kept = folder / "hashes" / f"{status.st_dev:x}-{status.st_ino:x}.json"
    # One that is not readable is no loss: the file itself is there.
    with suppress(OSError, ValueError):
        record = Record.read(kept)
        if record.depends == identity:
            return record.sha256
    began = time.time_ns()
    sha256 = sha256_of(path)
    settled = max(status.st_mtime_ns, status.st_ctime_ns) < began - _TICK_NS
    if settled and _identity(path, path.stat()) == identity:
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            Record(identity, status.st_size, sha256, {}, created, status.st_mtime_ns).write(kept)
        except OSError as error:
            _log.debug("the hash of %s is not kept: %s", path, error.strerror)
    return sha256


def _identity(path: Path, status: os.stat_result) -> dict[str, Any]:
    """What tells another file, or other content of this one, as JSON."""
    return {
        "path": str(path.absolute()),
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _check(path: Path, depends: dict[str, Any]) -> Artefact | str:
    """The artefact, or why there is none that can be used."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "not there yet"
    except OSError as error:
        if not explained(error):
            raise
        return f"file is not accessible: {error.strerror}"
    try:
        record = Record.read(record_path(path))
    except FileNotFoundError:
        return "record is missing"
    except (OSError, ValueError) as error:
        if not explained(error, "json"):
            raise
        return f"record is unreadable: {error}"
    if changes := _changes(record.depends, depends):
        return changes
    if status.st_size != record.size:
        return f"file is corrupt: {status.st_size} bytes, expected {record.size}"
    # Hashing what nobody has touched would take as long as the rest of a start.
    if status.st_mtime_ns == record.mtime_ns:
        return Artefact(path, False, None, record.info, record.sha256, record.size)
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        if not explained(error):
            raise
        return f"file is corrupt: {error.strerror}"
    if sha256 != record.sha256:
        return "file is corrupt: its SHA-256 is not the one on record"
    return Artefact(path, False, None, record.info, sha256, record.size)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """One line that tells how `now` differs from `before`; empty if it does not."""
    lines = []
    for key in [*now, *(key for key in before if key not in now)]:
        if key not in before:
            lines.append(f"{key} is new")
        elif key not in now:
            lines.append(f"{key} is gone")
        elif before[key] != now[key] or type(before[key]) is not type(now[key]):
            texts = [json.dumps(value).strip('"') for value in (before[key], now[key])]
            lines.append(
                f"{key} was {texts[0]}, is {texts[1]}" if max(map(len, texts)) <= 80 else f"{key} changed"
            )
    return "; ".join(lines)


def _build(
    path: Path, depends: dict[str, Any], build: Callable[[Path], Mapping[str, Any] | None], reason: str
) -> Artefact:
    """Under the lock: whatever lies beside `path` half made is of a process that died."""
    remove_leftovers(path)
    temporary = path.with_name(f"{_prefix(path)}{os.urandom(4).hex()}{path.suffix}")
    try:
        info = _as_json("what build returned", build(temporary) or {})
        if not temporary.is_file():
            raise FaiFastError(f"{path}: the build wrote no file; this is a bug of fai_fast")
        _sync(temporary)
        record = Record.of(temporary, depends, info)
        # Without a record a file is not used: none is ever beside a file that it does not describe.
        record_path(path).unlink(missing_ok=True)
        os.replace(temporary, path)
        record.write(record_path(path))
        _sync(path.parent)
    finally:
        remove_leftovers(path)
    _log.debug("built %s: %s", path, reason)
    return Artefact(path, True, reason, info, record.sha256, record.size)


def _prefix(path: Path) -> str:
    """What the names of temporary files for `path` begin with; short, whatever its own name's length."""
    return f".tmp-{hashlib.sha256(path.name.encode()).hexdigest()[:12]}-"


def remove_leftovers(path: Path) -> None:
    """Removes temporary files for `path` of processes that died. The caller holds the lock of `path`."""
    for item in _leftovers(path):
        item.unlink(missing_ok=True)


def _leftovers(path: Path) -> list[Path]:
    return [item for item in path.parent.glob(f"{_prefix(path)}*") if item.is_file()]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into a FaiFastError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS or not _concerns(error, path.parent):
            raise
        raise FaiFastError(explain(error, path.parent)) from error


def _concerns(error: OSError, folder: Path) -> bool:
    """Whether it is about `folder`, what is in it or what it is in: a build may well fail at files of its own."""
    if not isinstance(error.filename, (str, bytes)):
        return error.filename is None
    path = Path(os.fsdecode(error.filename))
    return path.is_relative_to(folder) or folder.is_relative_to(path)


_REFUSALS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def explain(error: OSError, folder: Path) -> str:
    """A sentence that says why `folder` cannot be written to, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"no space left for {folder} ({error.strerror}): free some, see `fai-fast cache`, or set FAI_FAST_CACHE or "
            "cache_dir= to a folder on another disk"
        )
    if error.errno == errno.EISDIR:
        name = os.fsdecode(error.filename2 or error.filename or folder)
        return (
            f"cannot write to {folder}: {name} is a folder, expected a file: remove it, or set FAI_FAST_CACHE or "
            "cache_dir= to another folder"
        )
    return (
        f"cannot write to {folder} ({error.strerror}): make it writable, or set FAI_FAST_CACHE or cache_dir= to "
        "another folder"
    )


def _as_json(name: str, items: Mapping[str, Any]) -> dict[str, Any]:
    """`items` as JSON would give them back: lists for tuples, str for keys."""
    if not isinstance(items, Mapping):
        raise TypeError(f"{name}: got {type(items).__name__}, expected a mapping of JSON types")
    try:
        plain = json.loads(json.dumps(dict(items), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: got something that is not JSON: {error}") from None
    assert isinstance(plain, dict)
    return plain


def _sync(path: Path) -> None:
    """Waits until the disk has it; without this a power failure leaves a file of zeros behind a valid name."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
