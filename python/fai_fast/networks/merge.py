"""Steps of a graph that others can do along with their own: the same numbers up to rounding, in fewer passes.

Exporters write what a module does one after the other, and engines for CPUs leave some of it as it is:

* A product by weights whose result is scaled, as attention scales queries, or a layer of a network its output: here the
  weights are scaled.
* A normalization over the last of four or more axes, which OpenVINO takes apart: here there are three.
* ``torch.einsum`` of queries and the features of a picture, which is computed in no int8, and of features that were
  turned for it: here it is a matrix product of the features as they were.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast.networks.deploy import drop_unused, used
from fai_fast.networks.onnx_file import graphs_of

__all__ = ["merged"]

# What a factor for all values can be taken through.
_MOVING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


def merged(model: Any, shapes: Mapping[str, Shape]) -> Any:
    """The same computation in fewer steps.

    Args:
        model: whatever follows from constants alone is a constant in it. Changed in place.
        shapes: of its values, by name, where they are known.

    Returns:
        The model.
    """
    merger = _Merger(model.graph, shapes)
    order = [new for node in merger.nodes for new in merger.in_place_of(node)]
    model.graph.ClearField("node")
    model.graph.node.extend(order)
    drop_unused(model.graph)
    return model


class _Merger:
    """What is done to a graph's nodes, one after the other."""

    def __init__(self, graph: Any, shapes: Mapping[str, Shape]) -> None:
        self.nodes = [type(node).FromString(node.SerializeToString()) for node in graph.node]
        self._graph = graph
        self._shapes = shapes
        self._held = {item.name: item for item in graph.initializer}
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        # An output of the graph is a use as well.
        self._uses = Counter(name for node in self.nodes for name in used(node))
        self._uses.update(item.name for item in graph.output)
        self._names = set(self._held)
        for one in graphs_of(graph):
            self._names.update(item.name for item in (*one.input, *one.initializer))
            for node in one.node:
                self._names.update((node.name, *node.output))

    def in_place_of(self, node: Any) -> list[Any]:
        """The nodes that do what a node did, which may have changed some before it."""
        if node.op_type in ("Div", "Mul") and self._scaled(node):
            return []
        if node.op_type == "LayerNormalization":
            return self._flat(node)
        if node.op_type == "Einsum":
            return self._product(node)
        return [node]

    # ------------------------------------------------------------------------------------------ scales

    def _scaled(self, node: Any) -> bool:
        """Whether the weights of the product that is scaled could take the factor."""
        given = next((name for name in node.input if name not in self._held), None)
        factor = next((self._constant(name) for name in reversed(node.input) if name in self._held), None)
        if given is None or factor is None or given not in self._shapes:
            return False
        if node.op_type == "Div":
            if node.input[0] != given or not factor.all():
                return False
            factor = 1 / factor.astype(np.float64)
        sides = self._shapes[given]
        # One factor for all values, or one for each column of the product; and the result has the product's shape.
        by_column = factor.shape[-1:] == sides[-1:] == (factor.size,)
        if factor.ndim > len(sides) or not (factor.size == 1 or by_column):
            return False
        chain = self._chain(given, moved=factor.size == 1)
        if not chain:
            return False
        new: list[tuple[Any, int, Array]] = []
        for maker, side, values in chain:
            # A bias of one value is one of every column.
            scaled = values.astype(np.float64) * factor.reshape(-1)
            if scaled.ndim > max(values.ndim, 1) or not np.isfinite(scaled.astype(np.float32)).all():
                return False
            new.append((maker, side, scaled.astype(np.float32)))
        for maker, side, values in new:
            maker.input[side] = self._store(maker.input[side], values)
        last = self._makers[given]
        last.output[0] = node.output[0]
        self._makers[node.output[0]] = last
        return True

    def _chain(self, value: str, *, moved: bool) -> list[tuple[Any, int, Array]]:
        """The bias and the weights that a value is the result of: whose inputs they are, which, and their values.

        Empty where it is anything else, or where somebody else takes a value on the way.
        """
        found: list[tuple[Any, int, Array]] = []
        while self._uses[value] == 1 and (maker := self._makers.get(value)) is not None:
            if moved and maker.op_type in _MOVING:
                value = maker.input[0]
                continue
            constants = [(side, self._constant(name)) for side, name in enumerate(maker.input)]
            sides = [(side, values) for side, values in constants if values is not None]
            if len(maker.input) != 2 or len(sides) != 1:
                break
            side, values = sides[0]
            if maker.op_type == "MatMul" and side == 1 and values.ndim == 2:
                return [*found, (maker, side, values)]
            if maker.op_type != "Add" or found or values.ndim != 1:
                break
            found.append((maker, side, values))
            moved, value = False, maker.input[1 - side]
        return []

    # ---------------------------------------------------------------------------------- three axes in place of more

    def _flat(self, node: Any) -> list[Any]:
        sides = self._shapes.get(node.input[0])
        axis = next((item.i for item in node.attribute if item.name == "axis"), -1)
        if sides is None or len(sides) < 4 or axis not in (-1, len(sides) - 1) or any(node.output[1:]):
            return [node]
        if any(len(self._shapes.get(name, ())) != 1 for name in node.input[1:] if name):
            return [node]
        flat = (sides[0], math.prod(sides[1:-1]), sides[-1])
        before = self._reshape(node, node.input[0], flat)
        after = self._reshape(node, self._fresh(f"{node.name}/flat"), sides, node.output[0])
        node.input[0], node.output[0] = before.output[0], after.input[0]
        for item in node.attribute:
            if item.name == "axis":
                item.i = -1
        return [before, node, after]

    # --------------------------------------------------------------------------------------- sums over products

    def _product(self, node: Any) -> list[Any]:
        """Of queries (batch, Q, K) and features (batch, K, ...), summed over K."""
        from onnx import helper

        equation = next(item.s.decode() for item in node.attribute).replace(" ", "")
        terms, _, result = equation.partition("->")
        left, _, right = terms.partition(",")
        if len(node.input) != 2 or "." in equation or len(left) != 3 or len(right) < 3:
            return [node]
        batch, row, inner, places = left[0], left[1], left[2], right[2:]
        if (
            right[:2] != batch + inner
            or result != batch + row + places
            or len(set(left + places)) != len(left + places)
        ):
            return [node]
        features = node.input[1]
        sides, turned = self._shapes.get(features), self._turned(features)
        shape = self._shapes.get(node.input[0])
        # A side of one may stand for any other.
        if sides is None or shape is None or len(sides) != len(right) or (shape[0], shape[2]) != sides[:2]:
            return [node]
        count = math.prod(sides[2:])
        new = []
        if turned is None:
            new.append(self._reshape(node, features, (sides[0], sides[1], count)))
        else:
            new.append(self._reshape(node, turned, (sides[0], count, sides[1])))
            name = self._fresh(f"{node.name}/columns")
            new.append(helper.make_node("Transpose", [new[-1].output[0]], [name], name=name, perm=(0, 2, 1)))
        name = self._fresh(f"{node.name}/product")
        new.append(helper.make_node("MatMul", [node.input[0], new[-1].output[0]], [name], name=name))
        new.append(self._reshape(node, name, (sides[0], shape[1], *sides[2:]), node.output[0]))
        return new

    def _turned(self, value: str) -> str | None:
        """What a value was before its last axis became the second one."""
        maker = self._makers.get(value)
        if maker is None or maker.op_type != "Transpose":
            return None
        order = next((list(item.ints) for item in maker.attribute if item.name == "perm"), [])
        if len(order) < 3 or order != [0, len(order) - 1, *range(1, len(order) - 1)]:
            return None
        return str(maker.input[0])

    # ------------------------------------------------------------------------------------------------ parts

    def _constant(self, name: str) -> Array | None:
        """The values of a constant in float32."""
        from onnx import TensorProto, numpy_helper

        tensor = self._held.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def _store(self, near: str, values: Array) -> str:
        from onnx import numpy_helper

        name = self._fresh(near)
        self._held[name] = numpy_helper.from_array(values, name)
        self._graph.initializer.append(self._held[name])
        return name

    def _reshape(self, near: Any, value: str, sides: Shape, result: str | None = None) -> Any:
        from onnx import helper

        target = self._store(f"{near.name}/sides", np.array(sides, np.int64))
        name = self._fresh(f"{near.name}/reshape")
        return helper.make_node("Reshape", [value, target], [result or name], name=name)

    def _fresh(self, near: str) -> str:
        count, name = 1, near
        while name in self._names:
            count += 1
            name = f"{near}_{count}"
        self._names.add(name)
        return name
