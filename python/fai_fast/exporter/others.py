"""The deployed graph of a network that is not FocoosAI's: made from others' graphs, and held against the original."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from fai_fast import _gate
from fai_fast.errors import ExportError
from fai_fast.exporter.verify import (
    TOLERANCE,
    Float32,
    Verification,
    batches,
    compared,
    outputs_of,
)
from fai_fast.networks import Network, Reference
from fai_fast.networks.deploy import in_float16

__all__ = ["made"]

_log = logging.getLogger("fai_fast")


def made(
    network: Network, size: tuple[int, int], batch: int, precision: str, verify: bool
) -> tuple[Any, dict[str, Any] | None]:
    """The graph, an ``onnx.ModelProto``, and what was measured of it, None where nothing was.

    Args:
        network: whose.
        size: (height, width) of the images.
        batch: how many.
        precision: "fp32" or "fp16".
        verify: whether to hold it against the original.

    Raises:
        ValueError: the network's outputs are not what its spec says.
        ExportError: it cannot be made, or does not give what the original gives.
        EngineError: "fp16", and ONNX Runtime is not installed, or nothing runs the original.
    """
    model = network.graph(size, batch)
    if precision != "fp32":
        model = in_float16(model, network.source)
    if not verify:
        return model, None
    return model, _verified(model, network, size, batch, precision).to_dict()


def _verified(
    model: Any, network: Network, size: tuple[int, int], batch: int, precision: str
) -> Verification:
    """What both say of the same pictures: equal in fp32; in fp16 the same is found."""
    reference = network.reference(size, batch)
    low = precision != "fp32"
    images = batches(network.spec, size, batch, low=low)
    count = batch * len(images)
    engine, runs = outputs_of(model, images)
    expected = [reference.run(image) for image in images]
    _check_shapes(runs, expected, network, reference)
    _tell_probabilities(expected, network)
    found = compared(reference.name, engine, runs, expected, network.spec.config.cls_sigmoid)
    if low:
        return _same_found(found, runs, expected, network, size, precision, f"{count} drawn pictures")
    if found.equal:
        return found
    if reference.exact:
        differences = "{:.3g} and {:.3g}".format(*found.differences)
        raise ExportError(
            f"{network.spec.name}: the graph is not equal to {reference.name}: mask and class probabilities differ by "
            f"{differences}, expected at most {TOLERANCE:g}; measured: {found.to_dict()}"
        )
    return _same_found(found, runs, expected, network, size, precision, f"{count} made-up pictures")


def _check_shapes(
    runs: list[list[Float32]],
    expected: list[tuple[Float32, Float32]],
    network: Network,
    reference: Reference,
) -> None:
    for found, true in zip(runs, expected, strict=True):
        shapes = [array.shape for array in found], [array.shape for array in true]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"{network.spec.name}: the graph gives mask and class logits {shapes[0]}, and {reference.name} "
                f"{shapes[1]}: it depends on something else than the images"
            )


def _tell_probabilities(expected: list[tuple[Float32, Float32]], network: Network) -> None:
    """One line where outputs look as if a sigmoid or softmax had been applied already, which is easily overlooked."""
    for index, name in enumerate(("mask", "class")):
        values = [found[index] for found in expected]
        if all(array.min() >= 0 and array.max() <= 1 and array.max() > array.min() for array in values):
            _log.warning(
                "%s: the %s logits of %s are all between 0 and 1, as probabilities are; logits are expected, of which "
                "the probabilities are taken here",
                network.spec.name,
                name,
                network.source,
            )


def _same_found(
    found: Verification,
    runs: list[list[Float32]],
    expected: list[tuple[Float32, Float32]],
    network: Network,
    size: tuple[int, int],
    precision: str,
    pictures: str,
) -> Verification:
    """By what is found, where the numbers cannot be equal."""
    comparison = _gate.Comparison(network.spec, size)
    for (masks, classes), (true_masks, true_classes) in zip(runs, expected, strict=True):
        for index in range(len(masks)):
            one = slice(index, index + 1)
            comparison.add((masks[one], classes[one]), (true_masks[one], true_classes[one]))
    verdict = comparison.verdict(pictures)
    if not verdict.holds:
        raise ExportError(
            f"{network.spec.name}: the {precision} graph does not find what {found.against} finds: {verdict}; "
            f"measured: {found.to_dict()}"
            + ("" if precision == "fp32" else ". It may be beyond the precision's range: export it in fp32")
        )
    return dataclasses.replace(found, agreement=verdict.to_dict())
