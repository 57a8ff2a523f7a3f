"""STDC: a backbone whose blocks concatenate what each of their convolutions saw, and in one kind add their input.

Fan et al., Rethinking BiSeNet For Real-time Semantic Segmentation, 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fai_fast.reference.blocks import ConvBN
from fai_fast.registry import BackboneConfig


def halving(dim: int) -> list[nn.Module]:
    """A convolution of each channel alone that halves a map's sides, and its normalization."""
    return [nn.Conv2d(dim, dim, 3, 2, 1, groups=dim, bias=False), nn.BatchNorm2d(dim)]


class CatBlock(nn.Module):
    """Convolutions one after the other, of four to 1/2, 1/4, 1/8, 1/8 of the width; their outputs side by side."""

    def __init__(self, in_dim: int, widths: list[int], stride: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(
            ConvBN(dim, width, 1 if index == 0 else 3)
            for index, (dim, width) in enumerate(zip([in_dim, *widths[:-1]], widths, strict=True))
        )
        self.halve = stride == 2
        if self.halve:
            self.avd_layer = nn.Sequential(*halving(widths[0]))
            self.skip = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_list[0](x)
        parts = [self.skip(x) if self.halve else x]
        if self.halve:
            x = self.avd_layer(x)
        for conv in self.conv_list[1:]:
            x = conv(x)
            parts.append(x)
        return torch.cat(parts, 1)


class AddBlock(nn.Module):
    """The convolutions of a :class:`CatBlock`, and the sum of their outputs side by side and its input."""

    def __init__(self, in_dim: int, widths: list[int], stride: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(
            ConvBN(dim, width, 1 if index == 0 else 3)
            for index, (dim, width) in enumerate(zip([in_dim, *widths[:-1]], widths, strict=True))
        )
        self.halve = stride == 2
        if self.halve:
            out_dim = sum(widths)
            self.avd_layer = nn.Sequential(*halving(widths[0]))
            self.skip = nn.Sequential(
                *halving(in_dim), nn.Conv2d(in_dim, out_dim, 1, bias=False), nn.BatchNorm2d(out_dim)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_list[0](x)
        parts = [self.avd_layer(y) if self.halve else y]
        for conv in self.conv_list[1:]:
            parts.append(conv(parts[-1]))
        return torch.cat(parts, 1) + (self.skip(x) if self.halve else x)


class STDC(nn.Module):
    """(B, 3, H, W) -> res2..res5 at 1/4, 1/8, 1/16, 1/32 of the size."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.base is None or config.layers is None:
            raise ValueError("backbone_config: got an STDC backbone without base or layers, expected both")
        base = config.base
        blocks: list[nn.Module] = [ConvBN(config.in_chans, base // 2, 3, 2), ConvBN(base // 2, base, 3, 2)]
        self.taps = [1]
        dims = config.out_dims()
        kind = AddBlock if config.block_type == "add" else CatBlock
        dim = base
        for out_dim, count in zip(dims[1:], config.layers, strict=True):
            for index in range(count):
                blocks.append(kind(dim, config.block_widths(out_dim), stride=2 if index == 0 else 1))
                dim = out_dim
            self.taps.append(len(blocks) - 1)
        self.features = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.taps:
                features.append(x)
        return features
