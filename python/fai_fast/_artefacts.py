"""What is made ready before the first frame, where the cache keeps it, and how a low precision is tried."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fai_fast import _gate, _places, _progress, cache, exporter
from fai_fast._gate import Verdict
from fai_fast._pictures import Pictures
from fai_fast.engines import select
from fai_fast.engines.base import Engine
from fai_fast.engines.gpu import GpuEngine
from fai_fast.errors import EngineError
from fai_fast.registry import ModelSpec
from fai_fast.weights import Weights

__all__ = ["Graph", "Prepared", "Source", "Trial", "model_folder"]

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class Prepared:
    """An engine that is ready, what it was made of, and what ``Model.info()`` says of both."""

    spec: ModelSpec
    engine: Engine
    size: tuple[int, int]
    batch_size: int
    num_threads: int | None
    provenance: dict[str, Any]
    weights: Callable[[], Weights] | None
    """Reads them; None where they are only in a graph."""
    gpu: GpuEngine | None = None
    """The engine again, where it runs on a GPU."""
    resizable: bool = False
    """Whether the same could be made with another size of its input."""
    graph: Path | None = None
    """The deployed graph's file, where there is one."""


@dataclass(frozen=True)
class Graph:
    """A deployed graph in a file."""

    path: Path
    sha256: str
    spec: ModelSpec
    size: tuple[int, int]
    batch_size: int
    precision: str
    provenance: dict[str, Any]
    weights_sha256: str
    weights: Callable[[], Weights] | None = None


@dataclass(frozen=True)
class Source:
    """What graphs and engines are made from.

    Attributes:
        graph: the deployed graph in "fp32" or "fp16", exported unless the cache has it. Raises ExportError.
        weights: None where there is only a graph or a module.
        module: of somebody else's network in this size and batch, as ``networks.Network.module`` gives it; None where
            there are weights, or only a graph.
    """

    spec: ModelSpec
    size: tuple[int, int]
    batch_size: int
    graph: Callable[[str], Graph]
    provenance: dict[str, Any]
    weights: Callable[[], Weights] | None
    weights_sha256: str | None
    resizable: bool = False
    """Whether the same could be made with another size of its input."""
    module: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Trial:
    """How a low precision is tried before it is taken.

    Attributes:
        pictures: the caller's; None for drawn ones.
        wanted: whether it is tried at all.
        cache_dir: where verdicts are kept, as :func:`fai_fast.load` takes it.
    """

    pictures: Pictures | None
    wanted: bool
    cache_dir: Any

    def verdict(
        self,
        spec: ModelSpec,
        size: tuple[int, int],
        name: str,
        depends: Mapping[str, Any],
        about: Mapping[str, Any],
        engine: Engine,
        exact: Callable[[], Engine],
    ) -> Verdict:
        """Whether an engine finds what an exact one finds: measured once, then from the cache.

        Args:
            name: of the verdict's file.
            depends: what the verdict depends on, but for the pictures.
            about: what doctor says of it: "engine" and "precision".
            engine: in the low precision.
            exact: makes the one to hold it against, which is closed again.
        """
        pictures = Pictures.drawn(size) if self.pictures is None else self.pictures
        depends = {
            **depends,
            "configuration": spec.to_dict(),
            "pictures": pictures.digest(),
            "gate": _gate.VERSION,
        }

        def measure(place: Path) -> dict[str, Any]:
            reference = exact()
            try:
                found = _gate.verify(engine, reference, pictures, spec)
            finally:
                reference.close()
            place.write_text(f"{found}\n", "utf-8")
            about_it = {**about, "model": spec.name, "im_size": list(size), "text": str(found)}
            return {**about_it, "verdict": found.to_dict()}

        kept = _kept(_place(spec, self.cache_dir, name, depends), depends, measure)
        found = Verdict.from_dict(kept.info["verdict"])
        if kept.built:
            _log.info(
                "%s: %s in %s %s what fp32 finds: %s",
                spec.name,
                about["engine"],
                about["precision"],
                "finds" if found.holds else "does not find",
                found,
            )
        return found


def _check_fixed(
    path: Path,
    size: tuple[int, int],
    batch: int,
    weights: Any,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch_size: int,
) -> None:
    """ValueError where something is asked of a file that it has settled."""
    if weights is not None:
        raise ValueError(f"weights: got some with {path.name}, expected None: the file holds its own")
    if frame is not None:
        raise ValueError(
            f"frame: got {frame!r:.40} with {path.name}, expected None: its input is {size}, (height, width), which is "
            "fixed; export it again with frame="
        )
    if im_size is not None and exporter.check_im_size(im_size, 1) != size:
        raise ValueError(f"im_size: got {im_size} with {path.name}, expected None or {size}, which is fixed")
    if batch_size not in (1, batch):
        raise ValueError(f"batch_size: got {batch_size} with {path.name}, expected {batch}, which is fixed")


def _compiled(
    graph: Graph, name: str, precision: str, threads: int | None, cache_dir: Any
) -> tuple[Engine, dict[str, str]]:
    """An engine for the graph, from the cache where this engine can keep what it compiled."""
    module = select.module(name)
    if not hasattr(module, "compile_to"):
        return module.load(graph.path, precision=precision, num_threads=threads), {}
    depends = {"graph": graph.sha256, **module.depends(precision, threads)}
    file_name = f"{_stem(graph)}-{name}-{precision}-t{depends['threads']}.blob"

    def build(path: Path) -> dict[str, Any] | None:
        info: dict[str, Any] | None = module.compile_to(
            graph.path, path, precision=precision, num_threads=threads
        )
        _check_unchanged(graph)
        return info

    kept = _kept(_place(graph.spec, cache_dir, file_name, depends), depends, build)
    return module.load_blob(kept.path, precision=precision, num_threads=threads), {"engine": _said(kept)}


def _provenance(
    graph: Graph,
    precision: str,
    reason: str,
    artefacts: dict[str, str],
    verdicts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "precision": precision,
        "precision_reason": reason,
        "precision_verdicts": dict(verdicts or {}),
        "artefacts": {**graph.provenance["artefacts"], **artefacts},
    }


def model_folder(spec: ModelSpec, cache_dir: Any = None) -> Path:
    """Where what was made of a model is kept."""
    return _places.folder_of(spec.name, cache_dir)


def _kept(
    path: Path, depends: dict[str, Any], build: Callable[[Path], Mapping[str, Any] | None]
) -> cache.Artefact:
    """A file of the cache. Where it has to be built, the job at hand takes time, and says so."""

    def built(place: Path) -> Mapping[str, Any] | None:
        _progress.working()
        return build(place)

    return cache.artefact(path, depends, built)


def _place(spec: ModelSpec, cache_dir: Any, name: str, depends: Mapping[str, Any]) -> Path:
    """Where the cache keeps a file of a model, see :func:`fai_fast._places.place`."""
    return _places.place(spec.name, cache_dir, name, depends)


def _check_unchanged(graph: Graph) -> None:
    """EngineError where the file is not the one any more that its hash was taken of.

    What is made of it is kept under that hash, for all later starts.
    """
    if cache.sha256_of(graph.path) != graph.sha256:
        raise EngineError(f"{graph.path} was changed while it was in use; load it again")


def _stem(graph: Graph) -> str:
    height, width = graph.size
    return f"{height}x{width}-b{graph.batch_size}"


def _said(kept: cache.Artefact) -> str:
    return f"{kept.path} ({f'built: {kept.reason}' if kept.built else 'from the cache'})"
