"""TensorRT engines from deployed graphs: with TensorRT-RTX the GPU that will run them need not be here.

An engine file is only worth something with the record beside it, which says what it holds and what it runs on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fai_fast._arguments import check_items
from fai_fast._files import replacing
from fai_fast.cache import Record, record_path, sha256_of
from fai_fast.engines import gpu
from fai_fast.engines.tensorrt import BUILDER, FLAVOURS, Flavour
from fai_fast.errors import CudaError, EngineError, ExportError
from fai_fast.registry import ModelSpec

if TYPE_CHECKING:
    from fai_fast.exporter import ExportReport

__all__ = [
    "CURRENT",
    "TARGETS",
    "EngineRecord",
    "build_engine",
    "check_builder",
    "check_targets",
    "read_record",
    "write_engine",
]

CURRENT = "current"
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121", CURRENT)
"""Compute capabilities as TensorRT-RTX names them: sm75 is Turing (T4), which takes float16 and int8 products alone."""


@dataclass(frozen=True)
class EngineRecord:
    """What the record beside an engine file says of it.

    Attributes:
        spec: of the model, its depth as in the weights.
        size: (height, width) of the images.
        batch: how many at once.
        precision: "fp32", "fp16", or "int8" with the rest in float16.
        package: "tensorrt" or "tensorrt_rtx", which built it and runs it.
        version: of that package.
        targets: compute capabilities that it runs on, such as "sm86".
        gpu: the only GPU that it runs on; None for any of `targets`.
        weights_sha256: of the weights' file.
        verification: what was measured against the reference network, None if nothing was.
        sha256: of the engine file.
        int8: of that precision, what is int8, in words; "" of others, and of files of older versions.
    """

    spec: ModelSpec
    size: tuple[int, int]
    batch: int
    precision: str
    package: str
    version: str
    targets: tuple[str, ...]
    gpu: str | None
    weights_sha256: str
    verification: dict[str, Any] | None
    sha256: str
    int8: str = ""


def build_engine(onnx_path: str | os.PathLike[str], target: str | Sequence[str] = CURRENT) -> bytes:
    """A TensorRT-RTX engine of an ONNX file in the types that the file says, for the given compute capabilities.

    Args:
        onnx_path: a file of ``fai_fast.export(..., precision="fp16")``.
        target: "sm75", "sm86", ..., or several; "current" for the GPU that is in this machine.

    Returns:
        The serialized engine.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        FileNotFoundError: there is no such file.
        ExportError: TensorRT-RTX is not installed, or refuses the graph or the target; the text has its own lines.
        CudaError: "current", and there is no GPU.
    """
    targets = check_targets(target)
    path = Path(onnx_path)
    if not path.is_file():
        raise FileNotFoundError(f"onnx_path: no such file: {path}")
    return _build(FLAVOURS["tensorrt_rtx"], path, "fp16", targets)[0]


def check_targets(target: object) -> tuple[str, ...]:
    """The names in `target`, a str or several. Raises TypeError, ValueError."""
    names = [target] if isinstance(target, str) else check_items("target", target, "names such as 'sm75'")
    if not names:
        raise ValueError("target: got none, expected at least one such as 'sm75'")
    for name in names:
        if name not in TARGETS:
            raise ValueError(f"target: got {name!r}, expected one or more of {', '.join(TARGETS)}")
    if CURRENT in names and len(names) > 1:
        raise ValueError(f"target: got {', '.join(names)}, expected 'current' alone or names such as 'sm75'")
    return tuple(dict.fromkeys(names))


def write_engine(
    onnx_path: Path, path: Path, report: ExportReport, targets: Sequence[str] = (CURRENT,)
) -> EngineRecord:
    """Builds an exported graph into an engine file and its record, both of them or none.

    TensorRT-RTX builds where it is installed; else the full TensorRT does, for the GPU that is here.

    Args:
        onnx_path: the graph that `report` is about.
        path: the engine file; its record is ``path`` with ".json" added.
        report: of the graph.
        targets: of :func:`check_targets`.

    Raises:
        ExportError: neither package is installed, or it refuses the graph or the targets; the text has its own lines.
        CudaError: "current", and there is no GPU.
        OSError: the folder cannot be written to.
    """
    kind = check_builder(targets)
    plan, on = _build(kind, onnx_path, report.precision, targets)
    depends = {
        "engine": kind.name,
        "version": kind.version(),
        "precision": report.precision,
        "builder": BUILDER,
        "graph": sha256_of(onnx_path),
        **on,
    }
    info = {
        "spec": report.spec.to_dict(),
        "im_size": report.size,
        "batch": report.batch,
        "weights": report.weights,
        "weights_sha256": report.weights_sha256,
        "verification": report.verification,
        "int8": report.int8,
    }
    # The record takes its place first: what dies between the two leaves an engine that nobody loads.
    with replacing(path) as engine, replacing(record_path(path)) as beside:
        engine.write_bytes(plan)
        Record.of(engine, depends, info).write(beside)
    return read_record(path)


def read_record(path: str | os.PathLike[str]) -> EngineRecord:
    """What the record beside a file of ``fai_fast.export(..., format="tensorrt")`` says.

    Whether the file is the one that it describes, and fits this machine, is checked when the file is loaded.

    Raises:
        FileNotFoundError: there is no such engine file.
        EngineError: it has no record, or one that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"name_or_path: no such file: {path}")
    beside = record_path(path)
    try:
        record = Record.read(beside)
        said, info = record.depends, record.info
        height, width = info["im_size"]
        return EngineRecord(
            spec=ModelSpec.from_dict(info["spec"]),
            size=(height, width),
            batch=info["batch"],
            precision=said["precision"],
            package=said["engine"],
            version=said["version"],
            targets=tuple(said["targets"]),
            gpu=said.get("gpu"),
            weights_sha256=info["weights_sha256"],
            verification=info["verification"],
            sha256=record.sha256,
            int8=str(info.get("int8", "")),
        )
    except FileNotFoundError:
        raise EngineError(
            f"{path} is not loaded without its record {beside.name}, which fai_fast.export(..., format='tensorrt') "
            "writes beside it: copy both"
        ) from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"{beside} was not written by fai_fast.export(..., format='tensorrt'): {_why(error)}; export it again"
        ) from None


def _why(error: Exception) -> str:
    """What is wrong with a record, in words."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)


def check_builder(targets: Sequence[str]) -> Flavour:
    """What to build with.

    Raises:
        ExportError: nothing that can is installed.
        CudaError: "current", and there is no GPU.
    """
    if tuple(targets) == (CURRENT,):
        try:
            gpu.devices()
        except CudaError as error:
            others = ", ".join(repr(name) for name in TARGETS if name != CURRENT)
            raise CudaError(
                f"target: got 'current', the GPU that is here, but {error}; for a GPU elsewhere name it, such as "
                f"target='sm75' for a Tesla T4; there are {others}"
            ) from None
    rtx, full = FLAVOURS["tensorrt_rtx"], FLAVOURS["tensorrt"]
    try:
        rtx.version()
        return rtx
    except EngineError as error:
        lacking = error
    try:
        full.version()
    except EngineError:
        raise ExportError(str(lacking)) from lacking
    if tuple(targets) != (CURRENT,):
        raise ExportError(
            f"target: got {', '.join(targets)}, but the tensorrt that is installed builds only for the GPU that is "
            f"here, 'current'; {lacking}"
        )
    return full


def _build(kind: Flavour, path: Path, precision: str, targets: Sequence[str]) -> tuple[bytes, dict[str, Any]]:
    """The engine, and what it runs on, for its record."""
    try:
        if tuple(targets) != (CURRENT,):
            return kind.build(path, precision=precision, targets=targets), {"targets": list(targets)}
        found = gpu.devices()[0]
        plan = kind.build(path, precision=precision, device=found.index)
        major, minor = found.compute_capability
        on: dict[str, Any] = {"targets": [f"sm{major}{minor}"]}
        return plan, on if kind.ahead_of_time else {**on, "gpu": found.name}
    except CudaError:
        raise
    except EngineError as error:
        raise ExportError(str(error)) from error
