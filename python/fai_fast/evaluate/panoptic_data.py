"""COCO's panoptic format: read, checked, and a model, or files of predictions, measured on it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fai_fast._arguments import check_fraction
from fai_fast._options import check_options
from fai_fast.detections import Detections
from fai_fast.detections.panoptic import check_id, read_ids, rows_of_ids
from fai_fast.evaluate.coco_data import (
    _LONGEST_NAME,
    _brief,
    _categories,
    _field,
    _is_there,
    _key,
    _numbers,
    _pictures,
    _read_json,
    categories_of_classes,
)
from fai_fast.evaluate.panoptic_quality import Bool, Segments, Tally, tally
from fai_fast.evaluate.report import (
    ClassQuality,
    Figures,
    Int64,
    PanopticReport,
    _figures,
    quality_lines,
)
from fai_fast.evaluate.running import MeasureOptions, _account, _check_limit, _check_missing, _submitting
from fai_fast.evaluate.shapes import BUCKETS, COMPARED, _Passes
from fai_fast.images import check_max_pixels, pixel_limit
from fai_fast.model import Model
from fai_fast.registry import ModelSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger("fai_fast")


def panoptic(
    model: Model,
    images: Any,
    annotations: Any,
    segments: Any = None,
    *,
    threshold: float | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    progress: bool | None = False,
    max_pixels: int | None = None,
    buckets: int = BUCKETS,
    compare_sizes: int = COMPARED,
) -> PanopticReport:
    """Panoptic quality of a panoptic model, and its parts: segmentation and recognition quality, as of panopticapi.

    Categories are matched with the model's classes by name. Void (pixels of no segment) and crowds are as panopticapi
    has them; areas are counted in the PNGs, whatever the JSON says of them. Pictures without an annotation are not
    looked at.

    Args:
        model: a panoptic model.
        images: the folder that the JSON's pictures are relative to.
        annotations: the path of COCO's panoptic JSON; its ``categories`` say ``isthing``.
        segments: the folder of the PNGs that the JSON's annotations name; None for the one beside it whose name is that
            of the JSON without its suffix.
        threshold: queries whose score is not above it are no segments; None for the model's own.
        limit, skip_missing, progress, max_pixels, buckets, compare_sizes: as of :func:`fai_fast.evaluate.coco`; a
            picture is missing where it or its PNG is not there.

    Raises:
        TypeError, ValueError: an argument, the JSON, a PNG or a picture is wrong; the text names the file and the
            field. Ids that are in only one of JSON and PNG are an error.
        FileNotFoundError: pictures, PNGs or folders are missing.
    """
    data = PanopticData.read(images, annotations, segments, limit=limit, skip_missing=skip_missing)
    return data.measure(
        model,
        threshold=threshold,
        progress=progress,
        max_pixels=max_pixels,
        buckets=buckets,
        compare_sizes=compare_sizes,
    )


@dataclass(frozen=True)
class _Picture:
    """A picture of the truth: number, id, files and size (H, W), and of each segment id, class and whether a crowd."""

    number: int
    key: int | str
    path: Path
    size: tuple[int, int]
    png: Path
    ids: Int64
    classes: Int64
    crowds: Bool


@dataclass(frozen=True)
class PanopticScore:
    """The panoptic quality of files, from :meth:`PanopticData.score`.

    Attributes:
        source: the JSON's path.
        images: pictures.
        metrics: percent, under the names of :class:`PanopticReport`; None where there is nothing to measure.
        quality: of each category.
    """

    source: str
    images: int
    metrics: Figures
    quality: Mapping[str, ClassQuality]

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False)))

    def table(self) -> str:
        """The metrics, then the classes."""
        per_class: Figures = {name: item.pq for name, item in self.quality.items()}
        lines = [f"{self.source}, {self.images} images", "", *_figures("percent", self.metrics, {})]
        return "\n".join([*lines, "", *quality_lines(_figures("class", per_class, {}), self.quality)])


@dataclass(frozen=True)
class PanopticData:
    """A data set in COCO's panoptic format, checked; made by :meth:`read`.

    Attributes:
        source: the JSON's path.
        images: the pictures to evaluate, by id.
        categories: ids and names, by id; their places number the classes here.
        keys: the same places by the ids as they are in the JSON.
        things: bool (C,), which of them are things.
        missing: file names that are left out.
    """

    source: str
    images: tuple[_Picture, ...] = dataclasses.field(repr=False)
    categories: Mapping[int, str]
    keys: Mapping[int | str, int] = dataclasses.field(repr=False)
    things: Bool = dataclasses.field(repr=False)
    missing: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        images: Any,
        annotations: Any,
        segments: Any = None,
        *,
        limit: int | None = None,
        skip_missing: bool = False,
    ) -> PanopticData:
        """Reads and checks the JSON, and looks for the pictures and their PNGs. Arguments and errors as of
        :func:`panoptic`; ``images`` may be None for :meth:`score`, which needs no pictures."""
        limit = _check_limit(limit)
        file = Path(annotations)
        folder = None if images is None else Path(images)
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"images: no such folder: {folder}")
        document = _read_json(file, "panoptic")
        pngs = _folder_of("segments", segments, file)
        category_numbers = _numbers(document["categories"], f"annotations: {file}: categories")
        image_numbers = _numbers(document["images"], f"annotations: {file}: images")
        names = _categories(document["categories"], category_numbers, file)
        categories = {number: names[number] for number in sorted(names)}
        at = {number: place for place, number in enumerate(categories)}
        things = np.zeros(len(categories), np.bool_)
        for i, record in enumerate(document["categories"]):
            where = f"annotations: {file}: categories[{i}]"
            things[at[category_numbers[_key(record, "id", where)]]] = _flag(record, "isthing", where)

        sizes = {
            number: (path, size)
            for number, path, size in _pictures(document["images"], image_numbers, folder or Path(), file)
        }
        places = {key: at[number] for key, number in category_numbers.items()}
        known = []
        for key, i, record in _records(document["annotations"], image_numbers, f"annotations: {file}"):
            number = image_numbers[key]
            where = f"annotations: {file}: annotations[{i}]"
            path, size = sizes[number]
            found = _segments(record, places, where)
            known.append(_Picture(number, key, path, size, pngs / _file_name(record, where), *found))
        known = sorted(known, key=lambda item: item.number)[:limit]
        if not known:
            raise ValueError(f"annotations: {file} lists no annotations")
        there, absent = [], []
        for item in known:
            lacking = [
                str(path)
                for path in ((item.png,) if folder is None else (item.path, item.png))
                if not _is_there(path)
            ]
            absent += lacking[:1]
            there += [] if lacking else [item]
        where = f"in {pngs}" if folder is None else f"in {folder} and {pngs}"
        _check_missing("annotations", absent, where, skip_missing, len(known))
        return cls(str(file), tuple(there), categories, places, things, tuple(absent))

    def check(self, spec: ModelSpec) -> dict[int, int]:
        """The place of the category of each of a model's classes. Raises ValueError where the data is not for it."""
        if spec.task != "panoptic":
            other = "coco()" if spec.task == "instance" else "ade()"
            raise ValueError(
                f"model: {spec.name} is a {spec.task} model, expected a panoptic one; measure it with {other}"
            )
        at = {number: place for place, number in enumerate(self.categories)}
        numbers = list(self.categories)
        used = {numbers[place] for item in self.images for place in np.unique(item.classes).tolist()}
        matched = categories_of_classes(spec.classes, self.categories, used, self.source)
        places = {class_id: at[number] for class_id, number in matched.items()}
        stuff = getattr(getattr(spec.config, "panoptic", None), "stuff", ())
        differing = [
            spec.classes[class_id]
            for class_id, place in places.items()
            if bool(self.things[place]) == (class_id in stuff)
        ]
        if differing:
            _log.warning(
                "%s and %s do not agree on whether %s are things: segments of stuff are one in a picture, which the "
                "quality of these classes depends on",
                spec.name,
                self.source,
                ", ".join(map(repr, differing[:5])) + (" and others" if len(differing) > 5 else ""),
            )
        return places

    def measure(self, model: Model, **options: Unpack[MeasureOptions]) -> PanopticReport:
        """Runs the model on every picture.

        Args:
            model: a panoptic model.
            options: as of :func:`panoptic`; and ``stop``, which is asked before every picture but the first: where it
                says True, the report is of those before.

        Raises:
            Exception: what :func:`panoptic` raises.
        """
        check_options("measure", options, MeasureOptions)
        level = options.get("threshold")
        level = model.spec.config.threshold if level is None else check_fraction("threshold", level)
        places = self.check(model.spec)
        max_pixels = check_max_pixels(options.get("max_pixels"))
        passes = _Passes(
            model, [item.path for item in self.images], lambda: [item.size for item in self.images], options
        )
        submit = _submitting(level)
        # Of the sample; pictures in the model's own size take the place of those in another.
        total = shaped = own = Tally.empty(len(self.categories))
        predicted = 0
        for index, found in passes.first(submit):
            counted = self._tally(index, self._prediction(index, found, places), max_pixels)
            predicted += len(found)
            total += counted
            if index in passes.sample:
                shaped += counted
                own += Tally.empty(len(self.categories)) if passes.is_run_again(index) else counted
        for index, found in passes.again(submit):
            own += self._tally(index, self._prediction(index, found, places), max_pixels)
        effect = passes.effect(shaped.mean().pq, own.mean().pq) if passes.is_compared else None
        qualities = total.of_classes()
        nothing = Tally.empty(1).mean()
        quality = {
            name: qualities[places[class_id]] if class_id in places else nothing
            for class_id, name in enumerate(model.spec.classes)
        }
        return PanopticReport(
            **_account(model, level),
            images=len(passes.done),
            missing=self.missing,
            metrics=total.figures(self.things),
            per_class={name: item.pq for name, item in quality.items()},
            segments=sum(len(self.images[index].ids) for index in passes.done),
            predicted=predicted,
            quality=quality,
            sizes=passes.sizes,
            size_effect=effect,
        )

    def score(
        self, predictions: Any, segments: Any = None, *, max_pixels: int | None = None
    ) -> PanopticScore:
        """The quality of predictions in files, in the same format.

        Args:
            predictions: the path of a JSON with ``annotations``, one of each picture by ``image_id``. Ids of pictures
                and categories are the truth's, as in results that are handed in. Where the JSON has ``images`` or
                ``categories`` of its own, as that of ``fai-fast predict --format panoptic``, they are matched by name:
                pictures by that of their file, without its folder.
            segments: the folder of their PNGs; None for the one beside the JSON, as of :func:`panoptic`.
            max_pixels: of a PNG.

        Raises:
            TypeError, ValueError: a file is wrong, or there is no prediction of a picture; the text names it.
            FileNotFoundError: a file or folder is missing.

        Example:
            >>> truth = PanopticData.read(None, "panoptic_val2017.json")  # doctest: +SKIP
            >>> truth.score("predictions.json").metrics["panoptic/PQ"]  # doctest: +SKIP
        """
        max_pixels = check_max_pixels(max_pixels)
        file = Path(predictions)
        document = _read_json(file, "panoptic", ("annotations",))
        pngs = _folder_of("segments", segments, file)
        wanted, places = self._matched(document, f"predictions: {file}")
        total = Tally.empty(len(self.categories))
        done = set()
        for key, i, record in _records(document["annotations"], wanted, f"predictions: {file}", others=True):
            where = f"predictions: {file}: annotations[{i}]"
            index = wanted[key]
            item = self.images[index]
            ids, classes, _ = _segments(record, places, where)
            rows = _read_rows(pngs / _file_name(record, where), item.size, ids, where, max_pixels)
            total += self._tally(index, Segments(rows, classes), max_pixels)
            done.add(index)
        if len(done) < len(self.images):
            item = next(item for index, item in enumerate(self.images) if index not in done)
            raise ValueError(
                f"predictions: {file} has no annotation of image {_brief.repr(item.key)}, {item.path.name}"
            )
        quality = dict(zip(self.categories.values(), total.of_classes(), strict=True))
        return PanopticScore(str(file), len(done), total.figures(self.things), quality)

    def _matched(
        self, document: Mapping[str, Any], source: str
    ) -> tuple[dict[int | str, int], Mapping[int | str, int]]:
        """The place of each picture, and of each category, by the ids of predictions."""
        pictures = {item.key: index for index, item in enumerate(self.images)}
        if "images" in document:
            named = {item.path.name: index for index, item in enumerate(self.images)}
            if len(named) < len(self.images):
                raise ValueError(
                    f"{source}: images: pictures of {self.source} have the same name, expected ids only"
                )
            pictures = _by_name(document, "images", "file_name", named, source)
        if "categories" not in document:
            return pictures, self.keys
        names = {name: place for place, name in enumerate(self.categories.values())}
        return pictures, _by_name(document, "categories", "name", names, source)

    def _prediction(self, index: int, found: Detections, places: Mapping[int, int]) -> Segments:
        """What was found in a picture; segments of classes without a category are void."""
        item = self.images[index]
        if found.size != item.size:
            raise ValueError(
                f"{item.path}: {found.size[0]}x{found.size[1]} pixels (height x width), expected "
                f"{item.size[0]}x{item.size[1]} as {self.source} says"
            )
        if not all(class_id in places for class_id in found.class_id.tolist()):
            found = found[np.isin(found.class_id, list(places))]
        ids = found.segment_map()
        # Here void is the last number, there the first.
        rows = np.where(ids == 0, len(found), ids - 1)
        return Segments(rows, np.array([places[i] for i in found.class_id.tolist()], np.int64))

    def _tally(self, index: int, prediction: Segments, max_pixels: int | None) -> Tally:
        item = self.images[index]
        rows = _read_rows(item.png, item.size, item.ids, f"annotations: {self.source}", max_pixels)
        return tally(Segments(rows, item.classes, item.crowds), prediction, len(self.categories))


def _folder_of(name: str, folder: Any, file: Path) -> Path:
    """The folder of a JSON's PNGs."""
    path = file.with_suffix("") if folder is None else Path(folder)
    if not path.is_dir():
        more = f"; give {name}=, the folder of the PNGs that {file} names" if folder is None else ""
        raise FileNotFoundError(f"{name}: no such folder: {path}{more}")
    return path


def _records(
    records: Sequence[Mapping[str, Any]],
    images: Mapping[int | str, int],
    source: str,
    *,
    others: bool = False,
) -> Iterator[tuple[int | str, int, Mapping[str, Any]]]:
    """The picture's id, place and record of each annotation; `others` are passed over, of pictures not known."""
    seen = set()
    for i, record in enumerate(records):
        where = f"{source}: annotations[{i}]"
        key = _key(record, "image_id", where)
        if key not in images:
            if others:
                continue
            raise ValueError(f"{where}: image_id {_brief.repr(key)} is no image's id")
        if key in seen:
            raise ValueError(f"{where}: image_id {_brief.repr(key)} is there twice")
        seen.add(key)
        yield key, i, record


def _by_name(
    document: Mapping[str, Any], kind: str, field: str, places: Mapping[str, int], source: str
) -> dict[int | str, int]:
    """The places of those records whose name is known, by their ids."""
    records = document[kind]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{source}: {kind!r} is {_brief.repr(records)}, expected a list of objects")
    found: dict[int | str, int] = {}
    for i, record in enumerate(records):
        where = f"{source}: {kind}[{i}]"
        name = PurePath(_field(record, field, str, where)).name
        if name in places:
            if places[name] in found.values():
                raise ValueError(f"{where}: {field} {_brief.repr(name)} is there twice")
            found[_key(record, "id", where)] = places[name]
    return found


def _segments(
    record: Mapping[str, Any], places: Mapping[int | str, int], where: str
) -> tuple[Int64, Int64, Bool]:
    """Ids, classes and crowds of a picture's segments."""
    infos = record.get("segments_info")
    if not isinstance(infos, list):
        raise ValueError(f"{where}: 'segments_info' is {_brief.repr(infos)}, expected a list")
    ids, classes, crowds = [], [], []
    for i, info in enumerate(infos):
        name = f"{where}.segments_info[{i}]"
        if not isinstance(info, dict):
            raise ValueError(f"{name} is {_brief.repr(info)}, expected an object")
        ids.append(check_id(f"{name}.id", info.get("id")))
        category = _key(info, "category_id", name)
        if category not in places:
            raise ValueError(f"{name}: category_id {_brief.repr(category)} is no category's id")
        classes.append(places[category])
        crowds.append(
            bool(info.get("iscrowd")) if info.get("iscrowd") is None else _flag(info, "iscrowd", name)
        )
    if len(set(ids)) < len(ids):
        twice = next(item for item in ids if ids.count(item) > 1)
        raise ValueError(f"{where}.segments_info: id {twice} is there twice")
    return np.array(ids, np.int64), np.array(classes, np.int64), np.array(crowds, np.bool_)


def _flag(record: Mapping[str, Any], name: str, where: str) -> bool:
    value = record.get(name)
    if value not in (0, 1):
        came = _brief.repr(value) if name in record else "missing"
        raise ValueError(f"{where}: {name!r} is {came}, expected 0 or 1")
    return bool(value)


def _file_name(record: Mapping[str, Any], where: str) -> PurePath:
    text = _field(record, "file_name", str, where)
    name = PurePath(text)
    if "\0" in text or len(text) > _LONGEST_NAME:
        raise ValueError(f"{where}: file_name is {_brief.repr(text)}, expected a file's name")
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise ValueError(f"{where}: file_name {_brief.repr(text)} leaves the folder of the PNGs")
    return name


def _read_rows(png: Path, size: tuple[int, int], ids: Int64, record: str, max_pixels: int | None) -> Int64:
    try:
        content = png.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{record}: no such file: {png}") from None
    image = read_ids(content, str(png), size, pixel_limit(max_pixels))
    return rows_of_ids(image, ids, str(png), f"{record}: segments_info")
