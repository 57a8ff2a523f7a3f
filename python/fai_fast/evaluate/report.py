"""What an evaluation gave, and its tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fai_fast._sizes import ImSize, sides_of, size_text

_SHOWN = 5
Int64 = npt.NDArray[np.int64]
Figures = dict[str, float | None]


@dataclass(frozen=True)
class SizeEffect:
    """What it changed that pictures got an input of their shape, measured on some of them.

    Attributes:
        images: pictures that were run both ways, spread evenly over all.
        own_size: (h, w), the model's own input, which all of them had for the second figure.
        shaped, own: AP, mIoU or PQ of these pictures, percent, with inputs of their shapes and with the model's own;
            None where the truth has nothing to measure.
    """

    images: int
    own_size: tuple[int, int]
    shaped: float | None
    own: float | None

    @property
    def difference(self) -> float | None:
        """Percentage points that the shapes gained."""
        return None if self.shaped is None or self.own is None else self.shaped - self.own


@dataclass(frozen=True)
class Report:
    """What an evaluation gave, beside what is published.

    Attributes:
        model: its name.
        engine, precision: what ran it.
        im_size: (h, w) of the network's input, the model's own where pictures of other shapes had others.
        threshold: rows that scored no more were left out.
        images: pictures that were evaluated.
        missing: pictures that were left out, because one of picture and truth was not there.
        metrics: percent, under the registry's names; None where the truth has nothing to measure.
        per_class: AP, IoU or PQ of each class, percent; None as above.
        published, published_per_class: the registry's figures, percent, where it has them.
        published_im_size: the network's input that they hold for, an int for a square or (h, w).
        sizes: ((h, w), images) of each input that there was, that of the most images first; empty where all had
            ``im_size``.
        size_effect: what these sizes changed; None where all had ``im_size``, or it was not measured.
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
    published_im_size: ImSize
    sizes: tuple[tuple[tuple[int, int], int], ...] = dataclasses.field(default=(), kw_only=True)
    size_effect: SizeEffect | None = dataclasses.field(default=None, kw_only=True)

    @property
    def headline(self) -> float | None:
        """The figure that the task is judged by: AP, mIoU or PQ, percent."""
        return next(iter(self.metrics.values()))

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False)))

    def table(self) -> str:
        """The figures beside the published ones, metrics first, then classes, as the model cards show them."""
        lines = [
            f"{self.model} {self._inputs()}, {self.engine} {self.precision}, {self._what()}",
            "",
            *_figures("percent", self.metrics, self.published),
            "",
            *self._class_lines(),
        ]
        if self.published and (self.sizes or self.im_size != sides_of(self.published_im_size)):
            lines += ["", f"Published at {size_text(self.published_im_size)}."]
        if (effect := self.size_effect) is not None:
            what = next(iter(self.metrics))
            lines += [
                "",
                f"Inputs in the pictures' shapes: {what} {_percent(effect.shaped)}, with {size_text(effect.own_size)} "
                f"for all {_percent(effect.own)}, {_signed(effect.difference)}, on {effect.images} of the images.",
            ]
        if self.missing:
            lines += ["", f"Left out, not there: {_some(self.missing)}."]
        return "\n".join(lines)

    def _class_lines(self) -> list[str]:
        """A head, and a line for each class."""
        return _figures("class", self.per_class, self.published_per_class)

    def _inputs(self) -> str:
        """The network's input, or how many images had which."""
        if not self.sizes:
            # Of stored predictions it may not be known.
            return size_text(self.im_size) if any(self.im_size) else "input unknown"
        return " + ".join(f"{size_text(size)} ({images})" for size, images in self.sizes)

    def _what(self) -> str:
        return f"{self.images} images"


@dataclass(frozen=True)
class CocoReport(Report):
    """Mask AP as COCO defines it: ``segm/AP``, ``AP50``, ``AP75``, and ``APs``, ``APm``, ``APl`` by the objects' size.

    Attributes:
        objects: annotations of the pictures, crowds too.
        detections: rows of the model, at most 100 a picture.
        unusable: annotations that were left out, since they have no mask.
    """

    objects: int
    detections: int
    unusable: tuple[str, ...] = ()

    def table(self) -> str:
        lines = [super().table()]
        if self.unusable:
            lines += ["", f"Left out, without a mask: {_some(self.unusable)}."]
        return "\n".join(lines)

    def _what(self) -> str:
        return f"{self.images} images, {self.objects} objects, {self.detections} detections"


@dataclass(frozen=True)
class ClassQuality:
    """The panoptic quality of one class, or the mean of some.

    Attributes:
        pq, sq, rq: panoptic, segmentation and recognition quality, percent; None where neither truth nor prediction has
            a segment that counts.
        found, wrong, missed: segments that are in both, in the prediction only, in the truth only.
    """

    pq: float | None
    sq: float | None
    rq: float | None
    found: int
    wrong: int
    missed: int


@dataclass(frozen=True)
class PanopticReport(Report):
    """``panoptic/PQ``, ``SQ`` and ``RQ``: panoptic, segmentation and recognition quality, mean over classes.

    ``PQth`` and the like are of classes that are things, ``PQst`` and the like of stuff. As in panopticapi, a class of
    which neither truth nor prediction has a segment that counts is left out of the means. ``per_class`` is PQ.

    Attributes:
        segments: of the truth, crowds too.
        predicted: segments of the model.
        quality: all of it of each class.
    """

    segments: int
    predicted: int
    quality: Mapping[str, ClassQuality]

    def _class_lines(self) -> list[str]:
        return quality_lines(super()._class_lines(), self.quality)

    def _what(self) -> str:
        return f"{self.images} images, {self.segments} segments, {self.predicted} predicted"


@dataclass(frozen=True)
class AdeReport(Report):
    """``sem_seg/mIoU``, ``fwIoU``, ``mACC`` and ``pACC`` (pixel accuracy) over all labeled pixels.

    As in mmsegmentation, a class that is in neither truth nor prediction is left out of mIoU, and pixels without a
    label count nowhere. A pixel that the model leaves unlabeled is a wrong one.

    Attributes:
        pixels: labeled ones.
        combine: how each pixel's class came about, "contest" or "sum", see :func:`fai_fast.postprocess`.
        other: the same pictures combined in the other way, where both were asked for.
        confusion: int64 (C, C + 1), pixels of each true class (rows) that got each class, or none (last column). No
            part of :meth:`to_dict`.
    """

    pixels: int
    confusion: Int64 = dataclasses.field(repr=False, compare=False)
    combine: str = "contest"
    other: AdeReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the confusion matrices, in JSON's types."""
        fields = dataclasses.asdict(self)
        for report in (fields, fields["other"]):
            if report is not None:
                del report["confusion"]
        return cast(dict[str, Any], json.loads(json.dumps(fields, allow_nan=False)))

    def table(self) -> str:
        if self.other is None:
            return super().table()
        ways = {self.combine: self, self.other.combine: self.other}
        width = max(map(len, self.metrics))
        lines = [
            super().table(),
            "",
            f"{'percent':<{width}}  " + "  ".join(f"{way:>7}" for way in ways),
            *(
                f"{name:<{width}}  " + "  ".join(f"{_percent(way.metrics[name]):>7}" for way in ways.values())
                for name in self.metrics
            ),
        ]
        return "\n".join(lines)

    def _class_lines(self) -> list[str]:
        head, *lines = super()._class_lines()
        if self.other is None:
            return [head, *lines]
        other = self.other.per_class.values()
        return [
            f"{head}  {self.other.combine:>7}",
            *(f"{line}  {_percent(value):>7}" for line, value in zip(lines, other, strict=True)),
        ]

    def _what(self) -> str:
        way = ", classes by sum" if self.combine == "sum" else ""
        return f"{self.images} images, {self.pixels} labeled pixels{way}"


def quality_lines(lines: Sequence[str], quality: Mapping[str, ClassQuality]) -> list[str]:
    """A head and a line for each class, with the parts of the panoptic quality after what they have."""
    head, *rest = lines
    return [
        f"{head}  {'SQ':>6}  {'RQ':>6}  {'found':>6}  {'wrong':>6}  {'missed':>6}",
        *(
            f"{line}  {_percent(of.sq):>6}  {_percent(of.rq):>6}  {of.found:>6}  {of.wrong:>6}  {of.missed:>6}"
            for line, of in zip(rest, quality.values(), strict=True)
        ),
    ]


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
