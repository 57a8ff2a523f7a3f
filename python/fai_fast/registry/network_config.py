"""What has to be known of a network that is not FocoosAI's: what goes in, what comes out, how that becomes a result.

Its layers are in a graph, or in a PyTorch module; nothing here describes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from fai_fast._arguments import check_bool, check_choice, check_fraction, check_items, check_number
from fai_fast._options import MODEL_RESIZES, ModelResize
from fai_fast._rules import COMBINES, Combine, Panoptic, Resampling, check_rules
from fai_fast.registry._checks import check_count, check_text, record_of

__all__ = ["NETWORK_TASKS", "NetworkConfig"]

NetworkTask = Literal["instance", "semantic", "panoptic"]
NETWORK_TASKS: tuple[NetworkTask, ...] = get_args(NetworkTask)
# Further steps than this are no stride of an input, but a mistake.
_LARGEST_STRIDE = 1024


@dataclass(frozen=True)
class NetworkConfig:
    """A network of others, as :class:`fai_fast.ModelConfig` is one of FocoosAI's; fields of both mean the same.

    Attributes:
        num_classes: C, without 'no object'.
        num_queries: Q; None where only its graph knows.
        pixel_mean, pixel_std: of R, G, B on 0..255, subtracted and divided by.
        cls_sigmoid: classes come from a sigmoid each, and there is no column for 'no object'.
        postprocessing_type: "instance", "semantic" or "panoptic".
        mask_threshold, threshold, use_mask_score: defaults of postprocessing, see :func:`fai_fast.postprocess`.
        predict_all_pixels: each pixel goes to one query, or class; left out, True for "semantic".
        top_k: objects at most in an instance result, the best; None for all.
        combine: of a semantic result, "contest" or "sum", see :func:`fai_fast.postprocess`.
        panoptic: of a panoptic result; left out, one in which all classes are things.
        multi_label, overlap_threshold: of an instance result, see :func:`fai_fast.postprocess`.
        resampling: how masks get their size, where that is not our way.
        resize: how frames become the input: "stretch", "letterbox" or "pad", see :func:`fai_fast.preprocess`; or, where
            `combine` is "sum", "crops": squares side by side along the longer side, each a picture of its own, whose
            sums are put together (docs/postprocess.md).
        stride: what the input's sides must be multiples of.
        input_name, mask_logits_name, class_logits_name: of the graph's tensors; None where they are found by their
            shapes.

    Raises:
        TypeError, ValueError: a field is not as said here, or two do not go together; the text names it.

    Example:
        >>> fai_fast.NetworkConfig(num_classes=2, postprocessing_type="semantic").predict_all_pixels
        True
    """

    num_classes: int
    num_queries: int | None = None
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    cls_sigmoid: bool = False
    postprocessing_type: NetworkTask = "instance"
    mask_threshold: float = 0.5
    predict_all_pixels: bool = field(default=None)  # type: ignore[assignment]  # follows from the task
    use_mask_score: bool = False
    threshold: float = 0.5
    top_k: int | None = None
    combine: Combine = "contest"
    panoptic: Panoptic | None = None
    multi_label: bool = False
    resampling: Resampling | None = None
    resize: ModelResize = "stretch"
    stride: int = 1
    input_name: str | None = None
    mask_logits_name: str | None = None
    class_logits_name: str | None = None
    overlap_threshold: float | None = None

    def __post_init__(self) -> None:
        for name, kind in (("panoptic", Panoptic), ("resampling", Resampling)):
            if isinstance(getattr(self, name), Mapping):
                self._set(name, record_of(kind, f"config.{name}", getattr(self, name)))
        check_count("config.num_classes", self.num_classes)
        check_count("config.stride", self.stride, 1, _LARGEST_STRIDE)
        for name in ("num_queries", "top_k"):
            if getattr(self, name) is not None:
                check_count(f"config.{name}", getattr(self, name))
        for name in ("pixel_mean", "pixel_std"):
            values = check_items(f"config.{name}", getattr(self, name), "(R, G, B)")
            if len(values) != 3:
                raise ValueError(f"config.{name}: got {len(values)} values, expected (R, G, B)")
            self._set(name, tuple(check_number(f"config.{name}", value) for value in values))
        if min(self.pixel_std) <= 0:
            raise ValueError(f"config.pixel_std: got {self.pixel_std}, expected positive numbers")
        task = check_choice("config.postprocessing_type", self.postprocessing_type, NETWORK_TASKS)
        check_choice("config.combine", self.combine, COMBINES)
        check_choice("config.resize", self.resize, MODEL_RESIZES)
        if self.predict_all_pixels is None:
            self._set("predict_all_pixels", task == "semantic")
        for name in ("cls_sigmoid", "predict_all_pixels", "use_mask_score", "multi_label"):
            check_bool(f"config.{name}", getattr(self, name))
        for name in ("mask_threshold", "threshold"):
            self._set(name, check_fraction(f"config.{name}", getattr(self, name)))
        for name in ("input_name", "mask_logits_name", "class_logits_name"):
            if getattr(self, name) is not None:
                check_text(f"config.{name}", getattr(self, name))
        if self.mask_logits_name is not None and self.mask_logits_name == self.class_logits_name:
            raise ValueError(
                f"config.class_logits_name: got {self.class_logits_name!r}, expected another tensor than "
                "mask_logits_name"
            )
        self._check_task(task)

    def _check_task(self, task: str) -> None:
        if task == "panoptic" and self.panoptic is None:
            self._set("panoptic", Panoptic())
        if task != "panoptic" and self.panoptic is not None:
            raise ValueError(f"config.panoptic: got one for the task {task!r}, expected None")
        if task == "panoptic" and self.use_mask_score:
            raise ValueError("config.use_mask_score: got True for the task 'panoptic', expected False")
        if task != "semantic" and self.predict_all_pixels:
            raise ValueError(f"config.predict_all_pixels: got True for the task {task!r}, expected False")
        try:
            check_rules(
                self.combine,
                self.panoptic,
                self.multi_label,
                self.resampling,
                self.overlap_threshold,
                predict_all_pixels=self.predict_all_pixels,
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"config.{error}") from None
        if self.combine == "sum" and self.use_mask_score:
            raise ValueError("config.use_mask_score: got True with combine='sum', expected False")
        if self.overlap_threshold is not None and self.use_mask_score:
            raise ValueError("config.use_mask_score: got True with overlap_threshold, expected False")
        if self.combine == "sum" and self.resampling is not None and self.resampling.of == "logits":
            raise ValueError(
                "config.resampling.of: got 'logits' with combine='sum', expected 'probabilities': sums are resized, "
                "not masks"
            )
        if self.resize == "crops" and self.combine != "sum":
            raise ValueError(
                f"config.resize: got 'crops' with combine={self.combine!r}, expected 'sum': sums are put together"
            )
        if self.panoptic is not None and self.panoptic.stuff and self.panoptic.stuff[-1] >= self.num_classes:
            raise ValueError(
                f"config.panoptic.stuff: got class {self.panoptic.stuff[-1]}, expected ids of 0 to "
                f"{self.num_classes - 1}"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def class_columns(self) -> int:
        """How many class logits the graph gives for a query: with a softmax one more for 'no object'."""
        return self.num_classes if self.cls_sigmoid else self.num_classes + 1
