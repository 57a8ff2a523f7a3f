"""The arrays that results are made of: their types, and the checks of those that a user gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast._foreign import explained

Bool = npt.NDArray[np.bool_]
Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Segments = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
_MAX_INT16 = 32767


def _rows(index: Any, n: int) -> Int64:
    """The rows that NumPy's indexing of an axis of length n gives. Raises IndexError as NumPy does."""
    rows = np.arange(n)[index]
    if rows.ndim > 1:
        raise IndexError(f"index: got {type(index).__name__} that adds a dimension, expected rows")
    return np.atleast_1d(rows)


def _array(name: str, value: object, expected: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:
        if not explained(error, "numpy", type(value).__module__):
            raise
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}") from error


def _numbers(name: str, value: object, shape: tuple[int, ...], kinds: str, expected: str) -> npt.NDArray[Any]:
    """`value` as an array of `shape` whose dtype is of one of `kinds`; no values have any dtype."""
    array = _array(name, value, expected)
    if array.size and array.dtype.kind not in kinds:
        raise TypeError(f"{name}: got dtype {array.dtype}, expected {expected}")
    if array.shape != shape and (array.size or 0 not in shape):
        raise ValueError(f"{name}: got shape {array.shape}, expected {expected} of shape {shape}")
    # No values of some other dtype (structured, object) do not convert; none of this one do.
    return array.reshape(shape) if array.dtype.kind in kinds else np.empty(shape, kinds[0])


def _ids(name: str, value: object, n: int, minimum: int | None = None) -> Int64:
    array = _numbers(name, value, (n,), "iu", "integers")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: got {array.max()}, expected values of int64")
    ids = array.astype(np.int64)
    if minimum is not None and ids.size and ids.min() < minimum:
        raise ValueError(f"{name}: got {ids.min()}, expected {minimum} or more")
    return ids


def _finite(name: str, array: npt.NDArray[Any]) -> Float32:
    with np.errstate(over="ignore"):
        values: Float32 = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: got NaN, infinity or a value beyond float32, expected finite numbers")
    return values


def _flags(name: str, value: object, n: int) -> Bool:
    array = _numbers(name, value, (n,), "b", "bool")
    return array.astype(np.bool_)


def _scores(value: object, n: int) -> Float32:
    return _finite("confidence", _numbers("confidence", value, (n,), "iuf", "numbers"))


def _boxes(value: object) -> Float32:
    array = _array("xyxy", value, "numbers (N, 4)")
    n = len(array) if array.ndim else 0
    boxes = _finite("xyxy", _numbers("xyxy", array, (n, 4), "iuf", "numbers"))
    if (boxes[:, :2] > boxes[:, 2:]).any():
        row = int(np.flatnonzero((boxes[:, :2] > boxes[:, 2:]).any(axis=1))[0])
        raise ValueError(f"xyxy: got {boxes[row].tolist()} in row {row}, expected x1 <= x2 and y1 <= y2")
    return boxes


def _segments(value: object, queries: Int64, class_ids: Int64, size: tuple[int, int]) -> Segments:
    array = _array("label_source", value, "uint8 or uint16 (H, W)")
    if array.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"label_source: got dtype {array.dtype}, expected uint8 or uint16")
    if array.shape != size:
        raise ValueError(f"label_source: got shape {array.shape}, expected size {size}")
    nobody = np.iinfo(array.dtype).max
    if queries.size and not (queries.min() >= 0 and queries.max() < nobody):
        raise ValueError(
            f"query: got {queries.min()} to {queries.max()}, expected 0 to {nobody - 1} with label_source"
        )
    if class_ids.size and class_ids.max() > _MAX_INT16:
        raise ValueError(f"class_id: got {class_ids.max()}, expected at most {_MAX_INT16} with label_source")
    # In the machine's byte order, whatever came.
    if array.dtype == np.uint8:
        return np.array(array, np.uint8, order="C")
    return np.array(array, np.uint16, order="C")
