"""The functional API: preprocess, postprocess, postprocess_batch, build_info."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from fai_fast import _core
from fai_fast._arguments import (
    MAX_SIDE,
    check_bool,
    check_channels,
    check_choice,
    check_items,
    check_names,
    check_size,
    check_threads,
    check_threshold,
)
from fai_fast._foreign import explained
from fai_fast._options import (
    ACTIVATIONS,
    COLORS,
    RESIZES,
    YUV_MATRICES,
    YUV_RANGES,
    Activation,
    Color,
    Resize,
    YuvMatrix,
    YuvRange,
)
from fai_fast._rules import Combine, Panoptic, Resampling, check_rules
from fai_fast.detections import Detections
from fai_fast.letterbox import Letterbox

_MAX_PIXELS = 1 << 28  # kMaxPixels of core/types.h
# Pillow's modes that are read as they are; the others it converts to RGB first.
_PIL_COLORS = {"RGB": "rgb", "RGBA": "rgba", "RGBX": "rgba", "L": "gray"}

Tensor = npt.NDArray[Any]


@overload
def preprocess(
    image: object,
    size: Sequence[int],
    *,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    color: Color = ...,
    resize: Literal["stretch"] = ...,
    dtype: npt.DTypeLike | None = ...,
    out: Any = ...,
    yuv_matrix: YuvMatrix = ...,
    yuv_range: YuvRange = ...,
) -> Tensor: ...
@overload
def preprocess(
    image: object,
    size: Sequence[int],
    *,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    color: Color = ...,
    resize: Literal["letterbox", "pad"],
    dtype: npt.DTypeLike | None = ...,
    out: Any = ...,
    yuv_matrix: YuvMatrix = ...,
    yuv_range: YuvRange = ...,
) -> tuple[Tensor, Letterbox]: ...
def preprocess(
    image: object,
    size: Sequence[int],
    *,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    color: Color = "rgb",
    resize: Resize = "stretch",
    dtype: npt.DTypeLike | None = "float32",
    out: Any = None,
    yuv_matrix: YuvMatrix = "bt601",
    yuv_range: YuvRange = "limited",
) -> Tensor | tuple[Tensor, Letterbox]:
    """Resizes a frame and normalizes it into a network's input, in one pass.

    The frame becomes RGB at its own resolution (the chroma samples of YUV formats serve all their pixels, values
    are clamped to 0..255), is resized bilinearly with half-pixel centers, clamped edges and no antialias (torch's
    ``interpolate(align_corners=False)``), then ``(x - mean) / std``.

    Args:
        image: uint8, in the CPU's memory, of any strides, never copied: a NumPy array, a DLPack tensor (torch), or
            anything with the buffer protocol or ``__array_interface__``. (H, W, 3) for ``color`` "rgb" and "bgr",
            (H, W, 4) for "rgba" and "bgra" (alpha is ignored), (H, W) or (H, W, 1) for "gray", (H * 3 / 2, W) or a
            tuple of planes (Y, UV) for "nv12" and (Y, U, V) for "i420", (H, W, 2) for "yuyv" and "uyvy". Or a
            Pillow image, whose mode decides its color.
        size: (h, w) of the network's input, pixels.
        mean, std: a number, or one for each of R, G and B, on the 0..255 scale.
        color: what ``image`` holds, see there. The result is always R, G, B.
        resize: "stretch" to ``size``; "letterbox": the largest centered box with the frame's aspect, the rest
            filled with the mean (0 after normalizing); or "pad": such a box at the top left, the rest black before
            normalizing, as transformers' processors do that pad. :meth:`Letterbox.fit` says how sides are rounded.
        dtype: float32 or float16, of the result.
        out: a writable C-contiguous array (1, 3, h, w) of ``dtype`` to write to and return; nothing is allocated.
            ``dtype=None`` takes its dtype.
        yuv_matrix: "bt601" or "bt709".
        yuv_range: "limited" (luma 16..235) or "full".

    Returns:
        The tensor (1, 3, h, w); with "letterbox" and "pad" the pair (tensor, :class:`Letterbox`), which
        :func:`postprocess` takes to give masks and boxes in the frame. Without ``out`` its memory is that of the last
        such tensor of this size that nothing refers to any more, where there is one: the process keeps one, of at most
        64 MiB, to spare the next call the page faults of fresh memory. The array does not own its memory, so that
        ``ndarray.resize`` refuses it.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype, shape or value; the text names it.

    Example:
        >>> frame = np.zeros((1080, 1920, 3), np.uint8)
        >>> preprocess(frame, (640, 640), mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)).shape
        (1, 3, 640, 640)
    """
    tensor, geometry = preprocess_frame(
        image,
        size,
        mean=mean,
        std=std,
        color=color,
        resize=resize,
        dtype=dtype,
        out=out,
        yuv_matrix=yuv_matrix,
        yuv_range=yuv_range,
    )
    return tensor if resize == "stretch" else (tensor, geometry)


def preprocess_frame(
    image: object,
    size: Sequence[int],
    *,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    color: str = "rgb",
    resize: str = "stretch",
    dtype: npt.DTypeLike | None = "float32",
    out: Any = None,
    yuv_matrix: str = "bt601",
    yuv_range: str = "limited",
    part: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> tuple[Tensor, Letterbox]:
    """:func:`preprocess`, with the frame's size and where it lies in the input for every way to resize.

    `part`: (height, width) that the frame is stretched to, of which the input is the part from (top, left) on.
    """
    size = check_size("size", size)
    means, stds = check_channels("mean", mean), check_channels("std", std)
    image, color, resize, yuv_matrix, yuv_range = frame_arguments(
        image, color=color, resize=resize, yuv_matrix=yuv_matrix, yuv_range=yuv_range
    )
    tensor, frame, content, offset = _core.preprocess(
        image,
        size,
        means,
        stds,
        color,
        resize,
        _float_dtype(dtype, out),
        out,
        yuv_matrix,
        yuv_range,
        part,
    )
    return tensor, Letterbox(frame, size, content, offset)


def frame_arguments(
    image: object,
    *,
    color: str = "rgb",
    resize: str = "stretch",
    yuv_matrix: str = "bt601",
    yuv_range: str = "limited",
) -> tuple[object, str, str, str, str]:
    """A frame and how to read it, checked, in the order in which ``_core`` takes them. Raises TypeError, ValueError."""
    color = check_choice("color", color, COLORS)
    resize = check_choice("resize", resize, RESIZES)
    if image is None:
        raise TypeError(
            "image: got None, expected a picture; cv2.imread returns None for a file that is not there or not a picture"
        )
    if isinstance(image, list):
        raise TypeError(
            f"image: got a list of {len(image)}, expected one picture; model.infer_batch takes several"
        )
    if type(image).__module__.startswith("PIL.") and hasattr(image, "mode"):
        image, color = _from_pil(image, color)
    return (
        image,
        color,
        resize,
        check_choice("yuv_matrix", yuv_matrix, YUV_MATRICES),
        check_choice("yuv_range", yuv_range, YUV_RANGES),
    )


def frame_shape(height: int, width: int, color: str = "rgb") -> tuple[int, ...]:
    """The shape of a frame's array of that format. Raises TypeError, ValueError."""
    height, width = check_size("height and width", (height, width))
    check_choice("color", color, COLORS)
    if height * width > _MAX_PIXELS:
        raise ValueError(f"height and width: got {height} x {width}, expected at most {_MAX_PIXELS} pixels")
    if color in ("nv12", "i420"):
        if height % 2 or width % 2:
            raise ValueError(
                f"height and width: got {height} x {width}, expected even ones for color {color!r}"
            )
        return height * 3 // 2, width
    if color in ("yuyv", "uyvy") and width % 2:
        raise ValueError(f"width: got {width}, expected an even one for color {color!r}")
    channels = {"gray": 0, "yuyv": 2, "uyvy": 2, "rgba": 4, "bgra": 4}.get(color, 3)
    return (height, width, channels) if channels else (height, width)


def postprocess(
    mask_logits: object,
    class_logits: object,
    size: Sequence[int],
    *,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    use_mask_score: bool = False,
    predict_all_pixels: bool = False,
    class_activation: Activation = "softmax",
    class_names: Sequence[str] | None = None,
    panoptic: Panoptic | None = None,
    combine: Combine = "contest",
    multi_label: bool = False,
    resampling: Resampling | None = None,
    overlap_threshold: float | None = None,
    letterbox: Letterbox | None = None,
    num_threads: int | None = None,
) -> Detections:
    """Turns a query-mask network's outputs into instances or a semantic segmentation.

    Defined in docs/postprocess.md. For its models equal to FocoosAI's processor where ``size`` is that of the network's
    input; docs/coming_from_focoos.md says what differs otherwise.

    Args:
        mask_logits: float32 or float16 (Q, h, w) or (1, Q, h, w), before the sigmoid, in the CPU's memory: a NumPy
            array or a DLPack tensor (torch). Not copied where its rows are contiguous.
        class_logits: float32 or float16 (Q, K) or (1, Q, K). K counts the classes, and with "softmax" one more
            column for 'no object' at the end.
        size: (height, width) to return masks and boxes in, pixels: the frame's.
        threshold: at most 1; rows whose score is not above it are left out. Below 0 every query that has pixels is
            a row.
        mask_threshold: at most 1; instances: a pixel is inside where its mask probability is at least this.
        use_mask_score: multiply scores by the mean mask probability inside the mask.
        predict_all_pixels: semantic segmentation: each pixel goes to the query with the largest class score times
            mask probability, instead of instances that may overlap.
        class_activation: "softmax" or "sigmoid" (no 'no object' column).
        class_names: one per class, kept in the result.
        panoptic: a panoptic result: segments that do not overlap, things one by one and stuff fused; None for another.
        combine: semantic: "contest", as said at ``predict_all_pixels``; or "sum": each pixel goes to the class with
            the largest sum, over all queries, of class probability times mask probability, as in the papers of
            MaskFormer and Mask2Former.
        multi_label: instances: a query is a row for each of its classes; of all pairs of query and class as many as
            there are queries are considered, the best.
        resampling: how masks get their size; None for the way of docs/postprocess.md.
        overlap_threshold: instances: 0 to 1 for masks that do not overlap; None for those that may. Instances compete
            for each pixel with their score times their mask logit, without a sigmoid, and one is kept where the pixels
            that it won are more than this share of those where that product is at least ``mask_threshold``; with
            ``resampling`` of "logits" alone. Source: OneFormer's ``post_process_instance_segmentation`` of
            transformers.
        letterbox: the geometry that :func:`preprocess` returned, where it letterboxed or padded the frame.
        num_threads: at most this many threads; None for all cores. The result does not depend on it.

    Returns:
        Rows in order of falling score, ties by query. Queries with NaN in their logits are left out.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype, shape or value; the text names it.
    """
    return _postprocess(
        mask_logits,
        class_logits,
        batched=False,
        sizes=[check_size("size", size)],
        letterboxes=[letterbox],
        threshold=check_threshold("threshold", threshold),
        mask_threshold=mask_threshold,
        use_mask_score=use_mask_score,
        predict_all_pixels=predict_all_pixels,
        class_activation=class_activation,
        class_names=class_names,
        panoptic=panoptic,
        combine=combine,
        multi_label=multi_label,
        resampling=resampling,
        overlap_threshold=overlap_threshold,
        num_threads=num_threads,
    )[0]


def postprocess_batch(
    mask_logits: object,
    class_logits: object,
    size: Sequence[int] | Sequence[Sequence[int]],
    *,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    use_mask_score: bool = False,
    predict_all_pixels: bool = False,
    class_activation: Activation = "softmax",
    class_names: Sequence[str] | None = None,
    panoptic: Panoptic | None = None,
    combine: Combine = "contest",
    multi_label: bool = False,
    resampling: Resampling | None = None,
    overlap_threshold: float | None = None,
    letterbox: Letterbox | Sequence[Letterbox | None] | None = None,
    num_threads: int | None = None,
) -> list[Detections]:
    """:func:`postprocess` for each image of a batch.

    Args:
        mask_logits: float32 or float16 (B, Q, h, w).
        class_logits: float32 or float16 (B, Q, K).
        size: (height, width) of every frame, or a sequence of B of them.
        letterbox: one for every frame, or a sequence of B of them.

    The other arguments, and what is raised, are those of :func:`postprocess`.
    """
    images = _batch_size(mask_logits)
    return _postprocess(
        mask_logits,
        class_logits,
        batched=True,
        sizes=_sizes(size, images),
        letterboxes=_letterboxes(letterbox, images),
        threshold=check_threshold("threshold", threshold),
        mask_threshold=mask_threshold,
        use_mask_score=use_mask_score,
        predict_all_pixels=predict_all_pixels,
        class_activation=class_activation,
        class_names=class_names,
        panoptic=panoptic,
        combine=combine,
        multi_label=multi_label,
        resampling=resampling,
        overlap_threshold=overlap_threshold,
        num_threads=num_threads,
    )


def raw_queries(
    mask_logits: npt.NDArray[Any],
    class_logits: npt.NDArray[Any],
    size: tuple[int, int],
    *,
    letterbox: Letterbox | None = None,
    mask_threshold: float = 0.5,
    predict_all_pixels: bool = False,
    class_activation: Activation = "softmax",
    resampling: Resampling | None = None,
    num_threads: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int16]]:
    """What :meth:`fai_fast.Model.queries` returns, of a frame's logits (Q, h, w) and (Q, K). Arguments as above.

    Other rules take pixels or rows from these, and have no part in them.

    A query with NaN in its class logits has class 0 and the score NaN; one with NaN in its mask has no pixels.
    """
    [found] = _postprocess(
        mask_logits,
        class_logits,
        batched=False,
        sizes=[size],
        letterboxes=[letterbox],
        # No score is below zero.
        threshold=-1.0,
        mask_threshold=mask_threshold,
        use_mask_score=False,
        predict_all_pixels=predict_all_pixels,
        class_activation=class_activation,
        class_names=None,
        num_threads=num_threads,
        resampling=resampling,
        min_area=0,
    )
    queries = len(class_logits)
    class_ids, scores = np.zeros(queries, np.int64), np.full(queries, np.nan, np.float32)
    class_ids[found.query], scores[found.query] = found.class_id, found.confidence
    masks = np.full((queries, *size), -1, np.int16)
    for query, class_id, (x1, y1, x2, y2), mask in zip(
        found.query, found.class_id, found.xyxy.astype(np.int64), found.crops(), strict=True
    ):
        masks[query, y1:y2, x1:x2][mask] = class_id
    return class_ids, scores, masks


def build_info() -> dict[str, Any]:
    """What was compiled in and what is in use.

    Returns:
        ``version``; ``compiler``; ``isa`` in use, ``isas_compiled`` and ``isas_available`` on this CPU (the best
        last); ``cuda``: ``compiled``, the ``reason`` where it was not, the ``toolkit``'s version, the ``architectures``
        compiled for as CMake names them, and the oldest branch of NVIDIA's ``driver`` that the build runs on, None for
        what there is not; ``threads`` that this process may use, by its affinity and the CPU quotas of its control
        groups; ``sanitizers`` compiled in, "" for none.

    Raises:
        RuntimeError: FAI_FAST_FORCE_ISA in the environment names an instruction set that is not available.
    """
    return {"version": _core.__version__, **_core.build_info()}


def _postprocess(
    mask_logits: object,
    class_logits: object,
    *,
    batched: bool,
    sizes: list[tuple[int, int]],
    letterboxes: Sequence[object],
    threshold: float,
    mask_threshold: float,
    use_mask_score: bool,
    predict_all_pixels: bool,
    class_activation: Activation,
    class_names: Sequence[str] | None,
    num_threads: int | None,
    panoptic: Panoptic | None = None,
    combine: Combine = "contest",
    multi_label: bool = False,
    resampling: Resampling | None = None,
    overlap_threshold: float | None = None,
    min_area: int = 2,
) -> list[Detections]:
    softmax = check_choice("class_activation", class_activation, ACTIVATIONS) == "softmax"
    names = check_names("class_names", class_names)
    check_bool("predict_all_pixels", predict_all_pixels)
    rules = check_rules(
        combine, panoptic, multi_label, resampling, overlap_threshold, predict_all_pixels=predict_all_pixels
    )
    if panoptic is not None and predict_all_pixels:
        raise ValueError("predict_all_pixels: got True with panoptic, expected False: one or the other")
    results = _core.postprocess(
        mask_logits,
        class_logits,
        batched,
        sizes,
        threshold,
        check_threshold("mask_threshold", mask_threshold),
        check_bool("use_mask_score", use_mask_score),
        predict_all_pixels or panoptic is not None,
        softmax,
        len(names) if names is not None else -1,
        [_letterbox_tuple(item, size) for item, size in zip(letterboxes, sizes, strict=True)],
        check_threads("num_threads", num_threads),
        min_area,
        rules.plain(),
    )
    stuff = None if panoptic is None else panoptic.stuff
    return [
        Detections._from_core(rows, size, names, stuff) for rows, size in zip(results, sizes, strict=True)
    ]


def _letterbox_tuple(
    letterbox: object, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    if letterbox is None:
        return None
    if not isinstance(letterbox, Letterbox):
        raise TypeError(f"letterbox: got {type(letterbox).__name__}, expected a fai_fast.Letterbox or None")
    if letterbox.frame != size:
        raise ValueError(f"letterbox: got the geometry of a frame {letterbox.frame}, expected size {size}")
    return letterbox.content, letterbox.offset, letterbox.input


def _batch_size(mask_logits: object) -> int:
    shape = _core.shape_of(mask_logits, "mask_logits")
    if len(shape) != 4:
        raise ValueError(f"mask_logits: got shape {shape}, expected (B, Q, h, w)")
    if shape[0] > MAX_SIDE:
        raise ValueError(f"mask_logits: got {shape[0]} images in shape {shape}, expected at most {MAX_SIDE}")
    return shape[0]


def _sizes(size: Any, images: int) -> list[tuple[int, int]]:
    items = check_items("size", size, "(height, width) or a sequence of them")
    if not any(isinstance(item, (list, tuple, np.ndarray)) for item in items):
        return [check_size("size", size)] * images
    if len(items) != images:
        raise ValueError(f"size: got {len(items)} sizes, expected one for each of {images} images")
    return [check_size("size", item) for item in items]


def _letterboxes(letterbox: object, images: int) -> list[object]:
    if not isinstance(letterbox, (list, tuple)):
        return [letterbox] * images
    if len(letterbox) != images:
        raise ValueError(f"letterbox: got {len(letterbox)}, expected one for each of {images} images")
    return list(letterbox)


def _float_dtype(dtype: npt.DTypeLike | None, out: Any) -> str:
    if dtype is None:
        dtype = "float32" if out is None else getattr(out, "dtype", "float32")
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float16"):
        try:
            name = np.dtype(dtype).name
        except Exception as error:  # NumPy raises several kinds
            if not explained(error, "numpy"):
                raise
            raise TypeError(f"dtype: got {dtype!r:.60}, expected 'float32' or 'float16'") from None
    if name not in ("float32", "float16"):
        raise ValueError(f"dtype: got {name!r}, expected 'float32' or 'float16'")
    return name


def _from_pil(image: Any, color: str) -> tuple[npt.NDArray[np.uint8], str]:
    if color != "rgb":
        raise ValueError(f"color: got {color!r} with a Pillow image, expected none: its mode decides")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"image: got a Pillow image of mode {image.mode!r}, expected 8 bits a channel")
    try:
        # A picture that Pillow has only opened is decoded here.
        if image.mode not in _PIL_COLORS:
            image = image.convert("RGB")
        return np.asarray(image), _PIL_COLORS[image.mode]
    except (OSError, SyntaxError, ValueError) as error:
        if not explained(error, "PIL"):
            raise
        raise ValueError(f"image: got a Pillow image of mode {image.mode!r}: {error}") from error
