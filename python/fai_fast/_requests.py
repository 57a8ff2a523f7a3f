"""What is asked of a model: options checked against what the model is, and pictures decoded where they are files."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fai_fast._arguments import check_bool, check_choice, check_fraction
from fai_fast._options import MODEL_RESIZES, ModelResize
from fai_fast._sizes import STRIDE, aspects_differ, fit_size, size_text
from fai_fast.detections import Source
from fai_fast.detections.selection import Selection, check_count, class_ids_of, threshold_of_classes
from fai_fast.images import check_max_pixels, is_encoded, read_image
from fai_fast.registry import ModelSpec

__all__ = [
    "OF_STREAM_RESULTS",
    "AspectNotice",
    "decoded",
    "frame_of",
    "layout_of",
    "resize_of",
    "settings_of",
    "stream_settings_of",
]

# How frames are read unless the options say otherwise.
_LAYOUT = {"color": "rgb", "resize": None, "yuv_matrix": "bt601", "yuv_range": "limited"}
# What the model's configuration decides unless the options do, and what it must be.
_SETTINGS: dict[str, Callable[[str, object], float]] = {
    "mask_threshold": check_fraction,
    "use_mask_score": check_bool,
}
OF_STREAM_RESULTS = ("threshold", *_SETTINGS, "classes", "top_k", "masks_device", "resize")
"""Those of ``Model.stream`` that its results depend on, and not its frames."""

_log = logging.getLogger("fai_fast")


def layout_of(spec: ModelSpec, options: Mapping[str, Any]) -> dict[str, str]:
    """How frames are read. Raises TypeError, ValueError."""
    layout = {name: options.get(name, default) for name, default in _LAYOUT.items()}
    return {**layout, "resize": resize_of(spec, layout["resize"])}


def resize_of(spec: ModelSpec, wanted: object) -> ModelResize:
    """How frames become the input: as is wanted, or as the model's configuration says.

    Raises TypeError, ValueError: it is none of the ways, or crops are wanted of a model that has learned none.
    """
    own: ModelResize = getattr(spec.config, "resize", "stretch")
    if wanted is None:
        return own
    chosen = check_choice("resize", wanted, MODEL_RESIZES)
    if chosen == "crops" and own != "crops":
        raise ValueError(
            f"resize: got 'crops' for {spec.name}, whose config.resize is {own!r}, expected one of "
            f"{', '.join(repr(item) for item in MODEL_RESIZES if item != 'crops')}"
        )
    return chosen


def stream_settings_of(spec: ModelSpec, options: Mapping[str, Any], *, on_gpu: bool) -> dict[str, Any]:
    """What is asked of each frame of a stream, checked now rather than at the first frame."""
    frozen = {name: _frozen(value) for name, value in options.items() if name != "resize"}
    settings_of(spec, frozen, on_gpu=on_gpu)
    return {**frozen, "resize": resize_of(spec, options.get("resize"))}


def settings_of(spec: ModelSpec, options: Mapping[str, Any], *, on_gpu: bool) -> dict[str, Any]:
    """What is asked of the results, checked; the model's own where it is left to the model.

    Args:
        spec: of the model.
        options: of :meth:`fai_fast.Model.infer`; others are left alone.
        on_gpu: whether the model's results are made on one.

    Raises:
        TypeError, ValueError: an option is wrong; the text names it.
    """
    masks_device = check_bool("masks_device", options.get("masks_device", False))
    if masks_device and not on_gpu:
        raise ValueError(
            "masks_device: got True for a model whose results are made on the CPU, expected False"
        )
    settings: dict[str, Any] = {"masks_device": masks_device}
    for name, check in _SETTINGS.items():
        value = options.get(name)
        settings[name] = getattr(spec.config, name) if value is None else check(name, value)
    settings["threshold"], selection = _selection(
        spec, options.get("threshold"), options.get("classes"), options.get("top_k")
    )
    if masks_device and selection.is_by_class:
        raise ValueError(
            "masks_device: got True with classes or a threshold for each, expected False: the masks on the device "
            "are those of all rows"
        )
    return {**settings, "selection": selection}


def _selection(spec: ModelSpec, threshold: Any, classes: Any, top_k: Any) -> tuple[float, Selection]:
    """The threshold of postprocessing, and which of the rows above it are wanted."""
    config, names = spec.config, spec.classes
    # FocoosAI's own trainings do not set predict_all_pixels: then the regions of a semantic result may overlap.
    areas = config.predict_all_pixels or spec.task in ("semantic", "panoptic")
    wanted = thresholds = None
    if classes is not None:
        wanted = np.zeros(len(names), bool)
        for class_id in class_ids_of("classes", classes, names):
            if class_id < 0:
                raise ValueError(f"classes: got class {class_id}, expected ids of 0 to {len(names) - 1}")
            wanted[class_id] = True
    if isinstance(threshold, Mapping):
        thresholds = threshold_of_classes(threshold, config.threshold, names)
        of_wanted = thresholds if wanted is None or not wanted.any() else thresholds[wanted]
        threshold = float(of_wanted.min())
    else:
        threshold = config.threshold if threshold is None else check_fraction("threshold", threshold)
    if top_k is not None:
        top_k = check_count("top_k", top_k)
        if areas:
            raise ValueError(
                f"top_k: got {top_k} for a {spec.task} model, whose pixels would lose their class, expected "
                "None; detections.top_k(n) selects regions"
            )
    elif not areas:
        top_k = config.top_k
    return threshold, Selection(wanted, thresholds, top_k)


def _frozen(value: Any) -> Any:
    """A copy of what its owner could change while a stream runs."""
    if isinstance(value, Mapping):
        return dict(value)
    return tuple(value) if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------ pictures


def decoded(
    images: Sequence[Any], max_pixels: int | None
) -> tuple[list[Any], float, list[Source | None] | None]:
    """The pictures as frames, the milliseconds that decoding took, and where they are from, unless all are in memory.

    Raises:
        TypeError, ValueError, FileNotFoundError, OSError: see :meth:`fai_fast.Model.infer`.
    """
    started = time.perf_counter()
    frames = [frame_of(image, max_pixels) for image in images]
    if all(frame is image for frame, image in zip(frames, images, strict=True)):
        return frames, 0.0, None
    return frames, 1e3 * (time.perf_counter() - started), [_source_of(image) for image in images]


def _source_of(image: Any) -> Source | None:
    """Where a picture is that was given by its path."""
    return Source(os.path.abspath(os.fsdecode(image))) if isinstance(image, (str, os.PathLike)) else None


def frame_of(image: Any, max_pixels: int | None) -> Any:
    """A frame in memory: the image itself, or decoded where it is a file. Arguments and errors as of read_image()."""
    max_pixels = check_max_pixels(max_pixels)
    if image is None:
        raise TypeError(
            "image: got None, expected a picture; cv2.imread returns None for a file that it cannot read"
        )
    if isinstance(image, list):
        raise TypeError("image: got list, expected one picture; Model.infer_batch takes several")
    return read_image(image, max_pixels=max_pixels) if is_encoded(image) else image


class AspectNotice:
    """Tells once that frames have another aspect than the network's input; clones of a model share it."""

    def __init__(self, name: str, size: tuple[int, int], step: int = STRIDE) -> None:
        self._name = name
        self._size = size
        self._step = step
        # Popped, which of several threads only one can.
        self._untold = [True]
        # Frames of a stream are alike, and are looked at once.
        self._seen = size

    def told(self) -> bool:
        """Whether it was told before; from here on it was."""
        try:
            self._untold.pop()
        except IndexError:
            return True
        return False

    def __call__(self, frame: tuple[int, int]) -> None:
        """Looks at the size (H, W) of a frame."""
        if frame == self._seen:
            return
        self._seen = frame
        if not self._untold or not aspects_differ(frame, self._size):
            return
        height, width = self._size
        fitting = fit_size(frame, area=height * width, multiple=self._step)
        if not aspects_differ(fitting, self._size):  # of a small input no such multiples come nearer
            return
        if self.told():
            return
        _log.info(
            "%s: a frame is %s (height x width), the network's input %s: of its aspect would be %s, which "
            "fai_fast.load(..., frame=(%d, %d)) takes; see docs/frame_shape.md",
            self._name,
            size_text(frame),
            size_text(self._size),
            size_text(fitting),
            *frame,
        )
