"""Predictions in Parquet files, as ``fai-fast predict --ray`` leaves them: measured, and as COCO's results JSON."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from fai_fast._arguments import check_fraction
from fai_fast._sizes import sides_of
from fai_fast.detections import Detections
from fai_fast.detections.arrow import document_of, files_of
from fai_fast.evaluate.coco_data import CocoData, _key, _read_json, categories_of_classes
from fai_fast.evaluate.report import CocoReport
from fai_fast.evaluate.running import _check_missing
from fai_fast.registry import ModelSpec, models, spec

__all__ = ["coco_results", "coco_stored"]

_log = logging.getLogger("fai_fast")


def coco_stored(
    predictions: Any,
    images: Any,
    annotations: Any,
    *,
    threshold: float = 0.0,
    limit: int | None = None,
    skip_missing: bool = False,
) -> CocoReport:
    """COCO's mask AP of predictions in Parquet files, without a model: as :func:`fai_fast.evaluate.coco` of one.

    AP counts all that a model says: where the run that wrote them left out what scores less than some threshold, a line
    says so, and the figures are lower than ``coco`` gives.

    Args:
        predictions: a Parquet file, or a folder of them, with the columns ``path`` and those of
            :meth:`fai_fast.Detections.to_arrow`. Paths are held against the pictures' as they are and, as the files
            may have been elsewhere, by as much of their ends as the JSON's ``file_name`` has.
        images, annotations, limit: as of :func:`fai_fast.evaluate.coco`.
        threshold: rows whose score is not above it are left out.
        skip_missing: leave out pictures that are not in the folder, or that have no predictions, and say so in the
            report.

    Raises:
        ImportError: faster-coco-eval or pyarrow is not installed.
        TypeError, ValueError: an argument, the JSON or a file is wrong; a picture could not be read, or has two rows.
        FileNotFoundError: pictures or predictions are missing.
    """
    threshold = check_fraction("threshold", threshold)
    data = CocoData.read(images, annotations, limit=limit, skip_missing=skip_missing)
    return score(data, predictions, threshold=threshold, skip_missing=skip_missing)


def score(
    data: CocoData, predictions: Any, *, threshold: float = 0.0, skip_missing: bool = False
) -> CocoReport:
    """As :func:`coco_stored`, of a data set that was read."""
    said = document_of(files_of(predictions)[0])
    if said.get("task", "instance") != "instance":
        raise ValueError(f"predictions: {predictions} is of a {said['task']} model, expected an instance one")
    paths = [Path(os.path.abspath(path)) for _, path, _ in data.images]
    folder = os.path.commonpath([path.parent for path in paths])
    whole = {str(path): index for index, path in enumerate(paths)}
    ends = Ends({path.relative_to(folder): index for index, path in enumerate(paths)})
    found_in: dict[int, list[dict[str, Any]]] = {}
    classes: Sequence[str] | None = None
    category_of: Mapping[int, int] = {}
    for path, found in _pictures(predictions):
        index = whole.get(path, ends.of(path))
        if index is None:
            continue
        if index in found_in:
            raise ValueError(f"predictions: {path} is there twice, expected one row a picture")
        if classes is None:
            classes = found.class_names or ()
            with_objects = {item["category_id"] for item in data.annotations}
            category_of = categories_of_classes(classes, data.categories, with_objects, data.source)
        elif classes != (found.class_names or ()):
            raise ValueError(f"predictions: {predictions} is of several models, whose classes differ")
        found_in[index] = data._rows(index, found[found.confidence > threshold], category_of)
    absent = [str(path) for index, path in enumerate(paths) if index not in found_in]
    _check_missing("predictions", absent, f"in {predictions}", skip_missing, len(paths))
    assert classes is not None
    figures = data._figures(found_in, classes, category_of)
    return CocoReport(**_account(said, threshold), **{**figures, "missing": (*data.missing, *absent)})


def coco_results(predictions: Any, annotations: Any) -> list[dict[str, Any]]:
    """Predictions in Parquet files as COCO's results: a list of objects, in JSON's types.

    Each has ``image_id`` and ``category_id`` as the annotations have them, ``bbox``, ``score`` and ``segmentation``.

    Args:
        predictions: as of :func:`coco_stored`; rows of errors have no objects.
        annotations: the path of COCO's JSON, whose ``images`` tell the ids of the files, and ``categories`` those of
            the classes, by their names. Objects of classes that are no category are left out, as are other pictures.

    Raises:
        ImportError: pyarrow is not installed.
        TypeError, ValueError, FileNotFoundError: the JSON or a file is wrong or missing.
    """
    file = Path(annotations)
    document = _read_json(file)
    where = f"annotations: {file}"
    keys = {
        PurePath(str(record.get("file_name"))): _key(record, "id", f"{where}: images[{i}]")
        for i, record in enumerate(document["images"])
    }
    categories = {
        record.get("name"): _key(record, "id", f"{where}: categories[{i}]")
        for i, record in enumerate(document["categories"])
    }
    ends = Ends(keys)
    results = []
    for path, found in _pictures(predictions, skip_errors=True):
        key = ends.of(path)
        if key is None:
            continue
        kept = found[[name in categories for name in found.class_name.tolist()]]
        for item, name in zip(kept.to_coco(key), kept.class_name.tolist(), strict=True):
            del item["iscrowd"], item["area"]
            results.append({**item, "category_id": categories[name]})
    return results


class Ends:
    """Values of files, found by paths that end as their names do, wherever the files were.

    Args:
        values: the value of each file, by its path in the folder of all.
    """

    def __init__(self, values: Mapping[PurePath, Any]) -> None:
        self._named: dict[str, list[tuple[tuple[str, ...], Any]]] = {}
        for path, value in values.items():
            self._named.setdefault(path.name, []).append((path.parts, value))

    def of(self, path: str) -> Any:
        """The value; None where no name, or more than one as well as another, is the path's end."""
        parts = PurePath(path).parts
        there = self._named.get(parts[-1], ()) if parts else ()
        fits = [(len(named), value) for named, value in there if parts[-len(named) :] == named]
        longest = max((length for length, _ in fits), default=0)
        best = [value for length, value in fits if length == longest]
        return best[0] if len(best) == 1 else None


def _pictures(predictions: Any, *, skip_errors: bool = False) -> Iterator[tuple[str, Detections]]:
    for found in Detections.from_parquet(predictions, skip_errors=skip_errors):
        if found.source is None:
            raise ValueError(f"predictions: {predictions} has no column path, which tells the pictures")
        yield found.source.path, found


def _account(said: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """What a report says of the run that wrote the files."""
    wanted: Mapping[str, Any] = said.get("wanted") or {}
    name = said.get("model") or "predictions"
    known: ModelSpec | None = spec(name) if name in models() else None
    used = wanted.get("threshold", None if known is None else known.config.threshold)
    if isinstance(used, (int, float)) and used > threshold:
        _log.warning(
            "the predictions leave out what scores less than %s, which AP counts: predict with --threshold 0",
            used,
        )
        threshold = float(used)
    im_size = wanted.get("im_size") or (0 if known is None else known.im_size)
    return {
        "model": name,
        "engine": "stored",
        "precision": wanted.get("precision", "unknown"),
        "im_size": sides_of(tuple(im_size) if isinstance(im_size, list) else im_size),
        "threshold": threshold,
        "published": {} if known is None else dict(known.metrics),
        "published_per_class": {} if known is None else dict(known.per_class),
        "published_im_size": 0 if known is None else known.metrics_im_size or known.im_size,
    }
