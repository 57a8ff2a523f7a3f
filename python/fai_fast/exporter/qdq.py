"""A deployed graph in int8 as TensorRT takes it: explicit, by QuantizeLinear and DequantizeLinear before products.

All is symmetric, with zero points of 0: weights in 127 steps to each side by output channel, activations by tensor.
Of FocoosAI's networks the convolutions are int8; of others' the linear layers too, of which some are made of nothing
else. Sums, biases, and everything else stay in the graph's own type: among that are attention and the products that
decide masks and classes, which are a small part of the time and the most sensitive to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fai_fast import _gate
from fai_fast._foreign import explained
from fai_fast._pictures import MOST, Pictures
from fai_fast.engines import onnxruntime as engine
from fai_fast.engines.base import INPUT, OUTPUTS, PACKAGES, reason
from fai_fast.errors import ExportError
from fai_fast.exporter.builder import Array
from fai_fast.exporter.graph import build_graph
from fai_fast.exporter.products import CONVOLUTION, Weighted, weighted
from fai_fast.exporter.verify import verify as verify_graph
from fai_fast.registry import ModelSpec

if TYPE_CHECKING:
    from fai_fast.weights import Weights

__all__ = [
    "HELP",
    "IR_VERSION",
    "OPSET",
    "SUBSET",
    "agreement",
    "batches",
    "make",
    "quantized",
    "runner",
    "scales",
    "single",
]

OPSET = 19
"""The first in which scales may be float16, so that products are."""
IR_VERSION = 9
"""The first that has it."""
SUBSET = 100
"""Pictures that ranges are taken from, where there are so many. Of the largest network each takes seconds."""
STEPS = 127
_BINS = 4096
_SAMPLES = 1 << 16  # of a tensor, in each picture
HELP = "More pictures, of what the model is for, may help; or export in fp16"

Run = Callable[[Array], list[Array]]


def make(
    weights: Weights, size: tuple[int, int], batch: int, pictures: Pictures, verify: bool
) -> tuple[Any, dict[str, Any] | None]:
    """The graph with int8 convolutions, the rest in float16, and what was measured of it.

    It is held against the fp32 graph, by what both find on some pictures, and that against the reference network.

    Args:
        weights: of the model.
        size: (height, width) of the images.
        batch: number of images.
        pictures: to take ranges from.
        verify: False measures nothing, and gives None in place of it.

    Raises:
        ExportError: it does not find what the fp32 graph finds, that is not equal to the reference network, or they
            cannot be run.
        EngineError: ONNX Runtime is not installed.
        What reading the pictures raises.
    """
    half = build_graph(weights.spec, weights.state, size, batch, "fp16")
    model = quantized(half, scales(half, batches(weights.spec, size, batch, pictures)))
    if not verify:
        return model, None
    exact = build_graph(weights.spec, weights.state, size, 1, "fp32")
    equal = verify_graph(exact, weights, size, 1, "fp32")
    verdict, said = agreement(single(model, batch), single(exact, 1), pictures, weights.spec, size)
    if not verdict.holds:
        raise ExportError(
            f"{weights.spec.name}: the int8 graph does not find what the fp32 graph finds: {verdict}. {HELP}"
        )
    return model, {**said, "fp32": None if equal is None else equal.to_dict()}


def agreement(
    low: _gate.Run, exact: _gate.Run, pictures: Pictures, spec: ModelSpec, size: tuple[int, int]
) -> tuple[_gate.Verdict, dict[str, Any]]:
    """How the int8 graph agrees with the fp32 graph on some of the pictures, and that as the file says it."""
    some = Pictures.given(pictures.argument, MOST)
    verdict = _gate.verify(low, exact, some, spec, size=size)
    return verdict, {
        "against": "fp32",
        "engine": f"onnxruntime {engine.version()}",
        "images": some.count,
        "agreement": verdict.to_dict(),
    }


def quantized(model: Any, scale_of: Mapping[str, float], names: Collection[str] | None = None) -> Any:
    """The graph with int8 products, as another onnx.ModelProto.

    Args:
        model: a deployed graph, whose operators mean what they mean in opset 18 or later.
        scale_of: of every tensor that such a product reads, what a step is worth. Where it is 0, which is that of a
            tensor with nothing in it, its products stay as they are.
        names: of the nodes to make int8, convolutions and linear layers; None for all convolutions.

    Raises:
        ExportError: a scale is missing, negative, or not finite in the graph's type.
    """
    import onnx
    from onnx import helper, numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    dtype = helper.tensor_dtype_to_np_dtype(graph.input[0].type.tensor_type.elem_type)
    weights = {item.name: item for item in graph.initializer}
    wanted = _products(graph, names)
    nodes: list[Any] = []
    done: set[str] = set()
    made: dict[tuple[str, int], str] = {}

    def constant(values: Any, kind: npt.DTypeLike, name: str) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def add(kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def rounded(what: Weighted, name: str) -> str:
        """The weight as it is computed with, made once for all nodes that share it."""
        if (what.weight, what.axis) not in made:
            values, steps = _rounded(numpy_helper.to_array(weights[what.weight]), what.axis, dtype)
            parts = [
                constant(values, np.int8, f"{name}.weight.int8"),
                constant(steps, dtype, f"{name}.weight.int8.scale"),
                constant(np.zeros(len(steps)), np.int8, f"{name}.weight.int8.zero"),
            ]
            made[what.weight, what.axis] = add(
                "DequantizeLinear", parts, f"{name}.weight.rounded", axis=what.axis
            )
        return made[what.weight, what.axis]

    for node in graph.node:
        what = wanted.get(node.name)
        if what is not None and (step := _checked(scale_of, node, dtype)):
            x = what.x
            if x not in done:
                done.add(x)
                by = [constant(step, dtype, f"{x}.int8.scale"), constant(0, np.int8, f"{x}.int8.zero")]
                add("DequantizeLinear", [add("QuantizeLinear", [x, *by], f"{x}.int8"), *by], f"{x}.rounded")
            node.input[:2] = [f"{x}.rounded", rounded(what, node.name)]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    [imported] = [item for item in result.opset_import if item.domain in ("", "ai.onnx")]
    imported.version = max(imported.version, OPSET)
    result.ir_version = max(result.ir_version, IR_VERSION)
    onnx.checker.check_model(result)
    return result


def scales(model: Any, inputs: Iterable[Array], names: Collection[str] | None = None) -> dict[str, float]:
    """For every tensor that such a product reads the scale with the least mean squared error.

    Args:
        model: a deployed graph.
        inputs: normalized images in the graph's shape; at least one.
        names: as for :func:`quantized`.

    Raises:
        ExportError: a tensor is not finite for one of them, or ONNX Runtime fails.
        EngineError: ONNX Runtime is not installed.
        What `inputs` raises.
    """
    read = list(dict.fromkeys(what.x for what in _products(model.graph, names).values()))
    inner = [name for name in read if name != INPUT]
    run: Run = runner(model, inner) if inner else lambda _: []
    found = {name: _Histogram(name) for name in read}
    for images in inputs:
        for name, values in zip([INPUT, *inner], [images, *run(images)], strict=True):
            if name in found:
                found[name].add(values)
    return {name: histogram.scale() for name, histogram in found.items()}


def runner(model: Any, outputs: Sequence[str] = OUTPUTS) -> Run:
    """A function of normalized images in the graph's shape that gives the tensors of these names, by ONNX Runtime.

    Every node is computed as it is written: its faster forms of Q/DQ round elsewhere, and overflow on older CPUs.

    Raises:
        EngineError: ONNX Runtime is not installed.
        ExportError: it does not take the graph; later, it fails.
    """
    import onnx

    package = engine.package()
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    kind = exposed.graph.input[0].type.tensor_type.elem_type
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in outputs)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    options = package.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    options.graph_optimization_level = package.GraphOptimizationLevel.ORT_ENABLE_BASIC

    def said(job: Callable[[], Any]) -> Any:
        try:
            return job()
        except Exception as error:  # ONNX Runtime raises a dozen kinds that share no base
            if not explained(error, *PACKAGES):
                raise
            raise ExportError(f"int8: ONNX Runtime cannot run the graph: {reason(error)}") from error

    session = said(
        lambda: package.InferenceSession(
            exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    )

    def run(images: Array) -> list[Array]:
        values: list[Array] = said(lambda: session.run(list(outputs), {INPUT: images.astype(dtype)}))
        return values

    return run


def batches(spec: ModelSpec, size: tuple[int, int], batch: int, pictures: Pictures) -> Iterator[Array]:
    """Normalized images in a graph's shape; the last batch is filled from its start."""
    frames = pictures.frames()
    while group := list(islice(frames, batch)):
        images = [_gate.normalized(frame, spec, size) for frame in group]
        yield np.concatenate([images[index % len(images)] for index in range(batch)])


def _products(graph: Any, names: Collection[str] | None) -> dict[str, Weighted]:
    """What the nodes of these names multiply; of all convolutions for None."""
    weights = {item.name: item for item in graph.initializer}
    found = {node.name: what for node in graph.node if (what := weighted(node, weights)) is not None}
    if names is None:
        return {name: what for name, what in found.items() if what.kind == CONVOLUTION}
    return {name: what for name, what in found.items() if name in names}


def single(model: Any, batch: int) -> _gate.Run:
    """A graph as a function of one image, which is all images of a batch."""
    run = runner(model)

    def first(images: Array) -> tuple[Array, Array]:
        masks, classes = run(np.repeat(images, batch, 0))
        return masks[:1], classes[:1]

    return first


def _checked(scale_of: Mapping[str, float], node: Any, dtype: npt.DTypeLike) -> float:
    """The scale of what a product reads."""
    name = node.input[0]
    if name not in scale_of:
        raise ExportError(f"int8: {node.name} reads {name}, of which there is no scale")
    with np.errstate(over="ignore"):
        held = float(np.asarray(scale_of[name], dtype))
    if not np.isfinite(held) or held < 0:
        raise ExportError(
            f"int8: the scale of {name} is {scale_of[name]!r}, expected a positive number that fits into "
            f"{np.dtype(dtype).name}, or 0"
        )
    return held


def _rounded(weight: Array, axis: int, dtype: npt.DTypeLike) -> tuple[npt.NDArray[np.int8], Array]:
    """A weight in int8, and each output channel's scale in `dtype`, with the least squared error.

    The channels lie along `axis`.
    """
    moved = np.moveaxis(weight, axis, 0)
    rows = moved.astype(np.float64).reshape(len(moved), -1)
    top = np.abs(rows).max(1)
    best, steps = np.full(len(rows), np.inf), np.ones(len(rows))
    for share in np.linspace(0.5, 1, 51):
        # Rounded first, so that the integers are those of the scale that is stored. Float16 ends at 6e-8.
        tried = np.maximum(share * top / STEPS, np.finfo(dtype).smallest_subnormal)
        tried = tried.astype(dtype).astype(np.float64)
        error = np.square(_on_grid(rows, tried[:, None]) * tried[:, None] - rows).sum(1)
        better = error < best
        best, steps = np.where(better, error, best), np.where(better, tried, steps)
    values = _on_grid(rows, steps[:, None]).astype(np.int8).reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(values, 0, axis)), steps.astype(dtype)


def _on_grid(values: Array, step: Any) -> Array:
    result: Array = np.clip(np.rint(values / step), -STEPS, STEPS)
    return result


class _Histogram:
    """How often magnitudes of a tensor occur. Its range doubles as larger ones come."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts = np.zeros(_BINS)
        self._range = 2.0**-24
        self._top = 0.0

    def add(self, values: Array) -> None:
        flat = np.abs(values.reshape(-1).astype(np.float32))
        top = float(flat.max())
        if not np.isfinite(top):
            raise ExportError(f"int8: {self._name} is not finite for one of the pictures")
        self._top = max(self._top, top)
        while self._range <= self._top:
            self._counts = np.concatenate([self._counts.reshape(-1, 2).sum(1), np.zeros(_BINS // 2)])
            self._range *= 2
        # An odd distance goes through all rows and columns of a map.
        some = flat[:: flat.size // _SAMPLES | 1]
        self._counts += np.bincount((some * (_BINS / self._range)).astype(np.int64), minlength=_BINS)

    def scale(self) -> float:
        """0 where there are but zeros."""
        centers = (np.arange(_BINS) + 0.5) * (self._range / _BINS)
        errors = []
        shares = np.linspace(0.2, 1, 81)
        for step in shares * (self._top / STEPS):
            if not step:
                return 0.0
            rounded = _on_grid(centers, step) * step
            errors.append(float((self._counts * np.square(rounded - centers)).sum()))
        return float(shares[int(np.argmin(errors))] * self._top / STEPS)
