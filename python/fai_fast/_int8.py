"""Quantized forms of a model before the first frame: given, found, or made."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fai_fast import cache, quantizer
from fai_fast._artefacts import (
    Graph,
    Prepared,
    Trial,
    _check_fixed,
    _check_unchanged,
    _compiled,
    _kept,
    _place,
    _provenance,
    _said,
    model_folder,
)
from fai_fast._pictures import Pictures
from fai_fast.engines import openvino_file, select
from fai_fast.engines.base import Engine
from fai_fast.errors import EngineError
from fai_fast.quantizer import PRECISION as INT8
from fai_fast.quantizer import kept as forms

__all__ = ["QUANTIZED_ENGINE", "quantized", "subject_of"]

QUANTIZED_ENGINE = "openvino"
"""The only one that runs int8 on a CPU."""

_log = logging.getLogger("fai_fast")


def _given_quantized(
    path: Path,
    fixed: tuple[Any, Any, Any, int],
    engine: str,
    device: str,
    precision: str,
    threads: int | None,
    trial: Trial,
) -> Prepared:
    """A file of :func:`fai_fast.quantize`, which was verified when it was made."""
    info = quantizer.read_info(path)
    _check_fixed(path, info.size, info.batch, *fixed)
    if precision not in ("auto", INT8):
        raise ValueError(f"precision: got {precision!r} with {path.name}, expected 'auto' or {INT8!r}")
    if engine not in ("auto", QUANTIZED_ENGINE):
        raise ValueError(f"engine: got {engine!r} with {path.name}, expected 'auto' or {QUANTIZED_ENGINE!r}")
    if trial.pictures is not None:
        raise ValueError(
            f"pictures: got some with {path.name}, expected None: it was verified when it was made"
        )
    choice = select.choose(QUANTIZED_ENGINE, device)
    sha256 = cache.remembered_sha256(path, cache.cache_folder(trial.cache_dir))
    form = forms.Form(path, sha256, info, str(path))
    provenance = {"weights": f"in {path}", "verification": info.verification, "artefacts": {}}
    ready, said = _of_form(form, provenance, threads, trial.cache_dir, f"that of {path.name}")
    return Prepared(
        spec=info.spec,
        engine=ready,
        size=info.size,
        batch_size=info.batch,
        num_threads=threads,
        provenance={**provenance, **said, "engine_reasons": dict(choice.reasons)},
        weights=None,
    )


def _asked_for_int8(
    graph: Graph, name: str, threads: int | None, trial: Trial
) -> tuple[Engine, dict[str, Any]]:
    """The quantized form that is there; where there is none, or pictures were given, the one made from those."""
    if name != QUANTIZED_ENGINE:
        raise EngineError(
            f"{name}: precision {INT8!r} was asked for, which only {QUANTIZED_ENGINE} has, on CPUs"
        )
    # Without pictures any that was good enough will do.
    form = _form_of(graph, trial, trial.wanted or trial.pictures is None)
    if form is None:
        if trial.pictures is not None:
            made = quantized(graph, trial.pictures, trial.cache_dir, required=trial.wanted)
            form = forms.Form(made.path, made.sha256, quantizer.read_info(made.path), _said(made))
            return _of_form(form, graph.provenance, threads, trial.cache_dir, "asked for")
        raise EngineError(
            f"{graph.spec.name}: no int8 form of these weights in {graph.size[0]}x{graph.size[1]} is there: pass "
            "pictures=, a folder of some hundred pictures of what the model is for, to have it made"
        )
    return _of_form(form, graph.provenance, threads, trial.cache_dir, "asked for")


def _form_of(graph: Graph, trial: Trial, required: bool = True) -> forms.Form | None:
    digest = None if trial.pictures is None else trial.pictures.digest()
    return forms.find(subject_of(graph), model_folder(graph.spec, trial.cache_dir), digest, required)


def _any_form_of(graph: Graph, trial: Trial) -> forms.Form | None:
    """A verified form of these weights, from whatever pictures; of a graph in fp16 there is none."""
    return None if graph.precision != "fp32" else _form_of(graph, Trial(None, trial.wanted, trial.cache_dir))


def _of_form(
    form: forms.Form, provenance: Mapping[str, Any], threads: int | None, cache_dir: Any, reason: str
) -> tuple[Engine, dict[str, Any]]:
    info = form.info
    precision = select.module(QUANTIZED_ENGINE).quantized_precision(info.rest)
    graph = Graph(
        path=form.path,
        sha256=form.sha256,
        spec=info.spec,
        size=info.size,
        batch_size=info.batch,
        precision=INT8,
        provenance={**provenance, "artefacts": {**provenance["artefacts"], "quantized": form.origin}},
        weights_sha256=info.weights_sha256,
    )
    ready, said = _compiled(graph, QUANTIZED_ENGINE, precision, threads, cache_dir)
    try:
        _check_ports(ready, graph)
    except EngineError:
        ready.close()
        raise
    reason = f"{reason}; it was made from {info.pictures}, held against fp32: {info.verdict}"
    verdicts = {INT8: info.verification[precision.partition("+")[2]]["gate"]}
    return ready, _provenance(graph, INT8, reason, said, verdicts)


def _check_ports(engine: Engine, graph: Graph) -> None:
    """EngineError where the graph is not what its file says of it."""
    config = graph.spec.config
    found = (engine.inputs[0].shape, engine.outputs[1].shape, engine.outputs[0].shape[:2])
    # Of networks of others the number of queries may be known by the graph alone.
    queries = (graph.batch_size, config.num_queries or engine.outputs[1].shape[1])
    expected = ((graph.batch_size, 3, *graph.size), (*queries, config.class_columns), queries)
    if found != expected:
        raise EngineError(
            f"{graph.path} says that it has images {expected[0]} and class_logits {expected[1]}, and has {found[0]} "
            f"and {found[1]}; make it again with fai_fast.quantize"
        )


def subject_of(graph: Graph) -> quantizer.Subject:
    """The graph as the quantizer takes it. Raises ValueError where it is not in fp32."""
    if graph.precision != "fp32":
        raise ValueError(f"model: {graph.path.name} is a {graph.precision} graph, expected one in fp32")
    return quantizer.Subject(
        graph.path, graph.sha256, graph.spec, graph.size, graph.batch_size, graph.weights_sha256
    )


def quantized(graph: Graph, pictures: Pictures, cache_dir: Any, **options: Any) -> cache.Artefact:
    """A graph's quantized form in the cache, made where it is not there. Options and errors as of quantizer.write()."""
    subject = subject_of(graph)
    depends = {
        **forms.depends_on(subject, options.get("required", True)),
        "pictures": pictures.digest(),
        "labels": options.get("labels", ""),
        "tolerance": options.get("tolerance", 0.0) if options.get("labels") else 0.0,
    }

    def build(path: Path) -> dict[str, Any]:
        _log.info("%s: quantizing with %s, which is done once", graph.spec.name, pictures.source)
        info = quantizer.write(subject, path, pictures, **options)
        _check_unchanged(graph)
        return forms.info_of(info)

    name = f"{forms.stem(subject)}{openvino_file.SUFFIX}"
    return _kept(_place(graph.spec, cache_dir, name, depends), depends, build)
