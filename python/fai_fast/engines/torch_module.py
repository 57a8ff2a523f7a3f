"""Somebody else's PyTorch module as torch-cuda runs it: on one device, in float32 or in float16.

What comes as an ``fx.GraphModule``, a list of operations of PyTorch, is written again: every argument that names a
device names the engine's, every tensor in it lies there, and for float16 each operation is given the type that it is
safe in. Any other module is copied and moved, and runs in float16 by PyTorch's autocast.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fai_fast._foreign import explained
from fai_fast.engines.base import reason
from fai_fast.errors import EngineError

if TYPE_CHECKING:
    import torch
    from torch import fx

__all__ = ["VERSION", "halved", "made", "placed", "shapes_of"]

VERSION = 1
"""Counts changes of what is computed in which type, which verdicts in the cache depend on."""

# Products, which tensor cores compute from float16 and add up in float32; normalizations, whose kernels compute in
# float32 inside.
_NARROW = frozenset(
    (
        "_convolution", "addbmm", "addmm", "addmv", "baddbmm", "batch_norm", "bilinear", "bmm", "conv1d", "conv2d",
        "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "einsum", "group_norm",
        "instance_norm", "layer_norm", "linear", "matmul", "mm", "mv", "rms_norm", "scaled_dot_product_attention",
        "tensordot",
    )
)  # fmt: skip
# What overflows in float16, or loses what it is for; also what makes positions, and reads at them.
_WIDE = frozenset(
    (
        "arange", "atan2", "cdist", "ceil", "cos", "cosine_similarity", "cumprod", "cumsum", "deg2rad", "dist", "exp",
        "exp2", "expm1", "floor", "frac", "frobenius_norm", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
        "linalg_norm", "linalg_vector_norm", "linspace", "log", "log10", "log1p", "log2", "log_softmax", "logaddexp",
        "logcumsumexp", "logit", "logsumexp", "mean", "norm", "pow", "prod", "reciprocal", "round", "rsqrt", "sin",
        "softplus", "square", "std", "std_mean", "sum", "tan", "trunc", "var", "var_mean",
    )
)  # fmt: skip
# Which take the type of their sums as an argument, and read float16 as it is.
_SUMS = frozenset(("cumprod", "cumsum", "mean", "prod", "sum"))
# What gives values of moderate size, whatever it is given: these may be float16 again.
_BOUNDED = frozenset(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "sigmoid", "softmax", "tanh"))
# Whose float inputs say where something is: in float16 a place among 1000 is off by half a place.
_PLACES = frozenset(
    (
        "atan2", "bucketize", "ceil", "cos", "floor", "floor_divide", "fmod", "frac", "log", "log10", "log1p", "log2",
        "logit", "remainder", "round", "searchsorted", "sin", "tan", "trunc",
    )
)  # fmt: skip
_GRIDS = ("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
_LARGEST, _SMALLEST = 65504.0, 2.0**-14
"""Of float16's numbers, the smallest of those with all digits."""
_CLOSED = 3e4
"""In place of what is beyond float16: such numbers close places to attention, and stay finite with a score added."""

_log = logging.getLogger("fai_fast")


def made(
    module: Any, precision: str, shape: tuple[int, ...], device: Any, shown: str
) -> tuple[torch.nn.Module, str]:
    """The module on a device, in a precision, as a copy; and how it runs there, in words.

    Args:
        module: on the CPU, from images float32 of that shape to mask and class logits.
        precision: "fp32"; or "fp16", which takes images float16.
        shape: (B, 3, h, w) of the images.
        device: a torch.device.
        shown: what the module is, for a line in the log where it runs in float16 by autocast.
    """
    from torch import fx

    traced = isinstance(module, fx.GraphModule)
    form = "traced, operation by operation" if traced else "as it is"
    if precision == "fp32":
        return placed(module, device), form
    if traced:
        try:
            return placed(halved(module, shape), device), f"{form}, each in the type that it is safe in"
        except Exception as error:
            if not explained(error, "torch"):
                raise
            _log.warning("%s runs in float16 by autocast: %s: %s", shown, type(error).__name__, reason(error))
    return _automatic(placed(module, device)), f"{form}, by autocast"


def shapes_of(module: Any, shape: tuple[int, ...], shown: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of mask logits (B, Q, h, w) and class logits (B, Q, K) for images float32 of a shape (B, 3, h, w).

    Raises:
        EngineError: the module gives something else.
    """
    import torch

    with torch.inference_mode():
        try:
            # Without values, which takes neither time nor memory.
            found = placed(module, torch.device("meta"))(torch.empty(shape, device="meta"))
        except Exception as error:
            # A module may hold tensors that nobody can move, or depend on values.
            if not explained(error, "torch"):
                raise
            found = module(torch.zeros(shape))
    shapes = [tuple(int(side) for side in value.shape) for value in found]
    masks, classes = shapes
    if len(masks) != 4 or len(classes) != 3 or masks[:2] != classes[:2] or masks[0] != shape[0]:
        raise EngineError(
            f"{shown} gives {masks} and {classes} for images {shape}, expected mask logits (B, Q, h, w) and class "
            "logits (B, Q, K)"
        )
    return masks, classes


def _automatic(module: torch.nn.Module) -> torch.nn.Module:
    """The module in float32, with products in float16 where PyTorch's autocast thinks that safe."""
    import torch

    class Automatic(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, images: torch.Tensor) -> Any:
            # What is kept from one run to the next would belong to a captured graph.
            with torch.autocast(images.device.type, torch.float16, cache_enabled=False):
                return self.module(images.float())

    return Automatic().eval()


# ------------------------------------------------------------------------------------------------- device


def placed(module: Any, device: Any) -> torch.nn.Module:
    """A copy of the module on a device, in evaluation mode; the original shares nothing with it that could change."""
    from torch import fx

    if isinstance(module, fx.GraphModule):
        return _written_on(module, device)[0]
    copied: torch.nn.Module = copy.deepcopy(module).eval().to(device)
    return copied


def _written_on(module: fx.GraphModule, device: Any) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """The operations on another device, and where each is there."""
    from torch import fx

    graph = fx.Graph()
    tensors: dict[str, torch.Tensor] = {}
    new: dict[fx.Node, fx.Node] = {}
    held: dict[str, fx.Node] = {}
    last = _weights_of_convolutions(module)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            place = str(node.target)
            if place not in held:
                held[place] = _held(graph, tensors, _moved(_attribute(module, place), device, place in last))
            new[node] = held[place]
            continue
        copied_node = graph.node_copy(node, new.__getitem__)
        copied_node.args = _on(copied_node.args, device)
        copied_node.kwargs = _on(copied_node.kwargs, device)
        new[node] = copied_node
    return fx.GraphModule(tensors, graph).eval(), new


def _moved(value: torch.Tensor, device: Any, last: bool) -> torch.Tensor:
    import torch

    moved = value.detach().to(device)
    # What the GPU's convolutions read fastest; the rest of their kernels follow.
    return moved.contiguous(memory_format=torch.channels_last) if last else moved


def _weights_of_convolutions(module: fx.GraphModule) -> set[str]:
    """Where those of two dimensions are; none if an operation of the module reads memory in an order of its own."""
    found: set[str] = set()
    for node in module.graph.nodes:
        name = _operation(node)
        if name in ("as_strided", "view_as_complex", "view_as_real"):
            return set()
        if name in ("conv2d", "convolution", "_convolution"):
            weight = node.args[1]
            if weight.op == "get_attr" and _attribute(module, weight.target).dim() == 4:
                found.add(str(weight.target))
    return found


def _on(arguments: Any, device: Any) -> Any:
    """The arguments with `device` in place of every other one."""
    import torch
    from torch.fx.node import map_aggregate

    return map_aggregate(arguments, lambda item: device if isinstance(item, torch.device) else item)


def _attribute(module: Any, path: Any) -> Any:
    value = module
    for part in str(path).split("."):
        value = getattr(value, part)
    return value


def _held(graph: fx.Graph, tensors: dict[str, torch.Tensor], value: torch.Tensor) -> fx.Node:
    """A tensor as a value of the graph."""
    name = f"value{len(tensors)}"
    tensors[name] = value
    # The tensor is the module's later.
    return graph.create_node("get_attr", name)


def _operation(node: fx.Node) -> str:
    """The name of a call in ``aten``, or ""."""
    schema: Any = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name.removeprefix("aten::"))


# ------------------------------------------------------------------------------------------------ float16


def halved(module: fx.GraphModule, shape: tuple[int, ...]) -> fx.GraphModule:
    """The same operations on images float16, on the CPU, with both logits in float16 or float32.

    Weights, other constants and what flows between operations are float16, but for islands of float32: sums, powers and
    exponentials, what has to do with positions, numbers that float16 does not have, and what is computed of these until
    the next product or normalization. Where float32 was asked for by name, the operation's own type takes its place.
    Numbers beyond float16 that close places to attention stay finite: a row that is closed everywhere gives no NaN.

    Args:
        module: from images float32.
        shape: (B, 3, h, w) of the images.

    Raises:
        RuntimeError and other errors of PyTorch: an operation does not take these types, or depends on values.
    """
    import torch
    from torch import fx

    with torch.no_grad():
        graph, tensors = _Halving(module, shape).run()
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return fx.GraphModule(tensors, graph).eval()


class _Halving:
    """Writes a graph again, and runs it without values meanwhile, so that the types of what is written are known."""

    def __init__(self, module: fx.GraphModule, shape: tuple[int, ...]) -> None:
        import torch
        from torch import fx

        self._module, self._shape = module, shape
        self._half, self._float = torch.float16, torch.float32
        self._graph = fx.Graph()
        self._tensors: dict[str, torch.Tensor] = {}
        self._places = _places(module, shape)
        self._constants: dict[fx.Node, torch.Tensor] = {}
        """Of the old graph, those of floats: their type is that of whoever uses them."""
        self._new: dict[fx.Node, fx.Node] = {}
        self._values: dict[fx.Node, Any] = {}
        """Of the new graph, on the device "meta"."""
        self._known: dict[tuple[Any, Any], fx.Node] = {}
        """Of the new graph: constants, by where they are in the module and their type, and casts."""
        self._closing: set[fx.Node] = set()
        """Of the new graph, in float32: what may be beyond float16 by intent."""

    def run(self) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
        import torch

        for node in self._module.graph.nodes:
            if node.op == "placeholder":
                images = self._graph.placeholder(node.name)
                self._values[images] = torch.empty(self._shape, dtype=self._half, device="meta")
                self._new[node] = images
            elif node.op == "get_attr":
                value = _attribute(self._module, node.target).detach()
                if value.is_floating_point():
                    self._constants[node] = value
                else:
                    self._new[node] = self._constant(node, value)
            elif node.op == "call_function":
                self._new[node] = self._written(node)
            else:
                assert node.op == "output"
                self._graph.output(torch.fx.map_arg(node.args[0], lambda item: self._as(item, None)))
        return self._graph, self._tensors

    def _written(self, node: fx.Node) -> fx.Node:
        name = _operation(node)
        kind = self._kind_of(node, name)
        args, kwargs = self._arguments(node, name, kind)
        sums = name in _SUMS and kind == self._float and self._takes(node, "dtype")
        if sums and "dtype" not in kwargs and any(map(self._is_float, node.all_input_nodes)):
            kwargs["dtype"] = kind
        new = self._call(node.target, args, kwargs)
        closes = (_LARGEST < abs(number) < math.inf for number in self._numbers(node))
        given = (self._new[item] in self._closing for item in node.all_input_nodes if item in self._new)
        if name not in _NARROW and name not in _BOUNDED and (any(closes) or any(given)):
            self._closing.add(new)
        if name in _BOUNDED and node not in self._places and self._dtype(new) == self._float:
            return self._cast(new, self._half)
        return new

    def _kind_of(self, node: fx.Node, name: str) -> Any:
        """The type that an operation is computed in."""
        if name in _NARROW:
            return self._half
        if node in self._places or name in _WIDE or any(map(_is_beyond, self._numbers(node))):
            return self._float
        # A constant has the type of what it meets.
        found = [self._new[item] for item in node.all_input_nodes if item in self._new]
        return self._float if any(self._dtype(item) == self._float for item in found) else self._half

    def _arguments(self, node: fx.Node, name: str, kind: Any) -> tuple[Any, dict[str, Any]]:
        import torch
        from torch.fx.node import map_aggregate

        # Sums read float16 as it is.
        inside: Any = None if name in _SUMS and self._takes(node, "dtype") else kind
        parameters = node.args[1:5] if name == "batch_norm" else ()

        def mapped(item: Any) -> Any:
            if isinstance(item, torch.fx.Node):
                if any(item is parameter for parameter in parameters):
                    # Variances have float32's range, and the kernels take them so.
                    return self._as(item, self._float)
                return self._as(item, inside)
            if isinstance(item, torch.dtype) and item.is_floating_point:
                return kind
            return item

        return map_aggregate(node.args, mapped), dict(map_aggregate(node.kwargs, mapped))

    def _as(self, item: fx.Node, kind: Any) -> fx.Node:
        """A value of the old graph in the new one, floats in this type; None for the one that it has."""
        if item in self._constants:
            wanted = kind or self._half
            known = self._known.get((str(item.target), wanted))
            return known or self._constant(item, _rounded(self._constants[item], wanted))
        new = self._new[item]
        return self._cast(new, kind) if kind is not None and self._is_float(item) else new

    def _cast(self, new: fx.Node, kind: Any) -> fx.Node:
        import torch

        if self._dtype(new) == kind:
            return new
        if (new, kind) not in self._known:
            given = new
            if new in self._closing and kind == self._half:
                given = self._call(torch.ops.aten.clamp.default, (new, -_CLOSED, _CLOSED), {})
            self._known[new, kind] = self._call(torch.ops.aten.to.dtype, (given, kind), {})
        return self._known[new, kind]

    def _call(self, function: Any, args: Any, kwargs: Any) -> fx.Node:
        import torch

        new = self._graph.call_function(function, args, kwargs)
        meta = torch.device("meta")
        given, named = (
            torch.fx.map_arg(_on(item, meta), self._values.__getitem__) for item in (args, kwargs)
        )
        self._values[new] = function(*given, **named)
        return new

    def _constant(self, item: fx.Node, value: torch.Tensor) -> fx.Node:
        key = (str(item.target), value.dtype)
        if key not in self._known:
            new = self._known[key] = _held(self._graph, self._tensors, value)
            self._values[new] = value.to("meta")
        return self._known[key]

    def _dtype(self, new: fx.Node) -> Any:
        return getattr(self._values[new], "dtype", None)

    def _is_float(self, item: fx.Node) -> bool:
        """Of a value of the old graph: whether it is a tensor of floats."""
        kind = None if item in self._constants else self._dtype(self._new[item])
        return item in self._constants or (kind is not None and kind.is_floating_point)

    def _takes(self, node: fx.Node, name: str) -> bool:
        schema: Any = getattr(node.target, "_schema", None)
        return schema is not None and any(item.name == name for item in schema.arguments)

    def _numbers(self, node: fx.Node) -> Iterator[float]:
        """The numbers that an operation computes with, which are not sizes and places."""
        schema: Any = getattr(node.target, "_schema", None)
        for item, argument in zip(node.args, () if schema is None else schema.arguments, strict=False):
            if isinstance(item, float) or (isinstance(item, int) and "number" in str(argument.type)):
                yield float(item)
        yield from (item for item in node.kwargs.values() if isinstance(item, float))


def _is_beyond(number: float) -> bool:
    """Whether float16 has neither the number nor one near it."""
    size = abs(number)
    return 0 < size < _SMALLEST or _LARGEST < size < math.inf


def _rounded(value: torch.Tensor, kind: Any) -> torch.Tensor:
    """A constant in another type, without becoming infinite there."""
    import torch

    if kind != torch.float16:
        return value.to(kind)
    beyond = value.isfinite() & (value.abs() > _LARGEST)
    return torch.where(beyond, value.sign() * _CLOSED, value).to(kind)


def _places(module: fx.GraphModule, shape: tuple[int, ...]) -> set[fx.Node]:
    """The operations that positions are computed by, back to the products and images that they come from."""
    import torch
    from torch.fx import Interpreter

    noted: dict[fx.Node, Any] = {}

    class Noting(Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            noted[node] = getattr(value, "dtype", None)
            return value

    without_values, new = _written_on(module, torch.device("meta"))
    Noting(without_values).run(torch.empty(shape, device="meta"))
    kind_of = {node: noted[new[node]] for node in module.graph.nodes}

    def is_float(node: fx.Node) -> bool:
        kind = kind_of[node]
        return bool(kind is not None and kind.is_floating_point)

    found: set[fx.Node] = set()
    waiting: list[Any] = []
    for node in module.graph.nodes:
        name = _operation(node)
        if name in _GRIDS:
            waiting.append(node.args[1])
        elif name in _PLACES or _becomes_whole(node, kind_of, is_float):
            found.add(node)
            waiting += node.all_input_nodes
    while waiting:
        node = waiting.pop()
        if node in found or node.op != "call_function" or _operation(node) in _NARROW:
            continue
        # A tuple of several values has no type of its own.
        if is_float(node) or kind_of[node] is None:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _becomes_whole(node: fx.Node, kind_of: dict[Any, Any], is_float: Callable[[Any], bool]) -> bool:
    """Whether floats are made whole numbers by the operation, which may be indices then."""
    import torch

    kind = kind_of[node]
    whole = kind is not None and kind != torch.bool and not kind.is_floating_point and not kind.is_complex
    return whole and _operation(node) in ("_to_copy", "to", "type_as") and is_float(node.all_input_nodes[0])
