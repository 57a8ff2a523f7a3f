"""Which tensors of somebody's graph are the image, the mask logits and the class logits: by name, or by shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fai_fast._foreign import explained

__all__ = [
    "FLOATS",
    "Tensor",
    "Wanted",
    "find_input",
    "find_outputs",
    "fixed",
    "inputs_of",
    "listed",
    "outputs_of",
]

FLOATS = ("float32", "float16")
_LARGE = 1 << 12
"""Bytes of a weight that says nothing of shapes."""


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name, its element type as NumPy calls it, and its shape, None where a side is open.

    The shape is None where not even the number of sides is known.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name!r} {self.kind} of any shape"
        sides = ", ".join("?" if side is None else str(side) for side in self.shape)
        return f"{self.name!r} {self.kind} ({sides}{',' * (len(self.shape) == 1)})"

    @property
    def is_known(self) -> bool:
        return self.shape is not None and None not in self.shape


@dataclass(frozen=True)
class Wanted:
    """What is asked of the outputs.

    Attributes:
        masks, classes: their names; None where the shapes tell.
        batch: B.
        queries: Q; None for any.
        columns: K of the class logits (B, Q, K).
        why: how K follows from the number of classes, in words.
    """

    masks: str | None
    classes: str | None
    batch: int
    queries: int | None
    columns: int
    why: str


def inputs_of(model: Any) -> list[Tensor]:
    """What has to be fed: old files list their weights among the inputs."""
    held = {item.name for item in model.graph.initializer}
    held |= {item.values.name for item in model.graph.sparse_initializer}
    return [_tensor(item) for item in model.graph.input if item.name not in held]


def outputs_of(model: Any) -> list[Tensor]:
    return [_tensor(item) for item in model.graph.output]


def listed(tensors: Sequence[Tensor]) -> str:
    """All of them, to read."""
    return ", ".join(map(str, tensors)) or "none"


def find_input(model: Any, name: str | None, shown: str) -> Tensor:
    """The image: the only input there may be, (B, 3, H, W) in float32 or float16.

    Args:
        name: that it must have; None for any.
        shown: what the model is, for errors.

    Raises:
        ValueError: there is none like that, or another input has to be fed too.
    """
    inputs = inputs_of(model)
    found = [item for item in inputs if name in (None, item.name)]
    if name is not None and not found:
        raise ValueError(
            f"config.input_name: got {name!r}, expected an input of {shown}, which are {listed(inputs)}"
        )
    if len(inputs) != 1:
        raise ValueError(
            f"{shown} has the inputs {listed(inputs)}, expected a single one, the image (B, 3, H, W): export it with "
            "the others as constants"
        )
    image = found[0]
    if image.kind not in FLOATS or image.shape is None or len(image.shape) != 4:
        raise ValueError(
            f"{shown} has the input {image}, expected the normalized image, float32 or float16 (B, 3, H, W)"
        )
    if image.shape[1] not in (3, None):
        if image.shape[3] == 3:
            raise ValueError(
                f"{shown} has the input {image}, with the colors last (B, H, W, 3); expected them first, (B, 3, H, W): "
                "export it with channels first"
            )
        raise ValueError(f"{shown} has the input {image}, expected 3 channels, (B, 3, H, W)")
    if image.shape[1] is None and image.shape[3] == 3:
        raise ValueError(
            f"{shown} has the input {image}, whose colors may be the second or the last side; expected (B, 3, H, W): "
            "export it with a fixed number of channels"
        )
    return image


def fixed(model: Any, image: Tensor, size: tuple[int, int], batch: int) -> Any:
    """A copy whose input has all its sides, and whose other shapes follow from those, as far as ONNX can tell.

    What was said of shapes before is dropped: it may be of another size.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in copy.graph.input:
        if item.name == image.name:
            dims = item.type.tensor_type.shape
            del dims.dim[:]
            for side in (batch, 3, *size):
                dims.dim.add().dim_value = side
    del copy.graph.value_info[:]
    for item in copy.graph.output:
        item.type.tensor_type.ClearField("shape")
    return inferred(copy)


def inferred(model: Any) -> Any:
    """The model with the shapes of its values, where ONNX's inference succeeds. Changed in place."""
    import onnx

    try:
        found = onnx.shape_inference.infer_shapes(_light(model), strict_mode=False, data_prop=True)
    except Exception as error:
        if not explained(error, "onnx", "google"):
            raise
        return model
    del model.graph.value_info[:]
    model.graph.value_info.extend(found.graph.value_info)
    shapes = {item.name: item for item in found.graph.output}
    for item in model.graph.output:
        item.CopyFrom(shapes[item.name])
    return model


def _light(model: Any) -> Any:
    """The same graph whose large weights are inputs: what inference does with a model begins with copying it twice."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = light.graph
    graph.name = model.graph.name or "light"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    given = {item.name for item in model.graph.input}
    for item in model.graph.initializer:
        if item.ByteSize() <= _LARGE:
            graph.initializer.append(item)
        elif item.name not in given:
            graph.input.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    return light


def find_outputs(outputs: Sequence[Tensor], wanted: Wanted, shown: str) -> tuple[Tensor, Tensor]:
    """The mask logits (B, Q, h, w) and the class logits (B, Q, K) among a graph's outputs.

    Raises:
        ValueError: there are none like that, or several; the text lists all outputs.
    """
    all_of_them = f"{shown} has the outputs {listed(outputs)}"
    by_name = {item.name: item for item in outputs}
    for field, name in (("mask_logits_name", wanted.masks), ("class_logits_name", wanted.classes)):
        if name is not None and name not in by_name:
            raise ValueError(f"config.{field}: got {name!r}, expected one of the outputs; {all_of_them}")
    masks = [item for item in outputs if _may_be_masks(item, wanted)]
    classes = [item for item in outputs if _may_be_classes(item, wanted)]
    what = {
        "mask_logits": f"(B, Q, h, w) = ({wanted.batch}, {wanted.queries or 'Q'}, h, w)",
        "class_logits": f"(B, Q, K) = ({wanted.batch}, {wanted.queries or 'Q'}, {wanted.columns}), {wanted.why}",
    }
    for kind, name, candidates in (
        ("mask_logits", wanted.masks, masks),
        ("class_logits", wanted.classes, classes),
    ):
        if name is not None and by_name[name] not in candidates:
            raise ValueError(
                f"config.{kind}_name: {by_name[name]} cannot be the {kind}, expected float32 or float16 {what[kind]}"
                f"{_about_columns(by_name[name], kind, wanted)}"
            )
        if not candidates:
            near = [item for item in outputs if item.shape is not None and len(item.shape) == 3]
            hint = "".join(dict.fromkeys(_about_columns(item, kind, wanted) for item in near))
            raise ValueError(f"{all_of_them}, expected {kind} {what[kind]}{hint}")
    pairs = [
        (mask, scores)
        for mask in masks
        for scores in classes
        if mask.shape is not None
        and scores.shape is not None
        and mask.shape[1] == scores.shape[1]
        and wanted.masks in (None, mask.name)
        and wanted.classes in (None, scores.name)
    ]
    if not pairs:
        raise ValueError(
            f"{all_of_them}, of which no mask logits (B, Q, h, w) and class logits (B, Q, {wanted.columns}) have the "
            "same number of queries Q"
        )
    if len(pairs) > 1:
        names = [f"{mask.name!r} with {scores.name!r}" for mask, scores in pairs]
        raise ValueError(
            f"{all_of_them}, of which {', '.join(names[:6])}{', ...' if len(names) > 6 else ''} could be mask and "
            "class logits; say which: config=fai_fast.NetworkConfig(..., mask_logits_name=..., class_logits_name=...)"
        )
    return pairs[0]


def _may_be_masks(item: Tensor, wanted: Wanted) -> bool:
    return _is_of(item, 4, wanted)


def _may_be_classes(item: Tensor, wanted: Wanted) -> bool:
    return _is_of(item, 3, wanted) and item.shape is not None and item.shape[2] == wanted.columns


def _is_of(item: Tensor, sides: int, wanted: Wanted) -> bool:
    if item.kind not in FLOATS or item.shape is None or len(item.shape) != sides or not item.is_known:
        return False
    return item.shape[0] == wanted.batch and wanted.queries in (None, item.shape[1]) and 0 not in item.shape


def _about_columns(item: Tensor, kind: str, wanted: Wanted) -> str:
    """Where the columns are off by the one of 'no object', that is what is wrong."""
    if kind != "class_logits" or item.shape is None or len(item.shape) != 3 or item.shape[2] is None:
        return ""
    columns = item.shape[2]
    if abs(columns - wanted.columns) != 1:
        return ""
    sigmoid = columns < wanted.columns
    return (
        f"; {item.name!r} has {columns} columns, as with config.cls_sigmoid={sigmoid} for as many classes, or with "
        f"{'one class less' if sigmoid else 'one class more'}"
    )


def _tensor(item: Any) -> Tensor:
    import onnx

    if not item.type.HasField("tensor_type"):
        return Tensor(item.name, str(item.type.WhichOneof("value")).removesuffix("_type"), None)
    told = item.type.tensor_type
    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(told.elem_type).name
    except (KeyError, ValueError):
        kind = f"type {told.elem_type}"
    if told.elem_type == onnx.TensorProto.BFLOAT16:
        kind = "bfloat16"
    shape = None
    if told.HasField("shape"):
        # Negative and zero sides are how some exporters write that a side is open.
        sides = (side.dim_value if side.HasField("dim_value") else 0 for side in told.shape.dim)
        shape = tuple(side if side > 0 else None for side in sides)
    return Tensor(item.name, kind, shape)


def with_shape(item: Tensor, shape: Sequence[int | None] | None) -> Tensor:
    """The tensor with a shape that another program has found."""
    return dataclasses.replace(item, shape=None if shape is None else tuple(shape))
