"""An ONNX file of anybody's, read with care: nothing in it is run, and it may not lead out of its folder.

What comes out of :func:`read` is whole, one message without other files, functions or operators of somebody's own.
:func:`check` asks ONNX's checker, which is for whoever makes something of it. What its tensors are is the business of
``ports``.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fai_fast._foreign import explained
from fai_fast._redaction import redacted

__all__ = ["LARGEST_FILE", "OLDEST_OPSET", "check", "graphs_of", "read", "tensors_of"]

LARGEST_FILE = (1 << 31) - 1
"""Bytes: protobuf has no larger messages, and a deployed graph is one."""
OLDEST_OPSET = 9
"""Before it operators such as Upsample and Scan were others; exporters have written newer ones since 2019."""
MOST_NODES = 1 << 20
"""Of a graph with its functions written out: a small file can nest functions until they fill any memory."""
_STANDARD = ("", "ai.onnx")
_HALF_BYTES = ("INT4", "UINT4", "FLOAT4E2M1")


def read(path: Path, digest: Any = None) -> Any:
    """The model in a file as an ``onnx.ModelProto`` that holds everything itself.

    Args:
        path: the file. Weights in other files ("external data") are taken from its own folder and those below.
        digest: of ``hashlib``, which gets all that was read; None for none.

    Raises:
        FileNotFoundError, OSError: there is no such file, or it cannot be read.
        ValueError: it is no ONNX model, damaged, too large, or needs what not every engine has; the text says what came
            and what is expected.
    """
    import onnx
    from google.protobuf.message import DecodeError

    shown = f"name_or_path: {redacted(str(path))}"
    size = _size(path, shown)
    content = path.read_bytes()
    if digest is not None:
        digest.update(content)
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        raise ValueError(
            f"{shown} is no ONNX model, or is damaged: it cannot be decoded; export or copy it again"
        ) from None
    _check_model(model, shown)
    model = _without_functions(model, shown)
    _check_operators(model, shown)
    _fetch_external(model, path, size, shown, digest)
    _check_tensors(model, shown)
    return model


def check(model: Any, shown: str) -> None:
    """ValueError where ONNX's checker finds the model wrong; `shown` is what it is."""
    import onnx

    try:
        onnx.checker.check_model(model)
    except Exception as error:
        if not explained(error, "onnx"):
            raise
        raise ValueError(f"{shown} is not a valid ONNX model: {_line(error)}") from error


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph, and those in it: the branches and bodies of If, Loop and Scan."""
    waiting = [graph]
    while waiting:
        one = waiting.pop()
        yield one
        for node in one.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def _size(path: Path, shown: str) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{shown}: no such file") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{shown} is no regular file, expected an .onnx file")
    if status.st_size == 0:
        raise ValueError(f"{shown} is empty, expected an ONNX model")
    if status.st_size > LARGEST_FILE:
        raise ValueError(f"{shown} has {status.st_size} bytes, expected at most {LARGEST_FILE} (2 GiB)")
    return status.st_size


def _check_model(model: Any, shown: str) -> None:
    import onnx

    # Almost any bytes decode as a message of which nothing is known.
    if not model.HasField("graph") or not model.graph.node or not model.ir_version >= 1:
        raise ValueError(f"{shown} is no ONNX model, or is damaged: there is no graph in it")
    if model.ir_version > onnx.IR_VERSION:
        raise ValueError(
            f"{shown} has IR version {model.ir_version}, expected at most {onnx.IR_VERSION}, the newest that onnx "
            f"{onnx.__version__} here knows: pip install -U onnx, or export it with an older opset"
        )
    newest = onnx.defs.onnx_opset_version()
    versions = [item.version for item in model.opset_import if item.domain in _STANDARD]
    if len(versions) != 1:
        raise ValueError(f"{shown} names {len(versions)} versions of ONNX's operators (opset), expected one")
    if not OLDEST_OPSET <= versions[0] <= newest:
        raise ValueError(
            f"{shown} has opset {versions[0]}, expected {OLDEST_OPSET} to {newest}; export it with opset 18, or "
            "convert it with onnx.version_converter"
        )


def _without_functions(model: Any, shown: str) -> Any:
    """The model with its own functions written out, as exporters of modules leave them in the file."""
    import onnx.inliner

    if not model.functions:
        return model
    bodies = {(item.domain, item.name): item.node for item in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Any, above: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key not in bodies:
                total += 1
                continue
            if key in above or len(above) > 100:
                raise ValueError(
                    f"{shown}: its function {node.op_type} calls itself, or lies too deep, expected none"
                )
            if key not in counts:
                counts[key] = count(bodies[key], (*above, key))
            total += counts[key]
        return total

    if (nodes := sum(count(graph.node, ()) for graph in graphs_of(model.graph))) > MOST_NODES:
        raise ValueError(
            f"{shown} has {nodes} nodes with its functions written out, expected at most {MOST_NODES}"
        )
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:
        if not explained(error, "onnx"):
            raise
        raise ValueError(f"{shown}: its functions cannot be written out: {_line(error)}") from error


def _check_operators(model: Any, shown: str) -> None:
    others = sorted(
        {
            f"{node.domain}::{node.op_type}"
            for graph in graphs_of(model.graph)
            for node in graph.node
            if node.domain not in _STANDARD
        }
    )
    if others:
        raise ValueError(
            f"{shown} has operators that are not ONNX's own, {', '.join(others[:5])}"
            f"{', ...' if len(others) > 5 else ''}, which not every engine runs; expected ONNX's alone: export it "
            "again without optimizing it for one engine"
        )


# ------------------------------------------------------------------------------------------------ tensors


def tensors_of(graph: Any) -> Iterator[Any]:
    """All constants, of all graphs in it."""
    for one in graphs_of(graph):
        yield from one.initializer
        for sparse in one.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in one.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _fetch_external(model: Any, path: Path, size: int, shown: str, digest: Any) -> None:
    """Puts the weights that lie in other files into the message."""
    import onnx

    total = size
    for tensor in tensors_of(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        said = {item.key: item.value for item in tensor.external_data}
        what = f"{shown}: the weights {tensor.name!r:.80}"
        place = _external_place(path.parent, said.get("location", ""), what)
        there = place.stat().st_size
        expected = _bytes_of(tensor, what)
        try:
            offset, length = int(said.get("offset", 0)), int(said.get("length", expected))
        except ValueError:
            raise ValueError(f"{what}: their offset or length is no number; export it again") from None
        if offset < 0 or length != expected or offset + length > there:
            raise ValueError(
                f"{what} are said to be {length} bytes at {offset} of {place.name}, which has {there}, expected "
                f"{expected} for shape {tuple(tensor.dims)}: a file is damaged, or of another export"
            )
        total += length
        if total > LARGEST_FILE:
            raise ValueError(
                f"{shown} and the files that it names have more than {LARGEST_FILE} bytes (2 GiB), which is the most"
            )
        with place.open("rb") as file:
            file.seek(offset)
            content = file.read(length)
        if len(content) != length:
            raise ValueError(f"{what}: {place.name} was changed while it was read")
        if digest is not None:
            digest.update(content)
        tensor.raw_data = content
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def _external_place(folder: Path, location: str, what: str) -> Path:
    """The file that a model names for its weights: in its own folder or below, and nowhere else."""
    parts = (PurePosixPath(location), PureWindowsPath(location))
    outside = any(item.is_absolute() or item.drive or item.root or ".." in item.parts for item in parts)
    if not location or "\0" in location or outside:
        raise ValueError(
            f"{what} are said to be in {location!r:.200}, expected a file in the folder of the model or below it"
        )
    place = folder / location
    try:
        real = place.resolve(strict=True)
    except (OSError, RuntimeError):
        raise ValueError(
            f"{what} are said to be in {location!r:.200}, and there is no such file beside the model; copy it there"
        ) from None
    if not real.is_relative_to(folder.resolve()):
        raise ValueError(
            f"{what} are said to be in {location!r:.200}, a link that leads out of the model's folder; copy the file "
            "itself there"
        )
    if not stat.S_ISREG(real.stat().st_mode) or not os.access(real, os.R_OK):
        raise ValueError(f"{what} are said to be in {location!r:.200}, which is no file that can be read")
    return real


def _bytes_of(tensor: Any, what: str) -> int:
    """How many bytes a tensor's values take, by its shape."""
    import onnx

    if any(side < 0 for side in tensor.dims):
        raise ValueError(f"{what} have the shape {tuple(tensor.dims)}, expected no negative sides")
    try:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError):
        raise ValueError(f"{what} have the unknown type {tensor.data_type}") from None
    if kind in ("STRING", "UNDEFINED"):
        raise ValueError(f"{what} are of the type {kind}, expected numbers")
    count = math.prod(int(side) for side in tensor.dims)
    return (count + 1) // 2 if kind in _HALF_BYTES else count * int(width)


def _check_tensors(model: Any, shown: str) -> None:
    """Sizes by shapes, before anything allocates what a damaged shape says."""
    import onnx

    for tensor in tensors_of(model.graph):
        if tensor.data_type == onnx.TensorProto.STRING:
            continue
        what = f"{shown}: the weights {tensor.name!r:.80}"
        expected = _bytes_of(tensor, what)
        if tensor.HasField("raw_data"):
            if len(tensor.raw_data) != expected:
                raise ValueError(
                    f"{what} have {len(tensor.raw_data)} bytes, expected {expected} for shape {tuple(tensor.dims)}: "
                    "the file is damaged"
                )
        # One value may take a byte of the message, and none less than that.
        elif expected > 16 * LARGEST_FILE or math.prod(tensor.dims) > LARGEST_FILE:
            raise ValueError(
                f"{what} have the shape {tuple(tensor.dims)}, which no file holds: it is damaged"
            )


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
