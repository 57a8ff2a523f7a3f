"""CSPDarknet: half of the channels pass each stage's blocks by.

Ge et al., YOLOX: Exceeding YOLO Series in 2021; Wang et al., CSPNet, 2019; He et al., Spatial Pyramid Pooling, 2014.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.registry import BackboneConfig

EPS = 1e-3
POOLS = (5, 9, 13)


class SiLUConv(nn.Module):
    """A convolution without bias, batch normalization and SiLU: ``conv``, ``bn``."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_dim, eps=EPS, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)))


class Focus(nn.Module):
    """A convolution of the picture at half its size, each 2x2 block of pixels side by side in the channels."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = SiLUConv(4 * in_dim, out_dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        # The left column of a block comes first.
        parts = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(parts, 1))


class PyramidPooling(nn.Module):
    """What is largest around each place, in windows of several sizes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = SiLUConv(dim, dim // 2, 1)
        self.conv2 = SiLUConv((len(POOLS) + 1) * (dim // 2), dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(F.max_pool2d(x, size, 1, size // 2) for size in POOLS)], 1))


class DarknetBlock(nn.Module):
    """1x1 and 3x3; plus the input, unless told otherwise."""

    def __init__(self, dim: int, adds: bool) -> None:
        super().__init__()
        self.conv1 = SiLUConv(dim, dim, 1)
        self.conv2 = SiLUConv(dim, dim, 3)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.adds else y


class CSPLayer(nn.Module):
    def __init__(self, dim: int, blocks: int, adds: bool) -> None:
        super().__init__()
        half = dim // 2
        self.main_conv = SiLUConv(dim, half, 1)
        self.short_conv = SiLUConv(dim, half, 1)
        self.final_conv = SiLUConv(2 * half, dim, 1)
        self.blocks = nn.Sequential(*(DarknetBlock(half, adds) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.final_conv(torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], 1))


class CSPDarknet(nn.Module):
    """(B, 3, H, W) -> res2..res5 at 1/4, 1/8, 1/16, 1/32 of the size."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        assert config.base is not None
        assert config.layers is not None
        dims = config.out_dims()
        self.stem = Focus(config.in_chans, config.base)
        before = config.base
        for number, (dim, blocks) in enumerate(zip(dims, config.layers, strict=True), start=1):
            last = number == len(dims)
            stage = nn.Sequential(SiLUConv(before, dim, 3, 2))
            if last:
                stage.append(PyramidPooling(dim))
            stage.append(CSPLayer(dim, blocks, adds=not last))
            self.add_module(f"stage{number}", stage)
            before = dim

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"stage{number}")(x)
            features.append(x)
        return features
