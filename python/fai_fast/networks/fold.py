"""What a graph of one size computes from constants and shapes alone, computed once: engines and converters want it so.

Exporters leave chains of Shape, Gather and Concat where a size was open. Engines fold them too, but not before they
have refused a graph whose shapes they do not see, and a converter to float16 would round what scales a picture.
"""

from __future__ import annotations

import math
from typing import Any

from fai_fast._foreign import explained
from fai_fast.networks.ports import inferred

__all__ = ["RANDOM", "folded", "shapes_of"]

LARGEST = 1 << 22
"""Elements of a value that is stored in place of its node: 16 MiB."""
_ROUNDS = 20
RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
"""Operators that give something else in each run."""
_NEVER = ("DequantizeLinear", "QuantizeLinear", *RANDOM)


def folded(model: Any) -> Any:
    """The same computation with constants in place of what follows from constants and shapes.

    Args:
        model: with all sides of its input. Changed in place.

    Returns:
        A model with the shapes of its values.
    """
    for _ in range(_ROUNDS):
        model = inferred(model)
        if not _fold_once(model):
            break
        del model.graph.value_info[:]
    return model


def _fold_once(model: Any) -> bool:
    """Whether there was something to fold."""
    from onnx import numpy_helper

    graph = model.graph
    shapes = shapes_of(graph)
    held = {item.name: item for item in graph.initializer}
    values: dict[str, Any] = {}
    outputs = {item.name for item in graph.output}
    kept: list[Any] = []
    new: list[Any] = []
    for node in graph.node:
        made = _value_of(node, model, shapes, held, values)
        if made is None or outputs & set(node.output):
            kept.append(node)
            continue
        for name, value in zip(node.output, made, strict=False):
            if name:
                values[name] = value
                tensor = numpy_helper.from_array(value, name)
                held[name] = tensor
                new.append(tensor)
    if not new:
        return False
    copies = [type(node)() for node in kept]
    for copy, node in zip(copies, kept, strict=True):
        copy.CopyFrom(node)
    graph.ClearField("node")
    graph.node.extend(copies)
    graph.initializer.extend(new)
    return True


def _value_of(
    node: Any, model: Any, shapes: dict[str, tuple[int, ...]], held: dict[str, Any], values: dict[str, Any]
) -> list[Any] | None:
    """What a node gives, where that is known without the images and worth storing."""
    import numpy as np
    from onnx import numpy_helper

    if node.op_type == "Constant":
        tensors = [item.t for item in node.attribute if item.name == "value"]
        return [numpy_helper.to_array(tensors[0])] if tensors else _computed(node, model, {})
    if node.op_type in ("Shape", "Size") and node.input[0] in shapes:
        shape = shapes[node.input[0]]
        if node.op_type == "Size":
            return [np.array(math.prod(shape), np.int64)]
        said = {item.name: item.i for item in node.attribute}
        return [np.array(shape[said.get("start", 0) : said.get("end")], np.int64)]
    if (
        node.op_type in _NEVER
        or not node.input
        or any(item.HasField("g") or item.graphs for item in node.attribute)
    ):
        return None
    if any(name and name not in held for name in node.input):
        return None
    if any(name and math.prod(shapes.get(name, (LARGEST + 1,))) > LARGEST for name in node.output):
        return None
    for name in node.input:
        if name and name not in values:
            values[name] = numpy_helper.to_array(held[name])
    return _computed(node, model, {name: values[name] for name in node.input if name})


def _computed(node: Any, model: Any, inputs: dict[str, Any]) -> list[Any] | None:
    """By ONNX's own definition of the operator, in NumPy; None where that is not there."""
    import numpy as np
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.output if name]
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in names],
    )
    try:
        alone = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
        found = ReferenceEvaluator(alone).run(names, inputs)
    except Exception as error:
        # Not every operator is there for every type: it stays in the graph.
        if not explained(error, "onnx", "numpy"):
            raise
        return None
    by_name = dict(zip(names, found, strict=True))
    if not all(isinstance(value, (np.ndarray, np.generic)) for value in by_name.values()):
        return None
    return [np.asarray(by_name[name]) if name else None for name in node.output]


def shapes_of(graph: Any) -> dict[str, tuple[int, ...]]:
    """Of the values all of whose sides are known."""
    found = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.input, *graph.value_info, *graph.output):
        if not item.type.HasField("tensor_type") or not item.type.tensor_type.HasField("shape"):
            continue
        sides = item.type.tensor_type.shape.dim
        if all(side.HasField("dim_value") and side.dim_value >= 0 for side in sides):
            found[item.name] = tuple(side.dim_value for side in sides)
    return found
