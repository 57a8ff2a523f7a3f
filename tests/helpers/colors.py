"""A panoptic network that finds what is red, green, blue and dark, as an ONNX graph of somebody else."""

from __future__ import annotations

import numpy as np
from fai_fast import ModelSpec, NetworkConfig, Panoptic

NAMES = ("car", "sky", "road")
SIDE = 64
# Of each query the class, its score, and how its mask follows from red, green and blue (0..1).
QUERIES = (
    (1, 0.9, (0, 0, 24), -12),  # what is blue is sky
    (0, 0.8, (24, 0, 0), -12),  # what is red is a car
    (0, 0.7, (0, 24, 0), -12),  # what is green is another
    (2, 0.6, (-24, -24, -24), 12),  # what is dark is road
    (2, 0.2, (0, 0, 0), 12),  # not sure enough
)
# The sky, a red car and a green one, the road.
BLUE, RED, GREEN, BLACK = (0, 0, 255), (255, 0, 0), (0, 255, 0), (0, 0, 0)


def graph():
    """Masks at a quarter of the input, by colors; classes that no picture changes."""
    import onnx

    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    n = len(QUERIES)
    weights = np.array([query[2] for query in QUERIES], np.float32).reshape(n, 3, 1, 1)
    bias = np.array([query[3] for query in QUERIES], np.float32)
    classes = np.zeros((1, n, len(NAMES) + 1), np.float32)
    for row, (class_id, score, _, _) in zip(classes[0], QUERIES, strict=True):
        rest = (1 - score) / len(NAMES)
        row[:] = np.log(rest)
        row[class_id] = np.log(score)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["small", "weights", "bias"], ["masks"]),
        helper.make_node("ReduceMean", ["masks"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Mul", ["column", "nothing"], ["none"]),
        helper.make_node("Add", ["none", "scores"], ["classes"]),
    ]
    constants = {
        "weights": weights,
        "bias": bias,
        "last": np.array([2], np.int64),
        "nothing": np.array(0, np.float32),
        "scores": classes,
    }
    made = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("masks", onnx.TensorProto.FLOAT, [1, n, SIDE // 4, SIDE // 4]),
            helper.make_tensor_value_info("classes", onnx.TensorProto.FLOAT, [1, n, len(NAMES) + 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


CONFIG = NetworkConfig(
    len(NAMES),
    pixel_mean=(0, 0, 0),
    pixel_std=(255, 255, 255),
    postprocessing_type="panoptic",
    panoptic=Panoptic(stuff=(1, 2)),
)
SPEC = ModelSpec(name="theirs", task="panoptic", classes=NAMES, config=CONFIG, im_size=SIDE)
