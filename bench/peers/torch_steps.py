"""The definition's steps in plain torch float32, as FocoosAI's own Python runs them; and torch's resize."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bench.scenes import Scene


@dataclass(frozen=True)
class Rows:
    """Kept rows in falling order of confidence; `mask` is bool (N, H, W), `xyxy` half-open."""

    query: NDArray[np.int64]
    class_id: NDArray[np.int64]
    confidence: NDArray[np.float32]
    xyxy: NDArray[np.int64]
    mask: NDArray[np.bool_]


def preprocess(frame, size, mean, std):
    """Resizes in uint8 (torch's fast path, which rounds to whole steps), then normalizes."""
    x = torch.from_numpy(frame).permute(2, 0, 1)[None]
    x = F.interpolate(x, size, mode="bilinear", align_corners=False).float()
    return ((x - _column(mean)) / _column(std)).contiguous().numpy()


def preprocess_exact(frame, size, mean, std):
    """Resizes in float32: slower, but without the rounding to 8 bits."""
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    return ((x - _column(mean)) / _column(std)).numpy()


def postprocess(scene: Scene, size, *, threshold=0.5, mask_threshold=0.5, use_mask_score, predict_all_pixels):
    class_logits = torch.from_numpy(scene.class_logits).float()
    mask_logits = torch.from_numpy(scene.mask_logits).float()
    scores, labels = class_logits.softmax(-1)[:, :-1].max(-1)
    masks = F.interpolate(mask_logits.sigmoid()[None], size, mode="bilinear", align_corners=False)[0]
    if predict_all_pixels:
        winner = (scores[:, None, None] * masks).argmax(0)
        binary = winner == torch.arange(len(scores))[:, None, None]
    else:
        binary = masks >= mask_threshold
    inside = binary.float()
    area = inside.sum((1, 2))
    if use_mask_score:
        scores = scores * ((masks * inside).sum((1, 2)) / (area + 0.01))
    keep = torch.nonzero((area >= 2) & (scores > threshold))[:, 0]
    keep = keep[scores[keep].argsort(descending=True, stable=True)]
    mask = binary[keep].numpy()
    return Rows(
        query=keep.numpy(),
        class_id=labels[keep].numpy(),
        confidence=scores[keep].numpy(),
        xyxy=boxes(mask),
        mask=mask,
    )


def boxes(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    result = np.zeros((len(masks), 4), np.int64)
    for i, mask in enumerate(masks):
        x = np.flatnonzero(mask.any(0))
        y = np.flatnonzero(mask.any(1))
        result[i] = x[0], y[0], x[-1] + 1, y[-1] + 1
    return result


def decode(words: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Little-endian bits (N, H, W / 8) to booleans (N, H, W)."""
    bits = torch.from_numpy(words)[..., None] >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.bool().flatten(-2).numpy()


def _column(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
