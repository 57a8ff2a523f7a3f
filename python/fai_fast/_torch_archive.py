"""What torch.save wrote, read without PyTorch: tensors, and the plain values and dicts around them.

A file is an archive with a pickle, which says what there is, and a member for the numbers of each storage. Nothing of
the pickle is carried out: its instructions are followed here one by one, names in it are compared with those below, and
one that is not there ends the reading. So a file cannot run code, and what is made of it is about as large as it is.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CorruptArchive", "RefusedArchive", "StoredTensor", "arrays_of", "read_archive"]

# A checkpoint of a thousand tensors and their optimizer has half a megabyte; what is made of a byte may take a hundred.
_LARGEST_PICKLE = 1 << 23
_MOST_DIMENSIONS = 64
# A tensor may repeat the numbers of its storage (an expanded one); of one that is larger than this none may.
_MOST_REPEATED = 1 << 20
# None for what NumPy has no type for: the upper half of a float32.
_STORAGES: dict[str, str | None] = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": None,
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
_DTYPES = {
    f"torch.{name}": kind
    for name, kind in (
        ("uint16", "u2"),
        ("uint32", "u4"),
        ("uint64", "u8"),
        ("bfloat16", None),
        ("float32", "f4"),
    )
}
# What is only kept, in settings beside the tensors, and never called.
_PLAIN = {
    "torch.bool",
    "torch.contiguous_format",
    "torch.channels_last",
    "torch.float16",
    "torch.float64",
    "torch.int8",
    "torch.int16",
    "torch.int32",
    "torch.int64",
    "torch.preserve_format",
    "torch.strided",
    "torch.uint8",
    *_DTYPES,
}
_DICTS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
_TENSORS = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
# What makes a tensor that has attributes of its own, and the types that it may be of.
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
_TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter"}
# Of these the first argument stands for what would be made of it: a file could have that done any number of times.
_KEPT = {"builtins.set", "_codecs.encode", "torch.Size", "torch.device"}
_NAMES = {
    *_STORAGES,
    *_PLAIN,
    *_DICTS,
    *_TENSORS,
    *_TYPES,
    *_KEPT,
    _WITH_ATTRIBUTES,
    "torch.storage.UntypedStorage",
}


class CorruptArchive(Exception):
    """An archive that is not as torch.save writes it."""


class RefusedArchive(Exception):
    """An archive with more than tensors and plain values; the text is the name of what else there is."""


class StoredTensor:
    """A tensor whose numbers are still in the file.

    Attributes:
        shape: its sides.
    """

    def __init__(
        self,
        archive: _Archive,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> None:
        self.shape = shape
        self._archive, self._storage, self._offset, self._strides = archive, storage, offset, strides

    def read(self) -> npt.NDArray[Any]:
        """The numbers, in one memory with all tensors of the storage; bfloat16 as float32."""
        numbers = self._archive.numbers(self._storage)
        if not math.prod(self.shape):
            return np.empty(self.shape, numbers.dtype)
        strides = tuple(stride * numbers.itemsize for stride in self._strides)
        return np.lib.stride_tricks.as_strided(numbers[self._offset :], self.shape, strides)


class _Name:
    def __init__(self, name: str) -> None:
        self.name = name


class _Storage:
    def __init__(self, key: str, kind: str | None, count: int | None) -> None:
        self.key, self.kind, self.count = key, kind, count


class _Mark:
    pass


class _Archive:
    """The members of an open archive, which all lie in one folder."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        pickles = [name for name in file.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CorruptArchive(f"{len(pickles)} members are called data.pkl, expected one")
        self._folder = pickles[0].removesuffix("data.pkl")
        size = os.fstat(file.fp.fileno()).st_size if file.fp is not None else 0
        if sum(info.file_size for info in file.infolist()) > size:
            raise CorruptArchive("its members are larger than the file")
        self._kept: dict[tuple[str, str | None], npt.NDArray[Any]] = {}
        order = self._member("byteorder", required=False)
        if order not in (b"", b"little", b"big"):
            raise CorruptArchive("its byte order is neither little nor big")
        self._order = ">" if order == b"big" else "<"

    def pickle(self) -> bytes:
        if self._file.getinfo(f"{self._folder}data.pkl").file_size > _LARGEST_PICKLE:
            raise CorruptArchive(f"its pickle has more than {_LARGEST_PICKLE} bytes")
        return self._member("data.pkl")

    def count(self, storage: _Storage) -> int:
        """How many numbers there are in a storage."""
        name = f"{self._folder}data/{storage.key}"
        try:
            size = self._file.getinfo(name).file_size
        except KeyError:
            raise CorruptArchive(f"{name} is missing") from None
        return size // (2 if storage.kind is None else np.dtype(storage.kind).itemsize)

    def numbers(self, storage: _Storage) -> npt.NDArray[Any]:
        # A storage may be that of many tensors, and be written into.
        place = (storage.key, storage.kind)
        if place not in self._kept:
            content = bytearray(self._member(f"data/{storage.key}"))
            if storage.kind is None:
                halves = np.frombuffer(content, f"{self._order}u2", len(content) // 2)
                self._kept[place] = (halves.astype(np.uint32) << 16).view(np.float32)
            else:
                dtype = np.dtype(f"{self._order}{storage.kind}")
                self._kept[place] = np.frombuffer(content, dtype, len(content) // dtype.itemsize)
        return self._kept[place]

    def _member(self, name: str, required: bool = True) -> bytes:
        try:
            info = self._file.getinfo(self._folder + name)
        except KeyError:
            if required:
                raise CorruptArchive(f"{self._folder}{name} is missing") from None
            return b""
        # torch.save compresses nothing: a member is as large as it says, and no larger than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CorruptArchive(f"{info.filename} is compressed")
        if info.flag_bits & 1:
            raise CorruptArchive(f"{info.filename} is encrypted")
        return self._file.read(info)


def read_archive(path: Path) -> Any:
    """What is in a file of torch.save: dicts, lists, tuples and plain values, and tensors as arrays.

    Only the tensors in the dicts that are asked for are read: see :func:`arrays_of`.

    Raises:
        RefusedArchive: there is more in it, which to read would run code.
        CorruptArchive: it is damaged.
        OSError: it cannot be read.
    """
    try:
        archive = _Archive(zipfile.ZipFile(path))
        return _Reader(archive).read(archive.pickle())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise CorruptArchive(str(error) or type(error).__name__) from None


def arrays_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """A dict of :func:`read_archive` with the numbers of its tensors.

    Raises:
        CorruptArchive: the file is damaged, or has changed meanwhile.
    """
    try:
        return {
            key: value.read() if isinstance(value, StoredTensor) else value for key, value in state.items()
        }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CorruptArchive(str(error) or type(error).__name__) from None


class _Reader:
    """Follows the instructions of a pickle: each is a method, or one that is refused."""

    def __init__(self, archive: _Archive) -> None:
        self._archive = archive
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, content: bytes) -> Any:
        try:
            for instruction, argument, _ in pickletools.genops(io.BytesIO(content)):
                if instruction.name == "STOP":
                    return self._stack.pop()
                self._follow(instruction.name, argument)
        except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CorruptArchive(f"its pickle is not well-formed ({type(error).__name__}: {error})") from None
        raise CorruptArchive("its pickle has no end")

    def _follow(self, name: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_Mark)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument)])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case (
                "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT"
                | "UNICODE" | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8" | "STRING" | "SHORT_BINSTRING"
                | "BINSTRING" | "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8"
            ):  # fmt: skip
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                kinds: dict[str, type] = {"DICT": dict, "LIST": list, "TUPLE": tuple, "SET": set}
                stack.append(kinds[name.removeprefix("EMPTY_")]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                if len(stack) < count:
                    raise IndexError("too few values")
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE" | "LIST":
                items = self._to_mark()
                stack.append(tuple(items) if name == "TUPLE" else items)
            case "DICT":
                items = self._to_mark()
                stack.append(dict(zip(items[::2], items[1::2], strict=True)))
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else self._to_mark()
                self._top(list).extend(items)
            case "ADDITEMS":
                items = self._to_mark()
                self._top(set).update(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._to_mark()
                self._top(dict).update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                self._name(str(argument).replace(" ", "."))
            case "STACK_GLOBAL":
                last, module = stack.pop(), stack.pop()
                self._name(f"{module}.{last}")
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(self._made(stack.pop(), arguments))
            case "BUILD":
                # Of a dict's own attributes, such as the versions that PyTorch notes of a state dict.
                stack.pop()
                self._top(dict)
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _:
                raise RefusedArchive(f"the instruction {name}")

    def _to_mark(self) -> list[Any]:
        place = max(index for index, item in enumerate(self._stack) if item is _Mark)
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise TypeError(f"{type(self._stack[-1]).__name__} for {kind.__name__}")
        return self._stack[-1]

    def _name(self, name: str) -> None:
        name = name.replace("__builtin__.", "builtins.", 1)
        if name not in _NAMES:
            raise RefusedArchive(name)
        self._stack.append(_Name(name))

    def _made(self, made_by: Any, arguments: Any) -> Any:
        if not isinstance(made_by, _Name) or not isinstance(arguments, tuple):
            raise TypeError("a call of what is no name")
        name = made_by.name
        if name in _DICTS:
            return arguments[0] if arguments and isinstance(arguments[0], dict) else {}
        if name in _KEPT:
            return arguments[0] if arguments else ()
        if name == _WITH_ATTRIBUTES:
            function, _, inner, _ = arguments
            if not isinstance(function, _Name) or function.name not in _TENSORS:
                raise TypeError("a tensor of what makes none")
            return self._made(function, inner)
        if name.startswith("torch._utils._rebuild_parameter"):
            return self._checked(arguments[0])
        if name in _TENSORS:
            storage, offset, shape, strides = arguments[:4]
            if name.endswith("_v3"):
                dtype = arguments[6]
                if not isinstance(dtype, _Name) or dtype.name not in _DTYPES:
                    raise RefusedArchive(
                        dtype.name if isinstance(dtype, _Name) else "a tensor of no known type"
                    )
                storage = _Storage(storage.key, _DTYPES[dtype.name], None)
            return self._tensor(storage, offset, shape, strides)
        raise RefusedArchive(name)

    def _checked(self, value: Any) -> StoredTensor:
        if not isinstance(value, StoredTensor):
            raise TypeError("a parameter of what is no tensor")
        return value

    def _storage(self, known: Any) -> _Storage:
        kind, of, key, _, count = known
        if kind != "storage" or not isinstance(of, _Name) or not isinstance(key, str):
            raise TypeError("a storage that is none")
        if of.name == "torch.storage.UntypedStorage":
            return _Storage(key, "u1", int(count))
        if of.name not in _STORAGES:
            raise RefusedArchive(of.name)
        return _Storage(key, _STORAGES[of.name], int(count))

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor without a storage")
        count = self._archive.count(storage)
        if storage.count is not None and storage.count > count:
            raise ValueError(f"{storage.count} numbers, of which there are {count}")
        sides, steps = _whole(shape), _whole(strides)
        (start,) = _whole((offset,))
        if len(sides) != len(steps) or len(sides) > _MOST_DIMENSIONS:
            raise ValueError(f"{len(sides)} sides and {len(steps)} strides")
        total = math.prod(sides)
        last = start + sum((side - 1) * step for side, step in zip(sides, steps, strict=True))
        if total and last >= count:
            raise ValueError(f"a tensor up to number {last} of {count}")
        if total > max(count, _MOST_REPEATED):
            raise ValueError(f"a tensor of {total} numbers, of which there are {count}")
        return StoredTensor(self._archive, storage, start, sides, steps)


def _whole(values: Sequence[Any]) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or not all(
        type(value) is int and 0 <= value < 1 << 48 for value in values
    ):
        raise ValueError("sizes that are no whole numbers")
    return tuple(values)
