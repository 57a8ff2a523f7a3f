"""The deployed graph: the reference network made cheaper without changing what it computes, as an ONNX file.

:func:`export` writes and verifies one, and builds TensorRT engines from it. ``docs/deployed_graph.md`` says what is
folded and why it is equal, ``docs/gpu.md`` what becomes of it on a GPU.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fai_fast import _progress
from fai_fast._arguments import check_bool, check_choice, check_int
from fai_fast._core import __version__
from fai_fast._files import replacing
from fai_fast._pictures import Pictures
from fai_fast._redaction import redacted
from fai_fast._sizes import STRIDE
from fai_fast.errors import ExportError
from fai_fast.exporter import checksum
from fai_fast.exporter.subject import check_im_size, input_size, is_own, network_of, weights_of
from fai_fast.networks import Network
from fai_fast.registry import ModelSpec, stride_of
from fai_fast.weights import Weights

__all__ = [
    "VERSION",
    "ExportReport",
    "ExportedInfo",
    "NotExportedError",
    "check_im_size",
    "export",
    "input_size",
    "may_be_own",
    "network_of",
    "read_metadata",
    "weights_of",
    "write",
]

VERSION = 1
"""Counts changes of what is exported: a file of another version is exported again."""
PRECISIONS = ("fp32", "fp16")
INT8 = "int8"
FORMATS = {"onnx": ".onnx", "tensorrt": ".engine"}
MAX_BATCH = 256
_KEY = "fai_fast."
_DAMAGED = "is damaged, or was changed since fai_fast.export wrote it (its checksum differs); copy or export it again"

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True, repr=False)
class ExportReport:
    """What was written. Its repr is one line; :meth:`to_dict` tells everything.

    Attributes:
        path: the file.
        spec: of the model, its depth as in the weights.
        size: (height, width) of the images.
        batch: how many at once.
        precision: "fp32", "fp16" or, of TensorRT engines, "int8".
        weights: where they are from.
        weights_sha256: of their file.
        verification: what was measured against the reference network, None if nothing was; see
            :class:`fai_fast.exporter.verify.Verification`. Of int8 it is how it agrees with fp32, "agreement", and of
            that, "fp32", what was measured against the reference network.
        seconds: building, verifying and writing.
        format: "onnx" or "tensorrt".
        targets: compute capabilities that an engine was built for, such as "sm86"; none for ONNX.
        version: of what built an engine, such as "tensorrt_rtx 1.7.1"; None for ONNX.
        file_size: bytes.
        int8: of that precision, what is int8, in words; "" of others.
    """

    path: Path
    spec: ModelSpec
    size: tuple[int, int]
    batch: int
    precision: str
    weights: str
    weights_sha256: str
    verification: dict[str, Any] | None
    seconds: float
    format: str = "onnx"
    targets: tuple[str, ...] = ()
    version: str | None = None
    file_size: int = 0
    int8: str = ""

    def __repr__(self) -> str:
        height, width = self.size
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        built = f" for {', '.join(self.targets)} by {self.version}" if self.targets else ""
        return (
            f"<ExportReport {self.path}: {self.spec.name} {height}x{width} {self.precision}{batch}{built}, "
            f"{self.file_size / 1e6:.1f} MB, {_in_words(self.verification)}>"
        )

    @property
    def verified(self) -> bool:
        """Whether the graph was held against the reference network and is equal; in int8: finds what fp32 finds."""
        return self.verification is not None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "path": str(self.path),
            "name": self.spec.name,
            "spec": self.spec.to_dict(),
            "size": list(self.size),
            "batch": self.batch,
            "precision": self.precision,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "verified": self.verified,
            "verification": self.verification,
            "seconds": round(self.seconds, 3),
            "format": self.format,
            "targets": list(self.targets),
            "version": self.version,
            "file_size": self.file_size,
            "int8": self.int8,
        }


@dataclass(frozen=True)
class ExportedInfo:
    """What a file of :func:`export` says of itself; attributes as of :class:`ExportReport`."""

    spec: ModelSpec
    size: tuple[int, int]
    batch: int
    precision: str
    weights_sha256: str
    fai_fast_version: str
    verification: dict[str, Any] | None


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    im_size: int | Sequence[int] | None = None,
    frame: Sequence[int] | None = None,
    batch: int = 1,
    precision: str | None = None,
    weights: Any = None,
    verify: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    format: str = "onnx",
    target: str | Sequence[str] | None = None,
    pictures: Any = None,
    spec: Any = None,
    processor: Any = None,
    task: str | None = None,
) -> ExportReport:
    """Writes a model's deployed graph as an ONNX file that ``fai_fast.load`` and any ONNX engine run.

    Or, with ``format="tensorrt"``, builds that graph for GPUs that need not be here, as a file for ``fai_fast.load``
    and the same version of TensorRT on such a GPU. The record that is written beside it, ``path`` with ".json" added,
    must stay with it: ``fai_fast.load`` takes no engine without.

    Its input is ``images`` (B, 3, height, width), normalized RGB as :func:`fai_fast.preprocess` gives it; its outputs
    are ``mask_logits`` (B, Q, height / s, width / s), s = 4 for fai_mf and 8 for bisenetformer, and ``class_logits``
    (B, Q, C+1), for :func:`fai_fast.postprocess`. Shapes are static. The file holds everything that loading it needs,
    and a checksum of itself: ``fai_fast.load`` refuses a file that was damaged or changed since. Onto a symlink the
    file is written where it points to; a file that is there keeps its mode.

    Args:
        model: a name of :func:`fai_fast.models`, a folder or file with FocoosAI's ``model_info.json``, a ModelSpec, a
            network of :func:`fai_fast.reference.build` or a module that wraps one (DataParallel, torch.compile,
            AveragedModel, a LightningModule), a :class:`fai_fast.Model`, or a ``fai_fast.weights.Weights``; or, with
            `spec`, a network of somebody else: an ``.onnx`` file or a ``torch.nn.Module`` (docs/foreign.md).
        path: the file to write, ending in ``.onnx`` or, for TensorRT, ``.engine``, in a folder that exists.
        im_size: an int for a square or (height, width), multiples of 32; None for the size it was trained at.
        frame: in place of ``im_size``: (height, width) of the frames that it will see, for which :func:`fit_size`
            chooses a size with about as many pixels as the model's own.
        batch: images at once.
        precision: "fp32", or "fp16" for GPUs: input, outputs, weights and all products are float16. None for "fp32"
            in ONNX and "fp16" in TensorRT. "int8", for TensorRT: convolutions in int8, of networks of others linear
            layers too, with ranges from `pictures`, and all else as in "fp16". That needs ONNX Runtime.
        weights: as for :func:`fai_fast.load`; None where `model` brings its own.
        verify: whether to hold the graph against the reference network, which needs PyTorch; one in int8 against the
            fp32 graph too, by what both find on up to 32 of the pictures (docs/low_precision.md).
        cache_dir: where downloaded weights are kept.
        format: "onnx" or "tensorrt".
        target: for TensorRT, compute capabilities: "sm75" (T4), "sm86", ..., or several, which needs TensorRT-RTX; or
            None or "current" for the GPU that is here, which the full TensorRT builds for too.
        spec: of a network of somebody else, what it is: a :class:`fai_fast.ModelSpec`, what its ``to_dict()`` gives,
            or a JSON file of that.
        processor: of a network of transformers, its image processor; None for the one beside it, or what networks of
            its kind have by default (docs/networks.md).
        task: of a network of transformers, "instance", "semantic" or "panoptic"; None for what its name, its processor
            or its classes say.
        pictures: with "int8" alone, and necessary there: of what the model is for, a folder, or several pictures, each
            as :meth:`fai_fast.Model.infer` takes it. Up to 100 of them are taken, evenly spread. No labels.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value, or a picture is damaged.
        FileNotFoundError, OSError: a folder is not there, or cannot be written to.
        EngineError: "int8", and ONNX Runtime is not installed.
        WeightsError: the weights cannot be found or do not fit.
        CudaError: an engine for the GPU that is here, and there is none.
        ExportError: TensorRT is not installed, or cannot build for the target; or the graph is not equal to the
            reference network (mask probabilities within 1e-4 in fp32; IoU of the masks at least 0.99 in fp16), or
            cannot be run. Nothing is left at `path` that was not there before.

    Example:
        >>> fai_fast.export("bisenetformer-m-ade", "ade.onnx", im_size=(384, 640)).verified  # doctest: +SKIP
        True
        >>> fai_fast.export("bisenetformer-m-ade", "ade.engine", format="tensorrt", target="sm75")  # doctest: +SKIP
    """
    suffix = FORMATS[check_choice("format", format, tuple(FORMATS))]
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: got {type(path).__name__}, expected a path that ends in {suffix}")
    place = Path(os.fsdecode(path))
    if place.suffix.lower() != suffix:
        raise ValueError(f"path: got {str(place)!r}, expected a path that ends in {suffix}")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"path: no such folder: {place.parent}; create it first")
    # Wrong ones are better known before weights are fetched.
    input_size((STRIDE, STRIDE), im_size, frame, STRIDE if is_own(model, spec) else 1)
    batch = _check_batch(batch)
    if precision is None:
        precision = "fp16" if format == "tensorrt" else "fp32"
    check_choice("precision", precision, (*PRECISIONS, INT8) if format == "tensorrt" else PRECISIONS)
    check_bool("verify", verify)
    chosen = _pictures_for(precision, pictures)
    if format == "tensorrt":
        targets = _check_targets(target, precision)
    elif target is not None:
        raise ValueError(f"target: got {target!r} with format='onnx', expected None, or format='tensorrt'")
    found: Weights | Network
    theirs = network_of(model, weights, spec, im_size, frame, batch, processor=processor, task=task)
    if theirs is not None:
        found, size, batch = theirs
    else:
        found = weights_of(model, weights, cache_dir)
        size = input_size(found.spec.input_size, im_size, frame)
    options: dict[str, Any] = {
        "size": size,
        "batch": batch,
        "precision": precision,
        "verify": verify,
        "pictures": chosen,
    }
    height, width = size
    said = f"{found.spec.name}: exporting {height}x{width} in {precision} as {format}{', and checking it' * verify}"
    with _progress.job(said):
        _progress.working()
        if format == "tensorrt":
            return _export_engine(found, place, targets, options)
        with replacing(place) as temporary:
            report = write(found, temporary, **options)
        return replace(report, path=place)


def _export_engine(
    found: Weights | Network, place: Path, targets: Sequence[str], options: dict[str, Any]
) -> ExportReport:
    from fai_fast.exporter import tensorrt

    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fai_fast-") as folder:
        report = write(found, Path(folder) / "graph.onnx", **options)
        _log.debug("%s: building for %s", report.spec.name, ", ".join(targets))
        record = tensorrt.write_engine(report.path, place, report, targets)
    return replace(
        report,
        path=place,
        seconds=time.perf_counter() - start,
        format="tensorrt",
        targets=record.targets,
        version=f"{record.package} {record.version}",
        file_size=place.stat().st_size,
    )


def write(
    weights: Weights | Network,
    path: Path,
    *,
    size: tuple[int, int],
    batch: int = 1,
    precision: str = "fp32",
    verify: bool = True,
    pictures: Pictures | None = None,
) -> ExportReport:
    """:func:`export` of checked arguments, straight into the file at `path`.

    `weights` are those of one of FocoosAI's networks, or somebody else's network with what is known of it.
    """
    import onnx

    from fai_fast.exporter.graph import float32_products
    from fai_fast.exporter.products import in_words

    start = time.perf_counter()
    spec = weights.spec
    model, verification = _made(weights, size, batch, precision, verify, pictures)
    own = isinstance(weights, Weights)
    if own and precision != "fp32" and (names := float32_products(model)):
        raise ExportError(
            f"{spec.name}: float32 products in the {precision} graph: {', '.join(names[:5])}: a bug of fai_fast"
        )
    said = {
        "spec": spec.to_dict(),
        "name": spec.name,
        "classes": spec.classes,
        "im_size": size,
        "batch": batch,
        "precision": precision,
        "weights_sha256": weights.sha256,
        "fai_fast_version": __version__,
        "verification": verification,
        "checksummed": True,
    }
    props = {_KEY + key: json.dumps(value, ensure_ascii=False) for key, value in said.items()}
    onnx.helper.set_model_props(model, {**props, checksum.KEY: checksum.PLACEHOLDER})
    path.write_bytes(checksum.stamp(model.SerializeToString()))
    seconds = time.perf_counter() - start
    report = ExportReport(
        path,
        spec,
        size,
        batch,
        precision,
        weights.source,
        weights.sha256,
        verification,
        seconds,
        file_size=path.stat().st_size,
        int8=in_words(model) if precision == INT8 else "",
    )
    _log.debug(
        "%s: exported %dx%d %s in %.1f s, %s",
        spec.name,
        *size,
        precision,
        seconds,
        _in_words(verification),
    )
    return report


def _made(
    weights: Weights | Network,
    size: tuple[int, int],
    batch: int,
    precision: str,
    verify: bool,
    pictures: Pictures | None,
) -> tuple[Any, dict[str, Any] | None]:
    """The graph, and what was measured of it."""
    if isinstance(weights, Network):
        from fai_fast.exporter import others

        return others.made(weights, size, batch, precision, verify, pictures)
    if pictures is not None:
        from fai_fast.exporter import qdq

        return qdq.make(weights, size, batch, pictures, verify)
    from fai_fast.exporter.graph import build_graph
    from fai_fast.exporter.verify import verify as verify_graph

    model = build_graph(weights.spec, weights.state, size, batch, precision)
    verified = verify_graph(model, weights, size, batch, precision) if verify else None
    return model, None if verified is None else verified.to_dict()


def _pictures_for(precision: str, pictures: Any) -> Pictures | None:
    """What int8 takes its ranges from; other precisions take them from nothing."""
    if precision != INT8:
        if pictures is not None:
            raise ValueError(
                f"pictures: got some with precision {precision!r}, expected None, or precision='int8'"
            )
        return None
    if pictures is None:
        raise ValueError(
            "pictures: got None with precision 'int8', expected a folder, or several pictures, of what the model is for"
        )
    from fai_fast.engines import onnxruntime
    from fai_fast.exporter.qdq import SUBSET

    chosen = Pictures.given(pictures, SUBSET)
    onnxruntime.package()  # what is not installed is better known now
    return chosen


def read_metadata(path: str | os.PathLike[str]) -> ExportedInfo:
    """What a file of :func:`export` says of itself.

    Raises:
        FileNotFoundError: there is no such file.
        NotExportedError: it is an ONNX file of somebody else.
        ValueError: it is no file of :func:`export`, or is not as it was written: its checksum differs.
    """
    import onnx
    from google.protobuf.message import DecodeError

    shown = redacted(os.fsdecode(path))
    content = Path(os.fsdecode(path)).read_bytes()
    whole = checksum.verdict(content)
    if whole is False:
        raise ValueError(f"path: {shown} {_DAMAGED}")
    try:
        model = onnx.ModelProto.FromString(content)
        if model.ByteSize() and not any(item.key.startswith(_KEY) for item in model.metadata_props):
            raise _Foreign
        said = {
            item.key.removeprefix(_KEY): json.loads(item.value)
            for item in model.metadata_props
            if item.key.startswith(_KEY) and item.key != checksum.KEY
        }
        batch = check_int("batch", said["batch"])
        if not 1 <= batch <= MAX_BATCH:
            raise ValueError(f"batch: got {batch}, expected 1..{MAX_BATCH}")
        for key in ("weights_sha256", "fai_fast_version"):
            if not isinstance(said[key], str):
                raise TypeError(f"{key}: got {type(said[key]).__name__}, expected str")
        spec = ModelSpec.from_dict(said["spec"])
        info = ExportedInfo(
            spec=spec,
            size=check_im_size(said["im_size"], stride_of(spec.config)),
            batch=batch,
            precision=check_choice("precision", said["precision"], PRECISIONS),
            weights_sha256=said["weights_sha256"],
            fai_fast_version=said["fai_fast_version"],
            verification=said["verification"],
        )
    except _Foreign:
        raise NotExportedError(
            f"path: {shown} was not written by fai_fast.export, so it does not say what its classes and outputs are; "
            "export it again with it, or load it with spec="
        ) from None
    except (DecodeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"path: {shown} was not written by fai_fast.export, or is damaged: {_why(error)}; export it again"
        ) from None
    if whole is None and said.get("checksummed"):
        raise ValueError(f"path: {shown} {_DAMAGED}")
    if whole is None:
        _log.warning(
            "%s carries no checksum, as files of older versions: whether it is damaged cannot be told; export it again",
            shown,
        )
    return info


def may_be_own(path: Path) -> bool:
    """Whether anything in a file looks as if :func:`export` had written it, found out faster than by reading it."""
    return _KEY.encode() in path.read_bytes()


def _in_words(verification: dict[str, Any] | None) -> str:
    """What was measured against the reference network, short."""
    if verification is None:
        return "not verified"
    if verification["against"] == "fp32":
        from fai_fast._gate import Verdict

        return f"verified against the fp32 graph ({Verdict.from_dict(verification['agreement'])})"
    largest = max(verification["mask_difference"], verification["class_difference"])
    against = {"reference": "the reference network", "stored": "stored outputs of the reference network"}
    return f"verified against {against.get(verification['against'], verification['against'])} (within {largest:.1g})"


class _Foreign(Exception):
    """A graph that carries nothing of ours."""


class NotExportedError(ValueError):
    """An ONNX file that was not written by :func:`export`, which nothing is known of."""


def _why(error: Exception) -> str:
    """What is wrong with a file's metadata, in words."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)


def _check_targets(target: str | Sequence[str] | None, precision: str) -> tuple[str, ...]:
    """What to build for, where that can be built here: better known before minutes of export."""
    from fai_fast.exporter import tensorrt

    targets = tensorrt.check_targets(tensorrt.CURRENT if target is None else target)
    if "sm75" in targets and precision == "fp32":
        raise ValueError(
            f"precision: got {precision!r} with target 'sm75', expected 'fp16' or 'int8', all that it takes"
        )
    tensorrt.check_builder(targets)
    return targets


def _check_batch(batch: object) -> int:
    count = check_int("batch", batch)
    if not 1 <= count <= MAX_BATCH:
        raise ValueError(f"batch: got {count}, expected 1 to {MAX_BATCH}")
    return count
