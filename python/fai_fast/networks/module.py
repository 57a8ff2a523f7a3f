"""A PyTorch module of anybody's as a graph: traced on a picture, with the outputs that are mask and class logits."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fai_fast._foreign import explained
from fai_fast.errors import ExportError
from fai_fast.networks import Network, Reference
from fai_fast.networks.foreign import VERSION, check_config, graph_of, with_our_names
from fai_fast.networks.onnx_file import LARGEST_FILE
from fai_fast.networks.ports import Tensor, Wanted, find_outputs
from fai_fast.networks.tracing import Untraceable, traced
from fai_fast.registry import ModelSpec

__all__ = ["evaluated", "exported", "network_of_module"]

OPSET = 18
"""The newest that PyTorch's exporter by tracing writes well, and that all engines read."""
_DEEPEST = 4
_MOST_OUTPUTS = 1000

_log = logging.getLogger("fai_fast")


def network_of_module(module: Any, spec: ModelSpec, size: tuple[int, int], batch: int) -> Network:
    """The network of a ``torch.nn.Module`` that takes images (B, 3, H, W) and gives both logits among its outputs.

    It is traced here, since nothing but the graph says what a module computes.

    Args:
        module: in float32 or float16, on any device.
        spec: what its outputs are.
        size: (height, width) that its graph will be wanted in.
        batch: images that its graph will be wanted for.

    Raises:
        ValueError: `spec` is of a network of FocoosAI's; or the module's type or outputs are not as they must be.
        ExportError: the module cannot be run, or traced.
    """
    check_config(spec)
    shown = f"the module {type(module).__name__}"
    for item in module.parameters():
        if (kind := str(item.dtype).removeprefix("torch.")) in ("bfloat16", "float64"):
            raise ValueError(
                f"{shown} has {kind} parameters, expected float32 or float16: give module.float()"
            )
    graphs: dict[tuple[tuple[int, int], int], bytes] = {}

    def file_of(size: tuple[int, int], batch: int) -> Any:
        import onnx

        if (size, batch) not in graphs:
            graphs[size, batch] = _traced(module, spec, size, batch, shown)
        return onnx.ModelProto.FromString(graphs[size, batch])

    ours = with_our_names(spec)
    digest = hashlib.sha256(f"module {VERSION} ".encode())
    digest.update(file_of(size, batch).SerializeToString(deterministic=True))
    return Network(
        spec=spec,
        source=shown,
        sha256=digest.hexdigest(),
        graph=lambda size, batch: graph_of(file_of(size, batch), ours, size, batch, shown, exact=False),
        reference=lambda size, batch: Reference(
            f"the module in PyTorch {_torch().__version__}",
            lambda images: _run(module, spec, images, shown),
            exact=False,
        ),
    )


def _torch() -> Any:
    import torch

    return torch


def _traced(module: Any, spec: ModelSpec, size: tuple[int, int], batch: int, shown: str) -> bytes:
    """The module as an ONNX file: input ``images``, outputs ``mask_logits`` and ``class_logits``."""

    def logits(images: Any) -> tuple[Any, Any]:
        return _logits(module(images), spec, len(images), shown)

    with evaluated(module) as (device, kind):
        return exported(module, logits, size, batch, shown, device=device, kind=kind)


def exported(
    module: Any,
    logits: Callable[[Any], tuple[Any, Any]],
    size: tuple[int, int],
    batch: int,
    shown: str,
    *,
    device: Any = "cpu",
    kind: Any = None,
) -> bytes:
    """A function of PyTorch as an ONNX file: input ``images``, outputs ``mask_logits`` and ``class_logits``.

    Args:
        module: whose parameters the function computes with.
        logits: from images (B, 3, height, width) to mask logits and class logits.
        size, batch: of the images.
        shown: what it is, for errors.
        device, kind: of the images; None for float32.

    Raises:
        ExportError: PyTorch cannot run or trace it, or the file is too large.
    """
    torch = _torch()

    class Wrapped(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, images: Any) -> Any:
            return logits(images)

    # With pictures' values: of constant images some operators are left out.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, batch, 3, *size), generator=generator).to(device, kind or torch.float32)
    place = io.BytesIO()
    with warnings.catch_warnings():
        # Of every branch that depends on a shape: sizes are fixed here, and the result is held against the module.
        warnings.simplefilter("ignore")
        try:
            recorded = _recorded(logits, images, shown)
            with _without_listings():
                torch.onnx.export(
                    Wrapped().eval() if recorded is None else recorded,
                    (images[0],),
                    place,
                    input_names=["images"],
                    output_names=["mask_logits", "class_logits"],
                    opset_version=OPSET,
                    dynamo=False,
                )
        except Exception as error:
            if isinstance(error, ValueError) and str(error).startswith(shown):
                raise
            if not explained(error, "torch"):
                raise
            raise ExportError(
                f"{shown} cannot be traced for images {(batch, 3, *size)}: {type(error).__name__}: {_line(error)}"
            ) from error
    if place.tell() > LARGEST_FILE:
        raise ExportError(
            f"{shown} has {place.tell()} bytes as a graph, expected at most {LARGEST_FILE} (2 GiB)"
        )
    return place.getvalue()


def _recorded(logits: Callable[[Any], tuple[Any, Any]], images: Any, shown: str) -> Any:
    """What :mod:`fai_fast.networks.tracing` makes of the function; None where that is not the same on another image."""
    torch = _torch()
    try:
        recorded = traced(logits, images[0])
        with torch.no_grad():
            outputs = zip(recorded(images[1]), logits(images[1]), strict=True)
            same = all(torch.allclose(one, other, 1e-3, 1e-3) for one, other in outputs)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(shown):
            raise
        if not isinstance(error, Untraceable) and not explained(error, "torch"):
            raise
        _log.warning("%s is exported as it is: %s: %s", shown, type(error).__name__, _line(error))
        return None
    if not same:
        _log.warning("%s is exported as it is: what it computes depends on values in the image", shown)
    return recorded if same else None


@contextmanager
def _without_listings() -> Iterator[None]:
    """PyTorch's exporter prints whole graphs, thousands of lines, before it raises an error that says the same."""
    binding = _torch()._C
    switch = getattr(binding, "_jit_set_onnx_log_enabled", None)
    if switch is None or not getattr(binding, "_jit_is_onnx_log_enabled", bool)():
        yield
        return
    switch(False)
    try:
        yield
    finally:
        switch(True)


def _run(module: Any, spec: ModelSpec, images: Any, shown: str) -> tuple[Any, Any]:
    torch = _torch()
    with evaluated(module) as (device, kind), torch.no_grad():
        given = torch.from_numpy(np.ascontiguousarray(images)).to(device, kind)
        masks, classes = _logits(module(given), spec, len(images), shown)
        return masks.float().cpu().numpy(), classes.float().cpu().numpy()


@contextmanager
def evaluated(module: Any) -> Iterator[tuple[Any, Any]]:
    """The module as it is used after training, and what its images must be; afterwards as it was."""
    torch = _torch()
    trained = [item for item in module.modules() if item.training]
    first = next(
        (item for item in (*module.parameters(), *module.buffers()) if item.is_floating_point()), None
    )
    device = torch.device("cpu") if first is None else first.device
    kind = torch.float32 if first is None else first.dtype
    module.eval()
    try:
        yield device, kind
    finally:
        for item in trained:
            item.training = True


# ------------------------------------------------------------------------------------------------ outputs


def _logits(outputs: Any, spec: ModelSpec, batch: int, shown: str) -> tuple[Any, Any]:
    """Mask and class logits among whatever a module gives. Raises ValueError where they cannot be told."""
    config = check_config(spec)
    found = dict(_tensors(outputs, ""))
    described = [
        Tensor(name, str(value.dtype).removeprefix("torch."), tuple(int(side) for side in value.shape))
        for name, value in found.items()
    ]
    wanted = Wanted(
        masks=config.mask_logits_name,
        classes=config.class_logits_name,
        batch=batch,
        queries=config.num_queries,
        columns=config.class_columns,
        why=f"K of {config.num_classes} classes" + ("" if config.cls_sigmoid else " and 'no object'"),
    )
    masks, classes = find_outputs(described, wanted, shown)
    return found[masks.name].float(), found[classes.name].float()


def _tensors(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Tensors in tuples, lists, mappings and dataclasses, with how each is reached: "pred_masks", "aux.0.masks"."""
    torch = _torch()
    if isinstance(value, torch.Tensor):
        yield name or "0", value
        return
    if depth >= _DEEPEST or value is None:
        return
    items: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        items = [(str(index), item) for index, item in enumerate(value[:_MOST_OUTPUTS])]
    else:
        return
    for key, item in items:
        yield from _tensors(item, f"{name}.{key}" if name else key, depth + 1)


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
