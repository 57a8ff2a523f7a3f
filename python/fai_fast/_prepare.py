"""What happens before the first frame: find weights, export, verify, compile, and keep all of it in the cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fai_fast import _progress, cache
from fai_fast._arguments import check_bool, check_choice, check_int, check_threads
from fai_fast._artefacts import (
    Graph,
    Prepared,
    Source,
    Trial,
    _check_fixed,
    _check_unchanged,
    _compiled,
    _kept,
    _place,
    _provenance,
    _said,
    _stem,
)
from fai_fast._gate import Verdict
from fai_fast._int8 import QUANTIZED_ENGINE, _any_form_of, _asked_for_int8, _given_quantized, _of_form
from fai_fast._options import PRECISIONS
from fai_fast._pictures import Pictures
from fai_fast._sources import _ends_in, source_of
from fai_fast.engines import cpu, openvino_file, select
from fai_fast.engines import precision as precisions
from fai_fast.engines.base import Engine
from fai_fast.engines.gpu import GpuEngine
from fai_fast.errors import CudaError, EngineError, ExportError
from fai_fast.quantizer import PRECISION as INT8

__all__ = ["Prepared", "prepare"]

MAX_BATCH = 256
WAY_OUT = (
    "precision='fp32' runs here; pictures= of your own show more of what the model is for; fai-fast eval --compare "
    "measures it with labels"
)

_log = logging.getLogger("fai_fast")


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
    spec: Any = None,
    processor: Any = None,
    task: str | None = None,
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
    for suffix in (".engine", openvino_file.SUFFIX):
        if spec is not None and _ends_in(suffix, name_or_path):
            raise ValueError(
                f"spec: got one with a {suffix} file, expected None: the file says what it holds"
            )
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
        source = source_of(
            name_or_path,
            weights,
            im_size,
            frame,
            batch_size,
            cache_dir,
            chosen,
            spec=spec,
            processor=processor,
            task=task,
        )
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
            resizable=source.resizable,
            graph=graph.path,
        )
    raise AssertionError("select.candidates gives at least one")


def _said_by_all(refusals: Mapping[str, Exception]) -> str:
    said = (f"{name}: {str(error).removeprefix(f'{name}: ')}" for name, error in refusals.items())
    return f"no engine can be used: {'; '.join(said)}"


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
            try:
                ready = _in_torch(source, choice, candidate)
            except EngineError as error:
                if candidate == tried[-1] or isinstance(error, CudaError):
                    raise
                refused.append(f"{candidate}: {error}")
                continue
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
            resizable=source.resizable,
            graph=None if graph is None else graph.path,
        )
    raise EngineError(f"{choice.name}: no precision can be used: {'; '.join(refused)}")


def _in_torch(source: Source, choice: select.Choice, precision: str) -> GpuEngine:
    """An engine that runs no graph, but the network in PyTorch."""
    engine = select.module(choice.name)
    options = {"precision": precision, "device": choice.index}
    ready: GpuEngine
    if source.weights is not None:
        ready = engine.load_weights(source.weights(), source.size, source.batch_size, **options)
    elif source.module is not None:
        shown = source.provenance["weights"]
        ready = engine.load_module(source.module(), source.size, source.batch_size, shown=shown, **options)
    else:
        others = (name for name in (*select.GPU_ENGINES, *select.CPU_ENGINES) if name != choice.name)
        raise EngineError(
            f"{choice.name}: {source.provenance['weights'].removeprefix('in ')} holds a graph, and this engine runs "
            "PyTorch: expected a model by its name, a network of transformers, or a torch.nn.Module with spec=; what "
            f"takes a graph is {', '.join(others)}"
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
            return _in_torch(source, choice, "fp32")
        # Where a file is all there is, the CPU runs the same graph.
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
            "precision_reason": f"that of {path.name}" + (f": {record.int8}" if record.int8 else ""),
            "precision_verdicts": {},
            "artefacts": {"engine": str(path)},
            "engine_reasons": dict(choice.reasons),
        },
        weights=None,
    )


# ------------------------------------------------------------------------------------------------------- CPU


def _fastest(
    graph: Graph, name: str, precision: str, threads: int | None, trial: Trial
) -> tuple[Engine, dict[str, Any]]:
    """The engine in the precision asked for; for "auto" the first that finds what fp32 finds."""
    if precision == INT8:
        return _asked_for_int8(graph, name, threads, trial)
    if precision != "auto":
        native = select.module(name).native_precisions()
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
