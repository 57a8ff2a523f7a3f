"""ResNet, variant d: a stem of three 3x3 convolutions, and shortcuts that average before they project.

He et al., Bag of Tricks for Image Classification with Convolutional Neural Networks, 2018.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.reference.blocks import ConvNorm
from fai_fast.registry import BackboneConfig

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class PooledShortcut(nn.Module):
    """Halves a map by averaging, where a strided 1x1 convolution would ignore three pixels of four."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True)
        self.conv = ConvNorm(in_dim, out_dim, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x))


class Bottleneck(nn.Module):
    """1x1 down to ``width``, 3x3 (with the stride), 1x1 up to four times the width, plus the shortcut."""

    def __init__(self, in_dim: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.branch2a = ConvNorm(in_dim, width, 1)
        self.branch2b = ConvNorm(width, width, 3, stride)
        self.branch2c = ConvNorm(width, 4 * width, 1, relu=False)
        if not project:
            self.short: nn.Module = nn.Identity()
        elif stride == 2:
            self.short = PooledShortcut(in_dim, 4 * width)
        else:
            self.short = ConvNorm(in_dim, 4 * width, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch2c(self.branch2b(self.branch2a(x))) + self.short(x))


class Stage(nn.Module):
    def __init__(self, in_dim: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            Bottleneck(in_dim, width, stride, project=True),
            *(Bottleneck(4 * width, width, 1, project=False) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ResNet(nn.Module):
    """(B, 3, H, W) -> res2..res5 at 1/4, 1/8, 1/16, 1/32 of the size."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.depth not in BLOCKS:
            raise ValueError(f"backbone_config.depth: got {config.depth}, expected one of {sorted(BLOCKS)}")
        self.conv1 = nn.Sequential()
        for index, (in_dim, out_dim, stride) in enumerate(
            [(config.in_chans, 32, 2), (32, 32, 1), (32, 64, 1)], start=1
        ):
            self.conv1.add_module(f"conv1_{index}", ConvNorm(in_dim, out_dim, 3, stride))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.res_layers = nn.ModuleList()
        self.out_dims: list[int] = []
        dim = 64
        for level, blocks in enumerate(BLOCKS[config.depth]):
            width = 64 << level
            self.res_layers.append(Stage(dim, width, blocks, stride=1 if level == 0 else 2))
            dim = 4 * width
            self.out_dims.append(dim)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.pool(self.conv1(x))
        features = []
        for stage in self.res_layers:
            x = stage(x)
            features.append(x)
        return features
