"""MobileNetV2: blocks that are wide inside, where each channel is convolved alone, and narrow outside.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018. As FocoosAI has it, no
bottleneck is linear: ReLU6 follows the last convolution of a block, too.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.registry import BackboneConfig
from fai_fast.registry.backbones import InvertedBlock

# The layers whose outputs are res2..res5.
TAPS = (2, 3, 5, 7)


class ReLU6Conv(nn.Conv2d):
    """A convolution that holds its batch normalization (``weight``, ``norm``), and ReLU6."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_dim, out_dim, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(self.norm(super().forward(input)))


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 of each channel, 1x1 down; plus the input where it has the output's shape."""

    def __init__(self, block: InvertedBlock) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        if block.hidden != block.before:
            self.conv.append(ReLU6Conv(block.before, block.hidden, 1))
        self.conv.append(ReLU6Conv(block.hidden, block.hidden, 3, block.stride, groups=block.hidden))
        self.conv.append(ReLU6Conv(block.hidden, block.after, 1))
        self.adds = block.adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """(B, 3, H, W) -> res2..res5 at 1/4, 1/8, 1/16, 1/32 of the size."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.conv1 = ReLU6Conv(config.in_chans, config.widened(32), 3, 2)
        for number in range(1, 8):
            self.add_module(f"layer{number}", nn.Sequential())
        for block in config.inverted_blocks():
            layer = self.get_submodule(f"layer{block.layer}")
            layer.add_module(str(block.number), InvertedResidual(block))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv1(x)
        features = []
        for number in range(1, 8):
            x = self.get_submodule(f"layer{number}")(x)
            if number in TAPS:
                features.append(x)
        return features
