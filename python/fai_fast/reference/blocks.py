"""Small pieces that several networks share, under the parameter names of the published checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalization, and ReLU unless told otherwise: ``conv``, ``norm``."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.relu else x


class ConvBN(nn.Module):
    """:class:`ConvNorm` with ReLU, whose checkpoints call the normalization ``bn``."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class NormedConv(nn.Conv2d):
    """A convolution that holds its batch normalization: ``weight``, ``norm``."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, relu: bool) -> None:
        super().__init__(in_dim, out_dim, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)
        self.relu = relu

    def forward(self, input: Tensor) -> Tensor:
        x = self.norm(super().forward(input))
        return F.relu(x) if self.relu else x


def sine_position(height: int, width: int, dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The sine position embedding of a map: (height * width, dim), dim/2 features for y, then dim/2 for x.

    Coordinates count from 1 and are divided by the map's side, so that a map of any size spans 2 pi.
    (Carion et al., End-to-End Object Detection with Transformers, 2020.)
    """
    half = dim // 2
    pair = torch.div(torch.arange(half, device=device), 2, rounding_mode="floor")
    period = 10000.0 ** (2.0 * pair.to(torch.float32) / half)

    def side(length: int) -> Tensor:
        steps = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        angle = (steps / (length + 1e-6) * (2 * math.pi))[:, None] / period
        return torch.where(torch.arange(half, device=device) % 2 == 0, angle.sin(), angle.cos())

    y = side(height)[:, None].expand(height, width, half)
    x = side(width)[None].expand(height, width, half)
    return torch.cat([y, x], -1).flatten(0, 1).to(dtype)
