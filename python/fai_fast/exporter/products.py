"""The products of a graph: which multiply by weights, how much work each is, and which decide what is found.

Nothing is known of others' networks but their graphs, so what stays out of int8 is told by how values flow in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fai_fast.networks.ports import inferred

__all__ = [
    "CONVOLUTION",
    "LINEAR",
    "Product",
    "Weighted",
    "choices",
    "in_words",
    "products_of",
    "weighted",
    "with_plain_convolutions",
]

CONVOLUTION, LINEAR, OTHER = "convolution", "linear layer", "product"
LEAST_SHARE = 0.001
"""Of all multiplications of a graph, those that a linear layer must have to be worth rounding its input: what is less,
such as all that is computed of a hundred queries, is no time that could be saved."""
WORTH_IT = 0.1
"""Of all multiplications, those that convolutions must have to be int8 alone."""
_KINDS = {
    "Conv": CONVOLUTION,
    "ConvTranspose": OTHER,
    "Einsum": OTHER,
    "Gemm": LINEAR,
    "MatMul": LINEAR,
}
# What makes a decision of numbers, which a rounded one may turn, and the inputs that it is made of.
_DECIDES = {
    "ArgMax": (0,),
    "ArgMin": (0,),
    "Greater": (0, 1),
    "GreaterOrEqual": (0, 1),
    "GridSample": (1,),
    "Less": (0, 1),
    "LessOrEqual": (0, 1),
    "TopK": (0,),
}


@dataclass(frozen=True)
class Weighted:
    """What a node multiplies by a weight.

    Attributes:
        kind: CONVOLUTION or LINEAR.
        x: the value that it reads.
        weight: the name of its constant.
        axis: of the weight, that of the output channels.
    """

    kind: str
    x: str
    weight: str
    axis: int


@dataclass(frozen=True)
class Product:
    """A node that multiplies.

    Attributes:
        name: of the node.
        kind: CONVOLUTION, LINEAR, or another, such as that of two activations.
        work: multiplications; None where shapes are not known.
        decides: whether masks, classes, or decisions within the network are made of it directly.
        low: whether it is int8: both that it multiplies come from DequantizeLinear.
    """

    name: str
    kind: str
    work: int | None
    decides: bool
    low: bool


def weighted(node: Any, weights: Mapping[str, Any]) -> Weighted | None:
    """What TensorRT fuses into a product of int8 when it is quantized; None for any other node.

    Transposed convolutions are none: TensorRT takes no scale for each output channel of theirs.

    Args:
        node: an onnx.NodeProto.
        weights: the constants of its graph by name, each an onnx.TensorProto.
    """
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in weights:
        return None
    x, weight = node.input[:2]
    sides = tuple(weights[weight].dims)
    if x in weights or not all(sides):
        return None
    if node.op_type == "Conv":
        return Weighted(CONVOLUTION, x, weight, 0)
    turned = {item.name: item.i for item in node.attribute if item.name in ("transA", "transB")}
    if turned.get("transA"):
        return None
    # One matrix for all images. That of each is no linear layer.
    if len(sides) < 2 or math.prod(sides[:-2]) != 1:
        return None
    return Weighted(LINEAR, x, weight, len(sides) - (2 if turned.get("transB") else 1))


def products_of(model: Any) -> list[Product]:
    """All products of a deployed graph, an onnx.ModelProto, in its order."""
    graph = model.graph
    weights = {item.name: item for item in graph.initializer}
    low = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    # A weight in int8 is the integers that it is made of.
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    shapes = _shapes(model)
    deciding = _deciding(graph, weights)
    found = []
    for node in graph.node:
        if node.op_type in _KINDS:
            what = weighted(node, weights)
            found.append(
                Product(
                    node.name,
                    OTHER if what is None else what.kind,
                    _work(node, shapes),
                    node.name in deciding,
                    low.issuperset(node.input[:2]),
                )
            )
    return found


def with_plain_convolutions(model: Any) -> None:
    """Writes transposed convolutions whose windows do not overlap as convolutions of single pixels, in place.

    Each pixel becomes a square of its own, so that it is a product by a matrix, put into places: the same sums, in a
    form that TensorRT computes in int8 with a scale for each output channel. Vision transformers enlarge their maps so.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    held = {item.name: item for item in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        side = _side_of_squares(node, held) if node.op_type == "ConvTranspose" else None
        if side is None:
            nodes.append(node)
            continue
        inputs = [node.input[0]]
        for name in filter(None, node.input[1:]):
            new = f"{name}.squares"
            values = numpy_helper.to_array(held[name])
            if new not in held:
                # (in, out, y, x) with a row for each output channel and place in its square; a bias for each of them.
                values = (
                    np.repeat(values, side * side)
                    if values.ndim == 1
                    else values.transpose(1, 2, 3, 0).reshape(-1, len(values), 1, 1)
                )
                held[new] = numpy_helper.from_array(np.ascontiguousarray(values), new)
                graph.initializer.append(held[new])
            inputs.append(new)
        rows = f"{node.output[0]}.rows"
        nodes += [
            helper.make_node("Conv", inputs, [rows], name=node.name),
            helper.make_node(
                "DepthToSpace", [rows], node.output, name=f"{node.name}.places", blocksize=side, mode="CRD"
            ),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _side_of_squares(node: Any, held: Mapping[str, Any]) -> int | None:
    """The side of what each pixel becomes in a transposed convolution; None where that is not a square of its own."""
    if any(name not in held for name in filter(None, node.input[1:])):
        return None
    sides = list(held[node.input[1]].dims[2:])
    said = {item.name: item for item in node.attribute}
    strides = list(said["strides"].ints) if "strides" in said else [1] * len(sides)
    moved = [value for name in ("pads", "output_padding") if name in said for value in said[name].ints]
    spread = [value for name in ("dilations",) if name in said for value in said[name].ints]
    if len(sides) != 2 or len({*sides, *strides}) != 1 or any(moved) or any(value != 1 for value in spread):
        return None
    if "output_shape" in said or ("group" in said and said["group"].i != 1):
        return None
    if "auto_pad" in said and said["auto_pad"].s not in (b"NOTSET", b"VALID"):
        return None
    return int(sides[0])


def choices(model: Any) -> list[set[str]]:
    """The names of the products of somebody's graph to make int8, the next where the set before loses too much.

    First all convolutions and the linear layers that are worth it; then, where they are a tenth of the work,
    convolutions alone. Products of two activations (attention, masks), and those that decide, are in none.
    """
    products = products_of(model)
    total = sum(item.work or 0 for item in products)
    able = [item for item in products if item.kind != OTHER and not item.decides]
    convolutions = {item.name for item in able if item.kind == CONVOLUTION}
    linear = {
        item.name
        for item in able
        if item.kind == LINEAR and (item.work is None or item.work >= LEAST_SHARE * total)
    }
    found = [convolutions | linear]
    if linear and sum(item.work or 0 for item in able if item.name in convolutions) >= WORTH_IT * total:
        found.append(convolutions)
    return [names for names in found if names]


def in_words(model: Any) -> str:
    """What of a graph is int8: "37 of 37 convolutions, 0 of 27 linear layers, 91 % of all multiplications"."""
    products = products_of(model)
    said = []
    for kind in (CONVOLUTION, LINEAR):
        if some := [item.low for item in products if item.kind == kind]:
            said.append(f"{sum(some)} of {len(some)} {kind}s")
    total = sum(item.work or 0 for item in products)
    low = sum(item.work or 0 for item in products if item.low)
    return ", ".join([*said, f"{100 * low / max(1, total):.0f} % of all multiplications"])


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Of all values whose sides are known."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = inferred(copy).graph
    found = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.input, *graph.value_info, *graph.output):
        sides = item.type.tensor_type.shape.dim
        if item.type.tensor_type.HasField("shape") and all(side.dim_value > 0 for side in sides):
            found[item.name] = tuple(side.dim_value for side in sides)
    return found


def _work(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many multiplications a product is."""
    if node.op_type == "Einsum":
        return _work_of_einsum(node, shapes)
    names = (*node.input[:2], node.output[0])
    if any(name not in shapes for name in names):
        return None
    x, weight, made = (shapes[name] for name in names)
    if node.op_type == "Conv":
        return math.prod(made) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(x) * math.prod(weight[1:])
    turned = any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(made) * x[0 if turned else -1]


def _work_of_einsum(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    equation = next(item.s.decode() for item in node.attribute if item.name == "equation").replace(" ", "")
    sides: dict[str, int] = {}
    for letters, name in zip(equation.partition("->")[0].split(","), node.input, strict=True):
        shape = shapes.get(name)
        if shape is None or len(letters) != len(shape):
            return None
        sides.update(zip(letters, shape, strict=True))
    return math.prod(sides.values())


def _deciding(graph: Any, weights: Mapping[str, Any]) -> set[str]:
    """The products that masks, classes and decisions are made of, without another product in between.

    Where that is one of two activations, as masks are of queries and pixels, the linear layers right before it, too.
    """
    makers = {name: node for node in graph.node for name in node.output if name}
    found: set[str] = set()
    seen: set[tuple[str, bool]] = set()
    waiting = [(item.name, False) for item in graph.output]
    for node in graph.node:
        waiting += [(node.input[index], False) for index in _DECIDES.get(node.op_type, ())]
    while waiting:
        state = waiting.pop()
        name, after = state
        if state in seen or name not in makers:
            continue
        seen.add(state)
        node = makers[name]
        given = [item for item in node.input if item and item not in weights]
        if node.op_type not in _KINDS:
            # Beyond a sum of two values are the layers of a whole network, each a part of what is summed up.
            if not after or len(given) == 1:
                waiting += [(item, after) for item in given]
            continue
        what = weighted(node, weights)
        if not after:
            found.add(node.name)
            if what is None:
                waiting += [(item, True) for item in given]
        elif what is not None and what.kind == LINEAR:
            found.add(node.name)
    return found
