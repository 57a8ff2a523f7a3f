"""What a CPU computes in, and whether a lower precision still gives the same masks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fai_fast.engines import select
from fai_fast.engines.base import Context, Engine, TensorSpec

__all__ = [
    "MAX_CLASS_PROBABILITY",
    "MIN_MASK_IOU",
    "Agreement",
    "agreement",
    "candidates",
    "frames",
]

MIN_MASK_IOU = 0.99
MAX_CLASS_PROBABILITY = 0.1
_DRAW = 1e-3

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """How far one engine's outputs are from another's.

    Attributes:
        mask_iou: intersection over union of the masks (mask probability at least 0.5), summed over all queries,
            each weighted by its best class probability: queries that no one sees do not count. Pixels that fall on
            either side of 0.5 with probabilities less than 0.001 apart are draws, and taken as the reference has
            them. The worst frame's.
        max_mask_probability, max_class_probability: the largest differences.
    """

    mask_iou: float
    max_mask_probability: float
    max_class_probability: float

    @property
    def holds(self) -> bool:
        """Whether masks and classes are as good as the same; False where there is a NaN."""
        return self.mask_iou >= MIN_MASK_IOU and self.max_class_probability <= MAX_CLASS_PROBABILITY

    def __str__(self) -> str:
        return (
            f"{'holds' if self.holds else 'does not hold'}: mask IoU {self.mask_iou:.4f} (at least {MIN_MASK_IOU}), "
            f"class probabilities within {self.max_class_probability:.2g} (at most {MAX_CLASS_PROBABILITY}), "
            f"mask probabilities within {self.max_mask_probability:.2g}"
        )


def candidates(engine: str) -> tuple[str, ...]:
    """The precisions that "auto" tries in turn: those that the engine says this CPU has natively, fastest first.

    The last is always "fp32", which needs no verification.

    Raises:
        ValueError: there is no such engine.
        EngineError: the engine's package cannot be imported.
    """
    native: tuple[str, ...] = select.module(engine).native_precisions()
    return (*(name for name in native if name != "fp32"), "fp32")


def frames(port: TensorSpec, count: int = 2) -> Iterable[npt.NDArray[np.floating]]:
    """Seeded inputs for `port`, normalized like pictures: flat regions with edges, gradients and noise."""
    images, channels, height, width = port.shape
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = rng.normal(size=(images, channels, -(-height // 32), -(-width // 32)))
        regions = coarse.repeat(32, 2).repeat(32, 3)[:, :, :height, :width]
        slope = np.linspace(-1, 1, height)[:, None] * rng.normal() + np.linspace(-1, 1, width) * rng.normal()
        noise = rng.normal(scale=0.1, size=port.shape)
        yield (0.8 * regions + 0.5 * slope + noise).clip(-2.1, 2.6).astype(port.dtype)


def agreement(engine: Engine, reference: Engine, inputs: Iterable[npt.NDArray[np.floating]]) -> Agreement:
    """Runs both engines on each input and compares what they give.

    Args:
        engine, reference: engines of the same graph.
        inputs: normalized images of the engines' shape, such as :func:`frames` gives.

    Raises:
        ValueError: there is no input, or the engines' outputs have other shapes.
        EngineError: an engine failed.
    """
    if [port.shape for port in engine.outputs] != [port.shape for port in reference.outputs]:
        raise ValueError(
            f"engine: outputs {[str(port) for port in engine.outputs]} have other shapes than the reference's "
            f"{[str(port) for port in reference.outputs]}"
        )
    context, other = engine.context(), reference.context()
    try:
        rows = np.array([_compare(context, other, image) for image in inputs])
    finally:
        context.close()
        other.close()
    if not len(rows):
        raise ValueError("inputs: got none, expected at least one")
    return Agreement(float(rows[:, 0].min()), float(rows[:, 1].max()), float(rows[:, 2].max()))


def _compare(context: Context, other: Context, image: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    masks, classes = _probabilities(context, image)
    true_masks, true_classes = _probabilities(other, image)
    # NaN is not at least 0.5 and makes the largest difference NaN, which is not within any limit.
    difference = np.abs(masks - true_masks)
    true_inside = true_masks >= 0.5
    inside = np.where(difference < _DRAW, true_inside, masks >= 0.5)
    weight = true_classes.max(-1)
    both = float((weight * (inside & true_inside).sum((2, 3))).sum())
    either = float((weight * (inside | true_inside).sum((2, 3))).sum())
    return (
        both / either if either != 0 else 1.0,
        float(difference.max()),
        float(np.abs(classes - true_classes).max()),
    )


def _probabilities(context: Context, image: npt.NDArray[np.floating]) -> tuple[Float32, Float32]:
    """Mask probabilities (B, Q, h, w), and class probabilities (B, Q, C) without the 'no object' column."""
    context.images[...] = image
    context.run()
    with np.errstate(invalid="ignore"):  # NaN and infinity are counted, not reported
        # The logistic function by way of tanh, which does not overflow.
        masks = 0.5 + 0.5 * np.tanh(0.5 * context.mask_logits.astype(np.float32))
        logits = context.class_logits.astype(np.float32)
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        return masks, (exponents / exponents.sum(-1, keepdims=True))[..., :-1]
