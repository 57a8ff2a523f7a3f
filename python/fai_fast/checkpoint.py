"""Checkpoint files: what state dict is in one, read without running code from it."""

from __future__ import annotations

import io
import logging
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fai_fast import _torch_archive
from fai_fast._extras import install
from fai_fast._foreign import explained
from fai_fast.errors import WeightsError

__all__ = [
    "CONTAINERS",
    "Unreadable",
    "file_problem",
    "import_torch",
    "read_file",
    "state_in",
    "without_torch",
]

CONTAINERS = (
    "ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "net",
    "module",
)
"""The keys under which trainers put the state dict beside their own state, those of averaged weights first."""
_EXPECTED = (
    f"expected a state dict, or one under {', '.join(map(repr, CONTAINERS[:-1]))} or {CONTAINERS[-1]!r}"
)
# Whose exceptions torch.load() and zipfile let through.
_READERS = ("torch", "pickle", "_pickle", "zipfile", "zlib", "struct", "tarfile", "numpy")
_TORCHSCRIPT = (
    "is a TorchScript archive, which holds code; save its state dict: "
    "torch.save(torch.jit.load(path).state_dict(), new_path)"
)
_MAX_NESTING = 3
_LARGEST_PICKLE = 1 << 26

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

_log = logging.getLogger("fai_fast")


class Unreadable(WeightsError):
    """A file whose content is at fault."""


def read_file(path: Path) -> dict[str, Any]:
    """The state dict in a checkpoint file, whatever its suffix: names to NumPy arrays or torch tensors.

    Raises:
        WeightsError: it is not a checkpoint, is damaged, or would have to run code to be read; or PyTorch is missing.
    """
    if problem := file_problem(path):
        raise Unreadable(f"weights: {path} {problem}")
    return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)


def file_problem(path: Path) -> str:
    """What is wrong with a checkpoint file, as far as can be told without unpickling it; empty if nothing is."""
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
        if not explained(error):
            raise
        return f"cannot be read: {error.strerror}"
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        if not explained(error, *_READERS):
            raise
        return f"is damaged or incomplete: {error}"
    return f"is {_kind(head)}, expected a .pth or .safetensors checkpoint"


def _is_safetensors(path: Path) -> bool:
    """Whether it begins with the length of a JSON header. That may look like a pickle's first byte: ask this first."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < _MAX_HEADER


def _read_torch(path: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(path):
        return _read_archive(path)
    # The format before PyTorch 1.6, which nothing but PyTorch reads.
    torch = import_torch(f"{path.name}, a checkpoint in the format before PyTorch 1.6,")
    try:
        # Opened here, as torch makes much of a path's suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of pickle protocols, which says nothing to the user
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged archive leads it into
        if not explained(error, *_READERS):
            raise
        raise Unreadable(f"weights: {path} {_why_not(path, str(error) or type(error).__name__)}") from None
    return dict(state_in(found, f"weights: {path}"))


def _read_archive(path: Path) -> dict[str, Any]:
    """What torch.save wrote: read here, so that PyTorch, which takes seconds to import, need not be."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise Unreadable(f"weights: {path} {_TORCHSCRIPT}")
        found = _torch_archive.read_archive(path)
        if isinstance(found, _torch_archive.StoredTensor):
            raise Unreadable(f"weights: {path} holds a Tensor, {_EXPECTED}")
        return _torch_archive.arrays_of(state_in(found, f"weights: {path}"))
    except _torch_archive.RefusedArchive as error:
        raise Unreadable(f"weights: {path} {_more_than_tensors(path, str(error))}") from None
    except (_torch_archive.CorruptArchive, zipfile.BadZipFile) as error:
        raise Unreadable(f"weights: {path} is damaged or incomplete: {first_line(error)}") from None
    except OSError as error:
        if not explained(error):
            raise
        raise Unreadable(f"weights: {path} cannot be read: {error.strerror}") from None


def state_in(found: Any, source: str) -> Mapping[str, Any]:
    """The state dict in what a trainer saved: itself, or what it is packed into, see :data:`CONTAINERS`.

    Raises:
        WeightsError: there is none; the text says what was there.
    """
    content = found
    for _ in range(_MAX_NESTING):
        if not isinstance(content, Mapping):
            break
        held = [key for key in CONTAINERS if isinstance(content.get(key), Mapping) and content[key]]
        if not held:
            break
        if len(held) > 1:
            _log.warning(
                "%s holds %s: taking %r; for another one pass what is under it as weights=",
                source,
                " and ".join(map(repr, held)),
                held[0],
            )
        content = content[held[0]]
    if not isinstance(content, Mapping):
        raise Unreadable(f"{source} holds a {type(content).__name__}, {_EXPECTED}")
    if not content:
        raise Unreadable(f"{source} holds a dict without anything in it, {_EXPECTED}")
    if not all(isinstance(key, str) for key in content):
        raise Unreadable(f"{source} holds a dict with a key that is not a str, {_EXPECTED}")
    if not any(hasattr(value, "shape") for value in content.values()):
        shown = ", ".join(map(repr, list(content)[:8]))
        raise Unreadable(f"{source} holds {shown}, and no tensors under them, {_EXPECTED}")
    return content


def _why_not(path: Path, reason: str) -> str:
    """What torch.load's error means to whoever has the file."""
    detail = re.search(r"GLOBAL ([\w.]+)|(Unsupported (?:class|operand|instruction) ?[\w.]*)", reason)
    if detail:
        return _more_than_tensors(path, detail[1] or detail[2])
    return f"is damaged or incomplete: {first_line(reason)}"


def _more_than_tensors(path: Path, what: str) -> str:
    return (
        f"holds more than tensors ({what}): reading it would run code from it and is refused; if you trust it, save "
        f"its tensors: {_way_out(path)}"
    )


def _way_out(path: Path) -> str:
    """The Python that saves the tensors of a file which holds more than that."""
    opened = "torch.load(path, weights_only=False)"
    try:
        inside = _tensors_in(opened, _outline(path), _MAX_NESTING)
    except Exception as error:  # an advice is no reason to fail in another way; nobody knows what is in there
        if not explained(error, *_READERS):
            raise
        inside = None
    if inside is None:
        return (
            f"found = {opened}, then torch.save(..., new_path) of the network's state dict that is in found"
        )
    return f"torch.save({inside}, new_path)"


class _Object:
    """Stands for an object that a pickle would make: of what class or function, and what state it is given."""

    def __init__(self, origin: str = "") -> None:
        self.origin = origin
        self.state: object = None


_MARK = _Object()


def _outline(path: Path) -> object:
    """The layout of what a file of torch.save holds: dicts, str and tuples as they are, all else an _Object."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if archive.getinfo(name).file_size > _LARGEST_PICKLE:
                raise ValueError("too much to look through for an advice")
            return _outline_of(io.BytesIO(archive.read(name)))
    with path.open("rb") as file:
        for _ in range(3):  # before the object there are a number, a version and the machine's sizes
            _outline_of(file)
        return _outline_of(file)


def _outline_of(file: IO[bytes]) -> object:
    """The layout of a pickle, read instruction by instruction; none of them is carried out."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for instruction, argument, _ in pickletools.genops(file):
        match instruction.name:
            case "MARK":
                stack.append(_MARK)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(instruction.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items = _popped_to_mark(stack)
                stack.append(tuple(items))
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM" | "SETITEMS":
                items = (
                    _popped_to_mark(stack) if instruction.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                )
                if isinstance(stack[-1], dict):
                    stack[-1].update(
                        (key, value)
                        for key, value in zip(items[::2], items[1::2], strict=True)
                        if type(key) is str
                    )
            case "GLOBAL":
                stack.append(_Object(str(argument).replace(" ", ".")))
            case "STACK_GLOBAL":
                name = stack.pop()
                stack.append(_Object(f"{stack.pop()}.{name}"))
            case "REDUCE" | "NEWOBJ":
                stack.pop()
                made = stack.pop()
                stack.append({} if made.origin == "collections.OrderedDict" else _Object(made.origin))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Object):
                    stack[-1].state = state
            case "PERSID" | "BINPERSID":
                # Files of the older format have a module's class, with its source, where others have storages.
                known = stack.pop() if instruction.name == "BINPERSID" else None
                stack.append(known[1] if isinstance(known, tuple) and known[0] == "module" else _Object())
            case "STOP":
                break
            case _:
                before = instruction.stack_before
                if pickletools.markobject in before:
                    _popped_to_mark(stack)
                    before = before[: before.index(pickletools.markobject)]
                del stack[len(stack) - len(before) :]
                stack += [_Object() for _ in instruction.stack_after]
    return stack.pop()


def _popped_to_mark(stack: list[Any]) -> list[Any]:
    place = max(index for index, item in enumerate(stack) if item is _MARK)
    items = stack[place + 1 :]
    del stack[place:]
    return items


def _tensors_in(expression: str, found: object, depth: int) -> str | None:
    """The Python for the state dict in what `expression` is, of which `found` is the outline."""
    if isinstance(found, _Object):
        is_module = isinstance(found.state, Mapping) and "_modules" in found.state
        return f"{expression}.state_dict()" if is_module else None
    if not isinstance(found, Mapping) or depth == 0:
        return None
    for key in CONTAINERS:
        if key in found and (inside := _tensors_in(f"{expression}[{key!r}]", found[key], depth - 1)):
            return inside
    tensors = [_is_tensor(value) for value in found.values()]
    if not any(tensors):
        return None
    return (
        expression
        if all(tensors)
        else f"{{k: v for k, v in {expression}.items() if isinstance(v, torch.Tensor)}}"
    )


def _is_tensor(found: object) -> bool:
    return isinstance(found, _Object) and found.origin.startswith("torch._utils._rebuild_")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise Unreadable(f"weights: {path} is damaged or incomplete: {first_line(error)}") from None
    except OSError as error:
        if not explained(error):
            raise
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
    return WeightsError(f"weights: {what} needs PyTorch ({error}): {install('torch')}")


def _kind(head: bytes) -> str:
    """What a file that is not a checkpoint looks like."""
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
