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

Tensor = npt.NDArray[np.float32]


class Attempt:
    """Which products stay as they are.

    Attributes:
        name: of them, to read; "" for none.
        patterns: regular expressions of their nodes' names.
        of_activations: whether products of two activations stay, whatever they are called.
    """

    def __init__(self, name: str, *patterns: str, of_activations: bool = False) -> None:
        self.name, self.patterns, self.of_activations = name, patterns, of_activations

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


# What others call their nodes says nothing. Attention and the masks are where two activations are multiplied.
ATTEMPTS_OF_OTHERS = (
    Attempt(""),
    Attempt("two activations, as in attention and masks", of_activations=True),
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
    ReLUs a bit of range.

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
    kept = attempt.kept(products, _of_activations(model)) + _of_places(model)
    with _silent():
        try:
            return package.quantize(
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
