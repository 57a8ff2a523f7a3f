"""Where a model's deployed graph is from: weights, a file, or a network of somebody else."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from fai_fast import cache, exporter, weights
from fai_fast._artefacts import Graph, Source, _check_fixed, _kept, _place, _said
from fai_fast._redaction import redacted
from fai_fast.engines import select
from fai_fast.networks import Network, foreign
from fai_fast.registry import ModelSpec, load_spec
from fai_fast.weights import Located

__all__ = ["source_of"]

_log = logging.getLogger("fai_fast")


def source_of(
    model: Any,
    weights_of_it: Any,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch_size: int,
    cache_dir: Any,
    chosen: Future[list[select.Choice]] | None = None,
    *,
    spec: Any = None,
    processor: Any = None,
    task: str | None = None,
    batch_name: str = "batch_size",
) -> Source:
    """What :func:`prepare` makes a model of, and others something else.

    Args:
        model: as :func:`fai_fast.load` takes it, or weights that were located.
        weights_of_it, im_size, frame, batch_size, cache_dir: as there.
        chosen: the engines that are being looked for beside this; None where none is needed.
        spec, processor, task: as there.
        batch_name: what the caller calls the batch size.

    Raises:
        What :func:`fai_fast.load` raises of these.
    """
    if spec is not None:
        spec = foreign.spec_from(spec)
    if _ends_in(".onnx", model) and (own := _own_graph(Path(os.fsdecode(model)), spec)) is not None:
        given = _given_graph(
            own, Path(os.fsdecode(model)), weights_of_it, im_size, frame, batch_size, cache_dir
        )
        return Source(
            given.spec,
            given.size,
            given.batch_size,
            lambda _: given,
            given.provenance,
            None,
            weights_sha256=None,
        )
    theirs = exporter.network_of(
        model,
        weights_of_it,
        spec,
        im_size,
        frame,
        batch_size,
        batch_name,
        processor=processor,
        task=task,
        memory=cache.cache_folder(cache_dir),
    )
    if theirs is not None:
        network, size, batch_size = theirs
        return _source_of(network, size, batch_size, cache_dir, chosen)
    if foreign.is_module(model):
        raise ValueError(
            f"spec: got None with a {type(model).__name__}, expected a fai_fast.ModelSpec that says what its classes "
            "and its input are"
        )
    record = model.spec if isinstance(model, Located) else load_spec(model)
    size = exporter.input_size(record.input_size, im_size, frame)
    found = (
        model if isinstance(model, Located) else weights.locate(record, weights_of_it, cache_dir=cache_dir)
    )
    return _source_of(found, size, batch_size, cache_dir, chosen)


def _ends_in(suffix: str, name_or_path: Any) -> bool:
    return isinstance(name_or_path, (str, os.PathLike)) and os.fsdecode(name_or_path).lower().endswith(suffix)


def _own_graph(path: Path, spec: ModelSpec | None) -> exporter.ExportedInfo | None:
    """What a file of :func:`fai_fast.export` says of itself; None for one of somebody else, of which `spec` is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or says something else than `spec`, or is somebody else's and `spec` is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"name_or_path: no such file: {redacted(str(path))}")
    if spec is not None and not exporter.may_be_own(path):
        return None
    try:
        info = exporter.read_metadata(path)
    except exporter.NotExportedError as error:
        if spec is None:
            raise ValueError(
                f"spec: got None with {redacted(str(path))}, which was not written by fai_fast.export, so it does not "
                f"say what its classes and outputs are: {foreign.how_to_say(path)}"
            ) from error
        return None
    except ValueError:
        if spec is None:
            raise
        # What is wrong with it as somebody's file says more.
        foreign.network_of(path, spec, spec.input_size)
        raise
    if spec is not None and spec != info.spec:
        raise ValueError(
            f"spec: got one that is not that of {path.name}, which fai_fast.export wrote with its own ({info.spec!r}), "
            "expected None"
        )
    return info


def _given_graph(
    exported: exporter.ExportedInfo,
    path: Path,
    weights: Any,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch_size: int,
    cache_dir: Any,
) -> Graph:
    """A file of :func:`fai_fast.export`, which brings everything with it."""
    _check_fixed(path, exported.size, exported.batch, weights, im_size, frame, batch_size)
    return Graph(
        path=path,
        sha256=cache.remembered_sha256(path, cache.cache_folder(cache_dir)),
        spec=exported.spec,
        size=exported.size,
        batch_size=exported.batch,
        precision=exported.precision,
        provenance={
            "weights": f"in {path}",
            "verification": exported.verification,
            "artefacts": {"graph": str(path)},
        },
        weights_sha256=exported.weights_sha256,
    )


def _source_of(
    found: Located | Network,
    size: tuple[int, int],
    batch_size: int,
    cache_dir: Any,
    chosen: Future[list[select.Choice]] | None,
) -> Source:
    """The deployed graph of these weights, or of somebody else's network."""
    if chosen is not None:
        chosen.result()  # an engine that does not work is better known before minutes of export
    spec = found.spec
    read = None if isinstance(found, Network) else found.read
    height, width = size
    provenance = {"weights": found.source, "weights_sha256": found.sha256}

    def graph(precision: str) -> Graph:
        def export(path: Path) -> dict[str, Any]:
            _log.debug(
                "%s: exporting and verifying %dx%d in %s, which is done once",
                spec.name,
                height,
                width,
                precision,
            )
            subject = found if isinstance(found, Network) else found.read()
            return exporter.write(subject, path, size=size, batch=batch_size, precision=precision).to_dict()

        depends = {
            "weights": found.sha256,
            "configuration": spec.to_dict(),
            "size": [height, width],
            "batch": batch_size,
            "precision": precision,
            "exporter": exporter.VERSION,
        }
        stem = f"{height}x{width}-b{batch_size}-{precision}"
        kept = _kept(_place(spec, cache_dir, f"{stem}.onnx", depends), depends, export)
        return Graph(
            path=kept.path,
            sha256=kept.sha256,
            spec=ModelSpec.from_dict(kept.info["spec"]),
            size=size,
            batch_size=batch_size,
            precision=precision,
            provenance={
                **provenance,
                "verification": kept.info["verification"],
                "artefacts": {"graph": _said(kept)},
            },
            weights_sha256=found.sha256,
            weights=read,
        )

    resizable = not isinstance(found, Network) or found.fixed_size == (None, None)
    made = found.module if isinstance(found, Network) else None
    module = None if made is None else partial(made, size, batch_size)
    return Source(spec, size, batch_size, graph, provenance, read, found.sha256, resizable, module)
