"""Constants of a graph in the fewest bytes: each value once, and one number where all are the same.

What is traced for one size brings along whole tables of zeros, positions again for every layer, and choices by
conditions that are nowhere true.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fai_fast.networks.fold import shapes_of

__all__ = ["with_small_constants"]

_SMALL = 1 << 10
"""Bytes that are not worth looking at."""
_BROADCASTING = ("Add", "And", "Div", "Mul", "Or", "Sub", "Where")


def with_small_constants(model: Any) -> None:
    """Changes a model, an ``onnx.ModelProto`` with the shapes of its values, in place; results stay the same."""
    _choose_now(model.graph)
    _shrink_the_uniform(model.graph)
    _keep_each_once(model.graph)


def _choose_now(graph: Any) -> None:
    """Leaves out a Where whose condition is the same for all elements."""
    shapes = shapes_of(graph)
    held = {item.name: item for item in graph.initializer}
    outputs = {item.name for item in graph.output}
    instead: dict[str, str] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
        if node.op_type != "Where" or node.input[0] not in held or node.output[0] in outputs:
            continue
        condition = _uniform(held[node.input[0]])
        chosen = None if condition is None else node.input[1 if condition else 2]
        # Otherwise it is repeated there too.
        if chosen in shapes and shapes[chosen] == shapes.get(node.output[0]):
            instead[node.output[0]] = chosen


def _shrink_the_uniform(graph: Any) -> None:
    """One element in place of a table of the same number, where another operand says the result's shape."""
    from onnx import numpy_helper

    shapes = shapes_of(graph)
    held = {item.name: item for item in graph.initializer}
    small: dict[str, Any] = {}
    for node in graph.node:
        if node.op_type not in _BROADCASTING:
            continue
        for index, name in enumerate(node.input):
            if name not in held or math.prod(held[name].dims) * 4 < _SMALL:
                continue
            others = [shapes.get(other) for place, other in enumerate(node.input) if place != index]
            result = shapes.get(node.output[0])
            rank = len(held[name].dims)
            if result is None or any(other is None for other in others):
                continue
            if np.broadcast_shapes(*others, (1,) * rank) != result:  # type: ignore[arg-type]
                continue
            if name not in small:
                value = _uniform(held[name])
                small[name] = None
                if value is not None:
                    made = numpy_helper.from_array(np.full((1,) * rank, value), f"{name}.uniform")
                    if made.name not in held:
                        small[name] = made
            if small[name] is not None:
                node.input[index] = small[name].name
    graph.initializer.extend(made for made in small.values() if made is not None)


def _keep_each_once(graph: Any) -> None:
    first: dict[tuple[Any, ...], str] = {}
    instead: dict[str, str] = {}
    outputs = {item.name for item in graph.output}
    for item in graph.initializer:
        if math.prod(item.dims) * 4 < _SMALL or item.name in outputs or item.external_data:
            continue
        digest = _digest(item)
        instead[item.name] = first.setdefault(digest, item.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)


def _digest(item: Any) -> tuple[Any, ...]:
    import hashlib

    from onnx import numpy_helper

    value = np.ascontiguousarray(numpy_helper.to_array(item))
    return item.data_type, tuple(item.dims), hashlib.sha256(value.view(np.uint8).data).digest()


def _uniform(item: Any) -> Any:
    """The number that all elements of a tensor are, bit for bit; None where they are several."""
    from onnx import numpy_helper

    if item.external_data:
        return None
    value = numpy_helper.to_array(item)
    if not value.size:
        return None
    first = value.reshape(-1)[0]
    bits = np.ascontiguousarray(value).reshape(-1).view(np.uint8).reshape(value.size, -1)
    return first if bool((bits == bits[0]).all()) else None
