"""Query-mask segmentation with the least latency from a camera frame to Detections.

:func:`load` makes a :class:`Model` of a name in the registry, or of your own checkpoint; ``model.infer(image)`` gives
:class:`Detections`. The functional API works on the outputs of any query-mask network (Mask2Former, MaskFormer,
OneFormer, BiSeNetFormer): :func:`preprocess` makes the network's input, :func:`postprocess` makes Detections.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fai_fast._core import __version__
from fai_fast._rules import Panoptic, Resampling
from fai_fast._sizes import fit_size
from fai_fast.detections import Detections, Latency, MaskSequence, PackedMasks, Row
from fai_fast.errors import CudaError, EngineError, ExportError, FaiFastError, WeightsError
from fai_fast.letterbox import Letterbox
from fai_fast.ops import build_info, postprocess, postprocess_batch, preprocess

if TYPE_CHECKING:
    from fai_fast import evaluate, losses, ray, reference, render, samples
    from fai_fast._pipelines import InferFuture, Ticket
    from fai_fast.exporter import export
    from fai_fast.model import Model, load
    from fai_fast.quantization import QuantizeReport, quantize
    from fai_fast.registry import ModelConfig, ModelSpec, NetworkConfig, models, spec
    from fai_fast.stream import Frame, Stream, StreamStats

__all__ = [
    "CudaError",
    "Detections",
    "EngineError",
    "ExportError",
    "FaiFastError",
    "Frame",
    "InferFuture",
    "Latency",
    "Letterbox",
    "MaskSequence",
    "Model",
    "ModelConfig",
    "ModelSpec",
    "NetworkConfig",
    "PackedMasks",
    "Panoptic",
    "QuantizeReport",
    "Resampling",
    "Row",
    "Stream",
    "StreamStats",
    "Ticket",
    "WeightsError",
    "__version__",
    "build_info",
    "evaluate",
    "export",
    "fit_size",
    "load",
    "losses",
    "models",
    "postprocess",
    "postprocess_batch",
    "preprocess",
    "quantize",
    "ray",
    "reference",
    "render",
    "samples",
    "spec",
]

# Loaded when they are first asked for: importing the package takes what NumPy takes.
_LAZY = {
    "Model": "fai_fast.model",
    "load": "fai_fast.model",
    "ModelConfig": "fai_fast.registry",
    "ModelSpec": "fai_fast.registry",
    "NetworkConfig": "fai_fast.registry",
    "models": "fai_fast.registry",
    "spec": "fai_fast.registry",
    "Frame": "fai_fast.stream",
    "Stream": "fai_fast.stream",
    "StreamStats": "fai_fast.stream",
    "InferFuture": "fai_fast._pipelines",
    "Ticket": "fai_fast._pipelines",
    "evaluate": "",
    "export": "fai_fast.exporter",
    "losses": "",
    "QuantizeReport": "fai_fast.quantization",
    "quantize": "fai_fast.quantization",
    "ray": "",
    "reference": "",
    "render": "",
    "samples": "",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fai_fast' has no attribute {name!r}")
    if not _LAZY[name]:
        return importlib.import_module(f"fai_fast.{name}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
