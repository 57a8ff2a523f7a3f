"""What may be asked for, listed once: the words that options take, and the options that several calls share.

The tuples that are checked against at run time are made of the types (``typing.get_args``): the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

__all__ = [
    "ACTIVATIONS",
    "COLORS",
    "ENGINES",
    "MODEL_RESIZES",
    "ON_ERROR",
    "POLICIES",
    "PRECISIONS",
    "RESIZES",
    "YUV_MATRICES",
    "YUV_RANGES",
    "Activation",
    "BatchOptions",
    "Color",
    "Device",
    "EngineName",
    "FrameLayout",
    "InferOptions",
    "ModelResize",
    "OnError",
    "Policy",
    "Precision",
    "Resize",
    "ResultOptions",
    "StreamOptions",
    "YuvMatrix",
    "YuvRange",
    "check_options",
]

Color = Literal["rgb", "bgr", "rgba", "bgra", "gray", "nv12", "i420", "yuyv", "uyvy"]
Resize = Literal["stretch", "letterbox", "pad"]
# "crops" is several inputs, which only a model puts together again.
ModelResize = Literal["stretch", "letterbox", "pad", "crops"]
YuvMatrix = Literal["bt601", "bt709"]
YuvRange = Literal["limited", "full"]
Activation = Literal["softmax", "sigmoid"]
Policy = Literal["latest", "all"]
OnError = Literal["raise", "reconnect"]
# After "auto", the fastest first.
EngineName = Literal[
    "auto", "tensorrt", "tensorrt_rtx", "torch-cuda", "onnxruntime-cuda", "openvino", "onnxruntime"
]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
# Those that a machine has; a number beyond is passed as the int.
Device = Literal[
    "auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6", "cuda:7", "cuda:8",
    "cuda:9", "cuda:10", "cuda:11", "cuda:12", "cuda:13", "cuda:14", "cuda:15",
]  # fmt: skip

COLORS: tuple[Color, ...] = get_args(Color)
RESIZES: tuple[Resize, ...] = get_args(Resize)
MODEL_RESIZES: tuple[ModelResize, ...] = get_args(ModelResize)
YUV_MATRICES: tuple[YuvMatrix, ...] = get_args(YuvMatrix)
YUV_RANGES: tuple[YuvRange, ...] = get_args(YuvRange)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
POLICIES: tuple[Policy, ...] = get_args(Policy)
ON_ERROR: tuple[OnError, ...] = get_args(OnError)
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class FrameLayout(TypedDict):
    """How a frame's pixels are to be read: see :func:`fai_fast.preprocess`."""

    color: Color
    yuv_matrix: YuvMatrix
    yuv_range: YuvRange


class ResultOptions(TypedDict, total=False):
    """What :meth:`fai_fast.Model.infer` makes of a frame, whatever that is; it says what each means."""

    threshold: float | Mapping[str, float] | Mapping[int, float] | None
    classes: Sequence[str | int] | None
    top_k: int | None
    mask_threshold: float | None
    use_mask_score: bool | None
    resize: ModelResize | None


class BatchOptions(ResultOptions, total=False):
    """The options of :meth:`fai_fast.Model.infer` that frames of a batch share."""

    color: Color
    yuv_matrix: YuvMatrix
    yuv_range: YuvRange
    max_pixels: int | None


class InferOptions(BatchOptions, total=False):
    """The options of :meth:`fai_fast.Model.infer`, which lists and explains them."""

    masks_device: bool


class StreamOptions(ResultOptions, total=False):
    """The options of :meth:`fai_fast.Model.stream`, which explains them."""

    masks_device: bool
    track: Any
    policy: Policy | None
    depth: int
    stride: int
    on_error: OnError
    timeout: float | None
    backoff: tuple[float, float]
    retries: int | None
    color: Color
    yuv_matrix: YuvMatrix | None
    yuv_range: YuvRange | None
    frame_threads: bool
    format: str | None
    options: Mapping[str, str] | None
    max_pixels: int | None


def check_options(call: str, given: Mapping[str, object], known: Any) -> None:
    """TypeError for options that `known`, one of the classes above, does not list."""
    for name in given:
        if name not in known.__optional_keys__:
            raise TypeError(
                f"{name}: {call}() has no such option, expected some of {', '.join(sorted(known.__optional_keys__))}"
            )
