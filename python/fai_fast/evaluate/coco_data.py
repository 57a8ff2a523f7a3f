"""COCO's format: read, checked, and a model measured on it. Not called coco.py, because evaluate.coco is a function."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import MAX_SIDE, check_fraction
from fai_fast._extras import install
from fai_fast._options import check_options
from fai_fast.detections import Detections
from fai_fast.evaluate.report import CocoReport, Figures, _some
from fai_fast.evaluate.running import MeasureOptions, _account, _check_limit, _check_missing, _submitting
from fai_fast.evaluate.shapes import BUCKETS, COMPARED, _Passes
from fai_fast.model import Model
from fai_fast.registry import ModelSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

# COCO's evaluator, and FocoosAI's, look at this many detections of a picture.
TOP_K = 100
# COCO's limits of the areas "small", "medium" and "large" are the evaluator's defaults, in this order after "all".
_AREAS = ("all", "APs", "APm", "APl")
# Longer than any file system's.
_LONGEST_NAME = 4096
# What a file holds may be of any size and depth, a message not.
_brief = reprlib.Repr()

_brief.maxlevel, _brief.maxstring, _brief.maxother, _brief.maxlong = 2, 40, 40, 40


# As str() writes an integer that a float holds exactly.
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,14}")
_log = logging.getLogger("fai_fast")


def coco(
    model: Model,
    images: Any,
    annotations: Any,
    *,
    threshold: float = 0.0,
    limit: int | None = None,
    skip_missing: bool = False,
    progress: bool | None = False,
    max_pixels: int | None = None,
    buckets: int = BUCKETS,
    compare_sizes: int = COMPARED,
) -> CocoReport:
    """COCO's mask AP of an instance model, by faster-coco-eval. Masks stay run-length coded throughout.

    Categories are matched with the model's classes by name. Crowds, areas and the 100 detections a picture are as COCO
    has them.

    Args:
        model: an instance model.
        images: the folder that the annotations' file names are relative to.
        annotations: the path of COCO's JSON. ``area`` may be missing: then it is the mask's. Ids may be integers or
            strings. Objects without a mask (``segmentation`` is [], or no polygon has three points) are left out, which
            the report says.
        threshold: rows whose score is not above it are left out; AP is defined for all that a model says, so 0.
        limit: the first so many pictures, in order of their ids; None for all.
        skip_missing: leave pictures out that are not in the folder, and say so in the report.
        progress: a bar on stderr; None for one if that is a terminal.
        max_pixels: of a picture, see :meth:`fai_fast.Model.infer`.
        buckets: how many sizes of the network's input there may be: pictures are divided by their shape, and each
            bucket gets an input of its own shape, with about the model's own number of pixels, of a model that is
            loaded beside ``model``, one at a time. 1 for the model's own size for all, which a model has in any case
            that was loaded with ``im_size`` or ``frame``, or from a file of :func:`fai_fast.export`.
        compare_sizes: how many pictures, spread evenly, are also run in the model's own size, which tells what the
            other sizes changed; 0 for none.

    Raises:
        ImportError: faster-coco-eval is not installed.
        TypeError, ValueError: an argument, the JSON or a picture is wrong; names of categories do not match; a
            picture's size is not the JSON's.
        FileNotFoundError: pictures are missing.
    """
    data = CocoData.read(images, annotations, limit=limit, skip_missing=skip_missing)
    return data.measure(
        model,
        threshold=threshold,
        progress=progress,
        max_pixels=max_pixels,
        buckets=buckets,
        compare_sizes=compare_sizes,
    )


@dataclass(frozen=True)
class CocoData:
    """A data set in COCO's format, checked; made by :meth:`read`.

    Attributes:
        source: the JSON's path.
        images: ids, paths and sizes (H, W) of the pictures to evaluate, by id; here and below, numbers in their order
            in place of ids that are strings.
        categories: ids and names.
        annotations: COCO's records of these pictures.
        missing: file names that are left out.
        unusable: annotations that are left out, since they have no mask.
    """

    source: str
    images: tuple[tuple[int, Path, tuple[int, int]], ...]
    categories: Mapping[int, str]
    annotations: Sequence[dict[str, Any]] = dataclasses.field(repr=False)
    missing: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, images: Any, annotations: Any, *, limit: int | None = None, skip_missing: bool = False
    ) -> CocoData:
        """Reads and checks the JSON, and looks for the pictures. Arguments and errors as of :func:`coco`."""
        _evaluator()
        limit = _check_limit(limit)
        folder, file = Path(images), Path(annotations)
        if not folder.is_dir():
            raise FileNotFoundError(f"images: no such folder: {folder}")
        document = _read_json(file)
        category_numbers = _numbers(document["categories"], f"annotations: {file}: categories")
        image_numbers = _numbers(document["images"], f"annotations: {file}: images")
        categories = _categories(document["categories"], category_numbers, file)
        known = sorted(_pictures(document["images"], image_numbers, folder, file))[:limit]
        if not known:
            raise ValueError(f"annotations: {file} lists no images")
        there = [_is_there(path) for _, path, _ in known]
        absent = [
            str(path.relative_to(folder))
            for (_, path, _), is_there in zip(known, there, strict=True)
            if not is_there
        ]
        _check_missing("images", absent, f"in {folder}", skip_missing, len(known))
        found = tuple(item for item, is_there in zip(known, there, strict=True) if is_there)
        sizes = {item[0]: item[2] for item in found}
        kept, unusable = _annotations(document["annotations"], sizes, image_numbers, category_numbers, file)
        if unusable:
            if not kept:
                raise ValueError(
                    f"annotations: {file} has no mask for any of the pictures' objects: {_some(unusable)}"
                )
            _log.warning("%s: objects without a mask are left out: %s", file, _some(unusable))
        return cls(str(file), found, categories, kept, tuple(absent), tuple(unusable))

    def measure(self, model: Model, **options: Unpack[MeasureOptions]) -> CocoReport:
        """Runs the model on every picture.

        Args:
            model: an instance model.
            options: as of :func:`coco`; and ``stop``, which is asked before every picture but the first: where it says
                True, the report is of those before.

        Raises:
            Exception: what :func:`coco` raises.
        """
        check_options("measure", options, MeasureOptions)
        threshold = check_fraction("threshold", options.get("threshold", 0.0))
        category_of = self.check(model.spec)
        paths = [path for _, path, _ in self.images]
        passes = _Passes(model, paths, lambda: [size for _, _, size in self.images], options)
        submit = _submitting(threshold)
        found_in = {index: self._rows(index, found, category_of) for index, found in passes.first(submit)}
        again = {index: self._rows(index, found, category_of) for index, found in passes.again(submit)}
        effect = None
        if passes.is_compared:
            sample = sorted(passes.sample)
            some = self._only(sample)
            effect = passes.effect(
                *(
                    _mean(some._precision(_numbered(rows, sample))[..., 0])
                    for rows in (found_in, {**found_in, **again})
                )
            )
        return CocoReport(
            **_account(model, threshold),
            **self._figures(found_in, model.spec.classes, category_of),
            sizes=passes.sizes,
            size_effect=effect,
        )

    def _figures(
        self,
        found_in: Mapping[int, list[dict[str, Any]]],
        classes: Sequence[str],
        category_of: Mapping[int, int],
    ) -> dict[str, Any]:
        """What a report says of the rows of pictures, by their places."""
        done = len(found_in)
        data = self if done == len(self.images) else self._only(sorted(found_in))
        rows = _numbered(found_in, sorted(found_in))
        precision = data._precision(rows)
        metrics: Figures = {
            "segm/AP": _mean(precision[..., 0]),
            "segm/AP50": _mean(precision[0, ..., 0]),
            "segm/AP75": _mean(precision[5, ..., 0]),
        }
        metrics |= {f"segm/{name}": _mean(precision[..., i]) for i, name in enumerate(_AREAS) if i}
        at = {category: index for index, category in enumerate(sorted(self.categories))}
        return {
            "images": done,
            "missing": self.missing,
            "metrics": metrics,
            "per_class": {
                name: _mean(precision[:, :, at[category_of[index]], 0]) if index in category_of else None
                for index, name in enumerate(classes)
            },
            "objects": len(data.annotations),
            "detections": len(rows),
            "unusable": self.unusable,
        }

    def _rows(self, index: int, found: Detections, category_of: Mapping[int, int]) -> list[dict[str, Any]]:
        """What was found in a picture, as the evaluator takes it, without numbers."""
        image_id, path, size = self.images[index]
        if found.size != size:
            raise ValueError(
                f"{path}: {found.size[0]}x{found.size[1]} pixels (height x width), expected {size[0]}x{size[1]} "
                f"as {self.source} says"
            )
        best = found[:TOP_K]
        return [
            {
                "image_id": image_id,
                "category_id": category_of[class_id],
                "segmentation": rle,
                "score": score,
                "area": float(area),
                "iscrowd": 0,
            }
            for class_id, score, area, rle in zip(
                best.class_id.tolist(),
                best.confidence.tolist(),
                best.area.tolist(),
                best.to_rle(),
                strict=True,
            )
            if class_id in category_of
        ]

    def check(self, spec: ModelSpec) -> dict[int, int]:
        """The category of each of a model's classes. Raises ValueError where the data is not for such a model."""
        if spec.task != "instance":
            other = "panoptic()" if spec.task == "panoptic" else "ade()"
            raise ValueError(
                f"model: {spec.name} is a {spec.task} model, expected an instance one; measure it with {other}"
            )
        with_objects = {item["category_id"] for item in self.annotations}
        return categories_of_classes(spec.classes, self.categories, with_objects, self.source)

    def _only(self, chosen: Sequence[int]) -> CocoData:
        """Some of the pictures, by their places, and what is known of them."""
        images = tuple(self.images[index] for index in chosen)
        ids = {item[0] for item in images}
        annotations = [item for item in self.annotations if item["image_id"] in ids]
        return dataclasses.replace(self, images=images, annotations=annotations)

    def _precision(self, rows: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
        """(10 IoUs, 101 recalls, categories by id, areas), -1 where there is no truth."""
        COCO, COCOeval_faster = _evaluator()
        head = {
            "images": [{"id": key, "height": size[0], "width": size[1]} for key, _, size in self.images],
            "categories": [{"id": key, "name": name} for key, name in self.categories.items()],
        }
        truth, found = COCO(), COCO()
        # The evaluator writes into the records.
        truth.dataset = {**head, "annotations": [dict(item) for item in self.annotations]}
        found.dataset = {**head, "annotations": rows}
        truth.createIndex()
        found.createIndex()
        evaluator = COCOeval_faster(truth, found, "segm", print_function=_log.debug)
        evaluator.evaluate()
        evaluator.accumulate()
        return cast("npt.NDArray[np.float64]", np.asarray(evaluator.eval["precision"])[..., -1])


def categories_of_classes(
    classes: Sequence[str], categories: Mapping[int, str], with_objects: Collection[int], source: str
) -> dict[int, int]:
    """The category of each class by name; ValueError where objects have a category that is not a class."""
    ids = {name: category for category, name in categories.items()}
    unknown = sorted(set(ids) - set(classes))
    lacking = [name for name in classes if name not in ids]
    needed = {categories[category] for category in with_objects}
    if set(unknown) & needed or len(lacking) == len(classes):
        raise ValueError(
            f"annotations: categories of {source} are no classes of the model: {_quoted(unknown)}; "
            f"its classes without a category: {_quoted(lacking)}; rename the categories"
        )
    if lacking:
        _log.info(
            "%s has no category for %s of the model's classes, whose detections are left out: %s",
            source,
            len(lacking),
            _some(lacking),
        )
    return {index: ids[name] for index, name in enumerate(classes) if name in ids}


def _numbered(rows: Mapping[int, list[dict[str, Any]]], chosen: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of some pictures, numbered from 1; copies, as the evaluator writes into them."""
    together = [row for index in chosen for row in rows[index]]
    return [{"id": number, **row} for number, row in enumerate(together, 1)]


def _evaluator() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ImportError(f"faster-coco-eval is needed for COCO's mask AP: {install('eval')}") from error
    return COCO, COCOeval_faster


def _mean(precision: npt.NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None


def _quoted(names: Sequence[str]) -> str:
    return _some([repr(name) for name in names]) if names else "none"


def _read_json(
    file: Path, kind: str = "instances", lists: Sequence[str] = ("images", "annotations", "categories")
) -> dict[str, list[Any]]:
    """COCO's file of some kind, which has these lists of objects."""
    if file.exists() and not file.is_file():
        raise ValueError(f"annotations: {file} is no regular file, expected COCO's {kind} JSON")
    if not file.is_file():
        raise FileNotFoundError(f"annotations: no such file: {file}")
    try:
        document = json.loads(file.read_bytes())
    except RecursionError:
        raise ValueError(f"annotations: {file} is nested too deeply, expected COCO's {kind} format") from None
    except ValueError as error:
        raise ValueError(
            f"annotations: {file} is no JSON ({error}), expected COCO's {kind} format"
        ) from error
    if not isinstance(document, dict):
        raise ValueError(
            f"annotations: {file} holds {_brief.repr(document)}, expected an object in COCO's {kind} format"
        )
    for key in lists:
        if not isinstance(document.get(key), list):
            raise ValueError(f"annotations: {file} has no list {key!r}, expected COCO's {kind} format")
        for i, record in enumerate(document[key]):
            if not isinstance(record, dict):
                raise ValueError(
                    f"annotations: {file}: {key}[{i}] is {_brief.repr(record)}, expected an object"
                )
    return cast("dict[str, list[Any]]", document)


def _field(record: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value = record.get(name)
    # A bool is an int in Python, not in JSON; and the evaluator's ids have 64 bits.
    wrong = isinstance(value, bool) or (isinstance(value, int) and abs(value) > 2**53)
    if wrong or not isinstance(value, kind):
        came = _brief.repr(value) if name in record else "missing"
        raise ValueError(f"{where}: {name!r} is {came}, expected {kind.__name__}")
    return value


def _key(record: Mapping[str, Any], name: str, where: str) -> int | str:
    """An id: some tools write them as strings, and the numbers in those are the same ids."""
    value = record.get(name)
    if isinstance(value, str) and len(value) <= _LONGEST_NAME:
        return int(value) if _NUMBER.fullmatch(value) else value
    return cast(int, _field(record, name, int, where))


def _numbers(records: list[Any], where: str) -> dict[int | str, int]:
    """The number of each record by its id: the id itself, unless any of them is a string that is not a number."""
    keys: set[int | str] = set()
    for i, record in enumerate(records):
        key = _key(record, "id", f"{where}[{i}]")
        if key in keys:
            raise ValueError(f"{where}[{i}]: id {_brief.repr(key)} is there twice")
        keys.add(key)
    if not any(isinstance(key, str) for key in keys):
        return {key: key for key in keys if isinstance(key, int)}
    ordered = sorted(keys, key=lambda key: (isinstance(key, str), key))
    return {key: number for number, key in enumerate(ordered, 1)}


def _categories(records: list[Any], numbers: Mapping[int | str, int], file: Path) -> dict[int, str]:
    categories: dict[int, str] = {}
    for i, record in enumerate(records):
        where = f"annotations: {file}: categories[{i}]"
        name = _field(record, "name", str, where)
        if name in categories.values():
            raise ValueError(f"{where}: name {_brief.repr(name)} is there twice")
        categories[numbers[_key(record, "id", where)]] = name
    if not categories:
        raise ValueError(f"annotations: {file} lists no categories")
    return categories


def _pictures(
    records: list[Any], numbers: Mapping[int | str, int], folder: Path, file: Path
) -> Iterator[tuple[int, Path, tuple[int, int]]]:
    for i, record in enumerate(records):
        where = f"annotations: {file}: images[{i}]"
        text = _field(record, "file_name", str, where)
        if "\0" in text or len(text) > _LONGEST_NAME:
            raise ValueError(f"{where}: file_name is {_brief.repr(text)}, expected a file's name")
        name = PurePath(text)
        height, width = _field(record, "height", int, where), _field(record, "width", int, where)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise ValueError(f"{where}: file_name {_brief.repr(text)} leaves the folder of the images")
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ValueError(f"{where}: {height}x{width} pixels, expected sides of 1 to {MAX_SIDE}")
        yield numbers[_key(record, "id", where)], folder / name, (height, width)


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long for the file system
        return False


def _annotations(
    records: list[Any],
    sizes: Mapping[int, tuple[int, int]],
    images: Mapping[int | str, int],
    categories: Mapping[int | str, int],
    file: Path,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of the pictures in `sizes`, with what the evaluator reads of them, and those without a mask."""
    from faster_coco_eval.core import mask as masks

    kept: list[dict[str, Any]] = []
    unusable: list[str] = []
    for i, record in enumerate(records):
        where = f"annotations: {file}: annotations[{i}]"
        image_key, category_key = _key(record, "image_id", where), _key(record, "category_id", where)
        if image_key not in images:
            raise ValueError(f"{where}: image_id {_brief.repr(image_key)} is no image's id")
        if category_key not in categories:
            raise ValueError(f"{where}: category_id {_brief.repr(category_key)} is no category's id")
        image, category = images[image_key], categories[category_key]
        if image not in sizes:
            continue
        height, width = sizes[image]
        segmentation = record.get("segmentation")
        _check_segmentation(segmentation, (height, width), where)
        if isinstance(segmentation, list):
            # The evaluator reads four numbers as a box, and a point as nothing, which would be an object all the same.
            segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
            if not segmentation:
                unusable.append(f"annotations[{i}]")
                continue
        crowd, area = record.get("iscrowd"), record.get("area")
        if crowd is None:
            crowd = 0
        if crowd not in (0, 1):
            raise ValueError(f"{where}: 'iscrowd' is {_brief.repr(crowd)}, expected 0 or 1")
        if area is None:
            area = masks.area(masks.segmToRle(segmentation, width, height))
        elif not _is_number(area) or area < 0:
            raise ValueError(f"{where}: 'area' is {_brief.repr(area)}, expected a number, 0 or more")
        kept.append(
            {
                # The evaluator takes 0 for "no match", and the same id for the same object.
                "id": len(kept) + 1,
                "image_id": image,
                "category_id": category,
                "segmentation": segmentation,
                "area": float(area),
                "iscrowd": int(crowd),
            }
        )
    return kept, unusable


def _check_segmentation(value: Any, size: tuple[int, int], where: str) -> None:
    """ValueError for what the evaluator would read as an empty mask, or would not survive."""
    if isinstance(value, list):
        for polygon in value:
            if not isinstance(polygon, list) or len(polygon) % 2:
                raise ValueError(f"{where}: a polygon is {_brief.repr(polygon)}, expected [x, y, x, y, ...]")
            if not all(_is_number(item) and abs(item) <= 2 * MAX_SIDE for item in polygon):
                raise ValueError(
                    f"{where}: a polygon is {_brief.repr(polygon)}, expected coordinates in pixels"
                )
    elif isinstance(value, dict):
        said = value.get("size")
        # Numbers that equal the right ones may be floats or bools, which the evaluator would not survive.
        if said != list(size) or not all(type(side) is int for side in said):
            raise ValueError(f"{where}: RLE of size {_brief.repr(said)}, expected {list(size)}, its image's")
        counts = value.get("counts")
        runs = _runs(counts) if isinstance(counts, str) else counts
        if (
            not isinstance(runs, list)
            or not all(type(run) is int and run >= 0 for run in runs)
            or sum(runs) != size[0] * size[1]
        ):
            raise ValueError(f"{where}: its RLE counts are damaged, expected runs that fill the image")
    else:
        raise ValueError(f"{where}: 'segmentation' is {_brief.repr(value)}, expected polygons or RLE")


def _runs(text: str) -> list[int]:
    """The runs of COCO's compressed RLE: five bits a character, the sixth for "more", from the third run on as the
    difference to the last but one; empty for anything else."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return [] if shift else runs


def _is_number(value: Any) -> bool:
    """Whether it is a number of JSON that fits what counts pixels; NaN is in no range."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 2**53
