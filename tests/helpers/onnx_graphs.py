"""A small graph in ONNX, and what it computes."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

QUERIES, COLUMNS = 6, 5
NAMES = ("images", "mask_logits", "class_logits")


def graph(dtype="float32", side=32, batch=1, seed=0, depth=0, names=NAMES, shape=None, opset=17):
    """A small network: convolutions, an average pool and a 1x1 convolution, with its weights."""
    rng = np.random.default_rng(seed)
    kind = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}[dtype]
    channels = 3
    nodes, weights, at = [], {}, names[0]
    for i in range(depth):
        weights[f"body{i}"] = rng.normal(size=(32, channels, 3, 3)) / np.sqrt(9 * channels)
        nodes.append(onnx.helper.make_node("Conv", [at, f"body{i}"], [f"conv{i}"], pads=[1] * 4))
        nodes.append(onnx.helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"]))
        at, channels = f"relu{i}", 32
    weights["heads"] = rng.normal(size=(QUERIES, channels, 1, 1))
    weights["classes"] = rng.normal(size=(1, COLUMNS))
    nodes += [
        onnx.helper.make_node("AveragePool", [at], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        onnx.helper.make_node("Conv", ["pooled", "heads"], [names[1]]),
        onnx.helper.make_node("GlobalAveragePool", [names[1]], ["means"]),
        onnx.helper.make_node("Reshape", ["means", "column"], ["scores"]),
        onnx.helper.make_node("MatMul", ["scores", "classes"], [names[2]]),
    ]
    tensors = [onnx.numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()]
    tensors.append(onnx.numpy_helper.from_array(np.array([batch, QUERIES, 1]), "column"))
    shapes = [
        shape or [batch, 3, side, side],
        [batch, QUERIES, side // 4, side // 4] if shape is None else None,
        [batch, QUERIES, COLUMNS] if shape is None else None,
    ]
    values = [
        onnx.helper.make_tensor_value_info(*item) for item in zip(names, [kind] * 3, shapes, strict=True)
    ]
    made = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)
    return model, weights


def truth(images, weights):
    """The network without convolutions in front, in float64."""
    images = images.astype(np.float64)
    b, c, h, w = images.shape
    pooled = images.reshape(b, c, h // 4, 4, w // 4, 4).mean((3, 5))
    masks = np.einsum("qc,bchw->bqhw", weights["heads"][:, :, 0, 0], pooled)
    return masks, masks.mean((2, 3))[..., None] * weights["classes"]
