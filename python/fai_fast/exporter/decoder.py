"""The masked transformer decoder: mask features and levels -> mask logits and class logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.fold import Affine, Attention, Float64, Params, normalize, sine_position
from fai_fast.exporter.transformer import add_to, attend, feed_forward, linear, self_attention, to_heads
from fai_fast.registry import ModelConfig

__all__ = ["HEADS", "decoder"]

HEADS = 8
# Far below any score, and inside float16's range.
BLOCKED = -1e4


@dataclass(frozen=True)
class Level:
    """A map that queries attend to, and the mask features in its size.

    Attributes:
        size: (h, w).
        tokens: (B, 1, h * w, F).
        projection: makes the decoder's width of F.
        masks: (B, M, h * w).
    """

    size: tuple[int, int]
    tokens: Value
    projection: Affine
    masks: Value


def decoder(
    b: Builder, p: Params, config: ModelConfig, mask_features: Value, sources: list[Value]
) -> tuple[Value, Value]:
    """mask_logits (B, Q, h, w) of `mask_features` (B, M, h, w), and class_logits (B, Q, C+1).

    Where classes come from a sigmoid, class_logits are (B, Q, C): 'no object' has no say in them.
    """
    heads = p.at("forward_prediction_heads")
    with b.scope("head"):
        layers = config.transformer_predictor_dec_layers
        # A decoder of fewer layers than there are maps never gets to the finest ones.
        sources = sources[:layers]
        levels = []
        for index, source in enumerate(sources):
            projection = p.at("input_proj").at(index).affine()
            uses = len(range(index, layers, len(sources)))
            with b.scope(f"level{index}"):
                levels.append(_level(b, source, projection, uses, mask_features))
        # Nothing before the first layer depends on the image: its queries and its mask embedding are constants.
        start = p.at("query_feat")["weight"]
        queries = b.constant(start[None], "queries", np.float32)
        normal: Value | None = None
        embedding = b.constant(_embedding_of(heads, normalize(start))[None], "embedding")
        for index in range(layers):
            level = levels[index % len(levels)]
            with b.scope(f"layer{index}"):
                mask = _attention_mask(b, embedding, level)
                cross = p.at("transformer_cross_attention_layers").at(index)
                taken = _cross_attention(b, p, cross, level, normal, mask)
                queries = add_to(b, queries, taken)
                own = p.at("transformer_self_attention_layers").at(index)
                position = p.at("query_embed")["weight"]
                queries = self_attention(b, own.at("self_attn"), own.at("norm"), HEADS, queries, position)
                feed = p.at("transformer_ffn_layers").at(index)
                queries = feed_forward(b, feed, feed.at("norm"), queries)
                # Scale and shift are in the layers that follow, so that one norm serves the heads and the next layer.
                normal = b.layer_norm(queries, "norm")
                embedding = _embed(b, heads, normal)
        assert normal is not None
        classes = heads.at("classifier").affine().after(heads.at("decoder_norm").affine())
        if config.cls_sigmoid:
            classes = Affine(classes.weight[:-1], classes.bias[:-1])
        class_logits = linear(b, normal, classes, "classes")
        batch, _, height, width = mask_features.shape
        masks = b.matmul(embedding, _transposed_tokens(b, mask_features), "masks")
        return b.reshape(masks, (batch, config.num_queries, height, width), "masks.map"), class_logits


def _level(b: Builder, source: Value, projection: Affine, uses: int, mask_features: Value) -> Level:
    """A level that `uses` layers attend to."""
    batch, depth, height, width = source.shape
    tokens = b.reshape(_tokens(b, source), (batch, 1, height * width, depth), "source.heads")
    dim = len(projection.weight)
    # Projecting first pays only where a map has many more channels than the decoder.
    if dim * (depth + 2 * dim * uses) < 2 * depth * dim * uses:
        tokens = b.matmul(tokens, b.constant(projection.weight.T, "projection.weight"), "projection")
        projection = Affine(np.eye(dim), projection.bias)
    # Resizing is linear: the product of an embedding and resized mask features is its resized mask.
    if mask_features.shape[2] == 2 * height:
        # Half-pixel bilinear resizing to half the size takes the mean of each 2x2 block.
        small = b.pool(mask_features, "masks", "Average", 2, 0)
    else:
        small = b.resize(mask_features, "masks", (height, width), "linear")
    return Level((height, width), tokens, projection, _transposed_tokens(b, small))


def _tokens(b: Builder, x: Value) -> Value:
    """(B, C, h, w) -> (B, h * w, C). Free where maps are kept with channels last, as OpenVINO does."""
    batch, channels, height, width = x.shape
    return b.reshape(b.transpose(x, (0, 2, 3, 1)), (batch, height * width, channels), "tokens")


def _transposed_tokens(b: Builder, x: Value) -> Value:
    """(B, C, h, w) -> (B, C, h * w), by way of tokens: a matrix product can read them transposed."""
    return b.transpose(_tokens(b, x), (0, 2, 1))


def _mlp(heads: Params) -> list[Affine]:
    layers = [heads.at("mask_classifier").at("layers").at(index).affine() for index in range(3)]
    return [layers[0].after(heads.at("decoder_norm").affine()), *layers[1:]]


def _embedding_of(heads: Params, normal: Float64) -> Float64:
    first, second, last = _mlp(heads)
    return last(np.maximum(second(np.maximum(first(normal), 0)), 0))


def _embed(b: Builder, heads: Params, normal: Value) -> Value:
    """The mask embedding of each query: (B, Q, M)."""
    with b.scope("embedding"):
        first, second, last = _mlp(heads)
        y = linear(b, normal, first, "mlp0", relu=True)
        y = linear(b, y, second, "mlp1", relu=True)
        return linear(b, y, last, "mlp2")


def _attention_mask(b: Builder, embedding: Value, level: Level) -> Value:
    """What is added to the scores of all heads: (B, 1, Q, h * w), 0 or BLOCKED.

    A place is blocked for a query whose mask logit is negative there; where that would be all places, none is.
    """
    with b.scope("mask"):
        logits = b.matmul(embedding, level.masks, "logits")
        batch, queries, places = logits.shape
        axis = b.constant(np.array([-1]), "axis", np.int64)
        highest = b.node("ReduceMax", [logits, axis], (batch, queries, 1), "highest")
        zero = b.constant(np.zeros(1), "zero")
        nowhere = b.node("Less", [highest, zero], highest.shape, "nowhere", np.bool_)
        lowest = b.constant(np.full(1, -65504.0), "lowest")
        limit = b.node("Where", [nowhere, lowest, zero], highest.shape, "limit", b.dtype)
        blocked = b.node("Less", [logits, limit], logits.shape, "blocked", np.bool_)
        mask = b.node(
            "Where", [blocked, b.constant(np.full(1, BLOCKED), "value"), zero], logits.shape, "mask", b.dtype
        )
        return b.reshape(mask, (batch, 1, queries, places), "heads")


def _cross_attention(
    b: Builder, p: Params, cross: Params, level: Level, normal: Value | None, mask: Value
) -> Value:
    """What the queries take from a level: (B, Q, D). `normal` is None for the first layer's constant queries."""
    embed = p.at("query_embed")["weight"]
    norm = cross.at("norm").affine()
    position = sine_position(*level.size, embed.shape[1])
    layer = Attention(cross.at("multihead_attn"), HEADS, norm, level.projection, embed, position)
    with b.scope("cross"):
        if normal is None:
            query = b.constant(_by_head(layer.query(normalize(p.at("query_feat")["weight"]))), "q")
        else:
            query = to_heads(b, linear(b, normal, layer.query, "q"), HEADS, "q")
        # A product with each head's own weights gives keys and values by head, without moving them afterwards.
        key = b.matmul(level.tokens, b.constant(_by_head(layer.key.T), "k.weight"), "k")
        key = b.add(key, b.constant(_by_head(layer.key_position), "k.position"), "k.positioned")
        value = b.matmul(level.tokens, b.constant(_by_head(layer.value.T), "v.weight"), "v")
        taken = attend(b, query, b.transpose(key, (0, 1, 3, 2), "k.transposed"), value, mask)
        return linear(b, taken, layer.out, "out")


def _by_head(x: Float64) -> Float64:
    """(N, D) -> (1, heads, N, D / heads)."""
    return x.reshape(1, len(x), HEADS, -1).transpose(0, 2, 1, 3)
