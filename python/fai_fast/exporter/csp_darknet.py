"""CSPDarknet's part of the deployed graph."""

from __future__ import annotations

import numpy as np

from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.fold import Float64, Params
from fai_fast.registry import BackboneConfig

__all__ = ["csp_darknet"]

_EPS = 1e-3
_POOLS = (5, 9, 13)


def csp_darknet(b: Builder, p: Params, config: BackboneConfig, x: Value) -> list[Value]:
    """res2..res5."""
    assert config.layers is not None
    weight, bias = p.at("stem").at("conv").conv_norm("conv", "bn", _EPS)
    x = b.silu(b.conv(x, _of_pixels(weight), bias, "stem", stride=2, padding=2))
    features = []
    for stage, blocks in enumerate(config.layers, start=1):
        place, last = p.at(f"stage{stage}"), stage == len(config.layers)
        with b.scope(f"res{stage + 1}"):
            x = _conv(b, place.at(0), x, "halve", stride=2)
            if last:
                x = _pyramid(b, place.at(1), x)
            x = _csp_layer(b, place.at(2 if last else 1), x, blocks, adds=not last)
        features.append(x)
    return features


def _of_pixels(weight: Float64) -> Float64:
    """A 3x3 kernel over 2x2 blocks whose pixels are side by side in the channels, as the 6x6 kernel over pixels."""
    out, channels = len(weight), weight.shape[1] // 4
    # The left column of a block comes first: (out, column, row, channel, y, x).
    blocks = weight.reshape(out, 2, 2, channels, 3, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 4, 2, 5, 1).reshape(out, channels, 6, 6))


def _pyramid(b: Builder, p: Params, x: Value) -> Value:
    with b.scope("pyramid"):
        x = _conv(b, p.at("conv1"), x, "in")
        parts = [x]
        for size in _POOLS:
            pads = [size // 2] * 4
            parts.append(
                b.node(
                    "MaxPool", [x], x.shape, f"pool{size}", kernel_shape=[size] * 2, strides=[1, 1], pads=pads
                )
            )
        return _conv(b, p.at("conv2"), b.concat(parts, 1, "cat"), "out")


def _csp_layer(b: Builder, p: Params, x: Value, blocks: int, adds: bool) -> Value:
    main, short = _conv(b, p.at("main_conv"), x, "main"), _conv(b, p.at("short_conv"), x, "short")
    for block in range(blocks):
        with b.scope(f"block{block}"):
            place = p.at("blocks").at(block)
            y = _conv(b, place.at("conv2"), _conv(b, place.at("conv1"), main, "conv1"), "conv2")
            main = b.add(main, y, "sum") if adds else y
    return _conv(b, p.at("final_conv"), b.concat([main, short], 1, "cat"), "final")


def _conv(b: Builder, p: Params, x: Value, name: str, stride: int = 1) -> Value:
    return b.silu(b.conv(x, *p.conv_norm("conv", "bn", _EPS), name, stride=stride))
