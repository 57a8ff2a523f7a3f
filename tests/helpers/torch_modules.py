"""A small module that is nobody's: convolutions, attention to positions, and a choice by what the masks cover."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

QUERIES, CLASSES = 6, 3


class Small(nn.Module):
    """Images (B, 3, H, W) to masks (B, 6, H / 4, W / 4) and class logits (B, 6, 4)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.first = nn.Conv2d(3, 16, 3, 2, 1)
            self.norm = nn.BatchNorm2d(16)
            self.second = nn.Conv2d(16, 16, 3, 2, 1)
            self.queries = nn.Parameter(torch.randn(QUERIES, 16))
            self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16)
            self.classes = nn.Linear(16, CLASSES + 1)
        with torch.no_grad():
            self.classes.weight.mul_(4)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.second(self.norm(self.first(images)).relu())
        height, width = features.shape[-2:]
        rows = torch.arange(height, device=features.device, dtype=features.dtype) / height
        features = features + rows.sin()[:, None]
        tokens = features.flatten(2).transpose(1, 2)
        queries = self.queries.expand(len(images), -1, -1)
        closed = torch.einsum("bqc,bnc->bqn", queries, tokens) < 0
        scores = torch.matmul(queries, self.key(tokens).transpose(1, 2)) / 4
        scores = scores.masked_fill(closed, torch.finfo(scores.dtype).min)
        queries = queries + torch.matmul(F.softmax(scores, -1), self.value(tokens))
        masks = torch.einsum("bqc,bchw->bqhw", queries, features)
        assert masks.shape[-1] == width
        return {"masks": masks, "logits": self.classes(queries)}


def spec(**options: Any) -> Any:
    """What a user says of it."""
    import fai_fast

    config = fai_fast.NetworkConfig(CLASSES, postprocessing_type="instance", **options)
    return fai_fast.ModelSpec(
        name="small", task="instance", classes=("one", "two", "three"), config=config, im_size=64
    )
