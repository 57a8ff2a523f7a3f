"""A PyTorch module of anybody's, traced on a picture: as a graph, and for engines that run PyTorch itself."""

from __future__ import annotations

import copy
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

__all__ = ["Recorder", "check_weights", "evaluated", "has_other_code", "in_float32", "network_of_module"]

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
    check_weights(module, shown)
    for item in module.parameters():
        if (kind := str(item.dtype).removeprefix("torch.")) in ("bfloat16", "float64"):
            raise ValueError(
                f"{shown} has {kind} parameters, expected float32 or float16: give module.float()"
            )

    def logits(module: Any, images: Any) -> tuple[Any, Any]:
        return _logits(module(images), spec, len(images), shown)

    recorder = Recorder(module, logits, shown)
    ours = with_our_names(spec)
    digest = hashlib.sha256(f"module {VERSION} ".encode())
    digest.update(recorder.graph(size, batch).SerializeToString(deterministic=True))
    return Network(
        spec=spec,
        source=shown,
        sha256=digest.hexdigest(),
        graph=lambda size, batch: graph_of(
            recorder.graph(size, batch), ours, size, batch, shown, exact=False
        ),
        reference=lambda size, batch: Reference(
            f"the module in PyTorch {_torch().__version__}", recorder.run, exact=False
        ),
        module=recorder.network,
    )


def _torch() -> Any:
    import torch

    return torch


class Recorder:
    """What a module computes of images of one size: recorded once, then given as a graph or as a module.

    Args:
        module: whose logits they are, in float32 or float16, on any device. It is left as it was.
        logits: from the module, or a copy of it, and images (B, 3, h, w) to mask logits and class logits, float32.
            What it takes besides is in `constants`.
        shown: what the module is, for errors.
        constants: tensors by the names that `logits` takes them by.
    """

    def __init__(
        self,
        module: Any,
        logits: Callable[..., tuple[Any, Any]],
        shown: str,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        self._module, self._logits, self._shown = module, logits, shown
        self._constants = dict(constants or {})
        self._whole = _whole(module, logits, self._constants)
        self._recorded: dict[tuple[tuple[int, int], int], Any] = {}
        self._files: dict[tuple[tuple[int, int], int], bytes] = {}
        self._plain: Recorder | None = None

    def run(self, images: Any) -> tuple[Any, Any]:
        """The module's own logits, float32 arrays, of images float32 (B, 3, h, w)."""
        torch = _torch()
        with evaluated(self._module) as (device, kind), torch.no_grad():
            given = torch.from_numpy(np.ascontiguousarray(images)).to(device, kind)
            masks, classes = self._whole(given)
            return masks.float().cpu().numpy(), classes.float().cpu().numpy()

    def graph(self, size: tuple[int, int], batch: int) -> Any:
        """An ``onnx.ModelProto`` of images of a size (height, width): input ``images``, of the module's type, outputs
        ``mask_logits`` and ``class_logits``.

        Raises:
            ValueError: its outputs are not as they must be.
            ExportError: PyTorch cannot run or trace it, or the file is too large.
        """
        import onnx

        if (size, batch) not in self._files:
            self._files[size, batch] = self._exported(size, batch)
        return onnx.ModelProto.FromString(self._files[size, batch])

    def network(self, size: tuple[int, int], batch: int) -> Any:
        """A module on the CPU from images float32 (B, 3, height, width) to mask and class logits, both float32: the
        operations that were recorded, an ``fx.GraphModule``, else the module as it is. It may share its parameters.

        Raises:
            ValueError, ExportError: as :meth:`graph`.
        """
        if self._plain is None:
            try:
                module = in_float32(self._module)
            except Exception as error:
                if not explained(error, "torch"):
                    raise
                raise ExportError(f"{self._shown} cannot be copied: {_line(error)}") from error
            own = module is self._module
            self._plain = self if own else Recorder(module, self._logits, self._shown, self._constants)
        recorded = self._plain._record(size, batch)
        return self._plain._whole if recorded is None else recorded

    def _record(self, size: tuple[int, int], batch: int) -> Any:
        """What :mod:`fai_fast.networks.tracing` makes of it; None where that is not the same on another image."""
        if (size, batch) not in self._recorded:
            with evaluated(self._module) as (device, kind), self._told(size, batch):
                images = _images(size, batch).to(device, kind)
                self._recorded[size, batch] = _recorded(self._whole, images, self._shown)
        return self._recorded[size, batch]

    def _exported(self, size: tuple[int, int], batch: int) -> bytes:
        recorded = self._record(size, batch)
        place = io.BytesIO()
        with evaluated(self._module) as (device, kind), self._told(size, batch), _without_listings():
            _torch().onnx.export(
                self._whole if recorded is None else recorded,
                (_images(size, batch)[0].to(device, kind),),
                place,
                input_names=["images"],
                output_names=["mask_logits", "class_logits"],
                opset_version=OPSET,
                dynamo=False,
            )
        if place.tell() > LARGEST_FILE:
            raise ExportError(
                f"{self._shown} has {place.tell()} bytes as a graph, expected at most {LARGEST_FILE} (2 GiB)"
            )
        return place.getvalue()

    @contextmanager
    def _told(self, size: tuple[int, int], batch: int) -> Iterator[None]:
        """Raises what PyTorch raises as an ExportError, and keeps its warnings back."""
        with warnings.catch_warnings():
            # Of every branch that depends on a shape: sizes are fixed here, and the result is held against the module.
            warnings.simplefilter("ignore")
            try:
                yield
            except Exception as error:
                if isinstance(error, ValueError) and str(error).startswith(self._shown):
                    raise
                if not explained(error, "torch"):
                    raise
                raise ExportError(
                    f"{self._shown} cannot be traced for images {(batch, 3, *size)}: {type(error).__name__}: "
                    f"{_line(error)}"
                ) from error


def _whole(module: Any, logits: Callable[..., tuple[Any, Any]], constants: Mapping[str, Any]) -> Any:
    """A module from images to both logits, which may be copied and moved with all that it holds."""
    torch = _torch()

    class Whole(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            for name, value in constants.items():
                self.register_buffer(name, value)
            # Not by eval(), which would change the module too.
            self.training = False

        def forward(self, images: Any) -> tuple[Any, Any]:
            return logits(self.module, images, **{name: getattr(self, name) for name in constants})

    return Whole()


def check_weights(module: Any, shown: str) -> None:
    """ValueError where a module has weights without values."""
    for name, item in (*module.named_parameters(), *module.named_buffers()):
        if item.is_meta:
            raise ValueError(
                f"{shown} has no values for {name!r:.80}, which is on the device 'meta', expected weights: load them "
                "first"
            )


def has_other_code(module: Any) -> bool:
    """Whether somebody else's code than that of PyTorch and transformers may have a part in what a module gives."""
    for item in module.modules():
        # Of the class, too: somebody may have put a faster one there for all.
        code = [type(item), item.forward, getattr(type(item), "forward", None)]
        code += [*item._forward_hooks.values(), *item._forward_pre_hooks.values()]
        if {_place_of(one).partition(".")[0] for one in code} - {"torch", "transformers"}:
            return True
    return False


def _place_of(code: Any) -> str:
    """The name of the module that a class or a function is from, also where it has taken the name of another one."""
    names = getattr(code, "__globals__", None) or {"__name__": getattr(code, "__module__", "")}
    return str(names.get("__name__", ""))


def in_float32(module: Any) -> Any:
    """The module, or where it is elsewhere, in half or in double precision a copy that is not."""
    torch = _torch()
    half = (torch.float16, torch.bfloat16)
    if any(
        item.device.type != "cpu" or item.dtype in half for item in (*module.parameters(), *module.buffers())
    ) or any(item.dtype == torch.float64 for item in module.parameters()):
        return copy.deepcopy(module).to("cpu").float()
    return module


def _images(size: tuple[int, int], batch: int) -> Any:
    """Two batches with pictures' values: of constant images some operators are left out."""
    torch = _torch()
    return torch.randn((2, batch, 3, *size), generator=torch.Generator().manual_seed(0))


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
        _log.warning("%s is taken as it is: %s: %s", shown, type(error).__name__, _line(error))
        return None
    if not same:
        _log.warning("%s is taken as it is: what it computes depends on values in the image", shown)
    return recorded if same else None


@contextmanager
def _without_listings() -> Iterator[None]:
    """PyTorch's exporter prints whole graphs, thousands of lines, before it raises an error that says the same."""
    binding = _torch()._C
    said = getattr(binding, "_jit_onnx_log", None)
    if said is None:
        yield
        return
    # PyTorch 2.13 turns the log on for each export, whatever it was before.
    binding._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        binding._jit_onnx_log = said


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
