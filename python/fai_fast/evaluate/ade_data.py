"""ADE20K's layout: read, checked, and a model measured on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_choice, check_fraction
from fai_fast._options import check_options
from fai_fast._rules import COMBINES, Combine, rules_of
from fai_fast.detections import Detections
from fai_fast.evaluate.report import AdeReport, Figures, Int64
from fai_fast.evaluate.running import MeasureOptions, Submit, _account, _check_limit, _check_missing
from fai_fast.evaluate.shapes import BUCKETS, COMPARED, _Passes
from fai_fast.images import check_max_pixels, picture_size, read_labels
from fai_fast.model import Model
from fai_fast.registry import ModelSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

Combined = Literal["contest", "sum", "both"]
COMBINED: tuple[Combined, ...] = get_args(Combined)


class AdeOptions(MeasureOptions, total=False):
    """And those of :meth:`AdeData.measure` alone."""

    combine: Combined | None


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
    buckets: int = BUCKETS,
    compare_sizes: int = COMPARED,
    combine: Combined | None = None,
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
        buckets: how many sizes of the network's input there may be: pictures are divided by their shape, and each
            bucket gets an input of its own shape, with about the model's own number of pixels, of a model that is
            loaded beside ``model``, one at a time. 1 for the model's own size for all, which a model has in any case
            that was loaded with ``im_size`` or ``frame``, or from a file of :func:`fai_fast.export`.
        compare_sizes: how many pictures, spread evenly, are also run in the model's own size, which tells what the
            other sizes changed; 0 for none.
        combine: "contest" or "sum", see :func:`fai_fast.postprocess`; "both" measures one beside the other, of one
            run of the network, and has the sums' report as ``other``; None for the model's own way.

    Raises:
        TypeError, ValueError: an argument, a label image or a picture is wrong, or their sizes differ.
        FileNotFoundError: folders or files are missing.
    """
    data = AdeData.read(folder, limit=limit, skip_missing=skip_missing)
    return data.measure(
        model,
        threshold=threshold,
        progress=progress,
        max_pixels=max_pixels,
        buckets=buckets,
        compare_sizes=compare_sizes,
        combine=combine,
    )


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
        if spec.task == "panoptic":
            raise ValueError(
                f"model: {spec.name} is a panoptic model, expected a semantic one; measure it with panoptic()"
            )
        if spec.task != "semantic" or not spec.config.predict_all_pixels:
            raise ValueError(
                f"model: {spec.name} gives masks that may overlap, expected a semantic model with "
                "predict_all_pixels; measure it with coco()"
            )

    def measure(self, model: Model, **options: Unpack[AdeOptions]) -> AdeReport:
        """Runs the model on every picture.

        Args:
            model: a semantic model.
            options: as of :func:`ade`; and ``stop``, which is asked before every picture but the first: where it says
                True, the report is of those before.

        Raises:
            Exception: what :func:`ade` raises.
        """
        check_options("measure", options, AdeOptions)
        combine = options.get("combine")
        if combine is not None:
            check_choice("combine", combine, COMBINED)
        threshold = check_fraction("threshold", options.get("threshold", 0.0))
        max_pixels = check_max_pixels(options.get("max_pixels"))
        self.check(model.spec)
        if combine is not None and combine != "both":
            with model._combining(combine) as one:
                return self.measure(one, **cast(AdeOptions, {**options, "combine": None}))
        classes = model.spec.classes
        n = len(classes)
        paths = [picture for picture, _ in self.pairs]
        passes = _Passes(model, paths, lambda: [picture_size(path) for path in paths], options)
        ways = COMBINES if combine == "both" else (rules_of(model.spec.config).combine,)
        in_ways, in_first = _in_own_way(threshold), _in_own_way(threshold)
        if combine == "both":
            in_ways, in_first = _combining(threshold, ways), _combining(threshold, ways[:1])
        confusions = np.zeros((len(ways), n, n + 1), np.int64)
        # Of the sample, in the first way; pictures in the model's own size take the place of those in another.
        shaped, own = np.zeros_like(confusions[0]), np.zeros_like(confusions[0])
        for index, found in passes.first(in_ways):
            counts = self._confusions(index, found, n, max_pixels)
            confusions += counts
            if index in passes.sample:
                shaped += counts[0]
                own += 0 if passes.is_run_again(index) else counts[0]
        for index, found in passes.again(in_first):
            own += self._confusions(index, found, n, max_pixels)[0]
        effect = None
        if passes.is_compared:
            effect = passes.effect(_headline(_semantic_figures(shaped)), _headline(_semantic_figures(own)))
        reports: list[AdeReport] = []
        for way, confusion in zip(ways, confusions, strict=True):
            metrics, per_class = _semantic_figures(confusion)
            reports.append(
                AdeReport(
                    **_account(model, threshold),
                    images=len(passes.done),
                    missing=self.missing,
                    metrics=metrics,
                    per_class=dict(zip(classes, per_class, strict=True)),
                    pixels=int(confusion.sum()),
                    confusion=confusion,
                    combine=way,
                    sizes=passes.sizes,
                    size_effect=None if reports else effect,
                )
            )
        return replace(reports[0], other=reports[1]) if len(reports) > 1 else reports[0]

    def _confusions(
        self, index: int, found: Sequence[Detections], classes: int, max_pixels: int | None
    ) -> Int64:
        """Pixels (N, C, C + 1) of one picture, by truth and prediction, of each of N results."""
        picture, path = self.pairs[index]
        truth = _read_labels(path, classes, max_pixels)
        labeled = truth > 0
        true = truth[labeled].astype(np.int64) - 1
        counts = []
        for result in found:
            if truth.shape != result.size:
                raise ValueError(
                    f"{path}: {truth.shape[0]}x{truth.shape[1]} pixels (height x width), expected "
                    f"{result.size[0]}x{result.size[1]} as of {picture}"
                )
            predicted = result.label_map
            assert predicted is not None
            got = predicted[labeled].astype(np.int64)
            got[got < 0] = classes
            counts.append(np.bincount(true * (classes + 1) + got, minlength=classes * (classes + 1)))
        return np.stack(counts).reshape(len(found), classes, classes + 1)


def _in_own_way(threshold: float) -> Submit[Sequence[Detections]]:
    def submit(model: Model, frame: Any) -> Callable[[], Sequence[Detections]]:
        future = model.submit(frame, threshold=threshold)
        return lambda: [future.result()]

    return submit


def _combining(threshold: float, ways: Sequence[Combine]) -> Submit[Sequence[Detections]]:
    """A result for each of these ways, of one run of the network."""
    return lambda model, frame: model._submit_combined(frame, ways, threshold=threshold).results


def _headline(figures: tuple[Figures, list[float | None]]) -> float | None:
    return next(iter(figures[0].values()))


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
