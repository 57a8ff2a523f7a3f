"""Results as rows of Arrow tables and Parquet files, a picture a row: what data engines and warehouses hold.

Each function is the method of the same name of :class:`fai_fast.Detections`, which says what it gives; :func:`table`
makes the rows of many pictures at once. pyarrow is imported when it is asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fai_fast._arguments import check_bool, check_names
from fai_fast._extras import install
from fai_fast._foreign import explained
from fai_fast.detections.arrays import Segments
from fai_fast.detections.labels import from_dict
from fai_fast.detections.masks import _SegmentSource
from fai_fast.detections.source import Source

if TYPE_CHECKING:
    from fai_fast.detections.result import Detections

__all__ = ["CLASS_NAMES", "COLUMNS", "DOCUMENT", "files_of", "from_arrow", "from_parquet", "schema", "table"]

CLASS_NAMES = b"fai_fast.class_names"
"""Under which a schema's metadata has the names of all classes, as a list in JSON."""
DOCUMENT = b"fai_fast.run"
"""Under which files of a run say what made them, as an object in JSON."""
_STAGES = ("decode", "preprocess", "engine", "postprocess", "total")
COLUMNS = (
    "class_id", "class_name", "confidence", "box", "mask", "area", "query", "tracker_id", "is_thing", "height", "width",
    "label_map", "latency_ms", "error",
)  # fmt: skip
"""What a row says of a picture, in this order."""


def _pyarrow() -> Any:
    """The module pyarrow. ImportError that says how to install it."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(f"Arrow and Parquet need pyarrow: {install('ray')}") from error
    return pyarrow


def schema(class_names: Sequence[str] | None = None) -> Any:
    """The ``pyarrow.Schema`` of :data:`COLUMNS`, with the names of all classes in its metadata."""
    pa = _pyarrow()
    rle = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    types = (
        pa.list_(pa.int32()),
        pa.list_(pa.string()),
        pa.list_(pa.float32()),
        pa.list_(pa.list_(pa.float32())),
        pa.list_(rle),
        pa.list_(pa.float64()),
        pa.list_(pa.int32()),
        pa.list_(pa.int64()),
        pa.list_(pa.bool_()),
        pa.int32(),
        pa.int32(),
        pa.bool_(),
        pa.struct([(stage, pa.float64()) for stage in _STAGES]),
        pa.string(),
    )
    metadata = None if class_names is None else {CLASS_NAMES: json.dumps(list(class_names))}
    return pa.schema(list(zip(COLUMNS, types, strict=True)), metadata)


def table(results: Sequence[Detections | str], class_names: Sequence[str] | None = None) -> Any:
    """A ``pyarrow.Table`` of :data:`COLUMNS` with a row for each result; for an error, a str, it is all else null."""
    rows = [
        dict.fromkeys(COLUMNS) | {"error": found} if isinstance(found, str) else _row(found)
        for found in results
    ]
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    return _pyarrow().Table.from_pydict(columns, schema(class_names))


def _row(found: Detections) -> dict[str, Any]:
    height, width = found.size
    latency = found.latency
    masks = None
    if found.packed is not None:
        masks = [{**rle, "counts": rle["counts"].decode("ascii")} for rle in found.to_rle()]
    return {
        "class_id": found.class_id.tolist(),
        "class_name": found.class_name.tolist(),
        "confidence": found.confidence,
        "box": found.xyxy.tolist(),
        "mask": masks,
        "area": found.area.astype(np.float64),
        "query": found.query.tolist(),
        "tracker_id": None if found.tracker_id is None else found.tracker_id,
        "is_thing": None if found.is_thing is None else found.is_thing.tolist(),
        "height": height,
        "width": width,
        "label_map": found._source is not None,
        "latency_ms": None if latency is None else {**latency._asdict(), "total": latency.total},
        "error": None,
    }


def from_arrow(cls: type[Detections], row: Any, class_names: Sequence[str] | None) -> Detections:
    names = check_names("class_names", class_names)
    if hasattr(row, "to_pylist") and hasattr(row, "schema"):
        if row.num_rows != 1:
            raise ValueError(
                f"row: got a table of {row.num_rows} rows, expected one: table.slice(i, 1), or Detections.from_parquet"
            )
        names = _names_in(row.schema) if names is None else names
        row = row.to_pylist()[0]
    if hasattr(row, "to_dict") and hasattr(row, "iloc"):  # of a DataFrame
        row = row.to_dict()
    if not isinstance(row, Mapping):
        raise TypeError(
            f"row: got {type(row).__name__}, expected a table of one row, or a mapping of its columns"
        )
    return _detections(cls, row, names)


def _detections(
    cls: type[Detections], all_of_it: Mapping[str, Any], names: Sequence[str] | None
) -> Detections:
    row = {name: _plain(all_of_it.get(name)) for name in COLUMNS}
    for name in ("class_id", "class_name", "confidence", "box", "mask", "query", "tracker_id", "is_thing"):
        if not isinstance(row[name], (list, type(None))):
            raise TypeError(f"row: got {type(row[name]).__name__} for {name}, expected a list")
    if row["error"] is not None:
        raise ValueError(f"row: it is of a picture that could not be read: {row['error']}")
    lacking = [name for name in ("class_id", "confidence", "box", "height", "width") if row[name] is None]
    if lacking:
        raise ValueError(f"row: got no {', '.join(lacking)}, expected the columns of Detections.to_arrow")
    n = len(row["class_id"])
    columns = {
        "xyxy": row["box"],
        "confidence": row["confidence"],
        "class_id": row["class_id"],
        "query": row["query"],
        "tracker_id": row["tracker_id"],
        "is_thing": row["is_thing"],
        "mask": row["mask"],
    }
    given = {name: values for name, values in columns.items() if values is not None}
    for name, values in given.items():
        if len(values) != n:
            raise ValueError(f"row: got {len(values)} values of {name} for {n} of class_id")
    if names is None:
        names = _names_of(row["class_id"], row["class_name"] or ())
    rows = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    size = [_whole(row["height"]), _whole(row["width"])]
    found = from_dict(cls, {"size": size, "class_names": names, "detections": rows})
    if n == 0:
        nothing: dict[str, Any] = {name: [] for name in ("tracker_id", "is_thing") if row[name] is not None}
        mask = None if row["mask"] is None else np.zeros((0, *found.size), bool)
        found = cls(xyxy=[], confidence=[], class_id=[], size=size, class_names=names, mask=mask, **nothing)
    if row["label_map"]:
        found = _with_label_map(cls, found)
    latency = row["latency_ms"]
    if latency is not None:
        from fai_fast.detections.result import Latency

        stages: list[Any] = (
            [latency.get(each) for each in _STAGES[:-1]] if isinstance(latency, Mapping) else [None]
        )
        if any(isinstance(stage, bool) or not isinstance(stage, (int, float)) for stage in stages):
            raise ValueError(
                f"row: got {latency!r} for latency_ms, expected the milliseconds of {', '.join(_STAGES)}"
            )
        found = found._with_latency(Latency(*map(float, stages)))
    return found._with_source(_source_of(all_of_it))


def _with_label_map(cls: type[Detections], found: Detections) -> Detections:
    """The same rows, of the label of each pixel: the query of the row that has it."""
    packed = found.packed
    if packed is None or (len(found) and found.query.min() < 0) or len(np.unique(found.query)) < len(found):
        raise ValueError("row: label_map is true, expected masks, and a query for each that no other has")
    most = int(found.query.max(initial=0))
    dtype: Any = np.uint8 if most < np.iinfo(np.uint8).max else np.uint16
    if most >= np.iinfo(dtype).max:
        raise ValueError(
            f"row: got the query {most}, expected at most {np.iinfo(dtype).max - 1} with label_map"
        )
    nobody = np.iinfo(dtype).max
    segments: Segments = np.full(found.size, nobody, dtype)
    for crop, (x1, y1, x2, y2), query in zip(
        packed.crops(), packed.boxes.tolist(), found.query.tolist(), strict=True
    ):
        part = segments[y1:y2, x1:x2]
        if (part[crop] != nobody).any():
            raise ValueError("row: label_map is true, expected masks that do not overlap")
        part[crop] = query
    names = ("xyxy", "confidence", "class_id", "query", "tracker_id", "is_thing", "class_names", "size")
    fields = {name: getattr(found, name) for name in names}
    same = cls(**fields, label_source=segments)
    # Of the masks that are there, which need not be made again.
    source = same._source
    assert isinstance(source, _SegmentSource)
    source._set(_packed=packed)
    return same


def from_parquet(
    cls: type[Detections], path: Any, class_names: Sequence[str] | None, skip_errors: bool
) -> Iterator[Detections]:
    skip = check_bool("skip_errors", skip_errors)
    names = check_names("class_names", class_names)
    return _rows_of(cls, files_of(path), names, skip)


def _rows_of(
    cls: type[Detections], files: Sequence[Path], given: Sequence[str] | None, skip_errors: bool
) -> Iterator[Detections]:
    for file in files:
        with _opened(file) as content:
            there = content.schema_arrow
            if missing := [name for name in ("class_id", "box", "error") if name not in there.names]:
                raise ValueError(
                    f"path: {file} has no column {', '.join(missing)}, expected those of Detections.to_arrow"
                )
            names = _names_in(there) if given is None else given
            wanted = [name for name in (*COLUMNS, "path", "frame") if name in there.names]
            yield from _rows_in(cls, file, content, wanted, names, skip_errors)


def _rows_in(
    cls: type[Detections],
    file: Path,
    content: Any,
    columns: Sequence[str],
    names: Sequence[str] | None,
    skip_errors: bool,
) -> Iterator[Detections]:
    """The rows of a file that was opened; what is wrong with one names both."""
    refusals = OSError, UnicodeDecodeError, _pyarrow().lib.ArrowException
    number = 0
    batches = content.iter_batches(batch_size=64, columns=columns)
    while True:
        try:
            batch = next(batches, None)
            rows = () if batch is None else batch.to_pylist()
        except refusals as error:
            if not explained(error, "pyarrow"):
                raise
            raise ValueError(f"path: {file} is damaged: {error}") from error
        if batch is None:
            return
        for row in rows:
            if not (skip_errors and row["error"] is not None):
                try:
                    found = _detections(cls, row, names)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"path: {file}, row {number}: {error}") from error
                yield found
            number += 1


def files_of(path: Any) -> list[Path]:
    """The files of a Parquet data set: itself, or those with the suffix in a folder, by their names.

    Names that begin with a dot or an underscore are of files that are being written, as everywhere with Parquet.

    Raises:
        TypeError, FileNotFoundError: it is no path, or nothing is there.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: got {type(path).__name__}, expected a Parquet file or a folder of them")
    place = Path(os.fsdecode(path))
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise FileNotFoundError(f"path: no such file or folder: {place}")
    found = sorted(
        item for item in place.rglob("*.parquet") if item.is_file() and not item.name.startswith((".", "_"))
    )
    if not found:
        raise FileNotFoundError(f"path: no Parquet files in {place}")
    return found


def document_of(file: Path) -> dict[str, Any]:
    """What a file says of the run that made it; empty where it says nothing. ValueError for a damaged one."""
    with _opened(file) as content:
        text = (content.schema_arrow.metadata or {}).get(DOCUMENT)
    try:
        said = json.loads(text) if text else {}
    except ValueError:
        said = {}
    return said if isinstance(said, dict) else {}


def _parquet() -> Any:
    _pyarrow()
    import pyarrow.parquet as parquet

    return parquet


def _opened(file: Path) -> Any:
    refusals = OSError, UnicodeDecodeError, _pyarrow().lib.ArrowException
    try:
        return _parquet().ParquetFile(file)
    except refusals as error:
        if (isinstance(error, OSError) and error.errno is not None) or not explained(error, "pyarrow"):
            raise
        raise ValueError(f"path: {file} is no Parquet file, or a damaged one: {error}") from error


def _names_in(there: Any) -> tuple[str, ...] | None:
    text = (there.metadata or {}).get(CLASS_NAMES)
    try:
        return None if text is None else check_names("class_names", json.loads(text))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"row: what its schema says of {CLASS_NAMES.decode()} is no list of names: {error}"
        ) from error


def _names_of(class_ids: Sequence[int], names: Sequence[Any]) -> list[str] | None:
    """Class names, as far as rows tell them."""
    from fai_fast.detections.formats import _names_of_rows

    return _names_of_rows(np.asarray(class_ids, np.int64), names)


def _source_of(row: Mapping[str, Any]) -> Source | None:
    path, frame = row.get("path"), row.get("frame")
    if not isinstance(path, str):
        return None
    frame = _whole(_plain(frame))
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int)):
        raise TypeError(f"row: got {frame!r} for frame, expected an integer")
    return Source(path, frame)


def _whole(value: Any) -> Any:
    """Numbers as they were before pandas had to put a null beside them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any, *, inside: bool = False) -> Any:
    """Lists and plain numbers of what NumPy's batches hold; None where pandas has a null for a whole value."""
    if isinstance(value, np.generic):
        value = value.item()
    if not inside and ((isinstance(value, float) and value != value) or type(value).__name__ == "NAType"):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item, inside=True) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item, inside=True) for item in value]
    return value


def to_arrow(detections: Detections) -> Any:
    found = table([detections], detections.class_names)
    if detections.source is None:
        return found
    pa = _pyarrow()
    path, frame = detections.source
    return found.append_column("path", pa.array([path], pa.string())).append_column(
        "frame", pa.array([frame], pa.int64())
    )
