"""ConvNeXt V2's part of the deployed graph.

As in a transformer, the sum that runs through a stage stays in float32 in every precision, and products are in the
graph's own.
"""

from __future__ import annotations

import numpy as np

from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.fold import Affine, Params
from fai_fast.registry import BackboneConfig

__all__ = ["convnextv2"]

_EPS = 1e-6


def convnextv2(b: Builder, p: Params, config: BackboneConfig, x: Value) -> list[Value]:
    """res2..res5."""
    assert config.depths is not None
    features = []
    for stage, blocks in enumerate(config.depths):
        place = p.at("downsample_layers").at(stage)
        with b.scope(f"res{stage + 2}"):
            if stage == 0:
                x = b.conv(x, place.at(0)["weight"], place.at(0)["bias"], "patches", stride=4, padding=0)
                x = _map(b, _normed(b, place.at(1), _places(b, x), "norm"))
            else:
                x = _map(b, _normed(b, place.at(0), _places(b, x), "norm"))
                x = b.conv(x, place.at(1)["weight"], place.at(1)["bias"], "halve", stride=2, padding=0)
            x = b.cast(x, np.float32)
            for block in range(blocks):
                with b.scope(f"block{block}"):
                    x = _block(b, p.at("stages").at(stage).at(block), x)
            x = b.cast(x, b.dtype)
        features.append(x)
    return features


def _block(b: Builder, p: Params, x: Value) -> Value:
    """`x` (B, C, h, w) in float32, plus what the block makes of it."""
    own, inner, outer = p.at("dwconv"), p.at("pwconv1").affine(), p.at("pwconv2").affine()
    y = b.conv(b.cast(x, b.dtype), own["weight"], own["bias"], "own", groups=x.shape[1])
    # Scale and shift of the norm are in the layer that follows, and the response's shift in the one after.
    y = b.layer_norm(_places(b, y), "norm", epsilon=_EPS)
    inner = inner.after(p.at("norm").affine())
    y = b.gelu(b.linear(y, inner.weight, inner.bias, "inner"))
    y = _responses(b, y, p.at("grn")["gamma"].reshape(-1))
    outer = outer.after(Affine(np.eye(y.shape[-1]), p.at("grn")["beta"].reshape(-1)))
    y = b.linear(y, outer.weight, outer.bias, "outer")
    return b.add(x, b.cast(_map(b, y), np.float32), "sum")


def _responses(b: Builder, x: Value, gamma: np.ndarray) -> Value:
    """x + gamma * x * share of (B, h, w, C), with each channel's share in the response of the whole map."""
    batch, _, _, dim = x.shape
    exact = b.cast(x, np.float32)
    places = b.constant(np.array([1, 2]), "places", np.int64)
    response = b.node("ReduceL2", [exact, places], (batch, 1, 1, dim), "response", keepdims=1)
    last = b.constant(np.array([-1]), "channels", np.int64)
    mean = b.node("ReduceMean", [response, last], (batch, 1, 1, 1), "response.mean", keepdims=1)
    floor = b.add(mean, b.constant(np.array(_EPS), "epsilon", np.float32), "response.floor")
    share = b.node("Div", [response, floor], response.shape, "share")
    weight = b.mul(share, b.constant(gamma, "gamma", np.float32), "share.scaled")
    weight = b.add(weight, b.constant(np.array(1.0), "one", np.float32), "weight")
    return b.mul(x, b.cast(weight, x.dtype), "responded")


def _normed(b: Builder, p: Params, x: Value, name: str) -> Value:
    return b.layer_norm(x, name, p["weight"], p["bias"], _EPS)


def _places(b: Builder, x: Value) -> Value:
    """(B, C, h, w) -> (B, h, w, C)."""
    return b.transpose(x, (0, 2, 3, 1), "places")


def _map(b: Builder, x: Value) -> Value:
    """(B, h, w, C) -> (B, C, h, w)."""
    return b.transpose(x, (0, 3, 1, 2), "map")
