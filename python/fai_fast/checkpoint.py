"""Checkpoint files: what state dict is in one, read without running code from it."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast.errors import WeightsError

__all__ = ["Unreadable", "file_problem", "import_torch", "read_file", "without_torch"]

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# The format itself allows no longer header.
_MAX_HEADER = 100_000_000
_SAFETENSORS_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Unreadable(WeightsError):
    """A file whose content is at fault."""


def read_file(path: Path) -> dict[str, Any]:
    """The state dict in a checkpoint file, whatever its suffix: names to NumPy arrays or torch tensors.

    Raises:
        WeightsError: it is no checkpoint, is damaged, or would have to run code to be read; or PyTorch is missing.
    """
    if problem := file_problem(path):
        raise Unreadable(f"weights: {path} {problem}")
    return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)


def file_problem(path: Path) -> str:
    """What is wrong with a checkpoint file, as far as can be told without unpickling it; empty if nothing is."""
    import zipfile

    try:
        with path.open("rb") as file:
            head = file.read(1024)
        if not head:
            return "is empty"
        if _is_safetensors(path):
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, "numpy"):
                    return ""
            except SafetensorError as error:
                return f"is damaged or incomplete: {first_line(error)}"
        if head.startswith(_PICKLE):
            return ""
        if head.startswith(_ZIP):
            # torch.load does not look at the archive's checksums.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            return f"is damaged: the checksum of {damaged} in it is wrong" if damaged else ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        return f"is damaged or incomplete: {error}"
    return f"is {_kind(head)}, expected a .pth or .safetensors checkpoint"


def _is_safetensors(path: Path) -> bool:
    """Whether it begins with the length of a JSON header. That may look like a pickle's first byte: ask this first."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < _MAX_HEADER


def _read_torch(path: Path) -> dict[str, Any]:
    torch = import_torch(f"{path.name}, a PyTorch checkpoint,")
    try:
        # Opened here, as torch makes much of a path's suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of pickle protocols, which says nothing to the user
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged archive leads it into
        raise Unreadable(f"weights: {path} {_why_not(str(error) or type(error).__name__)}") from None
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping) or not found or not all(isinstance(key, str) for key in found):
        kind = type(found).__name__
        raise Unreadable(
            f"weights: {path} holds a {kind}, expected a state dict, or one under the key 'model'"
        )
    return dict(found)


def _why_not(reason: str) -> str:
    """What torch.load's error means to whoever has the file."""
    if "TorchScript" in reason:
        return "is a TorchScript archive, which holds code; save the state dict: torch.save(model.state_dict(), path)"
    detail = re.search(r"GLOBAL ([\w.]+)|(Unsupported (?:class|operand|instruction) ?[\w.]*)", reason)
    if detail:
        return (
            f"holds more than tensors ({detail[1] or detail[2]}): reading it would run code from it and is refused; if "
            "you trust it, save its tensors: torch.save(torch.load(path, weights_only=False)['model'], new_path)"
        )
    return f"is damaged or incomplete: {first_line(reason)}"


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise Unreadable(f"weights: {path} is damaged or incomplete: {first_line(error)}") from None
    except OSError as error:
        raise Unreadable(f"weights: {path} cannot be read: {error.strerror}") from None
    state: dict[str, Any] = {}
    for key, tensor in tensors:
        kind, data = tensor["dtype"], tensor["data"]
        if kind == "BF16":  # the upper half of a float32
            values: npt.NDArray[Any] = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif kind in _SAFETENSORS_TYPES:
            values = np.frombuffer(data, _SAFETENSORS_TYPES[kind])
        else:
            raise WeightsError(f"weights: {path}: {key} is {kind}, expected F64, F32, F16 or BF16")
        state[key] = values.reshape(tensor["shape"])
    return state


def import_torch(what: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise without_torch(what, error) from None
    return torch


def without_torch(what: str, error: ImportError) -> WeightsError:
    return WeightsError(f"weights: {what} needs PyTorch ({error}): pip install 'fai-fast[torch]'")


def _kind(head: bytes) -> str:
    """What a file that is no checkpoint looks like."""
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (git lfs pull)"
    if start.startswith((b"{", b"[")):
        return "a JSON file"
    return "of no known format, or damaged"


def first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")
