"""The folder of Parquet files that runs of ``fai-fast predict --ray`` fill, one run at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fai_fast import cache
from fai_fast._core import __version__
from fai_fast._files import replacing
from fai_fast._redaction import redacted
from fai_fast.cli.messages import UsageError
from fai_fast.detections import arrow

if TYPE_CHECKING:
    from fai_fast.registry import ModelSpec

__all__ = ["Parts", "Run", "earlier_size", "modified"]

_PART = re.compile(r"part-(\d{6,})\.parquet")
# What `replacing` leaves of a file whose process was killed while it wrote it.
_HALF = re.compile(r"\.[0-9a-f]{16}\.tmp\.parquet")
_LOCK = ".fai_fast.lock"
# A file is written when it has so many rows or bytes, or is so many seconds old: what a process that is killed loses.
ROWS, BYTES, SECONDS = 20_000, 1 << 27, 30.0
# Of a row group: readers hold one as a whole, and pyarrow gives up where the masks of one have 2**31 bytes.
_GROUP_BYTES = 1 << 26


class Run:
    """What decides whether two runs give the same rows.

    Attributes:
        spec: of the model.
        wanted: what the workers load and ask for, by its name, in JSON's types.
        by_pictures: whether the size of the network's input in ``wanted`` follows from the pictures.
        files: the SHA-256 of what is in each file or folder that ``wanted`` names, by the name there.
    """

    def __init__(
        self, spec: ModelSpec, wanted: Mapping[str, Any], *, by_pictures: bool = False, cache_dir: Any = None
    ) -> None:
        self.spec = spec
        self.wanted = {
            # The document is somebody else's to read.
            name: redacted(value) if isinstance(value, str) and "://" in value else value
            for name, value in wanted.items()
        }
        self.by_pictures = by_pictures
        self.files = {
            name: _sha256_of(Path(wanted[name]), cache.cache_folder(cache_dir))
            for name in ("model", "weights", "spec")
            if os.path.isabs(str(wanted.get(name))) and os.path.exists(wanted[name])
        }

    def document(self) -> dict[str, Any]:
        """What the files say of it."""
        return {
            "fai_fast": __version__,
            "model": self.spec.name,
            "task": self.spec.task,
            "wanted": self.wanted,
            "im_size_by_pictures": self.by_pictures,
            "files": self.files,
        }

    def differs(self, said: Mapping[str, Any]) -> str:
        """Why rows of a run that said this are other ones, in words; nothing where they are not."""
        before, files = said.get("wanted"), said.get("files")
        if not isinstance(before, dict) or not isinstance(files, dict):
            return "of something else than this command"
        names = {*before, *self.wanted}
        if other := sorted(name for name in names if _differ(name, before, self.wanted)):
            return f"of a run with other options ({', '.join(other)})"
        if other := sorted(name for name in {*files, *self.files} if _differ(name, files, self.files)):
            return f"of a run before {before.get(other[0])} was changed"
        return ""


def _sha256_of(place: Path, folder: Path) -> str:
    """Of a file's content, or of those of the files in a folder. The cache in `folder` remembers them."""
    if place.is_file():
        return cache.remembered_sha256(place, folder)
    found = hashlib.sha256()
    for item in sorted(place.iterdir()):
        if item.is_file() and not item.name.startswith("."):
            found.update(
                f"{cache.remembered_sha256(item, folder)} {item.name}\n".encode("utf-8", "surrogateescape")
            )
    return found.hexdigest()


def _differ(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    # As JSON has it, which knows no tuples.
    texts = [json.dumps(each[name], sort_keys=True) if name in each else None for each in (one, other)]
    return texts[0] != texts[1]


def earlier_size(folder: Path) -> tuple[int, int] | None:
    """The input's size (height, width) of the run that began a folder, where it followed from that run's pictures."""
    for path in _parts_in(folder)[:1]:
        try:
            said = arrow.document_of(path)
        except (OSError, ValueError):  # which Parts will tell
            return None
        size = said.get("wanted", {}).get("im_size")
        if said.get("im_size_by_pictures") is True and isinstance(size, list) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


def modified(path: str) -> int | None:
    """When a picture was changed last, in microseconds; None where it is not there."""
    try:
        return os.stat(path).st_mtime_ns // 1000
    except OSError:
        return None


class Parts:
    """The files: each is there as a whole or not at all, and no picture is in them twice.

    It is a context, in which the folder is this process's alone.

    Attributes:
        folder: where they are.
        done: the paths of the pictures that are in them, without those that failed or have been changed since.
        written: rows that this run has added.
    """

    def __init__(
        self, folder: Path, run: Run, pictures: Mapping[str, int | None], *, overwrite: bool
    ) -> None:
        """Makes the folder, and reads what is there.

        Rows of errors are taken out, for their pictures are tried again, as are rows of pictures that were changed.

        Args:
            folder: where the files are.
            run: what this run does.
            pictures: of each picture of this run, by its path, when it was changed last: :func:`modified`.
            overwrite: take what is there away, once there is something else.

        Raises:
            UsageError: an earlier run was of another model or with other options, another one is at work, or the folder
                is none.
            OSError: it cannot be written to.
        """
        self.folder = folder
        self.done: set[str] = set()
        self.written = 0
        self._waiting: list[Any] = []
        self._rows = self._bytes = 0
        self._since = 0.0
        self._schema = _schema(run)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--output: {folder} is a file, expected a folder for Parquet files")
        self._lock = _locked(folder)
        try:
            for path in folder.iterdir():
                if _HALF.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            parts = _parts_in(folder)
            self._old = parts if overwrite else []
            for path in () if overwrite else parts:
                self._take(path, run, pictures)
            self._next = 1 + max((int(path.stem[len("part-") :]) for path in parts), default=-1)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _take(self, path: Path, run: Run, pictures: Mapping[str, int | None]) -> None:
        import pyarrow as pa
        import pyarrow.compute as compute
        import pyarrow.parquet as parquet

        instead = "give another folder, or --overwrite"
        try:
            said = arrow.document_of(path)
            there = parquet.read_schema(path)
        except ValueError as error:
            raise UsageError(f"--output: {error}; {instead}") from error
        if why := run.differs(said):
            raise UsageError(f"--output: {path} is {why}; {instead}")
        if not there.equals(self._schema):
            raise UsageError(
                f"--output: {path} has other columns, as of fai_fast {said.get('fai_fast')}; {instead}"
            )
        columns = parquet.read_table(path, columns=["path", "modified", "error"])
        times = columns["modified"].cast(pa.int64()).to_pylist()
        failed = compute.is_valid(columns["error"]).to_pylist()
        kept = []
        for name, then, wrong in zip(columns["path"].to_pylist(), times, failed, strict=True):
            # Pictures of earlier runs that are none of this one stay as they are.
            good = not wrong and pictures.get(name, then) == then
            kept.append(good)
            if good:
                self.done.add(name)
        if all(kept):
            return
        if any(kept):
            self._write(path, parquet.read_table(path).filter(pa.array(kept)))
        else:
            path.unlink()

    def add(self, rows: Any) -> None:
        """Rows of pictures, which are on the disk after the next :meth:`flush`."""
        import pyarrow as pa

        if not self._waiting:
            self._since = time.monotonic()
        arrays = []
        for field in self._schema:
            known = field.name in rows.column_names
            column = rows.column(field.name) if known else pa.nulls(rows.num_rows, field.type)
            arrays.append(column.cast(field.type))
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        late = time.monotonic() - self._since > SECONDS
        if self._rows >= ROWS or self._bytes >= BYTES or late:
            self.flush()

    def flush(self) -> None:
        """What was added, as a file more."""
        import pyarrow as pa

        if not self._waiting:
            return
        while self._old:
            self._old[-1].unlink(missing_ok=True)
            self._old.pop()
        self._write(self.folder / f"part-{self._next:06d}.parquet", pa.concat_tables(self._waiting))
        self.written += self._rows
        self._waiting, self._rows, self._bytes = [], 0, 0
        self._next += 1

    @staticmethod
    def _write(path: Path, rows: Any) -> None:
        import pyarrow.parquet as parquet

        group = max(1, min(ROWS, rows.num_rows * _GROUP_BYTES // max(1, rows.nbytes)))
        with replacing(path) as temporary:
            parquet.write_table(rows, temporary, compression="zstd", row_group_size=group)


def _parts_in(folder: Path) -> list[Path]:
    there: Iterable[Path] = folder.glob("part-*.parquet") if folder.is_dir() else ()
    return sorted(path for path in there if _PART.fullmatch(path.name))


def _locked(folder: Path) -> Any:
    """The lock of a folder, which is made; the kernel releases it when the process dies."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(str(folder / _LOCK))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(
            f"--output: another run is writing to {folder}; wait for it, or give another folder"
        ) from None
    return lock


def _schema(run: Run) -> Any:
    import pyarrow as pa

    columns = arrow.schema(run.spec.classes)
    fields = [pa.field("path", pa.string()), pa.field("modified", pa.timestamp("us", "UTC")), *columns]
    document = json.dumps(run.document(), allow_nan=False)
    return pa.schema(fields, {**columns.metadata, arrow.DOCUMENT: document})
