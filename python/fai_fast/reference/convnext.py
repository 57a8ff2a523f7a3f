"""ConvNeXt V2: large convolutions of each channel, and channels that compete in every block.

Woo et al., ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders, 2023.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.registry import BackboneConfig

EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of each place of a map (B, C, h, w) over its channels."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=EPS)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalization of (B, h, w, C): a channel counts by its share in the whole picture's response."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        # Sums over a picture do not fit into half precision.
        exact = x.float() if x.dtype == torch.float16 else x
        response = exact.norm(dim=(1, 2), keepdim=True)
        share = (response / (response.mean(-1, keepdim=True) + EPS)).to(x.dtype)
        return x + self.gamma * (x * share) + self.beta


class ConvNeXtBlock(nn.Module):
    """7x7 of each channel, then a feed-forward layer of each place with a response normalization inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = ResponseNorm(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXtV2(nn.Module):
    """(B, 3, H, W) -> res2..res5 at 1/4, 1/8, 1/16, 1/32 of the size."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        assert config.depths is not None
        dims = config.out_dims()
        first = nn.Sequential(nn.Conv2d(config.in_chans, dims[0], 4, 4), ChannelNorm(dims[0]))
        self.downsample_layers = nn.ModuleList([first])
        for before, after in pairwise(dims):
            self.downsample_layers.append(nn.Sequential(ChannelNorm(before), nn.Conv2d(before, after, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(dim) for _ in range(blocks)))
            for dim, blocks in zip(dims, config.depths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            features.append(x)
        return features
