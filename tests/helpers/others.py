"""Small networks that are nobody's: ONNX files with mask and class logits, as other people's exporters write them."""

from __future__ import annotations

import fai_fast
import numpy as np
import onnx
from fai_fast._rules import arguments_of
from fai_fast.ops import postprocess, preprocess
from onnx import TensorProto, helper, numpy_helper

QUERIES, CLASSES = 5, 2
OPEN = {"batch": None, "size": (None, None)}
NAMES = ("ripe", "unripe")
_KINDS = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}


def spec(im_size=64, **options):
    """What a user says of such a network; options of the spec, and of the config those that it has."""
    fields = {"name": "pears", "task": "instance", "classes": NAMES, **options}
    own = {key: fields.pop(key) for key in list(fields) if key not in ("name", "family", "task", "classes")}
    config = fai_fast.NetworkConfig(len(fields["classes"]), postprocessing_type=fields["task"], **own)
    return fai_fast.ModelSpec(**fields, config=config, im_size=im_size)


def graph(
    *,
    batch=1,
    size=(64, 64),
    columns=CLASSES + 1,
    queries=QUERIES,
    dtype=np.float32,
    image="pixel_values",
    masks="pred_masks",
    classes="pred_logits",
    boxes=False,
    auxiliary=False,
    seed=0,
    opset=18,
    last=False,
):
    """A model of two convolutions: masks (B, Q, H/4, W/4) and class logits (B, Q, K); None for a side that is open.

    Args:
        boxes: with an output (B, Q, 4), too.
        auxiliary: with another pair of outputs of the same shapes.
        last: with the colors last in the input.
    """
    rng = np.random.default_rng(seed)
    kind = _KINDS[dtype]
    weights = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "b1": rng.normal(0, 0.1, 8),
        "w2": rng.normal(0, 0.7, (queries, 8, 3, 3)),
        "b2": rng.normal(0, 0.5, queries),
        "wc": rng.normal(0, 2, (8, queries * columns)),
        "wb": rng.normal(0, 1, (8, queries * 4)),
    }
    initializers = [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()]
    initializers += [
        numpy_helper.from_array(np.array([-1, queries, columns]), "as_classes"),
        numpy_helper.from_array(np.array([-1, queries, 4]), "as_boxes"),
        numpy_helper.from_array(np.array([2, 3]), "plane"),
    ]
    convolution = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    first = "turned" if last else image
    nodes = [helper.make_node("Transpose", [image], ["turned"], perm=[0, 3, 1, 2])] if last else []
    nodes += [
        helper.make_node("Conv", [first, "w1", "b1"], ["c1"], **convolution),
        helper.make_node("Relu", ["c1"], ["f"]),
        helper.make_node("Conv", ["f", "w2", "b2"], [masks], **convolution),
        helper.make_node("ReduceMean", ["f", "plane"], ["v"], keepdims=0),
        helper.make_node("MatMul", ["v", "wc"], ["flat"]),
        helper.make_node("Reshape", ["flat", "as_classes"], [classes]),
    ]
    height, width = size
    sides = [None if height is None else height // 4, None if width is None else width // 4]
    outputs = {masks: [batch, queries, *sides], classes: [batch, queries, columns]}
    if boxes:
        nodes += [
            helper.make_node("MatMul", ["v", "wb"], ["flat_boxes"]),
            helper.make_node("Reshape", ["flat_boxes", "as_boxes"], ["pred_boxes"]),
        ]
        outputs = {"pred_boxes": [batch, queries, 4], **outputs}
    if auxiliary:
        nodes += [
            helper.make_node("Neg", [masks], ["aux_masks"]),
            helper.make_node("Neg", [classes], ["aux_logits"]),
        ]
        outputs = {**outputs, "aux_masks": outputs[masks], "aux_logits": outputs[classes]}
    sides = [*size, 3] if last else [3, *size]
    made = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info(image, kind, [batch, *sides])],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        initializers,
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, producer_name="somebody"
    )


def write(path, **options):
    """The file of :func:`graph`."""
    onnx.save(graph(**options), path)
    return path


def picture(seed=0, size=(90, 120)):
    """A frame of coarse patches."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 255, (-(-size[0] // 15), -(-size[1] // 15), 3), np.uint8)
    return np.kron(patches, np.ones((15, 15, 1), np.uint8))[: size[0], : size[1]]


def outputs(model, images, masks="pred_masks", classes="pred_logits", image="pixel_values"):
    """What the original says of normalized images, by ONNX's own definitions of its operators."""
    from onnx.reference import ReferenceEvaluator

    found = ReferenceEvaluator(model).run([masks, classes], {image: images})
    return tuple(np.asarray(value, np.float32) for value in found)


def expected(model, given, frame, size, **options):
    """What a model finds in a frame, by the original's own outputs, and postprocess()."""
    config = given.config
    images = preprocess(frame, size, mean=config.pixel_mean, std=config.pixel_std)
    return found(outputs(model, images, **options), given, frame)


def found(logits, given, frame):
    """The same of its outputs."""
    return postprocess(
        *(values[0] for values in logits),
        frame.shape[:2],
        threshold=given.config.threshold,
        **arguments_of(given.config),
        class_names=given.classes,
    )


def assert_same(ours, theirs, tolerance=1e-4):
    """The same rows, with masks that differ by rounding alone; at least one."""
    assert len(ours) == len(theirs) > 0
    assert np.array_equal(ours.class_id, theirs.class_id)
    assert np.allclose(ours.confidence, theirs.confidence, atol=tolerance)
    both, either = (ours.mask & theirs.mask).sum(), (ours.mask | theirs.mask).sum()
    assert both >= 0.999 * either
