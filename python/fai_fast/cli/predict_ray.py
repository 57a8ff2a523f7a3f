"""``fai-fast predict --ray``: the pictures of folders on all machines of a Ray cluster, into Parquet files.

The workers give what they found back to this process, which alone writes: a file is there as a whole or not at all, no
node needs to reach the folder, and a task that Ray repeats leaves no rows twice.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from fai_fast._redaction import redacted
from fai_fast.cli.interrupts import Interrupt
from fai_fast.cli.messages import UsageError, complain, counted
from fai_fast.cli.options import count, result_options, shaped, spec_of, unsized, usage
from fai_fast.cli.paths import Moving, find_sources
from fai_fast.cli.ray_parts import Parts, Run, earlier_size, modified
from fai_fast.errors import FaiFastError

if TYPE_CHECKING:
    from fai_fast.registry import ModelSpec

__all__ = ["OUTPUT", "add_options", "run"]

OUTPUT = "predictions.parquet"
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
    pictures, nameless = _absolute_names([source for source in sources if isinstance(source, Path)])
    for path in nameless:
        complain(f"{path}: its name is not UTF-8, as texts in Parquet files are; rename it")
    problems += nameless
    if not pictures:
        return 1
    with usage():
        spec = spec_of(args.model, args.spec, args.task, args.cache_dir)
    wanted, by_pictures = _wanted(args, spec, list(map(Path, pictures)), folder)
    of_this = Run(spec, wanted, by_pictures=by_pictures, cache_dir=args.cache_dir)
    with Parts(folder, of_this, pictures, overwrite=args.overwrite) as parts:
        todo = {path: time for path, time in pictures.items() if path not in parts.done}
        work = _Run(args, parts)
        if todo:
            with _cluster(args) as ray:
                work.run(ray, todo, wanted)
    work.summarize(len(pictures) - len(todo), len(problems))
    interrupt: Interrupt = args.interrupt
    return interrupt.code if interrupt.came else 1 if work.failed or problems else 0


def _absolute_names(pictures: Sequence[Path]) -> tuple[dict[str, int | None], list[str]]:
    """When each picture was changed last, by its path as all workers may see it; and those that no text can name."""
    times: dict[str, int | None] = {}
    nameless = []
    for path in map(os.path.abspath, pictures):
        try:
            path.encode()
        except UnicodeEncodeError:
            nameless.append(path.encode("utf-8", "backslashreplace").decode())
        else:
            times[path] = modified(path)
    return times, nameless


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


def _wanted(
    args: argparse.Namespace, spec: ModelSpec, pictures: Sequence[Path], folder: Path
) -> tuple[dict[str, Any], bool]:
    """What the workers load and ask for, in JSON's types; and whether the input's size follows from the pictures."""
    from fai_fast.cli.predict import _sizes
    from fai_fast.registry import models

    im_size = args.im_size
    open_size = unsized(args.model, args)
    earlier = None if open_size is None or args.overwrite else earlier_size(folder)
    if earlier is not None:
        # More pictures since then may have another shape, and are to go the way of those before them.
        im_size = earlier
    elif open_size is not None and (sizes := _sizes(pictures)) is not None:
        lowest, middle, longest = sizes
        from fai_fast._sizes import aspects_differ

        im_size = shaped(spec, spec.input_size if aspects_differ(lowest, longest) else middle, "the pictures")
    # Of a model that is not loaded here.
    options = result_options(args, cast(Any, SimpleNamespace(spec=spec)))
    wanted = {
        # A name is one, whatever lies in this folder.
        "model": args.model if args.model in models() else _absolute(args.model),
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
    return {name: value for name, value in wanted.items() if value is not None}, open_size is not None


def _absolute(file: Any) -> Any:
    """A path as all workers may see it, whose folders are other ones than this process's."""
    return os.path.abspath(file) if isinstance(file, str) and os.path.exists(file) else file


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

    def run(self, ray: Any, todo: Mapping[str, int | None], wanted: Mapping[str, Any]) -> None:
        """All of them, unless a signal ends it. What came until then is written, whatever ends it."""
        import pyarrow as pa

        from fai_fast.cli.ray_worker import Worker

        workers, share = self._workers(ray)
        step = max(1, min(LARGEST_TASK, len(todo) // (4 * workers)))
        paths, times, kind = list(todo), list(todo.values()), pa.timestamp("us", "UTC")
        # Each for itself: slices of one table may take all of it with them.
        tables = [
            pa.table({"path": paths[at : at + step], "modified": pa.array(times[at : at + step], kind)})
            for at in range(0, len(paths), step)
        ]
        options = dict(wanted)
        if self._args.cache_dir is not None:
            options["cache_dir"] = self._args.cache_dir
        if self._args.device != "auto":
            options["device"] = self._args.device
        found = ray.data.from_arrow(tables).map_batches(
            Worker,
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
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if cpus > largest:
            # Ray would wait for such a machine, which a cluster that grows may get.
            text = f"--threads: got {cpus}, and no machine has more than {int(largest)} cores for Ray"
            if self._args.ray == "local":
                raise UsageError(text)
            _log.warning("%s; waiting for one", text)
        if gpus and self._args.device != "cpu":
            return self._args.ray_workers or gpus, {"num_gpus": 1, "num_cpus": cpus}
        if self._args.device not in ("auto", "cpu"):
            raise UsageError(f"--device: got {self._args.device}, and no machine has a GPU for Ray")
        return self._args.ray_workers or max(1, int(there.get("CPU", 1)) // cpus), {"num_cpus": cpus}

    def _took(self, rows: Any) -> None:
        import pyarrow.compute as compute

        from fai_fast.cli.ray_worker import failure_in

        if why := failure_in(rows):
            raise FaiFastError(why)
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
            args.ray = "local"
            ray.init(address="local", include_dashboard=False, **quiet)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    context = data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = before and not args.quiet
    said = logging.getLogger("ray.data")
    level = said.level
    if args.quiet:
        said.setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        context.enable_progress_bars = before
        said.setLevel(level)
        if ours:
            ray.shutdown()
