"""Builds TensorRT-RTX engines from deployed graphs, ahead of time: the GPU that will run them need not be here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fai_fast.arguments import check_items
from fai_fast.errors import ExportError

__all__ = ["TARGETS", "build_engine"]

TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "current")
"""Compute capabilities as TensorRT-RTX names them: sm75 is Turing (T4), which takes float16 products alone."""


def build_engine(onnx_path: str | os.PathLike[str], target: str | Sequence[str] = "current") -> bytes:
    """A TensorRT-RTX engine of an ONNX file in the types that the file says, for the given compute capabilities.

    Args:
        onnx_path: a file of ``fai_fast.export(..., precision="fp16")``.
        target: "sm75", "sm86", ..., or several; "current" for the GPU that is in this machine.

    Returns:
        The serialised engine.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        FileNotFoundError: there is no such file.
        ExportError: TensorRT-RTX is not installed, or refuses the graph or the target; the text has its own lines.
    """
    targets = [target] if isinstance(target, str) else check_items("target", target, "names such as 'sm75'")
    path = Path(onnx_path)
    if not path.is_file():
        raise FileNotFoundError(f"onnx_path: no such file: {path}")
    trt = _tensorrt()
    known = {name.lower() for name in trt.ComputeCapability.__members__} - {"none"}
    for name in targets:
        if name not in known:
            raise ValueError(f"target: got {name!r}, expected one or more of {', '.join(sorted(known))}")
    if not targets:
        raise ValueError("target: got none, expected at least one such as 'sm75'")

    log = _log_class(trt)()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise ExportError(f"TensorRT-RTX cannot read {path}: {errors}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = "; ".join(log.lines) or "it does not say why"
        raise ExportError(f"TensorRT-RTX cannot build {path} for {', '.join(targets)}: {reason}")
    return bytes(plan)


def _tensorrt() -> Any:
    # The package of the first name only passes on the second, and is not always installed with it.
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        with suppress(ImportError):
            return importlib.import_module(name)
    raise ExportError(
        "TensorRT-RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings (or tensorrt-rtx)"
    )


def _log_class(trt: Any) -> type[Any]:
    """A logger that keeps errors for the exception instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.lines.append(message)

    return Log
