"""Weights in float64, and the algebra that makes constants of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fai_fast.exporter.builder import LAYER_NORM_EPS

__all__ = ["Affine", "Attention", "Float64", "Params", "normalize", "sine_position"]

Float64 = npt.NDArray[np.float64]

BATCH_NORM_EPS = 1e-5


class Params:
    """A module's parameters by the rest of their names: ``params.at("conv")["weight"]``."""

    def __init__(self, state: Mapping[str, npt.NDArray[np.generic]], prefix: str = "") -> None:
        self._state = state
        self._prefix = prefix

    def at(self, name: str | int) -> Params:
        """The parameters of a submodule."""
        return Params(self._state, f"{self._prefix}{name}.")

    def __getitem__(self, name: str) -> Float64:
        return np.asarray(self._state[self._prefix + name], np.float64)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._state

    def conv_norm(self, conv: str, norm: str, epsilon: float = BATCH_NORM_EPS) -> tuple[Float64, Float64]:
        """Weight and bias of the one convolution that does what `conv` (without bias) and the batch norm `norm` do.

        An empty name for `conv` is the module itself.
        """
        p = self.at(norm)
        scale = p["weight"] / np.sqrt(p["running_var"] + epsilon)
        weight = (self.at(conv) if conv else self)["weight"]
        return weight * scale[:, None, None, None], p["bias"] - p["running_mean"] * scale

    def affine(self) -> Affine:
        """A linear layer or 1x1 convolution with bias; or the scale and shift of a layer norm."""
        weight = self["weight"]
        return Affine(np.diag(weight) if weight.ndim == 1 else weight.reshape(len(weight), -1), self["bias"])


@dataclass(frozen=True)
class Affine:
    """x -> x weight^T + bias: weight (out, in), bias (out) or (places, out)."""

    weight: Float64
    bias: Float64

    def after(self, first: Affine) -> Affine:
        """The one layer that does what `first` and then this one do."""
        return Affine(self.weight @ first.weight, first.bias @ self.weight.T + self.bias)

    def __call__(self, x: Float64) -> Float64:
        result: Float64 = x @ self.weight.T + self.bias
        return result


def normalize(x: Float64) -> Float64:
    """Layer normalization of a constant over its last axis, without scale and shift."""
    centered = x - x.mean(-1, keepdims=True)
    normal: Float64 = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + LAYER_NORM_EPS)
    return normal


class Attention:
    """A torch.nn.MultiheadAttention with everything constant moved to where it costs least.

    Attributes:
        query: x -> queries, over sqrt(a head's width).
        key: (D, in) and key_position (places, D). What is the same in all keys adds the same to all scores of a
            query, which a softmax ignores: it is left out.
        value: (D, in). What is the same in all values leaves the attention as it is, as its weights sum to 1: it is in
        out: the output layer.
    """

    def __init__(
        self,
        p: Params,
        heads: int,
        query: Affine,
        source: Affine,
        query_position: Float64,
        key_position: Float64,
    ) -> None:
        """Queries are made of query(x) + query_position, keys of source(y) + key_position, values of source(y)."""
        weights, biases = np.split(p["in_proj_weight"], 3), np.split(p["in_proj_bias"], 3)
        scale = math.sqrt(len(weights[0]) // heads)
        positioned = Affine(query.weight, query.bias + query_position)
        self.query = Affine(weights[0] / scale, biases[0] / scale).after(positioned)
        self.key = weights[1] @ source.weight
        self.key_position = key_position @ weights[1].T
        self.value = weights[2] @ source.weight
        constant = Affine(np.eye(len(weights[2])), weights[2] @ source.bias + biases[2])
        self.out = p.at("out_proj").affine().after(constant)


def sine_position(height: int, width: int, dim: int) -> Float64:
    """The sine position embedding: (height * width, dim), dim/2 features for y, then dim/2 for x."""
    half = dim // 2
    feature = np.arange(half)
    period = 10000.0 ** (2 * (feature // 2) / half)

    def side(length: int) -> Float64:
        angle = (np.arange(1, length + 1) / (length + 1e-6) * 2 * np.pi)[:, None] / period
        return np.where(feature % 2 == 0, np.sin(angle), np.cos(angle))

    y = np.broadcast_to(side(height)[:, None], (height, width, half))
    x = np.broadcast_to(side(width)[None], (height, width, half))
    return np.concatenate([y, x], -1).reshape(height * width, dim)
