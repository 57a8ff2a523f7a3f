"""Batches of Ray Data: the column that has the pictures, what is in its rows, and the table that goes on.

A batch comes as Ray makes it, NumPy's arrays by default, or as the caller of ``map_batches`` wants it, pandas or
pyarrow. What goes out is a pyarrow table in any case: Ray would take lists of numbers of one length for tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast.ray.resources import ray_module

__all__ = ["KINDS", "Batch", "rgb"]

KINDS = ("image", "bytes", "path")
"""What a column may hold, in the order in which they are looked for under their own names: pixels, files' contents,
files' names."""


class Batch:
    """A batch of rows.

    Attributes:
        kind: one of :data:`KINDS`.
        column: the name of the column that it is.
        rows: how many there are.
    """

    def __init__(self, batch: Any, columns: Mapping[str, str], kinds: Sequence[str] = KINDS) -> None:
        """Finds the column.

        Args:
            batch: what ``map_batches`` gives.
            columns: the column's name, under its kind, where the caller has said it; one at most.
            kinds: which of :data:`KINDS` it may be.

        Raises:
            TypeError, ValueError: it is no batch, or has no such column.
        """
        self._batch = batch
        names = self._names()
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"batch: it has several columns {', '.join(twice)}, expected one of a name")
        self.kind, self.column = _chosen(names, columns, kinds)
        self._others = [name for name in names if name != self.column]
        self.rows = self._count()

    def _names(self) -> list[str]:
        batch = self._batch
        if hasattr(batch, "column_names"):
            return list(batch.column_names)
        if hasattr(batch, "columns") and hasattr(batch, "iloc"):
            return [str(name) for name in batch.columns]
        if isinstance(batch, Mapping):
            if any(
                not hasattr(value, "__len__") or isinstance(value, (str, bytes)) for value in batch.values()
            ):
                raise TypeError(
                    "batch: got a row, expected a batch of rows: call map_batches, not map or flat_map"
                )
            return list(batch)
        raise TypeError(
            f"batch: got {type(batch).__name__}, expected NumPy's arrays by name, a DataFrame, or a pyarrow table"
        )

    def _count(self) -> int:
        batch = self._batch
        if hasattr(batch, "num_rows"):
            return int(batch.num_rows)
        return len(batch[self.column])

    def items(self) -> list[Any]:
        """The content of each row: an array, bytes, a str, or None."""
        batch = self._batch
        if hasattr(batch, "column_names"):
            column = batch.column(self.column)
            if self.kind != "image":
                return list(column.to_pylist())
            from ray.data.block import BlockAccessor

            # Ray's types of tensors are its own affair.
            values: Any = BlockAccessor.for_block(batch.select([self.column])).to_numpy([self.column])
            values = values[self.column] if isinstance(values, Mapping) else values
        else:
            values = batch[self.column]
        return [None if _is_null(item) else item for item in values]

    def others(self, keep: bool) -> Any:
        """The other columns as a pyarrow table; None where there are none.

        Args:
            keep: with pixels or bytes too; paths always go on.
        """
        names = list(self._others)
        if keep or self.kind == "path":
            names.append(self.column)
        if not names:
            return None
        batch = self._batch
        if hasattr(batch, "column_names"):
            return batch.select([name for name in batch.column_names if name in names])
        ray_module()
        from ray.data.block import BlockAccessor

        if isinstance(batch, Mapping):
            return BlockAccessor.batch_to_arrow_block({name: batch[name] for name in batch if name in names})
        return BlockAccessor.for_block(
            batch[[name for name in batch.columns if str(name) in names]]
        ).to_arrow()


def _chosen(names: Sequence[str], columns: Mapping[str, str], kinds: Sequence[str]) -> tuple[str, str]:
    for kind, name in columns.items():
        if name not in names:
            raise ValueError(
                f"{kind}: got {name!r}, which the batch has no column of, expected one of {', '.join(names)}"
            )
        return kind, name
    for kind in kinds:
        if kind in names:
            return kind, kind
    raise ValueError(
        f"batch: got the columns {', '.join(names) or 'none'}, expected {' or '.join(kinds)}; say which "
        f"it is by {' or '.join(f'{kind}=' for kind in kinds)}"
    )


def _is_null(item: Any) -> bool:
    if item is None or (isinstance(item, float) and item != item):
        return True
    return type(item).__name__ in ("NAType", "NaTType")  # pandas' own


def joined(others: Any, found: Any) -> Any:
    """The other columns of a batch beside what was found.

    Raises:
        ValueError: both have a column of one name.
    """
    if others is None:
        return found
    if twice := [name for name in others.column_names if name in found.column_names]:
        raise ValueError(
            f"batch: it has a column {', '.join(twice)} already, as the result would be called; rename it, or drop it "
            "by Dataset.drop_columns"
        )
    joint = others
    for name in found.column_names:
        joint = joint.append_column(found.schema.field(name), found.column(name))
    return joint.replace_schema_metadata({**(others.schema.metadata or {}), **(found.schema.metadata or {})})


def rgb(item: Any) -> Any:
    """Pixels as ``color="rgb"`` takes them, whether they came as gray (H, W) or (H, W, 1), RGB, or RGBA.

    Views, but of what is no array. What has no such shape passes, for the model to say what is wrong with it.
    """
    pixels: npt.NDArray[Any] = np.asarray(item)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return pixels[..., :3] if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels
