"""Crops side by side along a frame's longer side, each of which a network with a square input sees on its own.

What EoMT's semantic models are shown: ``EomtImageProcessor`` of transformers with ``do_split_image=True``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast import _core
from fai_fast._arguments import MAX_SIDE, check_size
from fai_fast.detections import Detections
from fai_fast.engines.base import Context
from fai_fast.ops import preprocess_frame
from fai_fast.registry import ModelSpec

__all__ = ["MOST", "Crops", "check_square", "infer_crops", "middle_crop", "postprocess_crops", "sees_crops"]

MOST = 64
"""Crops of one frame at most: a longer frame is a mistake more likely than a picture."""


@dataclass(frozen=True)
class Crops:
    """Where a frame's crops lie.

    Attributes:
        frame: (height, width) of the frame, pixels.
        whole: (height, width) that it is stretched to, pixels: its aspect, the shorter side that of the input.
        side: of each crop and of the network's input, pixels.
        starts: along the whole's longer side, the first pixel of each crop. They are evenly spread, and the last
            ends with the whole.
    """

    frame: tuple[int, int]
    whole: tuple[int, int]
    side: int
    starts: tuple[int, ...]

    @classmethod
    def of(cls, frame: tuple[int, int], input: tuple[int, int]) -> Crops:
        """As many as are needed to cover the frame.

        The longer side is truncated to whole pixels, and so is each start, both in double precision
        (``get_size_with_aspect_ratio``, ``EomtImageProcessor._split_image``). In one thing that library differs: where
        its rounding leaves the last pixel without a crop, the last one begins a pixel later here.

        Raises:
            ValueError: `input` is no square, or there would be more than MOST, or than MAX_SIDE has room for.
        """
        height, width = check_size("frame", frame)
        side = check_square(input)
        shorter, longer = min(height, width), max(height, width)
        length = longer if shorter == side else int(side * longer / shorter)
        count = math.ceil(length / side)
        most = min(MOST, MAX_SIDE // side)
        if count > most:
            raise ValueError(
                f"image: got a frame of {height} x {width} (height x width), of which the network would see {count} "
                f'crops, expected at most {most}; resize="stretch" shows it one picture'
            )
        step = side - (count * side - length) / (count - 1) if count > 1 else 0.0
        starts = (*(int(index * step) for index in range(count - 1)), length - side)
        return cls((height, width), (length, side) if height > width else (side, length), side, starts)

    def part(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The whole's (height, width), and (top, left) of a crop in it, as preprocessing takes them."""
        start = self.starts[index]
        return self.whole, (start, 0) if self.whole[0] > self.whole[1] else (0, start)


def sees_crops(spec: ModelSpec) -> bool:
    """Whether a model's frames are cut, unless a call says otherwise."""
    return getattr(spec.config, "resize", "stretch") == "crops"


def check_square(input: tuple[int, int]) -> int:
    """The side of a network's input. Raises ValueError where it is no square."""
    if input[0] != input[1]:
        raise ValueError(
            f"im_size: got {input[0]} x {input[1]} (height x width) for a model that sees crops, expected a square"
        )
    return input[0]


def middle_crop(
    frame: Any, spec: ModelSpec, size: tuple[int, int], layout: Mapping[str, Any] | None = None
) -> npt.NDArray[Any]:
    """One picture of those that the network sees of a frame, (1, 3, h, w) float32. Errors as of :meth:`Crops.of`."""
    layout = layout or {}
    crops = Crops.of(_frame_size(frame, layout), size)
    part = crops.part(len(crops.starts) // 2)
    return _preprocess(frame, spec, size, layout, part)


def infer_crops(
    context: Context,
    spec: ModelSpec,
    frames: Sequence[Any],
    layout: Mapping[str, Any],
    *,
    threshold: float,
    num_threads: int | None,
) -> tuple[list[Detections], tuple[float, float, float]]:
    """What is found in frames, each crop of which goes through the engine, as many at once as its batch has room for.

    Args:
        context: of the engine; its input is a square.
        spec: of the model, whose semantic results are sums.
        frames: as :func:`fai_fast.preprocess` takes them, in the CPU's memory.
        layout: ``color``, ``yuv_matrix``, ``yuv_range`` of all of them.
        threshold, num_threads: as of :func:`fai_fast.postprocess`.

    Returns:
        A result for each frame, and the seconds that preprocessing, the engine and postprocessing took.

    Raises:
        TypeError, ValueError: a frame is not as said there, or has too many crops.
        EngineError: the engine failed.
    """
    batch, _, height, width = context.images.shape
    size = (height, width)
    layout = {name: value for name, value in layout.items() if name != "resize"}
    clock = _Clock()
    placed = [Crops.of(_frame_size(frame, layout), size) for frame in frames]
    masks = [_room(context.mask_logits, crops) for crops in placed]
    classes = [_room(context.class_logits, crops) for crops in placed]
    todo = [(index, crop) for index, crops in enumerate(placed) for crop in range(len(crops.starts))]
    for start in range(0, len(todo), batch):
        group = todo[start : start + batch]
        for slot, (index, crop) in enumerate(group):
            out = context.images[slot : slot + 1]
            _preprocess(frames[index], spec, size, layout, placed[index].part(crop), out)
        clock.lap("preprocess")
        context.run()
        clock.lap("engine")
        for slot, (index, crop) in enumerate(group):
            masks[index][crop] = context.mask_logits[slot]
            classes[index][crop] = context.class_logits[slot]
        clock.lap("postprocess")
    results = [
        postprocess_crops(
            *logits,
            threshold=threshold,
            class_activation="sigmoid" if spec.config.cls_sigmoid else "softmax",
            class_names=spec.classes,
            num_threads=num_threads,
        )
        for logits in zip(masks, classes, placed, strict=True)
    ]
    clock.lap("postprocess")
    return results, (clock.seconds["preprocess"], clock.seconds["engine"], clock.seconds["postprocess"])


def postprocess_crops(
    mask_logits: object,
    class_logits: object,
    crops: Crops,
    *,
    threshold: float = 0.0,
    class_activation: str = "softmax",
    class_names: tuple[str, ...] | None = None,
    num_threads: int | None = None,
) -> Detections:
    """Semantic results by sum of a frame's crops, as ``combine="sum"`` gives them of one picture.

    Mask logits are resized to the network's input. There, class sums of all crops are put together, their mean where
    crops overlap, and resized to the frame. Source: ``merge_image_patches`` of transformers' ``EomtImageProcessor``.

    Args:
        mask_logits: float32 or float16 (N, Q, h, w), of N crops.
        class_logits: float32 or float16 (N, Q, K).
        crops: where they lie.

    The other arguments, and what is raised, are those of :func:`fai_fast.postprocess`.
    """
    rows = _core.postprocess_crops(
        mask_logits,
        class_logits,
        crops.frame,
        crops.whole,
        crops.side,
        list(crops.starts),
        threshold,
        class_activation == "softmax",
        len(class_names) if class_names is not None else -1,
        num_threads or 0,
    )
    return Detections._from_core(rows, crops.frame, class_names, None)


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds = {"preprocess": 0.0, "engine": 0.0, "postprocess": 0.0}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


def _room(logits: npt.NDArray[Any], crops: Crops) -> npt.NDArray[Any]:
    return np.empty((len(crops.starts), *logits.shape[1:]), logits.dtype)


def _frame_size(frame: Any, layout: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of a frame; what is wrong with it is raised here."""
    _, letterbox = preprocess_frame(frame, (1, 1), mean=0, std=1, **layout)
    return letterbox.frame


def _preprocess(
    frame: Any,
    spec: ModelSpec,
    size: tuple[int, int],
    layout: Mapping[str, Any],
    part: tuple[tuple[int, int], tuple[int, int]],
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    dtype = "float32" if out is None else None
    config = spec.config
    tensor, _ = preprocess_frame(
        frame, size, mean=config.pixel_mean, std=config.pixel_std, dtype=dtype, out=out, part=part, **layout
    )
    return tensor
