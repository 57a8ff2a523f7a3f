"""Swin: attention inside of windows, which every other block shifts by half their side.

Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.registry import BackboneConfig

# Added to the scores of places that lie in one window only because the map's opposite edges meet there.
APART = -100.0


def relative_places(window: int, device: torch.device) -> Tensor:
    """For each pair of a window's places the row of the bias table that is theirs: int64 (window**2, window**2)."""
    side = torch.arange(window, device=device)
    difference = side[:, None] - side[None, :] + window - 1
    rows = difference[:, None, :, None] * (2 * window - 1)
    return (rows + difference[None, :, None, :]).flatten(2).flatten(0, 1)


def apart(size: tuple[int, int], window: int, shift: int, device: torch.device) -> Tensor:
    """What is added to the scores in each shifted window of a map of `size`: (windows, window**2, window**2)."""

    def regions(length: int) -> Tensor:
        # After the shift the last window of a side holds the edge's own places and, behind them, those of the other.
        places = torch.arange(length, device=device)
        return (places >= length - window).long() + (places >= length - shift).long()

    height, width = size
    region = 3 * regions(height)[:, None] + regions(width)[None, :]
    region = windows_of(region[None, :, :, None], window).flatten(1)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, APART)


def windows_of(x: Tensor, window: int) -> Tensor:
    """(B, h, w, C) -> (B * windows, window**2, C); h and w are multiples of `window`."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // window, window, width // window, window, dim)
    return x.transpose(2, 3).reshape(-1, window * window, dim)


def map_of(x: Tensor, batch: int, size: tuple[int, int], window: int) -> Tensor:
    """The reverse of :func:`windows_of`: (B, h, w, C)."""
    height, width = size
    x = x.view(batch, height // window, width // window, window, window, -1)
    return x.transpose(2, 3).reshape(batch, height, width, -1)


class WindowAttention(nn.Module):
    """Attention of the places of each window to each other, with a bias for where they lie to each other."""

    def __init__(self, dim: int, heads: int, window: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B * windows, N, C), mask (windows, N, N)."""
        bias = self.relative_position_bias_table[relative_places(self.window, x.device)].permute(2, 0, 1)[
            None
        ]
        if mask is not None:
            bias = (bias + mask[:, None].to(bias.dtype)).repeat(len(x) // len(mask), 1, 1, 1)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        taken = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(taken.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C)."""
        batch, height, width, _ = x.shape
        # Windows fill the map up with places that are zero, and that are attended to like any other.
        y = F.pad(self.norm1(x), (0, 0, 0, -width % self.window, 0, -height % self.window))
        size = (y.shape[1], y.shape[2])
        mask = None
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
            mask = apart(size, self.window, self.shift, x.device)
        y = map_of(self.attn(windows_of(y, self.window), mask), batch, size, self.window)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + y[:, :height, :width]
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Halves a map (B, h, w, C): each 2x2 block of places becomes one, twice as wide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        # The left column of a block comes first.
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class PatchEmbed(nn.Module):
    """(B, 3, H, W) -> (B, H / 4, W / 4, C)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """The blocks of a stage, and what makes the next stage's input of their output."""

    def __init__(self, config: BackboneConfig, stage: int) -> None:
        super().__init__()
        assert config.depths is not None
        assert config.num_heads is not None
        assert config.window_size is not None
        dim, window = config.out_dims()[stage], config.window_size
        self.blocks = nn.Sequential(
            *(
                SwinBlock(
                    dim,
                    config.num_heads[stage],
                    window,
                    shift=window // 2 if block % 2 else 0,
                    hidden=config.hidden_dim(dim),
                    bias=config.qkv_bias is not False,
                )
                for block in range(config.depths[stage])
            )
        )
        if stage < 3:
            self.downsample = PatchMerging(dim)


class Swin(nn.Module):
    """(B, 3, H, W) -> res2..res5 at 1/4, 1/8, 1/16, 1/32 of the size."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        dims = config.out_dims()
        self.patch_embed = PatchEmbed(config.in_chans, dims[0])
        self.layers = nn.ModuleList(Stage(config, stage) for stage in range(4))
        for stage, dim in enumerate(dims):
            self.add_module(f"norm{stage}", nn.LayerNorm(dim))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        features = []
        for number, stage in enumerate(self.layers):
            if number > 0:
                x = self.layers[number - 1].get_submodule("downsample")(x)
            x = stage.get_submodule("blocks")(x)
            features.append(self.get_submodule(f"norm{number}")(x).permute(0, 3, 1, 2).contiguous())
        return features
