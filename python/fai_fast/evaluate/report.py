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
        published_im_size: the network's input that they hold for, an int for a square or (h, w).
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
        if self.published and (height, width) != sides_of(self.published_im_size):
            lines += ["", f"Published at {size_text(self.published_im_size)}."]
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
class AdeReport(Report):
    """``sem_seg/mIoU``, ``fwIoU``, ``mACC`` and ``pACC`` (pixel accuracy) over all labeled pixels.

    As in mmsegmentation, a class that is in neither truth nor prediction is left out of mIoU, and pixels without a
    label count nowhere. A pixel that the model leaves unlabeled is a wrong one.

    Attributes:
        pixels: labeled ones.
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
        return f"{self.images} images, {self.pixels} labeled pixels"


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
