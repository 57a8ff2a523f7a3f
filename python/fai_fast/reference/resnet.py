"""ResNet, variants a to d.

He et al., Deep Residual Learning for Image Recognition, 2015 (a; b has the stride in the middle of its blocks); Bag of
Tricks for Image Classification with Convolutional Neural Networks, 2018 (c: a stem of three 3x3 convolutions; d: also
shortcuts that average before they project).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.reference.blocks import ConvNorm
from fai_fast.registry import BackboneConfig
from fai_fast.registry.backbones import RESNET_BLOCKS


class PooledShortcut(nn.Module):
    """Halves a map by averaging, where a strided 1x1 convolution would ignore three pixels of four."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True)
        self.conv = ConvNorm(in_dim, out_dim, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x))


def shortcut(in_dim: int, out_dim: int, stride: int, variant: str) -> nn.Module:
    """What the first block of a stage adds: its input in the stage's width and size."""
    if variant == "d" and stride == 2:
        return PooledShortcut(in_dim, out_dim)
    return ConvNorm(in_dim, out_dim, 1, stride, relu=False)


class BasicBlock(nn.Module):
    """Two 3x3, the first with the stride, plus the shortcut."""

    expansion = 1

    def __init__(self, in_dim: int, width: int, stride: int, project: bool, variant: str) -> None:
        super().__init__()
        self.short = shortcut(in_dim, width, stride, variant) if project else nn.Identity()
        self.branch2a = ConvNorm(in_dim, width, 3, stride)
        self.branch2b = ConvNorm(width, width, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch2b(self.branch2a(x)) + self.short(x))


class Bottleneck(nn.Module):
    """1x1 down to ``width``, 3x3, 1x1 up to four times the width, plus the shortcut.

    The 3x3 has the stride, or in variant a the first.
    """

    expansion = 4

    def __init__(self, in_dim: int, width: int, stride: int, project: bool, variant: str = "d") -> None:
        super().__init__()
        strides = (stride, 1) if variant == "a" else (1, stride)
        self.branch2a = ConvNorm(in_dim, width, 1, strides[0])
        self.branch2b = ConvNorm(width, width, 3, strides[1])
        self.branch2c = ConvNorm(width, 4 * width, 1, relu=False)
        self.short = shortcut(in_dim, 4 * width, stride, variant) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch2c(self.branch2b(self.branch2a(x))) + self.short(x))


class Stage(nn.Module):
    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        in_dim: int,
        width: int,
        blocks: int,
        stride: int,
        variant: str,
    ) -> None:
        super().__init__()
        dim = block.expansion * width
        self.blocks = nn.Sequential(
            block(in_dim, width, stride, True, variant),
            *(block(dim, width, 1, False, variant) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ResNet(nn.Module):
    """(B, 3, H, W) -> res2..res5 at 1/4, 1/8, 1/16, 1/32 of the size."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.depth not in RESNET_BLOCKS:
            raise ValueError(
                f"backbone_config.depth: got {config.depth}, expected one of {sorted(RESNET_BLOCKS)}"
            )
        variant = config.variant or "d"
        self.conv1 = nn.Sequential()
        if variant in ("a", "b"):
            self.conv1.add_module("conv1_1", ConvNorm(config.in_chans, 64, 7, 2))
        else:
            for index, (in_dim, out_dim, stride) in enumerate(
                [(config.in_chans, 32, 2), (32, 32, 1), (32, 64, 1)], start=1
            ):
                self.conv1.add_module(f"conv1_{index}", ConvNorm(in_dim, out_dim, 3, stride))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.res_layers = nn.ModuleList()
        dims = config.out_dims()
        block: type[BasicBlock | Bottleneck] = Bottleneck if config.depth >= 50 else BasicBlock
        dim = 64
        for level, blocks in enumerate(RESNET_BLOCKS[config.depth]):
            stride = 1 if level == 0 else 2
            self.res_layers.append(Stage(block, dim, 64 << level, blocks, stride, variant))
            dim = dims[level]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.pool(self.conv1(x))
        features = []
        for stage in self.res_layers:
            x = stage(x)
            features.append(x)
        return features
