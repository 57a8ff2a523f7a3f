"""Somebody's graph as a deployed one: of one size, with our names, and nothing in it but what the outputs need."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fai_fast._foreign import explained
from fai_fast.engines import onnxruntime
from fai_fast.engines.base import INPUT, OUTPUTS
from fai_fast.errors import EngineError, ExportError
from fai_fast.networks.onnx_file import graphs_of, tensors_of
from fai_fast.networks.ports import Tensor

__all__ = ["deployed", "drop_unused", "in_float16", "used"]

# What is written with these is at least of this version: weights stand beside the inputs, not among them.
_IR_VERSION = 8
# Sums over many values: in float16 they overflow, or lose what they are for.
_IN_FLOAT32 = (
    "LayerNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "ReduceSumSquare",
    "ReduceL2",
)

_log = logging.getLogger("fai_fast")


def deployed(model: Any, image: Tensor, outputs: tuple[Tensor, Tensor], size: tuple[int, int]) -> Any:
    """The graph with the input ``images`` and the outputs ``mask_logits`` and ``class_logits``, float32 all three.

    Args:
        model: with all sides of its input, see :func:`fai_fast.networks.ports.fixed`. Changed in place.
        image: its input.
        outputs: which of its outputs are mask and class logits, with all sides.
        size: (height, width) of the input.

    Returns:
        The model.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = model.graph
    _drop_what_is_not_needed(graph, {item.name for item in outputs})
    _in_single_precision(graph)
    batch = (outputs[0].shape or (1,))[0]
    ours = {image.name: INPUT, outputs[0].name: OUTPUTS[0], outputs[1].name: OUTPUTS[1]}
    _rename(graph, _without_collisions(graph, ours))
    before: list[Any] = []
    after: list[Any] = []
    for given, name in ((image, INPUT), *zip(outputs, OUTPUTS, strict=True)):
        if given.kind == "float32":
            continue
        inner = _fresh(f"{name}_{given.kind}", _names(graph))
        _rename(graph, {name: inner})
        pair = ([name], [inner]) if name == INPUT else ([inner], [name])
        kind = getattr(TensorProto, given.kind.upper()) if name == INPUT else TensorProto.FLOAT
        (before if name == INPUT else after).append(
            helper.make_node("Cast", *pair, name=f"{name}/cast", to=kind)
        )
    nodes = [*before, *graph.node, *after]
    graph = helper.make_graph(
        nodes,
        "fai_fast",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, (batch, 3, *size))],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, item.shape)
            for name, item in zip(OUTPUTS, outputs, strict=True)
        ],
        list(graph.initializer),
    )
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    _name_nodes(graph)
    result = onnx.ModelProto(
        ir_version=max(model.ir_version, _IR_VERSION),
        producer_name="fai_fast",
        opset_import=[item for item in model.opset_import if item.domain in ("", "ai.onnx")],
    )
    result.graph.CopyFrom(graph)
    return result


def in_float16(model: Any, shown: str) -> Any:
    """A deployed graph with input, outputs, weights and all products in float16, by ONNX Runtime's converter.

    Normalizations stay in float32. Whether the result still finds what the original finds is measured by whoever calls.

    Raises:
        EngineError: ONNX Runtime, which brings the converter, is not installed.
        ExportError: it cannot convert this graph.
    """
    import onnx

    onnxruntime.package()
    try:
        from onnxruntime.transformers import float16
    except ImportError as error:
        raise EngineError(
            f"onnxruntime: its converter to float16 cannot be imported ({error}); install a release with it: "
            "pip install -U onnxruntime"
        ) from error
    try:
        with warnings.catch_warnings():
            # Of each weight that is too small: the measurement says what it costs.
            warnings.simplefilter("ignore")
            blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *_IN_FLOAT32]
            converted = float16.convert_float_to_float16(model, op_block_list=blocked)
        _drop_doubles(converted.graph)
        result = _in_order(converted)
        del result.graph.value_info[:]
        onnx.checker.check_model(result)
    except Exception as error:
        if not explained(error, "onnx", "onnxruntime"):
            raise
        raise ExportError(
            f"{shown} cannot be converted to float16: {type(error).__name__}: {error}"
        ) from error
    return result


def _in_single_precision(graph: Any) -> None:
    """float32 in place of float64, for which engines lack operators: it comes from numbers of Python, not by intent."""
    from onnx import TensorProto, numpy_helper

    for tensor in tensors_of(graph):
        if tensor.data_type == TensorProto.DOUBLE:
            with np.errstate(over="ignore"):
                values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for one in graphs_of(graph):
        for item in (*one.input, *one.output, *one.value_info):
            if item.type.tensor_type.elem_type == TensorProto.DOUBLE:
                item.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in one.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i == TensorProto.DOUBLE:
                    attribute.i = TensorProto.FLOAT


# -------------------------------------------------------------------------------------------------- names


def used(node: Any) -> Iterator[str]:
    """The values that a node takes, also inside of its branches and bodies."""
    yield from node.input
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for graph in graphs_of(inner):
                for item in graph.node:
                    yield from item.input
                for output in graph.output:
                    yield output.name


def drop_unused(graph: Any) -> None:
    """Takes out nodes and constants that none of the outputs depends on."""
    _drop_what_is_not_needed(graph, {item.name for item in graph.output})


def _drop_what_is_not_needed(graph: Any, outputs: set[str]) -> None:
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needed: set[int] = set()
    values = set(outputs)
    waiting = list(outputs)
    while waiting:
        index = makers.get(waiting.pop())
        if index is None or index in needed:
            continue
        needed.add(index)
        for name in used(graph.node[index]):
            if name not in values:
                values.add(name)
                waiting.append(name)
    kept = [graph.node[index] for index in sorted(needed)]
    weights = [item for item in graph.initializer if item.name in values]
    sparse = [item for item in graph.sparse_initializer if item.values.name in values]
    for field, items in (("node", kept), ("initializer", weights), ("sparse_initializer", sparse)):
        copies = [type(item)() for item in items]
        for copy, item in zip(copies, items, strict=True):
            copy.CopyFrom(item)
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def _names(graph: Any) -> set[str]:
    """Of all values, in all graphs."""
    names: set[str] = set()
    for one in graphs_of(graph):
        names |= {item.name for item in (*one.input, *one.output, *one.initializer)}
        names |= {item.values.name for item in one.sparse_initializer}
        for node in one.node:
            names |= {*node.input, *node.output}
    return names


def _fresh(name: str, taken: set[str]) -> str:
    count, found = 1, name
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    return found


def _without_collisions(graph: Any, names: Mapping[str, str]) -> dict[str, str]:
    """The new names, and others for those values that already have one of them."""
    taken = _names(graph) | set(names.values())
    result = dict(names)
    for name in names.values():
        if name in taken and name not in names:
            result[name] = _fresh(f"{name}_of_theirs", taken)
            taken.add(result[name])
    return {old: new for old, new in result.items() if old != new}


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Values, everywhere. No graph inside another may use a name of the outer one for something else."""
    for one in graphs_of(graph):
        for item in (*one.input, *one.output, *one.initializer):
            item.name = names.get(item.name, item.name)
        for sparse in one.sparse_initializer:
            sparse.values.name = names.get(sparse.values.name, sparse.values.name)
        for node in one.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def _name_nodes(graph: Any) -> None:
    """A name for each node, once; and none of the stories that exporters tell of where it is from."""
    taken: set[str] = set()
    for one in graphs_of(graph):
        one.ClearField("doc_string")
        for node in one.node:
            node.name = _fresh(node.name or f"{node.op_type}", taken)
            taken.add(node.name)
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
            node.domain = ""


def _drop_doubles(graph: Any) -> None:
    """Takes out all but the first of equal casts: the converter makes one of a value for each node that takes it in
    float32, all with one name."""
    made: dict[str, bytes] = {}
    for node in list(graph.node):
        if node.op_type != "Cast" or not node.name.endswith("_cast_to_fp32_node"):
            continue
        said = node.SerializeToString(deterministic=True)
        if made.setdefault(node.output[0], said) is not said and made[node.output[0]] == said:
            graph.node.remove(node)


def _in_order(model: Any) -> Any:
    """The model with each node after those whose values it takes: the converter puts its own at the end."""
    import onnx

    for graph in graphs_of(model.graph):
        made = {name for node in graph.node for name in node.output if name}
        ready: set[str] = set()
        waiting = list(graph.node)
        order: list[Any] = []
        while waiting:
            later = []
            for node in waiting:
                if all(name in ready or name not in made for name in used(node)):
                    order.append(node)
                    ready.update(node.output)
                else:
                    later.append(node)
            if len(later) == len(waiting):
                raise onnx.checker.ValidationError("its nodes depend on each other in a circle")
            waiting = later
        copies = [onnx.NodeProto() for _ in order]
        for copy, node in zip(copies, order, strict=True):
            copy.CopyFrom(node)
        graph.ClearField("node")
        graph.node.extend(copies)
    return model
