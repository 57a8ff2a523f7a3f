"""Masks that a network makes for its own attention, in the size in which attention wants them.

Masked attention (Mask2Former, Cheng et al. 2022, section 3.2.1) makes all masks in every layer, queries times pixels,
and makes them smaller for the feature map that is attended to. Both are linear, so the pixels' features can be made
smaller first: once for each size, in place of once for each layer, and the products have a fourth to a 64th of the
work.
"""

from __future__ import annotations

import math
from typing import Any

from fai_fast.networks.deploy import used
from fai_fast.networks.fold import shapes_of

__all__ = ["smaller_first"]


def smaller_first(model: Any) -> int:
    """Resizes pixels' features in place of masks that are made of them, where only the smaller masks are used.

    Results are equal up to rounding. Changes the model, an ``onnx.ModelProto`` with the shapes of its values, in place.

    Returns:
        How many resizings were moved.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, int] = {}
    for name in [name for node in graph.node for name in used(node)] + [item.name for item in graph.output]:
        users[name] = users.get(name, 0) + 1
    shapes = shapes_of(graph)
    held = {item.name: item for item in graph.initializer}
    names = {*shapes, *held, *makers}
    made: dict[tuple[str, bytes], str] = {}
    new: dict[str, list[Any]] = {}
    moved = 0
    for resize in graph.node:
        product = makers.get(resize.input[0]) if resize.op_type == "Resize" else None
        if product is None or users[product.output[0]] != 1:
            continue
        features = _features(product)
        size = None if features is None else _smaller(resize, shapes, held)
        if features is None or size is None or len(shapes.get(product.input[features], ())) != 4:
            continue
        name = product.input[features]
        attributes = b"".join(sorted(item.SerializeToString(deterministic=True) for item in resize.attribute))
        key = (name, repr(size).encode() + attributes)
        if key not in made:
            made[key] = _free(f"{name}.{size[0]}x{size[1]}", names)
            node = _resized(graph, resize, name, made[key], (*shapes[name][:2], *size), names)
            new.setdefault(name if name in makers else "", []).append(node)
        # The product takes the place of the resizing's result.
        product.input[features] = made[key]
        product.output[0] = resize.output[0]
        resize.ClearField("input")
        moved += 1
    if not moved:
        return 0
    nodes: list[Any] = new.get("", [])
    for node in graph.node:
        if node.op_type == "Resize" and not node.input:
            continue
        nodes.append(node)
        for name in node.output:
            nodes.extend(new.get(name, ()) if name else ())
    copies = [type(node)() for node in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    graph.ClearField("node")
    graph.node.extend(copies)
    del graph.value_info[:]
    return moved


def _features(product: Any) -> int | None:
    """Which input of a product over channels holds pixels, (B, C, h, w), with masks (B, Q, h, w) as its result."""
    if product.op_type != "Einsum":
        return None
    equation = next(item.s.decode() for item in product.attribute if item.name == "equation").replace(" ", "")
    given, arrow, result = equation.partition("->")
    terms = given.split(",")
    if not arrow or len(terms) != 2 or len(result) != 4 or len(set(result)) != 4:
        return None
    for index in (0, 1):
        pixels, queries = terms[index], terms[1 - index]
        if len(pixels) == 4 and pixels[2:] == result[2:] and not set(pixels[2:]) & set(queries):
            return index
    return None


def _smaller(resize: Any, shapes: dict[str, tuple[int, ...]], held: dict[str, Any]) -> tuple[int, int] | None:
    """The (height, width) that images are made smaller to, each pixel of few others and alike in all channels."""
    before, after = shapes.get(resize.input[0], ()), shapes.get(resize.output[0], ())
    said = {item.name: item for item in resize.attribute}
    if (
        len(before) != 4
        or len(after) != 4
        or before[:2] != after[:2]
        or math.prod(after) > math.prod(before)
        or said.keys() & {"axes", "antialias", "keep_aspect_ratio_policy"}
        or ("mode" in said and said["mode"].s == b"cubic")
        # A part of each image, and a number beyond its edges.
        or ("coordinate_transformation_mode" in said and b"crop" in said["coordinate_transformation_mode"].s)
        or any(name and name not in held for name in resize.input[1:])
        # Of scales that are not the sizes' ratio it would have to be told how they were rounded.
        or len(resize.input) < 4
    ):
        return None
    return after[2], after[3]


def _resized(
    graph: Any, resize: Any, given: str, result: str, shape: tuple[int, ...], names: set[str]
) -> Any:
    import numpy as np
    from onnx import helper, numpy_helper

    sizes = _free(f"{result}.shape", names)
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), sizes))
    node = helper.make_node("Resize", [given, "", "", sizes], [result], name=result)
    node.attribute.extend(resize.attribute)
    return node


def _free(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    names.add(name)
    return name
