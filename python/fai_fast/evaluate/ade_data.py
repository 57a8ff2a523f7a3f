"""ADE20K's layout: read, checked, and a model measured on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_fraction
from fai_fast.evaluate.report import AdeReport, Figures, Int64
from fai_fast.evaluate.running import _account, _check_limit, _check_missing, _infer
from fai_fast.images import check_max_pixels, read_labels
from fai_fast.model import Model
from fai_fast.registry import ModelSpec

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


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
            ``validation``. A label image holds one number a pixel: 0 unlabeled, 1..C the classes; 255 (65535 with 16
            bits) is unlabeled too, where it is above C.
        threshold: pixels of classes that score no more are left unlabeled; by default none is.
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

    def check(self, spec: ModelSpec) -> None:
        """Raises ValueError where the data is not for such a model."""
        if spec.task != "semantic" or not spec.config.predict_all_pixels:
            raise ValueError(
                f"model: {spec.name} gives masks that may overlap, expected a semantic model with "
                "predict_all_pixels; measure it with coco()"
            )

    def measure(
        self,
        model: Model,
        *,
        threshold: float = 0.0,
        progress: bool | None = False,
        max_pixels: int | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> AdeReport:
        """Runs the model on every picture. Arguments and errors as of :func:`ade`.

        ``stop`` is asked before every picture but the first; where it says True, the report is of those before.
        """
        threshold, max_pixels = check_fraction("threshold", threshold), check_max_pixels(max_pixels)
        self.check(model.spec)
        classes = model.spec.classes
        n = len(classes)
        confusion = np.zeros((n, n + 1), np.int64)
        paths = [picture for picture, _ in self.pairs]
        done = 0
        for (picture, path), found in zip(
            self.pairs, _infer(model, paths, threshold, progress, max_pixels, stop), strict=stop is None
        ):
            done += 1
            truth = _read_labels(path, n, max_pixels)
            if truth.shape != found.size:
                raise ValueError(
                    f"{path}: {truth.shape[0]}x{truth.shape[1]} pixels (height x width), expected "
                    f"{found.size[0]}x{found.size[1]} as of {picture}"
                )
            predicted = found.label_map
            assert predicted is not None
            labeled = truth > 0
            true, got = truth[labeled].astype(np.int64) - 1, predicted[labeled].astype(np.int64)
            got[got < 0] = n
            confusion += np.bincount(true * (n + 1) + got, minlength=n * (n + 1)).reshape(n, n + 1)
        metrics, per_class = _semantic_figures(confusion)
        return AdeReport(
            **_account(model, threshold),
            images=done,
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
    labeled = truth > 0
    total = truth.sum()
    metrics: Figures = dict.fromkeys(("sem_seg/mIoU", "sem_seg/fwIoU", "sem_seg/mACC", "sem_seg/pACC"))
    if total:
        metrics = {
            "sem_seg/mIoU": float(iou[union > 0].mean()),
            "sem_seg/fwIoU": float((iou[labeled] * truth[labeled]).sum() / total),
            "sem_seg/mACC": float(accuracy[labeled].mean()),
            "sem_seg/pACC": float(100 * right.sum() / total),
        }
    return metrics, [None if math.isnan(value) else value for value in iou.tolist()]


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
    # What most other data sets, and trainers, mark as "to be ignored".
    ignored = [value for value in (255, 65535) if value > classes and value <= np.iinfo(labels.dtype).max]
    labels = np.where(np.isin(labels, ignored), 0, labels)
    if labels.min() < 0 or labels.max() > classes:
        wrong = labels.max() if labels.max() > classes else labels.min()
        raise ValueError(
            f"labels: {path} holds label {wrong}, expected 0 or 255 (unlabeled) or 1 to {classes}, the "
            "model's classes"
        )
    return labels
