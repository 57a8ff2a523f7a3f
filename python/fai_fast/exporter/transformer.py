"""Attention and feed-forward layers on tokens (B, N, D).

The sum that runs through a transformer stays in float32 in every precision: it is small, and a rounding there stays
to the end. Products are in the graph's own precision.
"""

from __future__ import annotations

import numpy as np

from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.fold import Affine, Attention, Float64, Params

__all__ = ["add_to", "attend", "feed_forward", "linear", "self_attention", "to_heads"]


def linear(b: Builder, x: Value, layer: Affine, name: str, *, relu: bool = False) -> Value:
    return b.linear(x, layer.weight, layer.bias, name, relu=relu)


def add_to(b: Builder, x: Value, y: Value) -> Value:
    return b.add(x, b.cast(y, x.dtype), "add")


def to_heads(b: Builder, x: Value, heads: int, name: str, axes: tuple[int, ...] = (0, 2, 1, 3)) -> Value:
    """(B, N, D) -> (B, heads, N, D / heads), or with axes (0, 2, 3, 1) (B, heads, D / heads, N)."""
    batch, length, dim = x.shape
    split = b.reshape(x, (batch, length, heads, dim // heads), f"{name}.split")
    return b.transpose(split, axes, f"{name}.heads")


def attend(b: Builder, query: Value, key: Value, value: Value, mask: Value | None = None) -> Value:
    """What the queries take from the values: (B, Q, D).

    Args:
        query: (B, heads, Q, d), scaled already.
        key: (B, heads, d, N).
        value: (B, heads, N, d).
        mask: added to the scores: (B, 1, Q, N).
    """
    scores = b.matmul(query, key, "scores")
    if mask is not None:
        scores = b.add(scores, mask, "masked")
    taken = b.transpose(b.matmul(b.softmax(scores), value, "taken"), (0, 2, 1, 3), "taken.tokens")
    batch, length, heads, depth = taken.shape
    return b.reshape(taken, (batch, length, heads * depth), "taken.joined")


def self_attention(b: Builder, p: Params, norm: Params, heads: int, x: Value, position: Float64) -> Value:
    """x plus what its tokens take from each other; `position` (N, D) goes to queries and keys."""
    scale_shift = norm.affine()
    layer = Attention(p, heads, scale_shift, scale_shift, position, position)
    dim = x.shape[-1]
    with b.scope("self"):
        weight = np.concatenate([layer.query.weight, layer.key, layer.value])
        projected = b.matmul(b.layer_norm(x, "norm"), b.constant(weight.T, "qkv.weight"), "qkv")
        query, key, value = b.split(projected, [dim] * 3, 2, "parts")
        query = b.add(query, b.constant(layer.query.bias, "q.position"), "q")
        key = b.add(key, b.constant(layer.key_position, "k.position"), "k")
        taken = attend(
            b,
            to_heads(b, query, heads, "q"),
            to_heads(b, key, heads, "k", (0, 2, 3, 1)),
            to_heads(b, value, heads, "v"),
        )
        return add_to(b, x, linear(b, taken, layer.out, "out"))


def feed_forward(b: Builder, p: Params, norm: Params, x: Value) -> Value:
    with b.scope("feed_forward"):
        inner = p.at("linear1").affine().after(norm.affine())
        y = linear(b, b.layer_norm(x, "norm"), inner, "inner", relu=True)
        return add_to(b, x, linear(b, y, p.at("linear2").affine(), "outer"))
