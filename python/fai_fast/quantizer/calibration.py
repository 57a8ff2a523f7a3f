"""A deployed graph in int8, by NNCF: ranges from pictures, biases corrected, weights stored in a byte each."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast._extras import install
from fai_fast.engines import openvino, openvino_deformable
from fai_fast.engines.base import INPUT, import_lock
from fai_fast.errors import ExportError
from fai_fast.registry import ModelSpec
from fai_fast.registry.spec import OWN_FAMILIES

__all__ = ["ATTEMPTS", "Attempt", "attempts_for", "calibrate", "nncf", "version"]

_AS_IT_IS = ("Convert", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_TRANSPOSED = ("ConvolutionBackpropData", "GroupConvolutionBackpropData")
# What NNCF gives inputs in int8 although no time is saved by it.
_BETWEEN = (
    "Add",
    "Divide",
    "Erf",
    "Gelu",
    "Interpolate",
    "MVN",
    "Multiply",
    "Power",
    "ReduceMean",
    "ReduceSum",
    "Softmax",
    "Sqrt",
    "SquaredDifference",
    "Subtract",
)

Tensor = npt.NDArray[np.float32]


class Attempt:
    """Which products stay as they are.

    Attributes:
        name: of them, to read; "" for none.
        patterns: regular expressions of their nodes' names.
        of_activations: whether products of two activations stay, whatever they are called.
        products_alone: whether all that is no product stays, but for sums of convolutions.
    """

    def __init__(
        self, name: str, *patterns: str, of_activations: bool = False, products_alone: bool = False
    ) -> None:
        self.name, self.patterns = name, patterns
        self.of_activations, self.products_alone = of_activations, products_alone

    def kept(self, names: Sequence[str], of_activations: Collection[str] = ()) -> list[str]:
        """Those of `names` that stay as they are, of which some are products of two activations."""
        return [
            name
            for name in names
            if any(re.fullmatch(pattern, name) for pattern in self.patterns)
            or (self.of_activations and name in of_activations)
        ]


# The names are those that the exporter gives. Convolutions are most of the time and cost least: they are int8 always.
# The products of two activations are a hundredth of the time, and cost the most.
ATTEMPTS = (
    Attempt("attention's scores", r"(.*/)?(cross|self)/(scores|taken)"),
    Attempt(
        "all of attention, and the products that decide masks and classes",
        r"(.*/)?(cross|self)/.*",
        r"head/layer\d+/(mask|embedding)/.*",
        r"head/(masks|classes).*",
    ),
)


# What others call their nodes says nothing. Attention and the masks are where two activations are multiplied. Their
# transformers are large: what is in int8 between products keeps OpenVINO from computing it along with them, and what
# runs past the layers loses with each.
ATTEMPTS_OF_OTHERS = (
    Attempt("", products_alone=True),
    Attempt("two activations, as in attention and masks", of_activations=True, products_alone=True),
)


def attempts_for(spec: ModelSpec) -> tuple[Attempt, ...]:
    """How a network is quantized, the next where the one before loses too much."""
    return ATTEMPTS if spec.family in OWN_FAMILIES else ATTEMPTS_OF_OTHERS


@cache
def nncf() -> Any:
    """NNCF's own module, imported without its telemetry. Raises ExportError where it cannot be imported."""
    openvino.package()
    logger = logging.getLoggerClass()
    with import_lock, openvino.without_telemetry():
        try:
            module = importlib.import_module("nncf")
        except ImportError as error:
            raise ExportError(
                f"quantize: NNCF cannot be imported ({error}); install it: {install('quantize')}"
            ) from error
        finally:
            # It makes its own class that of all loggers of the process.
            logging.setLoggerClass(logger)
    # Not its set_log_level(), which sets the level of all handlers that others hung on its logger, too.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return module


def version() -> str:
    """NNCF's version. Raises ExportError where it cannot be imported."""
    nncf()
    return metadata.version("nncf")


def calibrate(
    graph: Path,
    count: int,
    inputs: Callable[[], Iterator[Tensor]],
    attempt: Attempt,
) -> Any:
    """The graph as an OpenVINO model with int8 products.

    Activations are asymmetric, as OpenVINO's kernels take them at the same speed; symmetric ones cost a network with
    ReLUs a bit of range. Where the kernels take symmetric ones only, those of others' networks are.

    Args:
        graph: an ONNX file of ``fai_fast.export``.
        count: inputs that there are.
        inputs: gives all of them, from the first on, as often as it is called: normalized, in the graph's shape.
        attempt: what stays as it is.

    Raises:
        ExportError: NNCF is not installed, or fails; the text has its own line.
        EngineError: the file is not a graph.
        What `inputs` raises.
    """
    package = nncf()
    model = openvino.read_graph(graph)
    products = [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() in ("MatMul", "Convolution", "GroupConvolution")
    ]
    source = _Inputs(inputs)
    of_activations = _of_activations(model)
    kept = attempt.kept(products, of_activations) + _of_places(model)
    if attempt.products_alone:
        # A name may be in the list once.
        kept += [name for name in _between(model) if name not in kept]
    with _silent():
        try:
            made = package.quantize(
                model,
                package.Dataset(source, lambda tensor: {INPUT: tensor}),
                preset=package.QuantizationPreset.MIXED,
                subset_size=count,
                ignored_scope=package.IgnoredScope(names=kept) if kept else None,
            )
        except Exception as error:
            if error is source.failure:  # of a picture, which the caller is told as it is
                raise
            raise ExportError(f"quantize: NNCF failed: {type(error).__name__}: {_line(error)}") from error
    if attempt.products_alone:
        _make_symmetric(made, of_activations)
    return made


def _of_activations(model: Any) -> set[str]:
    """The names of the matrix products of which neither side is a weight."""
    found = set()
    for op in model.get_ordered_ops():
        if op.get_type_name() == "MatMul" and not any(_is_weight(op.input_value(side)) for side in (0, 1)):
            found.add(op.get_friendly_name())
    return found


def _of_places(model: Any) -> list[str]:
    """The names of what computes where deformable attention reads: no place is one of 256."""
    return [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_friendly_name().startswith(openvino_deformable.NAME) and op.get_type_name() != "Constant"
    ]


def _is_weight(value: Any) -> bool:
    """Whether a value is constant, maybe in another type or shape."""
    node = value.get_node()
    while node.get_type_name() in _AS_IT_IS:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _between(model: Any) -> list[str]:
    """The names of what is computed between products.

    A sum with what a convolution gives is not among them: it is computed along with that, and read by the next.
    """
    return [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() in _BETWEEN
        and not (op.get_type_name() == "Add" and any(_is_convolved(op.input_value(side)) for side in (0, 1)))
    ]


def _is_convolved(value: Any) -> bool:
    """Whether a value is of a convolution, maybe scaled and shifted by constants."""
    node = value.get_node()
    while node.get_type_name() in ("Add", "Multiply"):
        sides = [side for side in (0, 1) if not _is_weight(node.input_value(side))]
        if len(sides) != 1:
            return False
        node = node.input_value(sides[0]).get_node()
    return node.get_type_name() in _CONVOLUTIONS


def _make_symmetric(model: Any, of_activations: Collection[str]) -> None:
    """Makes the ranges symmetric that OpenVINO computes in int8 only so.

    These are the inputs of transposed convolutions, and of products of two activations, but for a first side without
    negative values, such as attention's probabilities.
    """
    for op in model.get_ordered_ops():
        transposed = op.get_type_name() in _TRANSPOSED
        if not transposed and op.get_friendly_name() not in of_activations:
            continue
        for side in (0,) if transposed else (0, 1):
            node = op.input_value(side).get_node()
            while node.get_type_name() in _AS_IT_IS:
                node = node.input_value(0).get_node()
            if node.get_type_name() == "FakeQuantize":
                _widen(node, signed=side == 1)


def _widen(node: Any, *, signed: bool) -> None:
    """Gives a FakeQuantize a symmetric range around its own: of int8 if it has negative values or `signed`."""
    opset = openvino.package().opset13
    low, high = (node.input_value(side).get_node().get_data() for side in (1, 2))
    if not signed and (low >= 0).all():
        return
    most = np.maximum(np.abs(low) * (127 / 128), np.abs(high)).astype(np.float32)
    ends = (opset.constant(most * np.float32(-128 / 127)), opset.constant(most))
    for side, end in zip((1, 2, 3, 4), ends * 2, strict=True):
        node.input(side).replace_source_output(end.output(0))


class _Inputs:
    """Inputs that can be gone through again, and the error that ended it."""

    def __init__(self, inputs: Callable[[], Iterator[Tensor]]) -> None:
        self._inputs = inputs
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[Tensor]:
        try:
            yield from self._inputs()
        except BaseException as error:
            self.failure = error
            raise


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bars that NNCF draws on standard output, where programs write their data."""
    console = importlib.import_module("rich").get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
