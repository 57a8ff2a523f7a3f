"""How a network's outputs become a result, where there is more than one way: see docs/postprocess.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from fai_fast._arguments import check_bool, check_choice, check_fraction, check_int, check_items, check_size

__all__ = ["COMBINES", "Combine", "Panoptic", "Resampling", "Rules", "arguments_of", "rules_of"]

Combine = Literal["contest", "sum"]
Resampled = Literal["probabilities", "logits"]

COMBINES: tuple[Combine, ...] = get_args(Combine)
RESAMPLED: tuple[Resampled, ...] = get_args(Resampled)
# What the kernels count classes in; which ids a network has is checked against its logits.
_LARGEST_ID = (1 << 31) - 1


@dataclass(frozen=True)
class Panoptic:
    """How queries become the segments of a panoptic result.

    Those whose best column is a class and whose score is above ``threshold`` compete for each pixel with score times
    mask probability. A query is a segment where the pixels that it won are more than ``overlap_threshold`` of those
    that are its own. Segments of a stuff class are one. Source: ``post_process_panoptic_segmentation`` of
    transformers, after DETR's and MaskFormer's papers.

    Attributes:
        stuff: ids of the classes that are stuff, such as sky; the others are things, of which each is a segment.
        overlap_threshold: 0 to 1.
        weighted: a query's own pixels are those where its score times its mask probability is at least
            ``mask_threshold``, and a segment is all pixels that it won (MaskFormer, Mask2Former, OneFormer). Where
            False they are those where its mask probability is at least that, and a segment is what it won of its own,
            if that is anything (EoMT).

    Raises:
        TypeError, ValueError: a field is not as said here; the text names it.
    """

    stuff: tuple[int, ...] = ()
    overlap_threshold: float = 0.8
    weighted: bool = True

    def __post_init__(self) -> None:
        given = check_items("panoptic.stuff", self.stuff, "a sequence of class ids")
        ids = tuple(sorted({check_int("panoptic.stuff", item) for item in given}))
        for wrong in [*ids[:1], *ids[-1:]]:
            if not 0 <= wrong <= _LARGEST_ID:
                raise ValueError(f"panoptic.stuff: got class {wrong}, expected ids of 0 to {_LARGEST_ID}")
        object.__setattr__(self, "stuff", ids)
        object.__setattr__(
            self, "overlap_threshold", check_fraction("panoptic.overlap_threshold", self.overlap_threshold)
        )
        check_bool("panoptic.weighted", self.weighted)


@dataclass(frozen=True)
class Resampling:
    """How mask logits become masks of a frame's size, for networks whose own library does it in another way.

    Attributes:
        logits_size: (h, w) to which the logits are resized first, bilinearly; None for none. Where the frame was put
            into a part of the network's input (``letterbox``), the same part of this size is what is used.
        of: what is resized to the frame's size: "probabilities", or "logits", of which the sigmoid is taken then.
        nearest: instances: a pixel is inside where the node nearest to it is, and with ``use_mask_score`` the mean is
            taken over the nodes inside.

    Raises:
        TypeError, ValueError: a field is not as said here; the text names it.
    """

    logits_size: tuple[int, int] | None = None
    of: Resampled = "probabilities"
    nearest: bool = False

    def __post_init__(self) -> None:
        if self.logits_size is not None:
            object.__setattr__(self, "logits_size", check_size("resampling.logits_size", self.logits_size))
        check_choice("resampling.of", self.of, RESAMPLED)
        check_bool("resampling.nearest", self.nearest)


@dataclass(frozen=True)
class Rules:
    """All of it, as the kernels take it. Checked where it is made."""

    combine: Combine = "contest"
    panoptic: Panoptic | None = None
    multi_label: bool = False
    resampling: Resampling = Resampling()
    overlap_threshold: float | None = None

    def plain(self) -> dict[str, Any]:
        """The arguments of ``_core``, by name; those that say nothing are left out."""
        plain: dict[str, Any] = {}
        if self.combine == "sum":
            plain["by_sum"] = True
        if self.panoptic is not None:
            plain["panoptic"] = True
            plain["overlap_threshold"] = self.panoptic.overlap_threshold
            plain["weighted"] = self.panoptic.weighted
            plain["stuff"] = list(self.panoptic.stuff)
        if self.multi_label:
            plain["multi_label"] = True
        if self.overlap_threshold is not None:
            plain["exclusive"] = True
            plain["overlap_threshold"] = self.overlap_threshold
        if self.resampling.logits_size is not None:
            plain["logits_size"] = self.resampling.logits_size
        if self.resampling.of == "logits":
            plain["of_logits"] = True
        if self.resampling.nearest:
            plain["nearest"] = True
        return plain


def check_rules(
    combine: object,
    panoptic: object,
    multi_label: object,
    resampling: object,
    overlap_threshold: object,
    *,
    predict_all_pixels: bool,
) -> Rules:
    """The arguments of postprocess, checked, and whether they go together. Raises TypeError, ValueError."""
    combine = check_choice("combine", combine, COMBINES)
    if panoptic is not None and not isinstance(panoptic, Panoptic):
        raise TypeError(f"panoptic: got {type(panoptic).__name__}, expected a fai_fast.Panoptic or None")
    multi_label = check_bool("multi_label", multi_label)
    if resampling is None:
        resampling = Resampling()
    if not isinstance(resampling, Resampling):
        raise TypeError(
            f"resampling: got {type(resampling).__name__}, expected a fai_fast.Resampling or None"
        )
    if combine == "sum" and (panoptic is not None or not predict_all_pixels):
        raise ValueError(
            "combine: got 'sum' for a result that is not semantic, expected 'contest', or predict_all_pixels=True "
            "without panoptic"
        )
    if multi_label and (panoptic is not None or predict_all_pixels):
        raise ValueError("multi_label: got True for a result that is not of instances, expected False")
    if resampling.nearest and (panoptic is not None or predict_all_pixels):
        raise ValueError("resampling.nearest: got True for a result that is not of instances, expected False")
    if overlap_threshold is not None:
        overlap_threshold = check_fraction("overlap_threshold", overlap_threshold)
        if panoptic is not None or predict_all_pixels:
            raise ValueError(
                f"overlap_threshold: got {overlap_threshold:g} for a result that is not of instances, expected None"
            )
        if resampling.of != "logits":
            raise ValueError(
                f"resampling.of: got {resampling.of!r} with overlap_threshold, expected 'logits': instances compete "
                "with their logits"
            )
        if resampling.nearest:
            raise ValueError("resampling.nearest: got True with overlap_threshold, expected False")
    return Rules(combine, panoptic, multi_label, resampling, overlap_threshold)


def arguments_of(config: Any) -> dict[str, Any]:
    """What a network's configuration says of results, as :func:`fai_fast.postprocess` takes it, but the threshold."""
    rules = rules_of(config)
    return {
        "mask_threshold": config.mask_threshold,
        "use_mask_score": config.use_mask_score,
        "predict_all_pixels": config.predict_all_pixels,
        "class_activation": "sigmoid" if config.cls_sigmoid else "softmax",
        "combine": rules.combine,
        "panoptic": rules.panoptic,
        "multi_label": rules.multi_label,
        "resampling": rules.resampling,
        "overlap_threshold": rules.overlap_threshold,
    }


def rules_of(config: Any) -> Rules:
    """Those of a network's configuration."""
    return Rules(
        getattr(config, "combine", "contest"),
        getattr(config, "panoptic", None),
        getattr(config, "multi_label", False),
        getattr(config, "resampling", None) or Resampling(),
        getattr(config, "overlap_threshold", None),
    )
