"""The deployed graph of a network that is not FocoosAI's: made from others' graphs, and held against the original.

In int8 it is held against that graph in fp32, and by what both find.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from fai_fast import _gate
from fai_fast._foreign import explained
from fai_fast._pictures import Pictures
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

__all__ = ["made", "ready_for_int8"]

# What is newer in 19, where scales may be float16, means the same for all that was there in 18.
_OPSET = 18

_log = logging.getLogger("fai_fast")


def made(
    network: Network,
    size: tuple[int, int],
    batch: int,
    precision: str,
    verify: bool,
    pictures: Pictures | None = None,
) -> tuple[Any, dict[str, Any] | None]:
    """The graph, an ``onnx.ModelProto``, and what was measured of it, None where nothing was.

    Args:
        network: whose.
        size: (height, width) of the images.
        batch: how many.
        precision: "fp32", "fp16" or "int8".
        verify: whether to hold it against the original.
        pictures: to take ranges from, with "int8".

    Raises:
        ValueError: the network's outputs are not what its spec says.
        ExportError: it cannot be made, or does not give what the original gives.
        EngineError: "fp16" or "int8", and ONNX Runtime is not installed, or nothing runs the original.
        What reading the pictures raises.
    """
    model = network.graph(size, batch)
    if pictures is not None:
        return _in_int8(model, network, size, batch, verify, pictures)
    if precision != "fp32":
        model = in_float16(model, network.source)
    if not verify:
        return model, None
    return model, _verified(model, network, size, batch, precision).to_dict()


def _in_int8(
    exact: Any, network: Network, size: tuple[int, int], batch: int, verify: bool, pictures: Pictures
) -> tuple[Any, dict[str, Any] | None]:
    """The fp32 graph with products in int8 and the rest in float16, and what was measured of it."""
    from fai_fast.exporter import products, qdq

    spec = network.spec
    equal = _verified(exact, network, size, batch, "fp32") if verify else None
    ready = ready_for_int8(exact, network.source)
    choices = products.choices(ready)
    if not choices:
        raise ExportError(
            f"{spec.name}: {network.source} has no convolution and no linear layer to make int8; export it in fp16"
        )
    scales = qdq.scales(ready, qdq.batches(spec, size, batch, pictures), choices[0])
    half = in_float16(ready, network.source)  # where all values keep their names
    refused = []
    for names in choices:
        model = qdq.quantized(half, scales, names)
        if equal is None:
            return model, None
        verdict, said = qdq.agreement(
            qdq.single(model, batch), qdq.single(exact, batch), pictures, spec, size
        )
        if verdict.holds:
            return model, {**said, "fp32": equal.to_dict()}
        refused.append(f"with {products.in_words(model)}: {verdict}")
        _log.info("%s: int8 does not find what fp32 finds %s", spec.name, refused[-1])
    raise ExportError(
        f"{spec.name}: the int8 graph does not find what the fp32 graph finds {'; '.join(refused)}. {qdq.HELP}"
    )


def ready_for_int8(model: Any, shown: str) -> Any:
    """A copy of an fp32 graph that computes the same, with operators as int8 needs them.

    Raises:
        ExportError: its operators are of an opset that cannot be converted.
    """
    from fai_fast.exporter.products import with_plain_convolutions

    ready = _with_newer_operators(model, shown)
    with_plain_convolutions(ready)
    return ready


def _with_newer_operators(model: Any, shown: str) -> Any:
    """A copy of the graph in an opset to whose operators scales in float16 can be added."""
    import onnx

    [imported] = [item for item in model.opset_import if item.domain in ("", "ai.onnx")]
    if imported.version >= _OPSET:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.version_converter.convert_version(model, _OPSET)
    except Exception as error:
        if not explained(error, "onnx"):
            raise
        raise ExportError(
            f"{shown} has opset {imported.version}, and cannot be converted to {_OPSET}, which int8 needs: {error}; "
            f"export it again with opset {_OPSET}"
        ) from error


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
