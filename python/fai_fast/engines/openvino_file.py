"""A quantized network in one file: OpenVINO's two, its graph as XML and its weights, with what is said of them.

The container is that of safetensors, which runs no code and checks every length: two tensors of bytes, ``graph`` and
``weights``, and what is said in its metadata. ONNX has no room for it: OpenVINO's quantization is per tensor and side,
with levels that QuantizeLinear does not have.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast._foreign import explained
from fai_fast._redaction import redacted
from fai_fast.errors import EngineError

__all__ = ["SUFFIX", "Contents", "read", "read_account", "write"]

SUFFIX = ".openvino"
_ACCOUNT, _DIGEST = "fai_fast", "fai_fast.sha256"
_TENSORS = ("graph", "weights")
# Far more than any network's; a header of safetensors may have 100 MB.
_MOST_GRAPH = 1 << 28
_MOST_FILE = 1 << 33

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        account: what is said of the graph, as JSON types.
        graph: OpenVINO's XML.
        weights: what the XML points into; uint8, 64-byte aligned.
    """

    account: dict[str, Any]
    graph: bytes
    weights: Bytes


def write(path: Path, model: Any, account: Mapping[str, Any], package: Any) -> None:
    """Writes an OpenVINO model and what is said of it, JSON types, into the file at `path`.

    Args:
        package: OpenVINO's own module.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    with tempfile.TemporaryDirectory(prefix="fai_fast-") as folder:
        xml, binary = Path(folder) / "model.xml", Path(folder) / "model.bin"
        package.serialize(model, str(xml), str(binary))
        graph, weights = xml.read_bytes(), binary.read_bytes()
    said = json.dumps(dict(account), sort_keys=True, ensure_ascii=False, allow_nan=False)
    content = save(
        {"graph": np.frombuffer(graph, np.uint8), "weights": np.frombuffer(weights, np.uint8)},
        metadata={_ACCOUNT: said, _DIGEST: _digest(said, graph, weights)},
    )
    # safetensors' save_file() makes files that only their owner can read; these are made to be passed on.
    path.write_bytes(content)


def read(path: str | os.PathLike[str]) -> Contents:
    """What the file at `path` holds.

    Raises:
        FileNotFoundError: there is no such file.
        EngineError: it was not written by :func:`write`, or is not as it was written; the text says which.
    """
    place = Path(os.fsdecode(path))
    shown = redacted(str(place))
    from safetensors import SafetensorError, safe_open

    _check_size(place, shown)
    try:
        with safe_open(place, "numpy") as file:
            metadata = file.metadata() or {}
            if _ACCOUNT not in metadata or sorted(file.keys()) != sorted(_TENSORS):
                raise _foreign(shown, "it holds something else")
            shapes = {name: file.get_slice(name).get_shape() for name in _TENSORS}
            types = {file.get_slice(name).get_dtype() for name in _TENSORS}
            if types != {"U8"} or any(len(shape) != 1 for shape in shapes.values()):
                raise _foreign(shown, f"it has {', '.join(sorted(types))} of shapes {list(shapes.values())}")
            if shapes["graph"][0] > _MOST_GRAPH:
                raise _foreign(shown, f"its graph takes {shapes['graph'][0]} bytes")
            graph = file.get_tensor("graph").tobytes()
            weights = _aligned(file.get_tensor("weights"))
    except (SafetensorError, UnicodeDecodeError) as error:
        raise _foreign(shown, " ".join(str(error).split())[:200]) from None
    except OSError as error:
        if not explained(error, "safetensors"):
            raise
        raise EngineError(f"{shown} cannot be read: {error.strerror or error}") from None
    said = metadata[_ACCOUNT]
    if metadata.get(_DIGEST) != _digest(said, graph, weights):
        raise EngineError(
            f"{shown} is damaged, or was changed since it was written (its checksum differs); copy it again, or make "
            "it again with fai_fast.quantize"
        )
    return Contents(_account(said, shown), graph, weights)


def read_account(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file says of itself, once its checksum holds. Raises as :func:`read`."""
    return read(path).account


def _check_size(place: Path, shown: str) -> None:
    # safetensors would wait for ever at a FIFO, and an EngineError of a folder would say little.
    if not place.exists():
        raise FileNotFoundError(f"name_or_path: no such file: {shown}")
    if not place.is_file():
        raise EngineError(
            f"{shown} is {'a folder' if place.is_dir() else 'no regular file'}, expected a file"
        )
    size = place.stat().st_size
    if not 0 < size <= _MOST_FILE:
        raise _foreign(shown, "it is empty" if not size else f"it has {size} bytes")


def _account(said: str, shown: str) -> dict[str, Any]:
    try:
        account = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise _foreign(shown, str(error)) from None
    if not isinstance(account, dict):
        raise _foreign(shown, f"its account is a {type(account).__name__}")
    return account


def _foreign(shown: str, why: str) -> EngineError:
    return EngineError(f"{shown} was not written by fai_fast.quantize, or is damaged: {why}; make it again")


def _aligned(content: Bytes) -> Bytes:
    """A copy that starts at a multiple of 64 bytes, as the weights do in OpenVINO's own file."""
    room = np.empty(content.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    aligned = room[start : start + content.size]
    aligned[...] = content
    return aligned


def _digest(said: str, graph: bytes, weights: Any) -> str:
    """Of all three, and of where one ends and the next begins."""
    digest = hashlib.sha256()
    for part in (said.encode("utf-8", "surrogatepass"), graph, weights):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
