"""The names and shapes of the parameters of what networks are made of."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = [
    "Entries",
    "Shape",
    "attention",
    "batch_norm",
    "biased",
    "conv_bn",
    "conv_norm",
    "norm",
    "normed_conv",
    "under",
]

Shape = tuple[int, ...]
Entries = Iterator[tuple[str, Shape]]


def under(prefix: str, entries: Entries) -> Entries:
    for key, shape in entries:
        yield f"{prefix}.{key}", shape


def biased(*shape: int) -> Entries:
    yield "weight", shape
    yield "bias", shape[:1]


def norm(dim: int) -> Entries:
    yield "weight", (dim,)
    yield "bias", (dim,)


def batch_norm(dim: int) -> Entries:
    yield from norm(dim)
    yield "running_mean", (dim,)
    yield "running_var", (dim,)
    yield "num_batches_tracked", ()


def conv_norm(before: int, after: int, kernel: int, norm: str = "norm") -> Entries:
    yield "conv.weight", (after, before, kernel, kernel)
    yield from under(norm, batch_norm(after))


def conv_bn(before: int, after: int, kernel: int) -> Entries:
    return conv_norm(before, after, kernel, norm="bn")


def normed_conv(before: int, after: int, kernel: int) -> Entries:
    yield "weight", (after, before, kernel, kernel)
    yield from under("norm", batch_norm(after))


def attention(dim: int) -> Entries:
    yield "in_proj_weight", (3 * dim, dim)
    yield "in_proj_bias", (3 * dim,)
    yield from under("out_proj", biased(dim, dim))
