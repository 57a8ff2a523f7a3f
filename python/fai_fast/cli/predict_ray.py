"""``fai-fast predict --ray``: the pictures of folders on all machines of a Ray cluster, into Parquet files.

The workers give what they found back to this process, which alone writes: a file is there as a whole or not at all, no
node needs to reach the folder, and a task that Ray repeats leaves no rows twice.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from fai_fast._core import __version__
from fai_fast._files import replacing
from fai_fast._redaction import redacted
from fai_fast.cli.interrupts import Interrupt
from fai_fast.cli.messages import UsageError, complain, counted
from fai_fast.cli.options import count, result_options, shaped, spec_of, unsized, usage
from fai_fast.cli.paths import Moving, find_sources
from fai_fast.detections import arrow

if TYPE_CHECKING:
    from fai_fast.registry import ModelSpec

__all__ = ["OUTPUT", "add_options", "run"]

OUTPUT = "predictions.parquet"
_PART = re.compile(r"part-(\d{6,})\.parquet")
# A file is written when it has so many rows, or is so many seconds old: what a process that is killed loses.
ROWS, SECONDS = 20_000, 30.0
# Pictures of a task, which is what Ray does again where a worker dies.
LARGEST_TASK = 128
# Errors that are told one by one; all are in the rows.
_TOLD = 20
# What --ray takes; a path there is a SOURCE that stands behind it.
_ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")

_log = logging.getLogger("fai_fast")


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Ray, see docs/ray.md")
    group.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help=f"run on all its machines, and write Parquet files into the folder --output, {OUTPUT} by default; what "
        "they have is not done again. Without an address the cluster that runs here or that RAY_ADDRESS names, else a "
        "new one of this machine; pictures have to lie where all machines find them",
    )
    group.add_argument(
        "--ray-workers", type=count, metavar="N", help="at most; default: as many as there are cores, or GPUs"
    )


def run(args: argparse.Namespace) -> int:
    """The command, where --ray is given."""
    _refuse(args)
    folder = Path(args.output if args.output is not None else OUTPUT)
    sources, problems = find_sources(args.inputs, recursive=args.recursive, leave_out=[folder])
    for problem in problems:
        complain(problem)
    if moving := [source.name for source in sources if isinstance(source, Moving)]:
        raise UsageError(
            f"SOURCE: got {moving[0]}, expected pictures with --ray; for videos there is fai_fast.ray.VideoDetector"
        )
    pictures = [source for source in sources if isinstance(source, Path)]
    if not pictures:
        return 1
    with usage():
        spec = spec_of(args.model, args.spec, args.task, args.cache_dir)
    wanted = _wanted(args, spec, pictures)
    parts = Parts(folder, spec, wanted, overwrite=args.overwrite)
    todo = [path for path in map(os.path.abspath, pictures) if path not in parts.done]
    work = _Run(args, parts)
    if todo:
        with _cluster(args) as ray:
            work.run(ray, todo, wanted)
    work.summarize(len(pictures) - len(todo), len(problems))
    interrupt: Interrupt = args.interrupt
    return interrupt.code if interrupt.came else 1 if work.failed or problems else 0


def _refuse(args: argparse.Namespace) -> None:
    """UsageError for what belongs to a run in this process."""
    if not _ADDRESS.fullmatch(args.ray):
        raise UsageError(
            f"--ray: got {redacted(args.ray)!r}, expected an address such as 10.0.0.1:6379 or ray://head:10001, or "
            "none; SOURCE stands before it"
        )
    for option, value in (
        ("--json", args.json),
        ("--format", args.format),
        ("--no-images", args.no_images),
        ("--show", args.show),
    ):
        if value:
            raise UsageError(f"{option}: belongs to a run without --ray, which writes Parquet files only")
    if args.output == "":
        raise UsageError("--output: got '', expected a folder")


def _wanted(args: argparse.Namespace, spec: ModelSpec, pictures: Sequence[Path]) -> dict[str, Any]:
    """What the workers load and ask for, in JSON's types; it decides whether two runs give the same rows."""
    from fai_fast.cli.predict import _sizes

    im_size = args.im_size
    open_size = unsized(args.model, args)
    if open_size is not None and (sizes := _sizes(pictures)) is not None:
        lowest, middle, longest = sizes
        from fai_fast._sizes import aspects_differ

        im_size = shaped(spec, spec.input_size if aspects_differ(lowest, longest) else middle, "the pictures")
    # Of a model that is not loaded here.
    options = result_options(args, cast(Any, SimpleNamespace(spec=spec)))
    wanted = {
        "model": _absolute(args.model),
        "spec": _absolute(args.spec),
        "task": args.task,
        "weights": _absolute(args.weights),
        "engine": args.engine,
        "precision": args.precision,
        "im_size": list(im_size) if isinstance(im_size, tuple) else im_size,
        "frame": None if args.frame is None else list(args.frame),
        "pictures": _absolute(args.pictures),
        "max_pixels": args.max_pixels,
        **options,
    }
    if isinstance(wanted["threshold"], dict):
        wanted["threshold"] = {spec.classes[key]: value for key, value in options["threshold"].items()}
    return {name: value for name, value in wanted.items() if value is not None}


def _absolute(file: Any) -> Any:
    """A path as all workers may see it, whose folders are other ones than this process's."""
    return os.path.abspath(file) if isinstance(file, str) and os.path.exists(file) else file


class Parts:
    """The folder of Parquet files that runs fill.

    Attributes:
        folder: where they are.
        done: the paths of the pictures that are in them, without those that failed.
        written: rows that this run has added.
    """

    def __init__(self, folder: Path, spec: ModelSpec, wanted: dict[str, Any], *, overwrite: bool) -> None:
        """Reads what is there; rows with an error are taken out, for their pictures are tried again.

        Raises:
            UsageError: an earlier run was of another model or with other options, or the folder is none.
        """
        self.folder = folder
        self.done: set[str] = set()
        self.written = 0
        self._waiting: list[Any] = []
        self._since = time.monotonic()
        self._schema = _schema(spec, wanted)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--output: {folder} is a file, expected a folder for Parquet files")
        there = sorted(folder.glob("part-*.parquet")) if folder.is_dir() else []
        parts = [path for path in there if _PART.fullmatch(path.name)]
        self._next = 1 + max((int(path.stem[len("part-") :]) for path in parts), default=-1)
        for path in parts:
            if overwrite:
                path.unlink()
            else:
                self._take(path, wanted)

    def _take(self, path: Path, wanted: dict[str, Any]) -> None:
        import pyarrow.compute as compute
        import pyarrow.parquet as parquet

        try:
            said = arrow.document_of(path).get("wanted")
        except ValueError as error:
            raise UsageError(f"--output: {error}; give another folder, or --overwrite") from error
        if said != wanted:
            other = sorted(
                name
                for name in {*wanted, *(said or {})}
                if (said or {}).get(name, wanted) != wanted.get(name, said)
            )
            raise UsageError(
                f"--output: {path} is of a run with other options"
                f"{f' ({chr(44).join(other)})' if said else ''}; give another folder, or --overwrite"
            )
        columns = parquet.read_table(path, columns=["path", "error"])
        failed = compute.is_valid(columns["error"])
        self.done.update(columns.filter(compute.invert(failed))["path"].to_pylist())
        if compute.any(failed).as_py():
            rows = parquet.read_table(path)
            kept = rows.filter(compute.is_null(rows["error"]))
            if kept.num_rows:
                self._write(path, kept)
            else:
                path.unlink()

    def add(self, rows: Any) -> None:
        """Rows of pictures, which are on the disk after the next :meth:`flush`."""
        import pyarrow as pa

        arrays = []
        for field in self._schema:
            known = field.name in rows.column_names
            column = rows.column(field.name) if known else pa.nulls(rows.num_rows, field.type)
            arrays.append(column.cast(field.type))
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        if sum(table.num_rows for table in self._waiting) >= ROWS or time.monotonic() - self._since > SECONDS:
            self.flush()

    def flush(self) -> None:
        """What was added, as a file more."""
        import pyarrow as pa

        self._since = time.monotonic()
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(self.folder / f"part-{self._next:06d}.parquet", rows)
        self._waiting = []
        self._next += 1
        self.written += rows.num_rows

    @staticmethod
    def _write(path: Path, rows: Any) -> None:
        import pyarrow.parquet as parquet

        with replacing(path) as temporary:
            parquet.write_table(rows, temporary, compression="zstd")


def _schema(spec: ModelSpec, wanted: dict[str, Any]) -> Any:
    import pyarrow as pa

    columns = arrow.schema(spec.classes)
    document = {"fai_fast": __version__, "model": spec.name, "task": spec.task, "wanted": wanted}
    return pa.schema(
        [pa.field("path", pa.string()), *columns],
        {**columns.metadata, arrow.DOCUMENT: json.dumps(document, allow_nan=False)},
    )


class _Run:
    """The pictures on the cluster.

    Attributes:
        rows: pictures that came back.
        failed: of those, the ones that could not be read.
        found: objects in all of them.
    """

    def __init__(self, args: argparse.Namespace, parts: Parts) -> None:
        self.rows = self.failed = self.found = 0
        self._args = args
        self._parts = parts
        self._interrupt: Interrupt = args.interrupt

    def run(self, ray: Any, todo: Sequence[str], wanted: dict[str, Any]) -> None:
        """All of them, unless a signal ends it. What came until then is written, whatever ends it."""
        import pyarrow as pa

        from fai_fast.ray import Detector

        workers, share = self._workers(ray)
        step = max(1, min(LARGEST_TASK, len(todo) // (4 * workers)))
        tables = [pa.table({"path": todo[at : at + step]}) for at in range(0, len(todo), step)]
        options = dict(wanted)
        if self._args.cache_dir is not None:
            options["cache_dir"] = self._args.cache_dir
        if self._args.device != "auto":
            options["device"] = self._args.device
        found = ray.data.from_arrow(tables).map_batches(
            Detector,
            fn_constructor_kwargs=options,
            # A table as it is, which is a task.
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(tables))),
            **share,
        )
        try:
            for rows in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                with self._interrupt.later():
                    self._took(rows)
        except KeyboardInterrupt:
            if not self._interrupt.came:  # some other handler's
                raise
            self._interrupt.hold()
        finally:
            with self._interrupt.noted():
                self._parts.flush()

    def _workers(self, ray: Any) -> tuple[int, dict[str, Any]]:
        """How many actors at most, and what each gets."""
        there = ray.cluster_resources()
        cpus = self._args.threads or 1
        gpus = int(there.get("GPU", 0))
        if gpus and self._args.device != "cpu":
            return self._args.ray_workers or gpus, {"num_gpus": 1, "num_cpus": cpus}
        return self._args.ray_workers or max(1, int(there.get("CPU", 1)) // cpus), {"num_cpus": cpus}

    def _took(self, rows: Any) -> None:
        import pyarrow.compute as compute

        for path, error in zip(rows["path"].to_pylist(), rows["error"].to_pylist(), strict=True):
            if error is None:
                continue
            self.failed += 1
            why = error.removeprefix("image: ")
            if self.failed <= _TOLD:
                complain(why if path in why else f"{path}: {why}")
            elif self.failed == _TOLD + 1:
                complain("more pictures failed, which the column error tells")
        self.rows += rows.num_rows
        self.found += compute.sum(compute.list_value_length(rows["class_id"])).as_py() or 0
        self._parts.add(rows)

    def summarize(self, before: int, unusable: int) -> None:
        """The last line."""
        failed = self.failed + unusable
        _log.info(
            "%s, %s%s%s%s",
            counted(self.rows, "picture"),
            counted(self.found, "object"),
            f", {failed} failed" if failed else "",
            f", {before} done before" if before else "",
            f"; wrote {self._parts.folder}" if self._parts.written else "",
        )


@contextmanager
def _cluster(args: argparse.Namespace) -> Iterator[Any]:
    """The module ray, connected; the connection, or a cluster of this machine, ends with the block."""
    from fai_fast.ray.resources import ray_module

    ray = ray_module()
    data = importlib.import_module("ray.data")

    ours = not ray.is_initialized()
    # Ray takes SIGTERM, which is the command's to handle.
    handler = signal.getsignal(signal.SIGTERM)
    if ours:
        quiet = {"logging_level": "WARNING", "log_to_driver": args.verbose}
        if args.ray != "local":
            try:
                ray.init(address=args.ray, **quiet)
            except ConnectionError as error:
                if args.ray != "auto" or os.environ.get("RAY_ADDRESS"):
                    raise UsageError(f"--ray: {redacted(args.ray)}: {error}") from error
        if not ray.is_initialized():
            # What this machine does alone is nobody else's affair.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address="local", include_dashboard=False, **quiet)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    context = data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = before and not args.quiet
    try:
        yield ray
    finally:
        context.enable_progress_bars = before
        if ours:
            ray.shutdown()
