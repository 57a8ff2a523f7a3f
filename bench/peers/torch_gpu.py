"""The pipeline that people have on a GPU: upload, torch's resize, the network in eager torch, torch's steps after it.

It is run as well as its users would: the frame is uploaded as bytes, everything else happens on the card (boxes too),
cuDNN chooses its kernels by measuring, and only kept masks come back. "fp32" is how FocoosAI's library runs its
models; "fp16" is what a user makes of it with two lines, `.half()` and channels_last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from fai_fast import reference

from bench.peers.torch_steps import Rows


def load(
    spec, size: tuple[int, int], precision: str, state: dict[str, np.ndarray], device: str = "cuda:0"
) -> Callable[..., Rows]:
    """(frame uint8 (H, W, 3) in the host's memory, threshold) -> rows of the network with these weights."""
    network = reference.build(spec)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=False)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    memory_format = torch.channels_last if precision == "fp16" else torch.contiguous_format
    network = network.eval().requires_grad_(False).to(device, dtype).to(memory_format=memory_format)
    config = spec.config

    @torch.inference_mode()
    def run(frame: np.ndarray, threshold: float) -> Rows:
        with _benchmarking():
            x = torch.from_numpy(frame).to(device, non_blocking=True).permute(2, 0, 1)[None].to(dtype)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            output = network(x.contiguous(memory_format=memory_format))
        masks = _resized(output.mask_logits.sigmoid(), size)
        if tuple(size) != frame.shape[:2]:
            masks = _resized(masks, frame.shape[:2])
        return _rows(masks[0], output.class_logits[0].softmax(-1)[:, :-1], config, threshold)

    return run


def _resized(masks: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(masks, tuple(size), mode="bilinear", align_corners=False)


def _rows(masks: torch.Tensor, classes: torch.Tensor, config, threshold: float) -> Rows:
    scores, labels = classes.max(-1)
    if config.predict_all_pixels:
        winner = (scores[:, None, None] * masks).argmax(0)
        binary = winner == torch.arange(len(scores), device=winner.device)[:, None, None]
    else:
        binary = masks >= config.mask_threshold
    area = binary.sum((1, 2), dtype=torch.float32)
    if config.use_mask_score:
        scores = scores * ((masks * binary).sum((1, 2), dtype=torch.float32) / (area + 0.01)).to(scores)
    keep = torch.nonzero((area >= 2) & (scores > threshold))[:, 0]
    keep = keep[scores[keep].argsort(descending=True, stable=True)]
    kept = binary[keep]
    return Rows(
        *(found.cpu().numpy() for found in (keep, labels[keep], scores[keep].float(), _boxes(kept), kept))
    )


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    """(N, 4) half-open boxes of masks (N, H, W), none empty."""
    if not len(masks):
        return torch.zeros((0, 4), dtype=torch.int64, device=masks.device)
    sides = []
    for line in (masks.any(1), masks.any(2)):
        line = line.to(torch.uint8)
        sides.append((line.argmax(1), line.shape[1] - line.flip(1).argmax(1)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1)


@contextmanager
def _benchmarking():
    """cuDNN measures its kernels, as users of fixed sizes are told to switch on."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
