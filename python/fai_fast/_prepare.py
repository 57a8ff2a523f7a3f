"""What happens before the first frame: find weights, export, verify, compile, and keep all of it in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fai_fast import _gate, _progress, cache, exporter, quantizer, weights
from fai_fast._arguments import check_bool, check_choice, check_int, check_threads
from fai_fast._gate import Verdict
from fai_fast._options import PRECISIONS
from fai_fast._pictures import Pictures
from fai_fast._redaction import redacted
from fai_fast.engines import cpu, openvino_file, select
from fai_fast.engines import precision as precisions
from fai_fast.engines.base import Engine
from fai_fast.engines.gpu import GpuEngine
from fai_fast.errors import EngineError, ExportError
from fai_fast.quantizer import PRECISION as INT8
from fai_fast.quantizer import kept as forms
from fai_fast.registry import ModelSpec, load_spec
from fai_fast.weights import Located, Weights

__all__ = ["Prepared", "prepare"]

MAX_BATCH = 256
QUANTIZED_ENGINE = "openvino"
"""The only one that runs int8 on a CPU."""
WAY_OUT = (
    "precision='fp32' runs here; pictures= of your own show more of what the model is for; fai-fast eval --compare "
    "measures it with labels"
)

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
        weights: None where there is only a graph.
    """

    spec: ModelSpec
    size: tuple[int, int]
    batch_size: int
    graph: Callable[[str], Graph]
    provenance: dict[str, Any]
    weights: Callable[[], Weights] | None
    weights_sha256: str | None


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


def prepare(
    name_or_path: Any,
    *,
    weights: Any,
    engine: str,
    device: str | int,
    precision: str,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    num_threads: int | None,
    cache_dir: Any,
    batch_size: int,
    pictures: Pictures | None = None,
    verify_precision: bool = True,
) -> Prepared:
    """See :func:`fai_fast.load`."""
    precision = check_choice("precision", precision, PRECISIONS)
    if not check_bool("verify_precision", verify_precision) and precision == "auto":
        raise ValueError(
            "verify_precision: got False with precision 'auto', expected a precision by its name"
        )
    trial = Trial(pictures, verify_precision, cache_dir)
    threads = check_threads("num_threads", num_threads) or None
    batch_size = check_int("batch_size", batch_size)
    if not 1 <= batch_size <= MAX_BATCH:
        raise ValueError(f"batch_size: got {batch_size}, expected 1..{MAX_BATCH}")
    check_choice("engine", engine, select.ENGINES)
    on = select.device_name(device)
    select.check_device(on)
    if _ends_in(".engine", name_or_path):
        return _given_engine(
            Path(os.fsdecode(name_or_path)), weights, engine, on, precision, im_size, frame, batch_size
        )
    if _ends_in(openvino_file.SUFFIX, name_or_path):
        fixed = (weights, im_size, frame, batch_size)
        return _given_quantized(Path(os.fsdecode(name_or_path)), fixed, engine, on, precision, threads, trial)
    # Importing an engine takes as long as reading a checkpoint's hash, and they do not need each other.
    with ThreadPoolExecutor(1) as beside:
        chosen = beside.submit(select.candidates, engine, on)
        source = _source(name_or_path, weights, im_size, frame, batch_size, cache_dir, chosen)
    with _progress.job(f"{source.spec.name}: being made ready for this machine, which is done once"):
        return _with_first_engine(source, chosen.result(), precision, threads, trial)


def _with_first_engine(
    source: Source, choices: Sequence[select.Choice], precision: str, threads: int | None, trial: Trial
) -> Prepared:
    """The first engine of several that takes the model."""
    refusals: dict[str, Exception] = {}
    for choice in choices:
        try:
            if choice.device == "cuda":
                return _on_gpu(source, choice, precision, trial)
            graph = source.graph("fp32")
            ready, provenance = _fastest(graph, choice.name, precision, threads, trial)
        except (EngineError, ExportError) as error:
            # The CPU's engines all take the same graph: what cannot be exported for one cannot for the next.
            hopeless = choice.device == "cpu" and isinstance(error, ExportError)
            refusals[choice.name] = error
            if hopeless or len(choices) == 1:
                raise
            if choice is choices[-1]:
                # The last one does not speak for all: another may take what this one refuses.
                alike = {type(refusal) for refusal in refusals.values()} == {type(error)}
                raise (type(error) if alike else EngineError)(_said_by_all(refusals)) from error
            _log.warning("%s: engine %s is passed over: %s", source.spec.name, choice.name, error)
            continue
        return Prepared(
            spec=graph.spec,
            engine=ready,
            size=graph.size,
            batch_size=graph.batch_size,
            num_threads=threads,
            provenance={**graph.provenance, **provenance, "engine_reasons": dict(choice.reasons)},
            weights=graph.weights,
        )
    raise AssertionError("select.candidates gives at least one")


def _said_by_all(refusals: Mapping[str, Exception]) -> str:
    said = (f"{name}: {str(error).removeprefix(f'{name}: ')}" for name, error in refusals.items())
    return f"no engine can be used: {'; '.join(said)}"


def _source(
    name_or_path: Any,
    weights: Any,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch_size: int,
    cache_dir: Any,
    chosen: Future[list[select.Choice]],
) -> Source:
    if _ends_in(".onnx", name_or_path):
        return _graph_source(Path(os.fsdecode(name_or_path)), weights, im_size, frame, batch_size, cache_dir)
    return _exported_source(load_spec(name_or_path), weights, im_size, frame, batch_size, cache_dir, chosen)


def source_of(
    model: Any,
    weights_of_it: Any,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch_size: int,
    cache_dir: Any,
) -> Source:
    """What :func:`prepare` would make a model of, without an engine for it.

    Args:
        model: as :func:`fai_fast.load` takes it, or weights that were located.
        weights_of_it, im_size, frame, batch_size, cache_dir: as there.

    Raises:
        What :func:`fai_fast.load` raises of these.
    """
    if _ends_in(".onnx", model):
        return _graph_source(Path(os.fsdecode(model)), weights_of_it, im_size, frame, batch_size, cache_dir)
    spec = model.spec if isinstance(model, Located) else load_spec(model)
    size = exporter.input_size(spec.input_size, im_size, frame)
    found = model if isinstance(model, Located) else weights.locate(spec, weights_of_it, cache_dir=cache_dir)
    return _source_of(found, spec, size, batch_size, cache_dir)


def _graph_source(
    path: Path,
    weights: Any,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch_size: int,
    cache_dir: Any,
) -> Source:
    given = _given_graph(path, weights, im_size, frame, batch_size, cache_dir)
    return Source(
        given.spec, given.size, given.batch_size, lambda _: given, given.provenance, None, weights_sha256=None
    )


def _ends_in(suffix: str, name_or_path: Any) -> bool:
    return isinstance(name_or_path, (str, os.PathLike)) and os.fsdecode(name_or_path).lower().endswith(suffix)


def _given_graph(
    path: Path,
    weights: Any,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch_size: int,
    cache_dir: Any,
) -> Graph:
    """A file of :func:`fai_fast.export`, which brings everything with it."""
    if not path.is_file():
        raise FileNotFoundError(f"name_or_path: no such file: {redacted(str(path))}")
    exported = exporter.read_metadata(path)
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
    if im_size is not None and exporter.check_im_size(im_size) != size:
        raise ValueError(f"im_size: got {im_size} with {path.name}, expected None or {size}, which is fixed")
    if batch_size not in (1, batch):
        raise ValueError(f"batch_size: got {batch_size} with {path.name}, expected {batch}, which is fixed")


def _exported_source(
    spec: ModelSpec,
    source: Any,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch_size: int,
    cache_dir: Any,
    chosen: Future[list[select.Choice]],
) -> Source:
    size = exporter.input_size(spec.input_size, im_size, frame)
    found = weights.locate(spec, source, cache_dir=cache_dir)
    chosen.result()  # an engine that does not work is better known before minutes of export
    return _source_of(found, spec, size, batch_size, cache_dir)


def _source_of(
    found: Located, spec: ModelSpec, size: tuple[int, int], batch_size: int, cache_dir: Any
) -> Source:
    """The deployed graph of these weights."""
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
            return exporter.write(
                found.read(), path, size=size, batch=batch_size, precision=precision
            ).to_dict()

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
            weights=found.read,
        )

    return Source(spec, size, batch_size, graph, provenance, found.read, found.sha256)


# ------------------------------------------------------------------------------------------------------- GPU


def _on_gpu(source: Source, choice: select.Choice, precision: str, trial: Trial) -> Prepared:
    """The engine in the precision asked for; for "auto" the first that finds what fp32 finds."""
    module = select.module(choice.name)
    known: dict[str, str] | None = module.GRAPH_PRECISION
    native: tuple[str, ...] = module.native_precisions(choice.index)
    if precision != "auto" and precision not in native:
        raise EngineError(
            f"{choice.name}: precision {precision} was asked for, expected one of {', '.join(native)}"
        )
    tried = native if precision == "auto" else (precision,)
    refused: list[str] = []
    verdicts: dict[str, Any] = {}
    for candidate in tried:
        said: dict[str, str] = {}
        graph: Graph | None = None
        if known is None:
            ready = _from_weights(source, choice, candidate)
        else:
            try:
                graph = source.graph(known[candidate])
            except ExportError as error:
                if candidate == tried[-1]:
                    raise
                refused.append(f"{candidate}: {error}")
                continue
            if graph.precision != known[candidate]:
                refused.append(f"{candidate}: {graph.path.name} is a {graph.precision} graph")
                continue
            ready, said = _built(graph, choice, candidate, trial.cache_dir)
        reason = "asked for" if precision != "auto" else "the fastest here"
        if candidate != "fp32" and trial.wanted:
            try:
                verdict = _gpu_verdict(source, graph, choice, candidate, ready, trial)
            except BaseException:
                ready.close()
                raise
            verdicts[candidate] = verdict.to_dict()
            if not verdict.holds:
                ready.close()
                refused.append(
                    f"{candidate} does not find what fp32 finds: {verdict}"
                    + (f"; {WAY_OUT}" if precision != "auto" else "")
                )
                continue
            reason += f", and finds what fp32 finds: {verdict}"
        return Prepared(
            spec=source.spec if graph is None else graph.spec,
            engine=ready,
            gpu=ready,
            size=source.size,
            batch_size=source.batch_size,
            num_threads=None,
            provenance={
                **(source.provenance if graph is None else graph.provenance),
                "precision": candidate,
                "precision_reason": "; ".join([*refused, reason]),
                "precision_verdicts": verdicts,
                "artefacts": {**({} if graph is None else graph.provenance["artefacts"]), **said},
                "engine_reasons": dict(choice.reasons),
            },
            weights=source.weights,
        )
    raise EngineError(f"{choice.name}: no precision can be used: {'; '.join(refused)}")


def _from_weights(source: Source, choice: select.Choice, precision: str) -> GpuEngine:
    if source.weights is None:
        raise EngineError(
            f"{choice.name}: runs from weights, and only a graph was given; load a model by its name"
        )
    ready: GpuEngine = select.module(choice.name).load_weights(
        source.weights(), source.size, source.batch_size, precision=precision, device=choice.index
    )
    return ready


def _built(
    graph: Graph, choice: select.Choice, precision: str, cache_dir: Any
) -> tuple[GpuEngine, dict[str, str]]:
    """An engine for the graph, from the cache where this engine can keep what it compiled."""
    module = select.module(choice.name)
    ready: GpuEngine
    if not hasattr(module, "compile_to"):
        ready = module.load(graph.path, precision=precision, device=choice.index)
        return ready, {}

    def compiled() -> cache.Artefact:
        def build(path: Path) -> dict[str, Any] | None:
            _log.debug("%s: building for %s, which is done once", graph.spec.name, choice)
            info: dict[str, Any] | None = module.compile_to(
                graph.path, path, precision=precision, device=choice.index
            )
            _check_unchanged(graph)
            return info

        depends = {"graph": graph.sha256, **module.depends(precision, choice.index)}
        name = f"{_stem(graph)}-{choice.name}-{precision}-gpu{choice.index}.engine"
        return _kept(_place(graph.spec, cache_dir, name, depends), depends, build)

    kept = compiled()
    try:
        ready = module.load_blob(kept.path, precision=precision, device=choice.index)
    except EngineError as error:
        if kept.built:
            raise
        _log.warning("%s is built again: %s", kept.path, error)
        cache.remove(kept.path)
        kept = compiled()
        ready = module.load_blob(kept.path, precision=precision, device=choice.index)
    return ready, {"engine": _said(kept)}


def _gpu_verdict(
    source: Source,
    graph: Graph | None,
    choice: select.Choice,
    precision: str,
    engine: GpuEngine,
    trial: Trial,
) -> Verdict:
    module = select.module(choice.name)

    def exact() -> Engine:
        if graph is None:
            return _from_weights(source, choice, "fp32")
        if source.weights is None:
            # The file is all there is: the CPU runs the same graph.
            return _on_cpu(graph)
        return _on_cpu(source.graph("fp32"))

    height, width = source.size
    sha256 = source.weights_sha256 if graph is None else graph.sha256
    depends = {
        "source": sha256,
        "size": [height, width],
        "batch": source.batch_size,
        **module.depends(precision, choice.index),
    }
    stem = f"{height}x{width}-b{source.batch_size}"
    name = f"{stem}-{choice.name}-{precision}-gpu{choice.index}-agreement.txt"
    about = {"engine": choice.name, "precision": precision}
    return trial.verdict(source.spec, source.size, name, depends, about, engine, exact)


def _on_cpu(graph: Graph) -> Engine:
    choice = select.choose("auto", "cpu")
    ready: Engine = select.module(choice.name).load(graph.path, precision="fp32")
    return ready


def _given_engine(
    path: Path,
    weights: Any,
    engine: str,
    device: str,
    precision: str,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch_size: int,
) -> Prepared:
    """A file of ``fai_fast.export(..., format="tensorrt")``, which was verified when it was exported."""
    from fai_fast.exporter import tensorrt

    record = tensorrt.read_record(path)
    _check_fixed(path, record.size, record.batch, weights, im_size, frame, batch_size)
    if precision not in ("auto", record.precision):
        raise ValueError(
            f"precision: got {precision!r} with {path.name}, expected 'auto' or {record.precision!r}"
        )
    if engine not in ("auto", record.package):
        raise ValueError(f"engine: got {engine!r} with {path.name}, expected 'auto' or {record.package!r}")
    choice = select.choose(record.package, device)
    ready = select.module(choice.name).load_blob(path, precision=record.precision, device=choice.index)
    return Prepared(
        spec=record.spec,
        engine=ready,
        gpu=ready,
        size=record.size,
        batch_size=record.batch,
        num_threads=None,
        provenance={
            "weights": f"in {path}",
            "verification": record.verification,
            "precision": record.precision,
            "precision_reason": f"that of {path.name}",
            "precision_verdicts": {},
            "artefacts": {"engine": str(path)},
            "engine_reasons": dict(choice.reasons),
        },
        weights=None,
    )


# ------------------------------------------------------------------------------------------------------ int8


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
    queries = (graph.batch_size, config.num_queries)
    expected = ((graph.batch_size, 3, *graph.size), (*queries, config.num_classes + 1), queries)
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


# ------------------------------------------------------------------------------------------------------- CPU


def _fastest(
    graph: Graph, name: str, precision: str, threads: int | None, trial: Trial
) -> tuple[Engine, dict[str, Any]]:
    """The engine in the precision asked for; for "auto" the first that finds what fp32 finds."""
    if precision == INT8:
        return _asked_for_int8(graph, name, threads, trial)
    if precision != "auto":
        native = precisions.candidates(name)
        if precision not in native:
            raise EngineError(
                f"{name}: precision {precision!r} was asked for, expected one of {', '.join(map(repr, native))}, which "
                "it computes natively on this CPU"
            )
        ready, said = _compiled(graph, name, precision, threads, trial.cache_dir)
        if precision == "fp32" or trial.pictures is None or not trial.wanted:
            return ready, _provenance(graph, precision, "asked for", said)
        verdict = _cpu_verdict(graph, name, precision, ready, threads, trial)
        if not verdict.holds:
            ready.close()
            raise EngineError(
                f"{name}: {precision} was asked for, but does not find what fp32 finds: {verdict}; {WAY_OUT}"
            )
        reason = f"asked for, and finds what fp32 finds: {verdict}"
        return ready, _provenance(graph, precision, reason, said, {precision: verdict.to_dict()})

    refused: list[str] = []
    verdicts: dict[str, Any] = {}
    # Without such instructions int8 is hardly faster than fp32, and older ones overflow.
    if name == QUANTIZED_ENGINE and cpu.int8_instructions() and (form := _any_form_of(graph, trial)):
        try:
            ready, provenance = _of_form(
                form, graph.provenance, threads, trial.cache_dir, "native on this CPU"
            )
        except EngineError as error:
            refused.append(f"int8: {error}")
        else:
            if trial.pictures is None:
                return ready, provenance
            verdict = _cpu_verdict(graph, name, INT8, ready, threads, trial, form.sha256)
            verdicts[INT8] = verdict.to_dict()
            if verdict.holds:
                reason = f"native on this CPU, and finds what fp32 finds: {verdict}"
                return ready, {**provenance, "precision_reason": reason, "precision_verdicts": verdicts}
            ready.close()
            refused.append(f"int8 is native on this CPU, but does not find what fp32 finds: {verdict}")
    for candidate in precisions.candidates(name):
        ready, said = _compiled(graph, name, candidate, threads, trial.cache_dir)
        if candidate == "fp32":
            reason = "; ".join(refused) or f"{name} computes no smaller precision natively on this CPU"
            return ready, _provenance(graph, candidate, reason, said, verdicts)
        verdict = _cpu_verdict(graph, name, candidate, ready, threads, trial)
        verdicts[candidate] = verdict.to_dict()
        if verdict.holds:
            reason = f"native on this CPU, and finds what fp32 finds: {verdict}"
            return ready, _provenance(graph, candidate, reason, said, verdicts)
        ready.close()
        refused.append(f"{candidate} is native on this CPU, but does not find what fp32 finds: {verdict}")
    raise AssertionError("precision.candidates always ends with fp32")


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


def _cpu_verdict(
    graph: Graph,
    name: str,
    precision: str,
    engine: Engine,
    threads: int | None,
    trial: Trial,
    quantized: str | None = None,
) -> Verdict:
    """Against the same engine in fp32; closes the engine where that fails.

    `quantized` is the hash of the graph's int8 form, where that is what runs.
    """
    depends = {"graph": graph.sha256, **select.module(name).depends(precision, threads)}
    if quantized is not None:
        depends["quantized"] = quantized
    try:
        return trial.verdict(
            graph.spec,
            graph.size,
            f"{_stem(graph)}-{name}-{precision}-agreement.txt",
            depends,
            {"engine": name, "precision": precision},
            engine,
            lambda: _compiled(graph, name, "fp32", threads, trial.cache_dir)[0],
        )
    except BaseException:
        engine.close()
        raise


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
    # A user's model may be called anything; its folder may not leave the cache.
    return (
        cache.cache_folder(cache_dir)
        / "models"
        / (re.sub(r"[^A-Za-z0-9._-]+", "_", spec.name).strip(".")[:80] or "model")
    )


def _kept(
    path: Path, depends: dict[str, Any], build: Callable[[Path], Mapping[str, Any] | None]
) -> cache.Artefact:
    """A file of the cache. Where it has to be built, the job at hand takes time, and says so."""

    def built(place: Path) -> Mapping[str, Any] | None:
        _progress.working()
        return build(place)

    return cache.artefact(path, depends, built)


def _place(spec: ModelSpec, cache_dir: Any, name: str, depends: Mapping[str, Any]) -> Path:
    """Where the cache keeps a file: `name` with a digest of all that it depends on.

    So two files that depend on different things never take each other's place, neither when they are used in turns nor
    between the check of one and its use.
    """
    text = json.dumps(depends, sort_keys=True, ensure_ascii=False, allow_nan=False)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    stem, suffix = os.path.splitext(name)
    return model_folder(spec, cache_dir) / f"{stem}-{digest}{suffix}"


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
