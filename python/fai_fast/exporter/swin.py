"""Swin's part of the deployed graph.

What depends on nothing but the size, which places see each other and with what bias, is a constant for each window of a
block. The sum that runs through a stage stays in float32 in every precision.
"""

from __future__ import annotations

import numpy as np

from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.fold import Affine, Float64, Params
from fai_fast.exporter.transformer import attend
from fai_fast.registry import BackboneConfig

__all__ = ["swin"]

# Added to the scores of places that lie in one window only because the map's opposite edges meet there.
_APART = -100.0


def swin(b: Builder, p: Params, config: BackboneConfig, x: Value) -> list[Value]:
    """res2..res5."""
    assert config.depths is not None
    assert config.num_heads is not None
    assert config.window_size is not None
    window = config.window_size
    embed = p.at("patch_embed")
    x = b.conv(x, embed.at("proj")["weight"], embed.at("proj")["bias"], "patches", stride=4, padding=0)
    x = b.cast(_normed(b, embed.at("norm"), b.transpose(x, (0, 2, 3, 1), "places"), "norm"), np.float32)
    features = []
    for stage, blocks in enumerate(config.depths):
        with b.scope(f"res{stage + 2}"):
            if stage > 0:
                x = _merge(b, p.at("layers").at(stage - 1).at("downsample"), x)
            for block in range(blocks):
                shift = window // 2 if block % 2 else 0
                with b.scope(f"block{block}"):
                    place = p.at("layers").at(stage).at("blocks").at(block)
                    x = _attention(b, place, x, config.num_heads[stage], window, shift)
                    x = _feed_forward(b, place, x)
            y = _normed(b, p.at(f"norm{stage}"), x, "out")
            features.append(b.transpose(y, (0, 3, 1, 2), "map"))
    return features


def _attention(b: Builder, p: Params, x: Value, heads: int, window: int, shift: int) -> Value:
    """`x` (B, h, w, C) plus what its places take from others in their window."""
    batch, height, width, dim = x.shape
    attn = p.at("attn")
    # Not in the layer that follows: the places that fill the map up are zero behind scale and shift.
    y = _normed(b, p.at("norm1"), x, "norm1")
    rows, columns = -height % window, -width % window
    if rows or columns:
        pads = b.constant(np.array([0, 0, 0, 0, 0, rows, columns, 0]), "pads", np.int64)
        y = b.node("Pad", [y, pads], (batch, height + rows, width + columns, dim), "padded")
    size = (height + rows, width + columns)
    if shift:
        y = _rolled(b, _rolled(b, y, shift, 1), shift, 2)
    y = _windows(b, y, window)
    weight = attn.at("qkv")["weight"].copy()
    bias = attn.at("qkv")["bias"].copy() if "bias" in attn.at("qkv") else np.zeros(len(weight))
    weight[:dim] /= np.sqrt(dim // heads)
    bias[:dim] /= np.sqrt(dim // heads)
    query, key, value = b.split(b.linear(y, weight, bias, "qkv"), [dim] * 3, 2, "parts")
    places = window * window

    def by_head(part: Value, axes: tuple[int, ...], name: str) -> Value:
        split = b.reshape(part, (part.shape[0], places, heads, dim // heads), f"{name}.split")
        return b.transpose(split, axes, f"{name}.heads")

    mask = _seen(b, attn["relative_position_bias_table"], size, batch, window, shift)
    y = attend(
        b,
        by_head(query, (0, 2, 1, 3), "q"),
        by_head(key, (0, 2, 3, 1), "k"),
        by_head(value, (0, 2, 1, 3), "v"),
        mask,
    )
    out = attn.at("proj").affine()
    y = _map(b, b.linear(y, out.weight, out.bias, "out"), batch, size, window)
    if shift:
        y = _rolled(b, _rolled(b, y, size[0] - shift, 1), size[1] - shift, 2)
    if rows:
        y, _ = b.split(y, [height, rows], 1, "rows")
    if columns:
        y, _ = b.split(y, [width, columns], 2, "columns")
    return b.add(x, b.cast(y, np.float32), "sum1")


def _feed_forward(b: Builder, p: Params, x: Value) -> Value:
    inner = p.at("mlp").at("fc1").affine().after(p.at("norm2").affine())
    outer: Affine = p.at("mlp").at("fc2").affine()
    y = b.gelu(b.linear(b.layer_norm(x, "norm2"), inner.weight, inner.bias, "inner"))
    return b.add(x, b.cast(b.linear(y, outer.weight, outer.bias, "outer"), np.float32), "sum2")


def _merge(b: Builder, p: Params, x: Value) -> Value:
    """(B, h, w, C) -> (B, h / 2, w / 2, 2 C): 2x2 blocks of places side by side, the left column first."""
    batch, height, width, dim = x.shape
    x = b.reshape(x, (batch, height // 2, 2, width // 2, 2, dim), "blocks")
    x = b.transpose(x, (0, 1, 3, 4, 2, 5), "blocks.places")
    x = b.layer_norm(b.reshape(x, (batch, height // 2, width // 2, 4 * dim), "merged"), "merge.norm")
    layer = Affine(p.at("reduction")["weight"], np.zeros(2 * dim)).after(p.at("norm").affine())
    return b.cast(b.linear(x, layer.weight, layer.bias, "merge"), np.float32)


def _normed(b: Builder, p: Params, x: Value, name: str) -> Value:
    return b.layer_norm(x, name, p["weight"], p["bias"])


def _rolled(b: Builder, x: Value, by: int, axis: int) -> Value:
    """The first `by` rows or columns behind the others."""
    first, others = b.split(x, [by, x.shape[axis] - by], axis, f"roll{axis}.parts")
    return b.concat([others, first], axis, f"roll{axis}")


def _windows(b: Builder, x: Value, window: int) -> Value:
    """(B, h, w, C) -> (B * windows, window**2, C)."""
    batch, height, width, dim = x.shape
    x = b.reshape(x, (batch, height // window, window, width // window, window, dim), "grid")
    x = b.transpose(x, (0, 1, 3, 2, 4, 5), "windows.grid")
    return b.reshape(x, (batch * (height // window) * (width // window), window * window, dim), "windows")


def _map(b: Builder, x: Value, batch: int, size: tuple[int, int], window: int) -> Value:
    """The reverse of :func:`_windows`."""
    height, width = size
    shape = (batch, height // window, width // window, window, window, x.shape[-1])
    x = b.transpose(b.reshape(x, shape, "grid"), (0, 1, 3, 2, 4, 5), "map.grid")
    return b.reshape(x, (batch, height, width, x.shape[-1]), "map")


def _seen(b: Builder, table: Float64, size: tuple[int, int], batch: int, window: int, shift: int) -> Value:
    """What is added to the scores: (1 or B * windows, heads, window**2, window**2)."""
    side = np.arange(window)
    difference = side[:, None] - side[None, :] + window - 1
    rows = (difference * (2 * window - 1))[:, None, :, None]
    places = (rows + difference[None, :, None, :]).reshape(window * window, window * window)
    bias = table[places].transpose(2, 0, 1)[None]
    if shift:
        bias = np.tile(bias + _apart(size, window, shift)[:, None], (batch, 1, 1, 1))
    return b.constant(bias, "bias")


def _apart(size: tuple[int, int], window: int, shift: int) -> Float64:
    """0 for the pairs of places in a shifted window that are neighbors on the map, too: (windows, N, N)."""
    # After the shift the last window of a side holds the edge's own places and, behind them, those of the other.
    rows, columns = (
        (np.arange(length) >= length - window).astype(int) + (np.arange(length) >= length - shift)
        for length in size
    )
    regions = 3 * rows[:, None] + columns[None, :]
    grid = regions.reshape(size[0] // window, window, size[1] // window, window).transpose(0, 2, 1, 3)
    of_windows = grid.reshape(-1, window * window)
    return np.where(of_windows[:, :, None] == of_windows[:, None, :], 0.0, _APART)
