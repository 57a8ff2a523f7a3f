"""What happens before the first frame: find weights, export, verify, compile, and keep all of it in the cache."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fai_fast import cache, exporter, weights
from fai_fast.arguments import check_choice, check_int, check_threads
from fai_fast.engines import precision as precisions
from fai_fast.engines import select
from fai_fast.engines.base import Engine
from fai_fast.registry import ModelSpec, load_spec
from fai_fast.weights import Weights

__all__ = ["Prepared", "prepare"]

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
MAX_BATCH = 256

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class Prepared:
    """An engine that is ready, what it was made of, and the account that ``Model.info()`` gives of it."""

    spec: ModelSpec
    engine: Engine
    size: tuple[int, int]
    batch_size: int
    num_threads: int | None
    account: dict[str, Any]
    weights: Callable[[], Weights] | None
    """Reads them; None where they are only in a graph."""


@dataclass(frozen=True)
class Graph:
    """A deployed graph in a file."""

    path: Path
    sha256: str
    spec: ModelSpec
    size: tuple[int, int]
    batch_size: int
    account: dict[str, Any]
    weights: Callable[[], Weights] | None = None


def prepare(
    name_or_path: Any,
    *,
    weights: Any,
    engine: str,
    device: str,
    precision: str,
    im_size: int | Sequence[int] | None,
    num_threads: int | None,
    cache_dir: Any,
    batch_size: int,
) -> Prepared:
    """See :func:`fai_fast.load`."""
    precision = check_choice("precision", precision, PRECISIONS)
    threads = check_threads("num_threads", num_threads) or None
    batch_size = check_int("batch_size", batch_size)
    if not 1 <= batch_size <= MAX_BATCH:
        raise ValueError(f"batch_size: got {batch_size}, expected 1..{MAX_BATCH}")
    check_choice("engine", engine, select.ENGINES)
    check_choice("device", device, select.DEVICES)
    # Importing an engine takes as long as reading a checkpoint's hash, and they do not need each other.
    with ThreadPoolExecutor(1) as beside:
        chosen = beside.submit(select.choose, engine, device)
        graph = _graph(name_or_path, weights, im_size, batch_size, cache_dir, chosen)
    choice = chosen.result()
    ready, account = _fastest(graph, choice.name, precision, threads, cache_dir)
    return Prepared(
        spec=graph.spec,
        engine=ready,
        size=graph.size,
        batch_size=graph.batch_size,
        num_threads=threads,
        account={**graph.account, **account, "engine_reasons": dict(choice.reasons)},
        weights=graph.weights,
    )


def _graph(
    name_or_path: Any,
    weights: Any,
    im_size: int | Sequence[int] | None,
    batch_size: int,
    cache_dir: Any,
    chosen: Future[select.Choice],
) -> Graph:
    if isinstance(name_or_path, (str, os.PathLike)) and os.fspath(name_or_path).endswith(".onnx"):
        return _given_graph(Path(name_or_path), weights, im_size, batch_size)
    return _exported_graph(load_spec(name_or_path), weights, im_size, batch_size, cache_dir, chosen)


def _given_graph(path: Path, weights: Any, im_size: int | Sequence[int] | None, batch_size: int) -> Graph:
    """A file of :func:`fai_fast.export`, which brings everything with it."""
    if not path.is_file():
        raise FileNotFoundError(f"name_or_path: no such file: {path}")
    exported = exporter.read_metadata(path)
    if weights is not None:
        raise ValueError(f"weights: got some with {path.name}, expected None: the file holds its own")
    if im_size is not None and exporter.check_im_size(im_size) != exported.size:
        raise ValueError(
            f"im_size: got {im_size} with {path.name}, expected None or {exported.size}, which is fixed"
        )
    if batch_size not in (1, exported.batch):
        raise ValueError(
            f"batch_size: got {batch_size} with {path.name}, expected {exported.batch}, which is fixed"
        )
    return Graph(
        path=path,
        sha256=cache.sha256_of(path),
        spec=exported.spec,
        size=exported.size,
        batch_size=exported.batch,
        account={
            "weights": f"in {path}",
            "verification": exported.verification,
            "artefacts": {"graph": str(path)},
        },
    )


def _exported_graph(
    spec: ModelSpec,
    source: Any,
    im_size: int | Sequence[int] | None,
    batch_size: int,
    cache_dir: Any,
    chosen: Future[select.Choice],
) -> Graph:
    """The deployed graph of these weights, exported unless the cache has it."""
    height, width = size = exporter.check_im_size(spec.im_size if im_size is None else im_size)
    found = weights.locate(spec, source, cache_dir=cache_dir)
    chosen.result()  # an engine that does not work is better known before minutes of export
    folder = model_folder(spec, cache_dir)

    def export(path: Path) -> dict[str, Any]:
        _log.info("%s: exporting and verifying %dx%d, which is done once", spec.name, height, width)
        return exporter.write(found.read(), path, size=size, batch=batch_size, precision="fp32").to_dict()

    kept = cache.artefact(
        folder / f"{height}x{width}-b{batch_size}-fp32-{found.sha256[:12]}.onnx",
        depends={
            "weights": found.sha256,
            "configuration": spec.to_dict(),
            "size": [height, width],
            "batch": batch_size,
            "precision": "fp32",
            "exporter": exporter.VERSION,
        },
        build=export,
    )
    return Graph(
        path=kept.path,
        sha256=kept.sha256,
        spec=ModelSpec.from_dict(kept.info["spec"]),
        size=size,
        batch_size=batch_size,
        account={
            "weights": found.source,
            "weights_sha256": found.sha256,
            "verification": kept.info["verification"],
            "artefacts": {"graph": _said(kept)},
        },
        weights=found.read,
    )


def _fastest(
    graph: Graph, name: str, precision: str, threads: int | None, cache_dir: Any
) -> tuple[Engine, dict[str, Any]]:
    """The engine in the precision asked for; for "auto" the first whose masks agree with fp32's."""
    if precision != "auto":
        ready, said = _compiled(graph, name, precision, threads, cache_dir)
        return ready, _account(graph, precision, "asked for", said)

    refused: list[str] = []
    for candidate in precisions.candidates(name):
        ready, said = _compiled(graph, name, candidate, threads, cache_dir)
        if candidate == "fp32":
            reason = "; ".join(refused) or f"{name} computes no smaller precision natively on this CPU"
            return ready, _account(graph, candidate, reason, said)
        holds, verdict = _agreement(graph, name, candidate, ready, threads, cache_dir)
        if holds:
            return ready, _account(
                graph, candidate, f"native on this CPU, and verified against fp32: {verdict}", said
            )
        ready.close()
        refused.append(f"{candidate} is native on this CPU, but its masks differ from fp32's: {verdict}")
        _log.warning("%s: %s", graph.spec.name, refused[-1])
    raise AssertionError("precision.candidates always ends with fp32")


def _compiled(
    graph: Graph, name: str, precision: str, threads: int | None, cache_dir: Any
) -> tuple[Engine, dict[str, str]]:
    """An engine for the graph, from the cache where this engine can keep what it compiled."""
    module = select.module(name)
    if not hasattr(module, "compile_to"):
        return module.load(graph.path, precision=precision, num_threads=threads), {}
    depends = {"graph": graph.sha256, **module.depends(precision, threads)}
    folder = model_folder(graph.spec, cache_dir)
    kept = cache.artefact(
        folder / f"{_stem(graph)}-{name}-{precision}-t{depends['threads']}.blob",
        depends,
        lambda path: module.compile_to(graph.path, path, precision=precision, num_threads=threads),
    )
    return module.load_blob(kept.path, precision=precision, num_threads=threads), {"engine": _said(kept)}


def _agreement(
    graph: Graph, name: str, precision: str, engine: Engine, threads: int | None, cache_dir: Any
) -> tuple[bool, str]:
    """Whether an engine's masks agree with the same engine's in fp32: measured once, then remembered."""
    module = select.module(name)

    def measure(path: Path) -> dict[str, Any]:
        exact, _ = _compiled(graph, name, "fp32", threads, cache_dir)
        try:
            verdict = precisions.agreement(engine, exact, precisions.frames(engine.inputs[0]))
        finally:
            exact.close()
        path.write_text(f"{verdict}\n")
        return {"holds": verdict.holds, "verdict": str(verdict)}

    kept = cache.artefact(
        model_folder(graph.spec, cache_dir) / f"{_stem(graph)}-{name}-{precision}-agreement.txt",
        {"graph": graph.sha256, **module.depends(precision, threads)},
        measure,
    )
    return bool(kept.info["holds"]), str(kept.info["verdict"])


def _account(graph: Graph, precision: str, reason: str, artefacts: dict[str, str]) -> dict[str, Any]:
    return {
        "precision": precision,
        "precision_reason": reason,
        "artefacts": {**graph.account["artefacts"], **artefacts},
    }


def model_folder(spec: ModelSpec, cache_dir: Any = None) -> Path:
    """Where what was made of a model is kept."""
    # A user's model may be called anything; its folder may not leave the cache.
    return (
        cache.cache_folder(cache_dir)
        / "models"
        / (re.sub(r"[^A-Za-z0-9._-]+", "_", spec.name).strip(".") or "model")
    )


def _stem(graph: Graph) -> str:
    height, width = graph.size
    return f"{height}x{width}-b{graph.batch_size}-{graph.sha256[:12]}"


def _said(kept: cache.Artefact) -> str:
    return f"{kept.path} ({f'built: {kept.reason}' if kept.built else 'from the cache'})"
