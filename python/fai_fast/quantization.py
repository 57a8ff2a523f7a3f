""":func:`quantize`: a model in int8 for CPUs, from pictures of what it is for."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fai_fast import _int8, exporter, quantizer
from fai_fast._arguments import check_choice, check_fraction, check_int
from fai_fast._artefacts import Graph, Prepared, Source
from fai_fast._files import replacing
from fai_fast._pictures import Pictures
from fai_fast._sources import source_of
from fai_fast.engines import openvino
from fai_fast.model import Model
from fai_fast.networks.pretrained import is_pretrained
from fai_fast.quantizer import SUFFIX, QuantizedInfo, read_info
from fai_fast.registry import ModelSpec
from fai_fast.weights import Located

if TYPE_CHECKING:
    from fai_fast.evaluate import AdeData, CocoData, PanopticData

    Labels = AdeData | CocoData | PanopticData

__all__ = ["PRECISIONS", "QuantizeReport", "quantize"]

PRECISIONS = (quantizer.PRECISION,)
MOST = 100_000

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class QuantizeReport:
    """What was made.

    Attributes:
        path: the file.
        spec: of the model, its depth as in the weights.
        size: (height, width) of the images.
        batch: how many at once.
        precision: "int8".
        kept: which products are not int8, in words; "" where all are.
        rest: what all that is not int8 may be computed in, fastest first: "bf16", "fp16", "fp32"; verified for each.
        pictures: from which the ranges are, in words.
        verification: for each of ``rest`` a dict: "gate", a :class:`fai_fast._gate.Verdict` in JSON's types, and where
            there were labels "accuracy": "metric", "value" and "fp32" in percent, "of" and "tolerance".
        seconds: quantizing, verifying and writing.
        file_size: bytes.
    """

    path: Path
    spec: ModelSpec
    size: tuple[int, int]
    batch: int
    precision: str
    kept: str
    rest: tuple[str, ...]
    pictures: str
    verification: dict[str, Any]
    verdict: str
    seconds: float
    file_size: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "path": str(self.path),
            "name": self.spec.name,
            "spec": self.spec.to_dict(),
            "size": list(self.size),
            "batch": self.batch,
            "precision": self.precision,
            "kept": self.kept,
            "rest": list(self.rest),
            "pictures": self.pictures,
            "verification": self.verification,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 3),
            "file_size": self.file_size,
        }


def quantize(
    model: Any,
    pictures: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    precision: str = "int8",
    subset: int = quantizer.SUBSET,
    im_size: int | Sequence[int] | None = None,
    frame: Sequence[int] | None = None,
    batch: int = 1,
    weights: Any = None,
    coco: str | os.PathLike[str] | None = None,
    ade: str | os.PathLike[str] | None = None,
    panoptic: str | os.PathLike[str] | None = None,
    tolerance: float = 0.005,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    spec: Any = None,
    processor: Any = None,
    task: str | None = None,
) -> QuantizeReport:
    """Makes a model's int8 form for CPUs, which runs two to four times as fast there as fp32, from some pictures.

    No labels and no training are needed: the ranges of what flows through the network are taken from the pictures, by
    NNCF (the extra ``quantize``). The result is held against fp32 before it counts: by what both find on
    up to 32 of the pictures (docs/low_precision.md), or, where labels are given, by AP or mIoU. Where it loses too
    much with all products in int8, it is made once more without those of attention, masks and classes.

    The file is OpenVINO's, runs on any CPU, and holds everything that ``fai_fast.load`` needs, its verification, and
    a checksum. It is fast where the CPU has instructions for int8 (VNNI, AMX): ``fai-fast doctor`` says so.

    Args:
        model: a name of :func:`fai_fast.models`, a folder or file with FocoosAI's ``model_info.json``, a ModelSpec, a
            network of :func:`fai_fast.reference.build`, a :class:`fai_fast.Model`, a ``fai_fast.weights.Weights``; or
            an fp32 ``.onnx`` file that :func:`fai_fast.export` wrote; or, with `spec`, a network of somebody else: an
            ``.onnx`` file or a ``torch.nn.Module`` (docs/foreign.md).
        pictures: of what the model is for: a folder, or several pictures, each as :meth:`fai_fast.Model.infer` takes
            it. Some hundred are enough.
        path: the file to write, ending in ``.openvino``, in a folder that exists; None for the cache, where
            ``fai_fast.load`` of the same model finds it.
        precision: "int8".
        subset: how many of the pictures to take ranges from, spread evenly over them.
        im_size: an int for a square or (height, width), multiples of 32; None for the size it was trained at.
        frame: (height, width) of the camera's frames, in place of ``im_size``: see :func:`fai_fast.load`.
        batch: images at once.
        weights: as for :func:`fai_fast.load`; None where `model` brings its own.
        coco: a file of COCO's annotations of pictures in the folder `pictures`: the result is held against fp32 by AP.
        ade: a folder in ADE20K's layout: by mIoU.
        panoptic: COCO's panoptic JSON, beside the folder of its PNGs, of pictures in the folder `pictures`: by PQ.
        tolerance: with labels, how much AP, mIoU or PQ may fall, of 1: 0.005 is half a percentage point.
        cache_dir: where weights, graphs and results are kept.
        progress: a bar on stderr; None for one if that is a terminal.
        spec: of a network of somebody else, what it is: a :class:`fai_fast.ModelSpec`, what its ``to_dict()`` gives,
            or a JSON file of that.
        processor: of a network of transformers, its image processor; None for the one beside it, or what networks of
            its kind have by default (docs/networks.md).
        task: of a network of transformers, "instance", "semantic" or "panoptic"; None for what its name, its processor
            or its classes say.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value, or a picture is damaged.
        FileNotFoundError, OSError: a folder or file is not there, or cannot be written to.
        WeightsError: the weights cannot be found or do not fit.
        ExportError: NNCF is not installed, or the result loses too much; the text has the figures. Nothing is left at
            `path` that was not there before.
        EngineError: OpenVINO is not installed, or failed.

    Example:
        >>> report = fai_fast.quantize("fai-mf-n-shapes", "scenes/", "shapes.openvino")  # doctest: +SKIP
        >>> print(report.verdict)  # doctest: +SKIP
        >>> model = fai_fast.load("shapes.openvino")  # doctest: +SKIP
    """
    start = time.perf_counter()
    check_choice("precision", precision, PRECISIONS)
    subset = check_int("subset", subset)
    if not 1 <= subset <= MOST:
        raise ValueError(f"subset: got {subset}, expected 1..{MOST}")
    tolerance = check_fraction("tolerance", tolerance)
    place = None if path is None else _checked_place(path)
    labels = {"coco": coco, "ade": ade, "panoptic": panoptic}
    given = [name for name, value in labels.items() if value is not None]
    if len(given) > 1:
        what = "a folder" if given[1] == "ade" else "a file"
        raise ValueError(f"{given[1]}: got {what} with {given[0]}= too, expected only one of them")
    chosen = Pictures.given(pictures, subset)
    data = _labels(pictures, **labels)
    quantizer.check_installed()
    of_others = {"spec": spec, "processor": processor, "task": task}
    source = _source(model, weights, im_size, frame, batch, cache_dir, of_others)
    if data is not None:
        data.check(source.spec)
    graph = source.graph("fp32")
    options: dict[str, Any] = {"tolerance": 100 * tolerance, "progress": progress}
    if data is not None:
        options |= {
            "accuracy": _accuracy(graph, data, progress),
            "labels": Path(os.fsdecode(next(str(labels[name]) for name in given))).name,
        }
    if place is None:
        kept = _int8.quantized(graph, chosen, cache_dir, **options)
        return _report(kept.path, read_info(kept.path), time.perf_counter() - start)
    with replacing(place) as temporary:
        info = quantizer.write(_int8.subject_of(graph), temporary, chosen, **options)
    return _report(place, info, time.perf_counter() - start)


def _report(path: Path, info: QuantizedInfo, seconds: float) -> QuantizeReport:
    report = QuantizeReport(
        path=path,
        spec=info.spec,
        size=info.size,
        batch=info.batch,
        precision=quantizer.PRECISION,
        kept=info.kept,
        rest=info.rest,
        pictures=info.pictures,
        verification=info.verification,
        verdict=info.verdict,
        seconds=seconds,
        file_size=path.stat().st_size,
    )
    _log.info("%s: quantized %dx%d in %.1f s: %s", info.spec.name, *info.size, seconds, info.verdict)
    return report


def _checked_place(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: got {type(path).__name__}, expected a path that ends in {SUFFIX}, or None")
    place = Path(os.fsdecode(path))
    if place.suffix.lower() != SUFFIX:
        raise ValueError(f"path: got {str(place)!r}, expected a path that ends in {SUFFIX}")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"path: no such folder: {place.parent}; create it first")
    return place


def _labels(pictures: Any, coco: Any, ade: Any, panoptic: Any) -> Labels | None:
    """The labeled pictures, looked for now: better known before minutes of work."""
    from fai_fast import evaluate

    for name, value in (("coco", coco), ("panoptic", panoptic)):
        if value is not None and not isinstance(pictures, (str, os.PathLike)):
            raise ValueError(
                f"pictures: got {type(pictures).__name__} with {name}=, expected the folder of the labeled pictures"
            )
    if coco is not None:
        return evaluate.CocoData.read(pictures, coco, skip_missing=True)
    if panoptic is not None:
        return evaluate.PanopticData.read(pictures, panoptic, skip_missing=True)
    return None if ade is None else evaluate.AdeData.read(ade)


def _source(
    model: Any,
    weights: Any,
    im_size: Any,
    frame: Any,
    batch: int,
    cache_dir: Any,
    of_others: dict[str, Any],
) -> Source:
    """Where the deployed graph is from."""
    batch = check_int("batch", batch)
    if not 1 <= batch <= exporter.MAX_BATCH:
        raise ValueError(f"batch: got {batch}, expected 1..{exporter.MAX_BATCH}")
    given = any(value is not None for value in of_others.values())
    if given or is_pretrained(model) or isinstance(model, (str, os.PathLike, ModelSpec)):
        return source_of(model, weights, im_size, frame, batch, cache_dir, batch_name="batch", **of_others)
    found = exporter.weights_of(model, weights, cache_dir)
    located = Located(found.spec, found.source, found.sha256, None, lambda: found)
    return source_of(located, None, im_size, frame, batch, cache_dir)


def _accuracy(graph: Graph, data: Labels, progress: bool | None) -> Callable[[Path, str], tuple[str, float]]:
    def measure(path: Path, precision: str) -> tuple[str, float]:
        engine = openvino.load(path, precision=precision)
        prepared = Prepared(
            spec=graph.spec,
            engine=engine,
            size=graph.size,
            batch_size=graph.batch_size,
            num_threads=None,
            provenance={"precision": precision},
            weights=None,
        )
        with Model(prepared) as model:
            report = data.measure(model, progress=progress)
        if report.headline is None:
            raise ValueError("labels: there is nothing to measure in them, expected the model's classes")
        return next(iter(report.metrics)), report.headline

    return measure
