"""The masked transformer decoder: queries that look only where their own mask is, and become masks and classes.

Cheng et al., Masked-attention Mask Transformer for Universal Image Segmentation (Mask2Former), 2022.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.reference.blocks import sine_position
from fai_fast.registry import ModelConfig

HEADS = 8


class Prediction(NamedTuple):
    """mask_logits (B, Q, h, w) before the sigmoid; class_logits (B, Q, C+1), the last column 'no object'."""

    mask_logits: Tensor
    class_logits: Tensor


class CrossAttention(nn.Module):
    """Queries look at the tokens of one level that their masks leave open."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(dim, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, query_embed: Tensor, tokens: Tensor, position: Tensor, blocked: Tensor
    ) -> Tensor:
        y, _ = self.multihead_attn(
            self.norm(x) + query_embed,
            tokens + position,
            tokens,
            attn_mask=blocked.repeat_interleave(HEADS, 0),
            need_weights=False,
        )
        return x + y


class SelfAttention(nn.Module):
    """Queries look at each other, so that no two claim the same object."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, query_embed: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.self_attn(y + query_embed, y + query_embed, y, need_weights=False)[0]


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear2(F.relu(self.linear1(self.norm(x))))


class MLP(nn.Module):
    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class PredictionHeads(nn.Module):
    """What a query says: its class, and the embedding whose product with the mask features is its mask."""

    def __init__(self, dim: int, num_classes: int, mask_dim: int) -> None:
        super().__init__()
        self.decoder_norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes + 1)
        self.mask_classifier = MLP([dim, dim, dim, mask_dim])

    def forward(self, x: Tensor, mask_features: Tensor) -> Prediction:
        y = self.decoder_norm(x)
        mask_logits = torch.einsum("bqc,bchw->bqhw", self.mask_classifier(y), mask_features)
        return Prediction(mask_logits, self.classifier(y))


def blocked_places(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each query may not look in a level of ``size``: bool (B, Q, h * w).

    A query that could look nowhere may look everywhere: softmax over nothing is not a number.
    """
    logits = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    blocked = logits.detach().flatten(2) < 0
    return blocked & ~blocked.all(-1, keepdim=True)


class MaskedDecoder(nn.Module):
    """Mask features and levels -> one :class:`Prediction` a layer, after that of the untouched queries."""

    def __init__(self, level_dims: list[int], config: ModelConfig) -> None:
        super().__init__()
        dim, layers = config.transformer_predictor_hidden_dim, config.transformer_predictor_dec_layers
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttention(dim) for _ in range(layers))
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttention(dim) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForward(dim, config.transformer_predictor_dim_feedforward) for _ in range(layers)
        )
        self.query_feat = nn.Embedding(config.num_queries, dim)
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.input_proj = nn.ModuleList(nn.Conv2d(level_dim, dim, 1) for level_dim in level_dims)
        self.forward_prediction_heads = PredictionHeads(
            dim, config.num_classes, config.transformer_predictor_out_dim
        )

    def forward(self, mask_features: Tensor, levels: list[Tensor]) -> list[Prediction]:
        # A decoder of fewer layers than there are levels never gets to the finest ones.
        levels = levels[: len(self.input_proj)]
        batch, sizes = mask_features.shape[0], [(level.shape[-2], level.shape[-1]) for level in levels]
        projected = [project(level) for project, level in zip(self.input_proj, levels, strict=True)]
        tokens = [level.flatten(2).transpose(1, 2) for level in projected]
        positions = [
            sine_position(*size, level.shape[1], level.device, level.dtype)
            for size, level in zip(sizes, projected, strict=True)
        ]

        query_embed = self.query_embed.weight
        x = self.query_feat.weight.expand(batch, -1, -1)
        predictions = [self.forward_prediction_heads(x, mask_features)]
        for index, (cross, attend, feed) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            level = index % len(levels)
            blocked = blocked_places(predictions[-1].mask_logits, sizes[level])
            x = cross(x, query_embed, tokens[level], positions[level], blocked)
            x = feed(attend(x, query_embed))
            predictions.append(self.forward_prediction_heads(x, mask_features))
        return predictions
