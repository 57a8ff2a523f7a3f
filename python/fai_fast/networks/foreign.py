"""A network of anybody's from an ONNX file, or from a PyTorch module, with what its user says of it: a ModelSpec."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fai_fast._foreign import explained
from fai_fast._redaction import redacted
from fai_fast.engines import onnxruntime, openvino
from fai_fast.engines.base import INPUT, OUTPUTS, PACKAGES, reason
from fai_fast.errors import EngineError, ExportError
from fai_fast.networks import Network, Reference
from fai_fast.networks.constants import with_small_constants
from fai_fast.networks.deploy import deployed, drop_unused
from fai_fast.networks.fold import RANDOM, folded, shapes_of
from fai_fast.networks.masks import smaller_first
from fai_fast.networks.merge import merged
from fai_fast.networks.onnx_file import check, graphs_of, read, tensors_of
from fai_fast.networks.ports import (
    Tensor,
    Wanted,
    find_input,
    find_outputs,
    fixed,
    inferred,
    inputs_of,
    listed,
    outputs_of,
    with_shape,
)
from fai_fast.registry import ModelSpec, NetworkConfig

__all__ = [
    "VERSION",
    "check_config",
    "graph_of",
    "how_to_say",
    "is_module",
    "network_of",
    "plain",
    "spec_from",
    "with_our_names",
]

VERSION = 3
"""Counts changes of what is made of a file: a graph of another version is made again."""
LARGEST_VALUE = 1 << 33
"""Bytes of one value inside a graph: a small file can claim any shape."""
_LARGEST_SPEC = 1 << 24


def spec_from(spec: Any) -> ModelSpec:
    """What users say of a network: a ModelSpec, what its ``to_dict()`` gives, or a path to a JSON file of that.

    Raises:
        TypeError, ValueError: it is none of these, or not as it must be; the text names the field.
        FileNotFoundError, OSError: the file is not there, or cannot be read.
    """
    if isinstance(spec, ModelSpec):
        return spec
    if isinstance(spec, Mapping):
        return ModelSpec.from_dict(spec)
    if not isinstance(spec, (str, os.PathLike)):
        raise TypeError(
            f"spec: got {type(spec).__name__}, expected a ModelSpec, a dict of ModelSpec.to_dict(), or a file of it"
        )
    path = Path(os.fsdecode(spec))
    shown = redacted(str(path))
    if not path.is_file():
        raise FileNotFoundError(f"spec: no such file: {shown}; expected JSON as ModelSpec.to_dict() gives it")
    if path.stat().st_size > _LARGEST_SPEC:
        raise ValueError(f"spec: {shown} is too large, expected JSON as ModelSpec.to_dict() gives it")
    try:
        said = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"spec: {shown} cannot be read as JSON: {error}") from None
    try:
        return ModelSpec.from_dict(said)
    except (TypeError, ValueError) as error:
        raise type(error)(f"spec: {shown}: {error}") from None


def is_module(model: object) -> bool:
    """Whether it is a ``torch.nn.Module``; where PyTorch was not imported, nothing is."""
    torch = sys.modules.get("torch")
    kind = getattr(getattr(torch, "nn", None), "Module", None)
    return kind is not None and isinstance(model, kind)


def plain(model: Any) -> Any:
    """The module that ``torch.compile`` was given, in place of what it made of it; anything else as it is."""
    if is_module(model) and type(model).__name__ == "OptimizedModule":
        return getattr(model, "_orig_mod", model)
    return model


def network_of(model: Any, spec: ModelSpec, size: tuple[int, int], batch: int = 1) -> Network:
    """The network that `spec` is of: an ``.onnx`` file's, or a module's.

    Args:
        model: the file or the module.
        spec: what it is.
        size, batch: that its graph will be wanted in, if it takes them.

    Raises:
        TypeError, ValueError: it is neither, or not as it must be; the text says what came.
        FileNotFoundError, OSError: there is no such file, or it cannot be read.
    """
    if isinstance(model, (str, os.PathLike)) and os.fsdecode(model).lower().endswith(".onnx"):
        return network_of_file(Path(os.fsdecode(model)), spec)
    if is_module(model):
        from fai_fast.networks import module

        return module.network_of_module(plain(model), spec, size, batch)
    came = (
        redacted(os.fsdecode(model)) if isinstance(model, (str, os.PathLike)) else f"a {type(model).__name__}"
    )
    raise ValueError(
        f"spec: got one with {came}, expected it with an .onnx file or a torch.nn.Module alone: models by their names "
        "and folders say what they are"
    )


def network_of_file(path: Path, spec: ModelSpec) -> Network:
    """The network in an ONNX file.

    Raises:
        FileNotFoundError, OSError: there is no such file, or it cannot be read.
        ValueError: it is no ONNX model, or not one of an image; what its outputs are is found out when a graph is made.
    """
    config = check_config(spec)
    digest = hashlib.sha256(f"file {VERSION} ".encode())
    model = read(path, digest)
    shown = f"name_or_path: {redacted(str(path))}"
    image = find_input(model, config.input_name, shown)
    assert image.shape is not None
    batch, _, height, width = image.shape

    def graph(size: tuple[int, int], count: int) -> Any:
        check(model, shown)
        return graph_of(model, spec, size, count, shown)

    return Network(
        spec=spec,
        source=str(path),
        sha256=digest.hexdigest(),
        graph=graph,
        reference=lambda size, count: _reference(model, spec, size, count, shown),
        fixed_size=(height, width),
        fixed_batch=batch,
    )


def check_config(spec: ModelSpec) -> NetworkConfig:
    """The config of a network of others. Raises ValueError where the spec is of one of FocoosAI's."""
    if not isinstance(spec.config, NetworkConfig):
        raise ValueError(
            f"spec: got one of the family {spec.family!r}, expected the family 'custom', or one of transformers': "
            "networks of FocoosAI's come with weights, not as graphs or modules of others"
        )
    return spec.config


def with_our_names(spec: ModelSpec) -> ModelSpec:
    """The spec of a graph that was traced here, whose input and outputs have our names."""
    config = dataclasses.replace(
        check_config(spec),
        input_name=INPUT,
        mask_logits_name=OUTPUTS[0],
        class_logits_name=OUTPUTS[1],
    )
    return dataclasses.replace(spec, config=config)


def graph_of(
    model: Any,
    spec: ModelSpec,
    size: tuple[int, int],
    batch: int,
    shown: str,
    *,
    exact: bool = True,
) -> Any:
    """The deployed graph of somebody's model, an ``onnx.ModelProto``, in float32.

    Args:
        model: changed in place.
        spec, size, batch: what its outputs are, (height, width) and the images at once.
        shown: what it is, for errors.
        exact: whether it is held against something that is computed as it is, see :class:`Reference`: then sums keep
            their order, and weights their values.

    Raises:
        ValueError: its outputs are not what `spec` says; the text lists them.
        ExportError: it cannot be computed in this size.
    """
    import onnx

    ready, image, outputs = _found(model, spec, size, batch, shown)
    result = folded(deployed(ready, image, outputs, size))
    with_small_constants(result)
    drop_unused(result.graph)
    _check_certain(result.graph, shown)
    if not exact:
        if smaller_first(result):
            result = inferred(result)
        result = merged(result, shapes_of(result.graph))
    del result.graph.value_info[:]
    try:
        onnx.checker.check_model(result)
    except Exception as error:
        if not explained(error, "onnx"):
            raise
        raise ExportError(
            f"{shown}: its graph without what its outputs do not need is not valid: {error}"
        ) from error
    return result


def _found(
    model: Any, spec: ModelSpec, size: tuple[int, int], batch: int, shown: str
) -> tuple[Any, Tensor, tuple[Tensor, Tensor]]:
    """The model in one size, its input, and its mask and class logits."""
    config = check_config(spec)
    image = find_input(model, config.input_name, shown)
    ready = fixed(model, image, size, batch)
    _check_values(ready, shown)
    outputs = outputs_of(ready)
    relevant = [item for item in outputs if item.shape is None or len(item.shape) in (3, 4)]
    if any(not item.is_known for item in relevant):
        outputs = _with_openvinos_shapes(ready, image, (batch, 3, *size), outputs, shown)
    classes = f"{config.num_classes} class{'' if config.num_classes == 1 else 'es'}"
    wanted = Wanted(
        masks=config.mask_logits_name,
        classes=config.class_logits_name,
        batch=batch,
        queries=config.num_queries,
        columns=config.class_columns,
        why=f"K = {classes}" + (", with config.cls_sigmoid" if config.cls_sigmoid else " and 'no object'"),
    )
    return ready, image, find_outputs(outputs, wanted, f"{shown} in {size[0]}x{size[1]}")


def _check_certain(graph: Any, shown: str) -> None:
    """ValueError where something is drawn at random: engines draw each in their own way."""
    false = {item.name for item in graph.initializer if not any(item.raw_data) and not any(item.int32_data)}
    for one in graphs_of(graph):
        for node in one.node:
            dropped = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] not in ("", *false)
            if node.op_type in RANDOM or dropped:
                raise ValueError(
                    f"{shown}: its node {node.name!r:.80} ({node.op_type}) gives other numbers in each run, expected "
                    "none like that: export the network in evaluation mode"
                )


def _check_values(model: Any, shown: str) -> None:
    """ValueError where a value inside is larger than any machine's memory should be asked for."""
    for item in model.graph.value_info:
        if not item.type.HasField("tensor_type"):
            continue
        count = 1
        for side in item.type.tensor_type.shape.dim:
            count *= max(1, side.dim_value)
        if 4 * count > LARGEST_VALUE:
            raise ValueError(
                f"{shown}: its value {item.name!r:.80} has {count} elements, expected at most {LARGEST_VALUE // 4}"
            )


def _with_openvinos_shapes(
    model: Any, image: Tensor, shape: tuple[int, ...], outputs: list[Tensor], shown: str
) -> list[Tensor]:
    """The outputs with shapes that ONNX's own inference does not see: OpenVINO folds constants meanwhile."""
    package = openvino.package()
    try:
        read_model = package.Core().read_model(model.SerializeToString())
        read_model.reshape({image.name: list(shape)})
        known = {
            name: [side.get_length() if side.is_static else None for side in port.partial_shape]
            if port.partial_shape.rank.is_static
            else None
            for port in read_model.outputs
            for name in port.get_names()
        }
    except Exception as error:
        if not explained(error, *PACKAGES):
            raise
        raise ExportError(
            f"{shown}: the graph cannot be computed for images {shape}: {_why(error)}; export it for this size, or "
            "say the size it is for with im_size="
        ) from error
    return [with_shape(item, known.get(item.name, item.shape)) for item in outputs]


def _why(error: BaseException) -> str:
    """What OpenVINO says of the first node that does not fit, of a report of many lines; else its one line."""
    report = str(error).partition("\nSummary:")[0]
    node = re.search(r"ONNX node '<Node\((\w+)\): (.{1,200}?)>'", report)
    said = [line.strip() for line in report.splitlines() if line.strip()]
    return f"{node[1]} {node[2]}: {said[-1][:200]}" if node else reason(error)


def how_to_say(path: Path) -> str:
    """How the spec of a file is written that came without one, from the shapes in it. Raises as :func:`read`."""
    model = read(path)
    inputs, outputs = inputs_of(model), outputs_of(model)
    columns = [item.shape[2] for item in outputs if item.shape is not None and len(item.shape) == 3]
    known = sorted({side for side in columns if side is not None and side != 4})
    classes = "..."
    if known:
        classes = f"...{known[0] - 1} names, or {known[0]} with config.cls_sigmoid"
    sides = next(
        (item.shape[2:] for item in inputs if item.shape is not None and len(item.shape) == 4), (None, None)
    )
    size = "640" if None in sides else str(sides[0]) if sides[0] == sides[1] else str(sides)
    return (
        f"its inputs are {listed(inputs)}, its outputs {listed(outputs)}. With mask and class logits among them: "
        f"fai_fast.load({path.name!r}, spec=fai_fast.ModelSpec(name={path.stem!r}, task='instance', "
        f"classes=({classes}), im_size={size}))"
    )


# --------------------------------------------------------------------------------------------- reference


def _reference(model: Any, spec: ModelSpec, size: tuple[int, int], batch: int, shown: str) -> Reference:
    """The original, with all that was in it, by whatever engine is here."""
    import onnx

    _, image, outputs = _found(model, spec, size, batch, shown)
    names = [item.name for item in outputs]
    # An engine fuses operators in float16 as it likes, and rounds between those that are left. What is float64 in the
    # original is float32 in the graph, and maybe another engine's.
    others = (onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    exact = not any(item.data_type in others for item in tensors_of(model.graph)) and image.kind == "float32"
    problems = []
    for prepare in (_in_onnxruntime, _in_openvino):
        try:
            engine, run = prepare(model, image, (batch, 3, *size), names)
        except EngineError as error:
            problems.append(str(error))
            continue
        except Exception as error:
            if not explained(error, *PACKAGES):
                raise
            problems.append(reason(error))
            continue
        said = f"{shown} cannot be run by {engine}"
        return Reference(f"the original file in {engine}", _as_float32(run, image.kind, said), exact)
    raise ExportError(f"{shown}: no engine can run it: {'; '.join(problems)}")


_Run = Callable[[Any], tuple[Any, Any]]


def _as_float32(run: _Run, kind: str, said: str) -> _Run:
    """The same between float32 arrays; ExportError with what is `said` where it fails."""

    def checked(images: Any) -> tuple[Any, Any]:
        try:
            masks, classes = run(images.astype(kind))
        except Exception as error:
            if not explained(error, *PACKAGES):
                raise
            raise ExportError(f"{said}: {reason(error)}") from error
        return np.array(masks, np.float32), np.array(classes, np.float32)

    return checked


def _in_onnxruntime(model: Any, image: Tensor, shape: tuple[int, ...], names: list[str]) -> tuple[str, _Run]:
    package = onnxruntime.package()
    options = package.SessionOptions()
    options.log_severity_level = 4
    session = package.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return f"onnxruntime {onnxruntime.version()}", lambda images: session.run(names, {image.name: images})


def _in_openvino(model: Any, image: Tensor, shape: tuple[int, ...], names: list[str]) -> tuple[str, _Run]:
    package = openvino.package()
    core = package.Core()
    ready = core.read_model(model.SerializeToString())
    ready.reshape({image.name: list(shape)})
    compiled = core.compile_model(ready, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()

    def run(images: Any) -> tuple[Any, Any]:
        request.infer({image.name: images})
        masks, classes = (request.get_tensor(name).data for name in names)
        return masks, classes

    return f"openvino {openvino.version()}", run
