"""Accuracy on labelled pictures: COCO's mask AP of instance models, ADE20K's mIoU of semantic ones.

What is measured is what :meth:`fai_fast.Model.infer` returns, in the pictures' own sizes. FocoosAI's published figures
come from its training code (``MaskFormerProcessor.eval_postprocess`` of FocoosAI/focoos), which selects differently: AP
from the 100 best pairs of query and class, so that one mask may count for several classes, and mIoU from the sum of all
queries' class probabilities at a pixel. So the two need not agree exactly.

All figures are percent, as in the registry and on the model cards.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import reprlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fai_fast.arguments import MAX_SIDE, check_int, check_number
from fai_fast.detections import Detections
from fai_fast.errors import FaiFastError
from fai_fast.images import check_max_pixels, read_image, read_labels
from fai_fast.model import Model

__all__ = [
    "TOLERANCE",
    "AdeData",
    "AdeReport",
    "CocoData",
    "CocoReport",
    "Comparison",
    "Report",
    "Run",
    "ade",
    "coco",
    "compare",
]

# COCO's evaluator, and FocoosAI's, look at this many detections of a picture.
TOP_K = 100
# Percentage points that a precision or an engine may lose.
TOLERANCE = 0.5
# The model's own threads overlap so many pictures; each holds a decoded one.
IN_FLIGHT = 3
# COCO's limits of the areas "small", "medium" and "large" are the evaluator's defaults, in this order after "all".
_AREAS = ("all", "APs", "APm", "APl")
_SHOWN = 5
# Longer than any file system's.
_LONGEST_NAME = 4096

Int64 = npt.NDArray[np.int64]
Figures = dict[str, float | None]

# What a file holds may be of any size and depth, a message not.
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother, _brief.maxlong = 2, 40, 40, 40

_log = logging.getLogger("fai_fast")

# ---------------------------------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class Report:
    """What an evaluation gave, beside what is published.

    Attributes:
        model: its name.
        engine, precision: what ran it.
        im_size: (h, w) of the network's input.
        threshold: rows that scored no more were left out.
        images: pictures that were evaluated.
        missing: pictures that were left out, because one of picture and truth was not there.
        metrics: percent, under the registry's names; None where the truth has nothing to measure.
        per_class: AP or IoU of each class, percent; None as above.
        published, published_per_class: the registry's figures, percent, where it has them.
        published_im_size: the side of the square input that they hold for.
    """

    model: str
    engine: str
    precision: str
    im_size: tuple[int, int]
    threshold: float
    images: int
    missing: tuple[str, ...]
    metrics: Figures
    per_class: Figures
    published: Mapping[str, float]
    published_per_class: Mapping[str, float]
    published_im_size: int

    @property
    def headline(self) -> float | None:
        """The figure that the task is judged by: AP or mIoU, percent."""
        return next(iter(self.metrics.values()))

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False)))

    def table(self) -> str:
        """The figures beside the published ones, metrics first, then classes, as the model cards show them."""
        height, width = self.im_size
        lines = [
            f"{self.model} {height}x{width}, {self.engine} {self.precision}, {self._what()}",
            "",
            *_figures("percent", self.metrics, self.published),
            "",
            *_figures("class", self.per_class, self.published_per_class),
        ]
        if self.published and (height, width) != (self.published_im_size, self.published_im_size):
            lines += ["", f"Published at {self.published_im_size}x{self.published_im_size}."]
        if self.missing:
            lines += ["", f"Left out, not there: {_some(self.missing)}."]
        return "\n".join(lines)

    def _what(self) -> str:
        return f"{self.images} images"


@dataclass(frozen=True)
class CocoReport(Report):
    """Mask AP as COCO defines it: ``segm/AP``, ``AP50``, ``AP75``, and ``APs``, ``APm``, ``APl`` by the objects' size.

    Attributes:
        objects: annotations of the pictures, crowds too.
        detections: rows of the model, at most 100 a picture.
    """

    objects: int
    detections: int

    def _what(self) -> str:
        return f"{self.images} images, {self.objects} objects, {self.detections} detections"


@dataclass(frozen=True)
class AdeReport(Report):
    """``sem_seg/mIoU``, ``fwIoU``, ``mACC`` and ``pACC`` (pixel accuracy) over all labelled pixels.

    As in mmsegmentation, a class that is in neither truth nor prediction is left out of mIoU, and pixels without a
    label count nowhere. A pixel that the model leaves unlabelled is a wrong one.

    Attributes:
        pixels: labelled ones.
        confusion: int64 (C, C + 1), pixels of each true class (rows) that got each class, or none (last column). No
            part of :meth:`to_dict`.
    """

    pixels: int
    confusion: Int64 = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the confusion matrix, in JSON's types."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        del fields["confusion"]
        return cast(dict[str, Any], json.loads(json.dumps(fields, allow_nan=False)))

    def _what(self) -> str:
        return f"{self.images} images, {self.pixels} labelled pixels"


def _figures(title: str, here: Figures, published: Mapping[str, float]) -> list[str]:
    width = max(len(title), *map(len, here))
    lines = [f"{title:<{width}}  {'here':>6}  {'published':>9}  {'difference':>10}"]
    for name, value in here.items():
        known = published.get(name)
        by = None if value is None or known is None else value - known
        lines.append(f"{name:<{width}}  {_percent(value):>6}  {_percent(known):>9}  {_signed(by):>10}")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _signed(difference: float | None) -> str:
    # Adding zero turns -0.0 into 0.0.
    return "-" if difference is None else f"{round(difference, 2) + 0.0:+.2f}"


def _some(names: Sequence[object]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(map(str, names[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")


# ------------------------------------------------------------------------------------------------------- COCO


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
) -> CocoReport:
    """COCO's mask AP of an instance model, by faster-coco-eval. Masks stay run-length coded throughout.

    Categories are matched with the model's classes by name. Crowds, areas and the 100 detections a picture are as COCO
    has them.

    Args:
        model: an instance model.
        images: the folder that the annotations' file names are relative to.
        annotations: the path of COCO's JSON. ``area`` may be missing: then it is the mask's.
        threshold: rows whose score is not above it are left out; AP is defined for all that a model says, so 0.
        limit: the first so many pictures, in order of their ids; None for all.
        skip_missing: leave pictures out that are not in the folder, and say so in the report.
        progress: a bar on stderr; None for one if that is a terminal.
        max_pixels: of a picture, see :meth:`fai_fast.Model.infer`.

    Raises:
        ImportError: faster-coco-eval is not installed.
        TypeError, ValueError: an argument, the JSON or a picture is wrong; names of categories do not match; a
            picture's size is not the JSON's.
        FileNotFoundError: pictures are missing.
    """
    data = CocoData.read(images, annotations, limit=limit, skip_missing=skip_missing)
    return data.measure(model, threshold=threshold, progress=progress, max_pixels=max_pixels)


@dataclass(frozen=True)
class CocoData:
    """A data set in COCO's format, checked; made by :meth:`read`.

    Attributes:
        source: the JSON's path.
        images: ids, paths and sizes (H, W) of the pictures to evaluate, by id.
        categories: ids and names.
        annotations: COCO's records of these pictures.
        missing: file names that are left out.
    """

    source: str
    images: tuple[tuple[int, Path, tuple[int, int]], ...]
    categories: Mapping[int, str]
    annotations: Sequence[dict[str, Any]] = dataclasses.field(repr=False)
    missing: tuple[str, ...] = ()

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
        categories = _categories(document["categories"], file)
        known = sorted(_pictures(document["images"], folder, file))[:limit]
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
        everywhere = {record["id"] for record in document["images"]}
        return cls(
            str(file),
            found,
            categories,
            _annotations(document["annotations"], sizes, everywhere, categories, file),
            tuple(absent),
        )

    def measure(
        self,
        model: Model,
        *,
        threshold: float = 0.0,
        progress: bool | None = False,
        max_pixels: int | None = None,
    ) -> CocoReport:
        """Runs the model on every picture. Arguments and errors as of :func:`coco`."""
        threshold, max_pixels = check_number("threshold", threshold), check_max_pixels(max_pixels)
        if model.spec.task != "instance":
            raise ValueError(
                f"model: {model.spec.name} is a {model.spec.task} model, expected an instance one; "
                "measure it with ade()"
            )
        category_of = self._category_of(model.spec.classes)
        rows: list[dict[str, Any]] = []
        paths = [path for _, path, _ in self.images]
        for (image_id, path, size), found in zip(
            self.images, _infer(model, paths, threshold, progress, max_pixels), strict=True
        ):
            if found.size != size:
                raise ValueError(
                    f"{path}: {found.size[0]}x{found.size[1]} pixels (height x width), expected {size[0]}x{size[1]} "
                    f"as {self.source} says"
                )
            best = found[:TOP_K]
            for class_id, score, area, rle in zip(
                best.class_id.tolist(),
                best.confidence.tolist(),
                best.area.tolist(),
                best.to_rle(),
                strict=True,
            ):
                if class_id in category_of:
                    rows.append(
                        {
                            "id": len(rows) + 1,
                            "image_id": image_id,
                            "category_id": category_of[class_id],
                            "segmentation": rle,
                            "score": score,
                            "area": float(area),
                            "iscrowd": 0,
                        }
                    )
        precision = self._precision(rows)
        metrics: Figures = {
            "segm/AP": _mean(precision[..., 0]),
            "segm/AP50": _mean(precision[0, ..., 0]),
            "segm/AP75": _mean(precision[5, ..., 0]),
        }
        metrics |= {f"segm/{name}": _mean(precision[..., i]) for i, name in enumerate(_AREAS) if i}
        at = {category: index for index, category in enumerate(sorted(self.categories))}
        return CocoReport(
            **_account(model, threshold),
            images=len(self.images),
            missing=self.missing,
            metrics=metrics,
            per_class={
                name: _mean(precision[:, :, at[category_of[index]], 0]) if index in category_of else None
                for index, name in enumerate(model.spec.classes)
            },
            objects=len(self.annotations),
            detections=len(rows),
        )

    def _category_of(self, classes: Sequence[str]) -> dict[int, int]:
        """The category of each class by name; ValueError where objects have a category that is no class."""
        ids = {name: category for category, name in self.categories.items()}
        unknown = sorted(set(ids) - set(classes))
        lacking = [name for name in classes if name not in ids]
        with_objects = {self.categories[item["category_id"]] for item in self.annotations}
        if set(unknown) & with_objects or len(lacking) == len(classes):
            raise ValueError(
                f"annotations: categories of {self.source} are no classes of the model: {_quoted(unknown)}; "
                f"its classes without a category: {_quoted(lacking)}; rename the categories"
            )
        if lacking:
            _log.info(
                "%s has no category for %s of the model's classes, whose detections are left out: %s",
                self.source,
                len(lacking),
                _some(lacking),
            )
        return {index: ids[name] for index, name in enumerate(classes) if name in ids}

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


def _evaluator() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ImportError(
            "faster-coco-eval is needed for COCO's mask AP: pip install 'fai-fast[eval]'"
        ) from error
    return COCO, COCOeval_faster


def _mean(precision: npt.NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None


def _quoted(names: Sequence[str]) -> str:
    return _some([repr(name) for name in names]) if names else "none"


def _read_json(file: Path) -> dict[str, list[Any]]:
    if file.exists() and not file.is_file():
        raise ValueError(f"annotations: {file} is no regular file, expected COCO's instances JSON")
    if not file.is_file():
        raise FileNotFoundError(f"annotations: no such file: {file}")
    try:
        document = json.loads(file.read_bytes())
    except RecursionError:
        raise ValueError(
            f"annotations: {file} is nested too deeply, expected COCO's instances format"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"annotations: {file} is no JSON ({error}), expected COCO's instances format"
        ) from error
    if not isinstance(document, dict):
        raise ValueError(
            f"annotations: {file} holds {_brief.repr(document)}, expected an object in COCO's instances format"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise ValueError(f"annotations: {file} has no list {key!r}, expected COCO's instances format")
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


def _categories(records: list[Any], file: Path) -> dict[int, str]:
    categories: dict[int, str] = {}
    names: set[str] = set()
    for i, record in enumerate(records):
        where = f"annotations: {file}: categories[{i}]"
        key, name = _field(record, "id", int, where), _field(record, "name", str, where)
        if key in categories or name in names:
            raise ValueError(f"{where}: id {key} or name {_brief.repr(name)} is there twice")
        categories[key] = name
        names.add(name)
    if not categories:
        raise ValueError(f"annotations: {file} lists no categories")
    return categories


def _pictures(records: list[Any], folder: Path, file: Path) -> Iterator[tuple[int, Path, tuple[int, int]]]:
    seen = set()
    for i, record in enumerate(records):
        where = f"annotations: {file}: images[{i}]"
        key, text = _field(record, "id", int, where), _field(record, "file_name", str, where)
        if "\0" in text or len(text) > _LONGEST_NAME:
            raise ValueError(f"{where}: file_name is {_brief.repr(text)}, expected a file's name")
        name = PurePath(text)
        height, width = _field(record, "height", int, where), _field(record, "width", int, where)
        if key in seen:
            raise ValueError(f"{where}: id {key} is there twice")
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise ValueError(f"{where}: file_name {_brief.repr(text)} leaves the folder of the images")
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ValueError(f"{where}: {height}x{width} pixels, expected sides of 1 to {MAX_SIDE}")
        seen.add(key)
        yield key, folder / name, (height, width)


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long for the file system
        return False


def _annotations(
    records: list[Any],
    sizes: Mapping[int, tuple[int, int]],
    everywhere: set[int],
    categories: Mapping[int, str],
    file: Path,
) -> list[dict[str, Any]]:
    """The records of the pictures in `sizes`, with what the evaluator reads of them."""
    from faster_coco_eval.core import mask as masks

    kept: list[dict[str, Any]] = []
    for i, record in enumerate(records):
        where = f"annotations: {file}: annotations[{i}]"
        image, category = _field(record, "image_id", int, where), _field(record, "category_id", int, where)
        if image not in everywhere:
            raise ValueError(f"{where}: image_id {image} is no image's id")
        if category not in categories:
            raise ValueError(f"{where}: category_id {category} is no category's id")
        if image not in sizes:
            continue
        height, width = sizes[image]
        segmentation = record.get("segmentation")
        _check_segmentation(segmentation, (height, width), where)
        crowd, area = record.get("iscrowd", 0), record.get("area")
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
    return kept


def _check_segmentation(value: Any, size: tuple[int, int], where: str) -> None:
    """ValueError for what the evaluator would read as an empty mask, or would not survive."""
    if isinstance(value, list) and value:
        for polygon in value:
            if not isinstance(polygon, list) or len(polygon) < 4 or len(polygon) % 2:
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


# ------------------------------------------------------------------------------------------------------ ADE20K


def ade(
    model: Model,
    folder: Any,
    *,
    threshold: float = 0.0,
    limit: int | None = None,
    skip_missing: bool = False,
    progress: bool | None = False,
    max_pixels: int | None = None,
) -> AdeReport:
    """mIoU and pixel accuracy of a semantic model, in the pictures' own sizes.

    Args:
        model: a semantic model; its class i is label i + 1.
        folder: ADE20K's, with ``images/validation/*.jpg`` and ``annotations/validation/*.png``, or the same without
            ``validation``. A label image holds one number a pixel: 0 unlabelled, 1..C the classes.
        threshold: pixels of classes that score no more are left unlabelled; by default none is.
        limit: the first so many pictures, by name; None for all.
        skip_missing: leave out what has a picture or a label image only, and say so in the report.
        progress: a bar on stderr; None for one if that is a terminal.
        max_pixels: of a picture and of a label image, see :meth:`fai_fast.Model.infer`.

    Raises:
        TypeError, ValueError: an argument, a label image or a picture is wrong, or their sizes differ.
        FileNotFoundError: folders or files are missing.
    """
    data = AdeData.read(folder, limit=limit, skip_missing=skip_missing)
    return data.measure(model, threshold=threshold, progress=progress, max_pixels=max_pixels)


@dataclass(frozen=True)
class AdeData:
    """A data set in ADE20K's layout; made by :meth:`read`.

    Attributes:
        pairs: picture and label image, by name.
        missing: files without their counterpart, which are left out.
    """

    pairs: tuple[tuple[Path, Path], ...]
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Any, *, limit: int | None = None, skip_missing: bool = False) -> AdeData:
        """Looks for the files. Arguments and errors as of :func:`ade`."""
        limit = _check_limit(limit)
        root = Path(folder)
        for part in ("validation", ""):
            images, annotations = root / "images" / part, root / "annotations" / part
            if images.is_dir() and annotations.is_dir():
                break
        else:
            raise FileNotFoundError(
                f"ade: {root} has no folders images/validation and annotations/validation, nor images and annotations"
            )
        pictures, truths = _by_stem(images, _PICTURES), _by_stem(annotations, (".png",))
        lone = sorted(set(pictures) ^ set(truths))
        absent = [str(pictures.get(stem) or truths.get(stem)) for stem in lone]
        both = sorted(set(pictures) & set(truths))
        if not pictures and not truths:
            raise ValueError(f"ade: no pictures in {images}")
        _check_missing("ade", absent, "without a counterpart", skip_missing, len(absent) + len(both))
        return cls(tuple((pictures[stem], truths[stem]) for stem in both[:limit]), tuple(absent))

    def measure(
        self,
        model: Model,
        *,
        threshold: float = 0.0,
        progress: bool | None = False,
        max_pixels: int | None = None,
    ) -> AdeReport:
        """Runs the model on every picture. Arguments and errors as of :func:`ade`."""
        threshold, max_pixels = check_number("threshold", threshold), check_max_pixels(max_pixels)
        if model.spec.task != "semantic" or not model.spec.config.predict_all_pixels:
            raise ValueError(
                f"model: {model.spec.name} gives masks that may overlap, expected a semantic model with "
                "predict_all_pixels; measure it with coco()"
            )
        classes = model.spec.classes
        n = len(classes)
        confusion = np.zeros((n, n + 1), np.int64)
        paths = [picture for picture, _ in self.pairs]
        for (picture, path), found in zip(
            self.pairs, _infer(model, paths, threshold, progress, max_pixels), strict=True
        ):
            truth = _read_labels(path, n, max_pixels)
            if truth.shape != found.size:
                raise ValueError(
                    f"{path}: {truth.shape[0]}x{truth.shape[1]} pixels (height x width), expected "
                    f"{found.size[0]}x{found.size[1]} as of {picture}"
                )
            predicted = found.label_map
            assert predicted is not None
            labelled = truth > 0
            true, got = truth[labelled].astype(np.int64) - 1, predicted[labelled].astype(np.int64)
            got[got < 0] = n
            confusion += np.bincount(true * (n + 1) + got, minlength=n * (n + 1)).reshape(n, n + 1)
        metrics, per_class = _semantic_figures(confusion)
        return AdeReport(
            **_account(model, threshold),
            images=len(self.pairs),
            missing=self.missing,
            metrics=metrics,
            per_class=dict(zip(classes, per_class, strict=True)),
            pixels=int(confusion.sum()),
            confusion=confusion,
        )


def _semantic_figures(confusion: Int64) -> tuple[Figures, list[float | None]]:
    """Metrics and each class's IoU, percent, of pixels (C, C + 1) by truth and prediction."""
    right = confusion.diagonal().astype(np.float64)
    truth, predicted = confusion.sum(1), confusion[:, :-1].sum(0)
    union = truth + predicted - right
    with np.errstate(invalid="ignore"):
        iou, accuracy = 100 * right / union, 100 * right / truth
    labelled = truth > 0
    total = truth.sum()
    metrics: Figures = dict.fromkeys(("sem_seg/mIoU", "sem_seg/fwIoU", "sem_seg/mACC", "sem_seg/pACC"))
    if total:
        metrics = {
            "sem_seg/mIoU": float(iou[union > 0].mean()),
            "sem_seg/fwIoU": float((iou[labelled] * truth[labelled]).sum() / total),
            "sem_seg/mACC": float(accuracy[labelled].mean()),
            "sem_seg/pACC": float(100 * right.sum() / total),
        }
    return metrics, [None if math.isnan(value) else value for value in iou.tolist()]


_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            if path.stem in found:
                raise ValueError(
                    f"ade: {found[path.stem]} and {path} have the same name, expected one of them"
                )
            found[path.stem] = path
    return found


def _read_labels(path: Path, classes: int, max_pixels: int | None) -> npt.NDArray[Any]:
    """Integers (H, W), 0..classes. Raises ValueError for anything else."""
    labels = read_labels(path, max_pixels=max_pixels)
    if labels.min() < 0 or labels.max() > classes:
        wrong = labels.max() if labels.max() > classes else labels.min()
        raise ValueError(
            f"labels: {path} holds label {wrong}, expected 0 (unlabelled) to {classes}, the model's classes"
        )
    return labels


# ------------------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Run:
    """One of the configurations that are compared.

    Attributes:
        engine, precision: what was asked for.
        report: what it gave, or None where it cannot run here.
        problem: why it cannot.
    """

    engine: str
    precision: str
    report: Report | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Engines and precisions on the same pictures; the first run is what the others are held against.

    Attributes:
        runs: in the order asked for; the first has a report.
        tolerance: percentage points of AP or mIoU that a run may lose.
    """

    runs: tuple[Run, ...]
    tolerance: float

    def difference(self, run: Run) -> float | None:
        """Percentage points of AP or mIoU above the first run's; None where one of them has no figure."""
        first, report = self.runs[0].report, run.report
        if first is None or report is None or first.headline is None or report.headline is None:
            return None
        return report.headline - first.headline

    @property
    def fallen(self) -> tuple[Run, ...]:
        """The runs that lose more than the tolerance."""
        differences = ((run, self.difference(run)) for run in self.runs)
        # What a sum of floats is off by is no loss.
        return tuple(run for run, by in differences if by is not None and by < -self.tolerance - 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        return {
            "tolerance": self.tolerance,
            "runs": [
                {
                    "engine": run.engine,
                    "precision": run.precision,
                    "problem": run.problem,
                    "difference": self.difference(run),
                    "fell": run in self.fallen,
                    "report": None if run.report is None else run.report.to_dict(),
                }
                for run in self.runs
            ],
        }

    def table(self) -> str:
        """The metrics of each run, and how far it is from the first."""
        first = self.runs[0].report
        assert first is not None
        names = [f"{run.engine} {run.precision}" for run in self.runs]
        width = max(map(len, names))
        columns = [(key, key.rpartition("/")[2]) for key in first.metrics]
        head = "".join(f"  {title:>6}" for _, title in columns)
        lines = [
            f"{first.model} {first.im_size[0]}x{first.im_size[1]}, {first._what()}",
            "",
            f"{'percent':<{width}}{head}  difference",
        ]
        for name, run in zip(names, self.runs, strict=True):
            if run.report is None:
                lines.append(f"{name:<{width}}  cannot run here: {run.problem}")
                continue
            figures = "".join(f"  {_percent(run.report.metrics[key]):>6}" for key, _ in columns)
            by = self.difference(run)
            text = _signed(None if run is self.runs[0] else by)
            mark = f"  fell by more than {self.tolerance:g}" if run in self.fallen else ""
            lines.append(f"{name:<{width}}{figures}  {text:>10}{mark}")
        return "\n".join(lines)


def compare(
    load: Callable[[str, str], Model],
    measure: Callable[[Model], Report],
    configurations: Sequence[tuple[str, str]],
    *,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Measures a model in several engines and precisions, one after the other.

    Args:
        load: makes the model of an engine and a precision; each is closed before the next is made.
        measure: such as ``CocoData.measure``.
        configurations: engines and precisions; the others are held against the first, which therefore must run.
        tolerance: percentage points that a run may lose.

    Raises:
        ValueError: there are no configurations.
        What ``load`` raises for the first configuration, and ``measure`` for any. Where ``load`` refuses one of the
        others (FaiFastError, ValueError), the comparison says why.

    Example:
        >>> data = CocoData.read("val2017", "instances_val2017.json")  # doctest: +SKIP
        >>> load = lambda engine, precision: fai_fast.load(
        ...     "fai-mf-s-coco-ins", engine=engine, precision=precision
        ... )  # doctest: +SKIP
        >>> runs = [("openvino", "fp32"), ("openvino", "bf16")]  # doctest: +SKIP
        >>> print(compare(load, data.measure, runs).table())  # doctest: +SKIP
    """
    if not configurations:
        raise ValueError("configurations: got none, expected at least one engine and precision")
    runs: list[Run] = []
    for engine, precision in configurations:
        try:
            model = load(engine, precision)
        except (FaiFastError, ValueError) as error:
            if not runs:
                raise
            runs.append(Run(engine, precision, problem=" ".join(str(error).split())))
            continue
        with model:
            runs.append(Run(engine, precision, report=measure(model)))
    return Comparison(tuple(runs), check_number("tolerance", tolerance))


# ------------------------------------------------------------------------------------------------------ shared


def _infer(
    model: Model, paths: Sequence[Path], threshold: float, progress: bool | None, max_pixels: int | None
) -> Iterator[Detections]:
    """The pictures' results in order, a few of them on their way at a time."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    waiting: deque[Any] = deque()
    disable = None if progress is None else not progress
    with tqdm(total=len(paths), unit="picture", file=sys.stderr, leave=False, disable=disable) as bar:
        for path in paths:
            frame = read_image(path, max_pixels=max_pixels)
            waiting.append(model.submit(frame, threshold=threshold))
            if len(waiting) == IN_FLIGHT:
                yield waiting.popleft().result()
                bar.update()
        while waiting:
            yield waiting.popleft().result()
            bar.update()


def _account(model: Model, threshold: float) -> dict[str, Any]:
    info, spec = model.info(), model.spec
    return {
        "model": spec.name,
        "engine": info["engine"]["engine"],
        "precision": info["precision"],
        "im_size": model.size,
        "threshold": threshold,
        "published": dict(spec.metrics),
        "published_per_class": dict(spec.per_class),
        "published_im_size": spec.metrics_im_size or spec.im_size,
    }


def _check_limit(limit: int | None) -> int | None:
    if limit is not None and (limit := check_int("limit", limit)) < 1:
        raise ValueError(f"limit: got {limit}, expected a positive integer or None")
    return limit


def _check_missing(name: str, absent: Sequence[str], where: str, skip_missing: bool, total: int) -> None:
    if absent and (not skip_missing or len(absent) == total):
        raise FileNotFoundError(
            f"{name}: {len(absent)} of {total} files are missing, {where}: {_some(absent)}"
            + ("" if skip_missing else "; skip_missing leaves them out")
        )
