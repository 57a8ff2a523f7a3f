"""Writes an ONNX graph node by node: every value has a static shape, every node a name that says where it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast.errors import ExportError

__all__ = ["Array", "Builder", "Value"]

Array = npt.NDArray[Any]

# LayerNormalization came with 17; 18 is the newest that all engines (and their older releases) read.
OPSET = 18
IR_VERSION = 9
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Value:
    """A tensor of the graph."""

    name: str
    shape: tuple[int, ...]
    dtype: npt.DTypeLike


class Builder:
    """Collects nodes and constants; each method adds a node and returns its output.

    Shapes are worked out here, so that a graph that does not fit together fails where it is written. Weights come in
    float64 and are cast once, when they become constants.

    Args:
        dtype: np.float32 or np.float16, of every value that is not asked to be of another type.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._nodes: list[Any] = []
        self._initializers: dict[tuple[str, tuple[int, ...], bytes], tuple[Value, Any]] = {}
        self._scope: list[str] = []
        self._names: set[str] = set()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Puts ``name/`` before the names of everything that is added inside."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def _name(self, name: str) -> str:
        full = base = "/".join([*self._scope, name])
        count = 1
        while full in self._names:
            count += 1
            full = f"{base}_{count}"
        self._names.add(full)
        return full

    def constant(self, array: Array, name: str, dtype: npt.DTypeLike | None = None) -> Value:
        """A constant, cast to `dtype` (default: the graph's); equal ones are stored once."""
        from onnx import numpy_helper

        exact = np.asarray(array)
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(exact, np.dtype(dtype) if dtype is not None else self.dtype)
        if not np.isfinite(cast).all():
            problem = (
                "are not finite" if not np.isfinite(exact).all() else f"do not fit into {cast.dtype.name}"
            )
            where = "/".join([*self._scope, name])
            raise ExportError(f"{where}: weights {problem} (largest {np.abs(exact).max():.4g})")
        key = (cast.dtype.str, cast.shape, hashlib.sha256(cast.tobytes()).digest())
        if key not in self._initializers:
            value = Value(self._name(name), cast.shape, cast.dtype)
            self._initializers[key] = (value, numpy_helper.from_array(cast, value.name))
        return self._initializers[key][0]

    def node(
        self,
        op: str,
        inputs: Sequence[Value | None],
        shape: Sequence[int],
        name: str,
        dtype: npt.DTypeLike | None = None,
        **attributes: Any,
    ) -> Value:
        """Any node with one output; its `dtype` is by default that of the first input."""
        from onnx import helper

        first = inputs[0]
        assert first is not None
        value = Value(self._name(name), tuple(shape), np.dtype(dtype) if dtype is not None else first.dtype)
        names = [item.name if item is not None else "" for item in inputs]
        self._nodes.append(helper.make_node(op, names, [value.name], name=value.name, **attributes))
        return value

    # Images: (B, C, h, w).

    def conv(
        self,
        x: Value,
        weight: Array,
        bias: Array | None,
        name: str,
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = False,
        padding: int | None = None,
    ) -> Value:
        """A convolution of a map whose sides `stride` divides. weight: (out, in / groups, k, k), bias: (out).

        The output's sides are those of the input over `stride`; None for a padding of k // 2.
        """
        batch, channels, height, width = x.shape
        out, depth, kernel, _ = weight.shape
        assert depth * groups == channels, (name, weight.shape, x.shape)
        padding = kernel // 2 if padding is None else padding
        inputs = [x, self.constant(weight, f"{name}.weight")]
        if bias is not None:
            inputs.append(self.constant(bias, f"{name}.bias"))
        y = self.node(
            "Conv",
            inputs,
            (batch, out, -(-height // stride), -(-width // stride)),
            name,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
            group=groups,
        )
        return self.relu(y) if relu else y

    def pool(self, x: Value, name: str, kind: str, kernel: int, padding: int) -> Value:
        """A pooling with stride 2 of a map with even sides. kind: "Max" or "Average" (padding is counted)."""
        batch, channels, height, width = x.shape
        counted: dict[str, Any] = {"count_include_pad": 1} if kind == "Average" else {}
        return self.node(
            f"{kind}Pool",
            [x],
            (batch, channels, height // 2, width // 2),
            name,
            kernel_shape=[kernel] * 2,
            strides=[2, 2],
            pads=[padding] * 4,
            **counted,
        )

    def resize(self, x: Value, name: str, size: tuple[int, int], mode: str) -> Value:
        """Resizes to `size` by a whole factor. mode: "nearest", or "linear" (half-pixel centers, no antialias)."""
        batch, channels, height, width = x.shape
        scales = self.constant(
            np.array([1, 1, size[0] / height, size[1] / width]), f"{name}.scales", np.float32
        )
        how = (
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            if mode == "nearest"
            else {"coordinate_transformation_mode": "half_pixel"}
        )
        return self.node("Resize", [x, None, scales], (batch, channels, *size), name, mode=mode, **how)

    def global_mean(self, x: Value, name: str) -> Value:
        return self.node("GlobalAveragePool", [x], (*x.shape[:2], 1, 1), name)

    # Tensors of any shape.

    def matmul(self, a: Value, b: Value, name: str) -> Value:
        assert a.shape[-1] == b.shape[-2], (name, a.shape, b.shape)
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return self.node("MatMul", [a, b], (*lead, a.shape[-2], b.shape[-1]), name)

    def linear(self, x: Value, weight: Array, bias: Array, name: str, *, relu: bool = False) -> Value:
        """x weight^T + bias, with weight (out, in), and bias (out) or anything that broadcasts to the result."""
        y = self.matmul(x, self.constant(weight.T, f"{name}.weight"), f"{name}.product")
        y = self.add(y, self.constant(bias, f"{name}.bias"), name)
        return self.relu(y) if relu else y

    def layer_norm(
        self,
        x: Value,
        name: str,
        scale: Array | None = None,
        bias: Array | None = None,
        epsilon: float = LAYER_NORM_EPS,
    ) -> Value:
        """Over the last axis, computed in float32; the result has the graph's dtype."""
        exact = self.cast(x, np.float32)
        scale = np.ones(x.shape[-1]) if scale is None else scale
        inputs = [exact, self.constant(scale, f"{name}.scale", np.float32)]
        if bias is not None:
            inputs.append(self.constant(bias, f"{name}.bias", np.float32))
        y = self.node("LayerNormalization", inputs, x.shape, name, axis=-1, epsilon=epsilon)
        return self.cast(y, self.dtype)

    def add(self, a: Value, b: Value, name: str) -> Value:
        return self.node("Add", [a, b], np.broadcast_shapes(a.shape, b.shape), name)

    def mul(self, a: Value, b: Value, name: str) -> Value:
        return self.node("Mul", [a, b], np.broadcast_shapes(a.shape, b.shape), name)

    def relu(self, x: Value) -> Value:
        return self.node("Relu", [x], x.shape, "relu")

    def relu6(self, x: Value) -> Value:
        bounds = [self.constant(np.array(bound), f"relu6.{bound}") for bound in (0, 6)]
        return self.node("Clip", [x, *bounds], x.shape, "relu6")

    def silu(self, x: Value) -> Value:
        return self.mul(x, self.sigmoid(x), "silu")

    def gelu(self, x: Value) -> Value:
        """The exact one, x (1 + erf(x / sqrt 2)) / 2: there is no operator for it before opset 20."""
        scaled = self.mul(x, self.constant(np.array(math.sqrt(0.5)), "gelu.scale"), "gelu.scaled")
        share = self.add(
            self.node("Erf", [scaled], x.shape, "gelu.erf"), self.constant(np.ones(()), "one"), "gelu.share"
        )
        return self.mul(self.mul(x, share, "gelu.product"), self.constant(np.array(0.5), "gelu.half"), "gelu")

    def sigmoid(self, x: Value) -> Value:
        return self.node("Sigmoid", [x], x.shape, "sigmoid")

    def softmax(self, x: Value) -> Value:
        return self.node("Softmax", [x], x.shape, "softmax", axis=-1)

    def concat(self, parts: Sequence[Value], axis: int, name: str) -> Value:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.node("Concat", parts, shape, name, axis=axis)

    def cast(self, x: Value, dtype: npt.DTypeLike) -> Value:
        from onnx import helper

        if x.dtype == np.dtype(dtype):
            return x
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", [x], x.shape, f"to_{np.dtype(dtype).name}", dtype, to=to)

    def reshape(self, x: Value, shape: Sequence[int], name: str = "reshape") -> Value:
        assert math.prod(x.shape) == math.prod(shape), (name, x.shape, shape)
        return self.node("Reshape", [x, self.constant(np.array(shape), "shape", np.int64)], shape, name)

    def transpose(self, x: Value, axes: Sequence[int], name: str = "transpose") -> Value:
        return self.node("Transpose", [x], [x.shape[axis] for axis in axes], name, perm=list(axes))

    def split(self, x: Value, sizes: Sequence[int], axis: int, name: str) -> list[Value]:
        """Parts along an axis."""
        from onnx import helper

        assert sum(sizes) == x.shape[axis], (name, x.shape, sizes)
        shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
        values = [Value(self._name(f"{name}.{index}"), shape, x.dtype) for index, shape in enumerate(shapes)]
        inputs = [x.name, self.constant(np.array(sizes), "sizes", np.int64).name]
        node = helper.make_node(
            "Split", inputs, [value.name for value in values], name=self._name(name), axis=axis
        )
        self._nodes.append(node)
        return values

    def model(self, inputs: Sequence[Value], outputs: Sequence[tuple[Value, str]]) -> Any:
        """The graph as a checked onnx.ModelProto; outputs are renamed as said."""
        import onnx
        from onnx import helper

        names = {value.name: name for value, name in outputs}
        for node in self._nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        graph = helper.make_graph(
            self._nodes,
            "fai_fast",
            [_info(value, value.name) for value in inputs],
            [_info(value, name) for value, name in outputs],
            [initializer for _, initializer in self._initializers.values()],
        )
        model = helper.make_model(
            graph,
            producer_name="fai_fast",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        onnx.checker.check_model(model)
        return model


def _info(value: Value, name: str) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)), value.shape
    )
