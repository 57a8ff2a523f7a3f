"""The names and shapes of a backbone's parameters and buffers, under the names of the published checkpoints."""

from __future__ import annotations

from itertools import pairwise

from fai_fast.registry.backbones import RESNET_BLOCKS, BackboneConfig
from fai_fast.registry.parameter_shapes import (
    Entries,
    batch_norm,
    biased,
    conv_bn,
    conv_norm,
    norm,
    under,
)

__all__ = ["backbone_shapes"]


def backbone_shapes(config: BackboneConfig) -> Entries:
    kinds = {
        "resnet": _resnet,
        "stdc": _stdc,
        "mobilenet_v2": _mobilenet_v2,
        "convnextv2": _convnextv2,
        "swin": _swin,
        "csp_darknet": _csp_darknet,
    }
    return kinds[config.model_type](config)


def _resnet(config: BackboneConfig) -> Entries:
    assert config.depth is not None
    if config.variant in ("a", "b"):
        yield from under("conv1.conv1_1", conv_norm(config.in_chans, 64, 7))
    else:
        for index, (before, after) in enumerate([(config.in_chans, 32), (32, 32), (32, 64)], start=1):
            yield from under(f"conv1.conv1_{index}", conv_norm(before, after, 3))
    before, expansion = 64, 4 if config.depth >= 50 else 1
    for level, blocks in enumerate(RESNET_BLOCKS[config.depth]):
        width = 64 << level
        for block in range(blocks):
            prefix, after = f"res_layers.{level}.blocks.{block}", expansion * width
            projection: Entries = iter(())
            if block == 0:
                pooled = level > 0 and config.variant in (None, "d")
                projection = under("short.conv" if pooled else "short", conv_norm(before, after, 1))
            if expansion == 1:
                # FocoosAI's smaller blocks make their shortcut first.
                yield from under(prefix, projection)
                yield from under(f"{prefix}.branch2a", conv_norm(before, width, 3))
                yield from under(f"{prefix}.branch2b", conv_norm(width, width, 3))
            else:
                yield from under(f"{prefix}.branch2a", conv_norm(before, width, 1))
                yield from under(f"{prefix}.branch2b", conv_norm(width, width, 3))
                yield from under(f"{prefix}.branch2c", conv_norm(width, after, 1))
                yield from under(prefix, projection)
            before = after


def _stdc(config: BackboneConfig) -> Entries:
    assert config.base is not None
    assert config.layers is not None
    base = config.base
    yield from under("features.0", conv_bn(config.in_chans, base // 2, 3))
    yield from under("features.1", conv_bn(base // 2, base, 3))
    index, before = 2, base
    for width, blocks in zip(config.out_dims()[1:], config.layers, strict=True):
        for block in range(blocks):
            prefix, halves = f"features.{index}", block == 0
            parts = [before, *config.block_widths(width)]
            for conv, (first, second) in enumerate(pairwise(parts)):
                kernel = 1 if conv == 0 else 3
                yield from under(f"{prefix}.conv_list.{conv}", conv_bn(first, second, kernel))
            if halves:
                yield f"{prefix}.avd_layer.0.weight", (parts[1], 1, 3, 3)
                yield from under(f"{prefix}.avd_layer.1", batch_norm(parts[1]))
            if halves and config.block_type == "add":
                yield f"{prefix}.skip.0.weight", (before, 1, 3, 3)
                yield from under(f"{prefix}.skip.1", batch_norm(before))
                yield f"{prefix}.skip.2.weight", (width, before, 1, 1)
                yield from under(f"{prefix}.skip.3", batch_norm(width))
            index, before = index + 1, width


def _mobilenet_v2(config: BackboneConfig) -> Entries:
    yield from _normed("conv1", config.in_chans, config.widened(32), 3)
    for block in config.inverted_blocks():
        prefix, index = f"layer{block.layer}.{block.number}.conv", 0
        if block.hidden != block.before:
            yield from _normed(f"{prefix}.0", block.before, block.hidden, 1)
            index = 1
        yield from _normed(f"{prefix}.{index}", 1, block.hidden, 3)
        yield from _normed(f"{prefix}.{index + 1}", block.hidden, block.after, 1)


def _normed(prefix: str, before: int, after: int, kernel: int) -> Entries:
    yield f"{prefix}.weight", (after, before, kernel, kernel)
    yield from under(f"{prefix}.norm", batch_norm(after))


def _convnextv2(config: BackboneConfig) -> Entries:
    assert config.depths is not None
    dims = config.out_dims()
    yield from under("downsample_layers.0.0", biased(dims[0], config.in_chans, 4, 4))
    yield from under("downsample_layers.0.1", norm(dims[0]))
    for stage, (before, after) in enumerate(pairwise(dims), start=1):
        yield from under(f"downsample_layers.{stage}.0", norm(before))
        yield from under(f"downsample_layers.{stage}.1", biased(after, before, 2, 2))
    for stage, (dim, blocks) in enumerate(zip(dims, config.depths, strict=True)):
        for block in range(blocks):
            prefix = f"stages.{stage}.{block}"
            yield from under(f"{prefix}.dwconv", biased(dim, 1, 7, 7))
            yield from under(f"{prefix}.norm", norm(dim))
            yield from under(f"{prefix}.pwconv1", biased(4 * dim, dim))
            yield f"{prefix}.grn.gamma", (1, 1, 1, 4 * dim)
            yield f"{prefix}.grn.beta", (1, 1, 1, 4 * dim)
            yield from under(f"{prefix}.pwconv2", biased(dim, 4 * dim))


def _swin(config: BackboneConfig) -> Entries:
    assert config.depths is not None
    assert config.num_heads is not None
    assert config.window_size is not None
    dims = config.out_dims()
    places = (2 * config.window_size - 1) ** 2
    yield from under("patch_embed.proj", biased(dims[0], config.in_chans, 4, 4))
    yield from under("patch_embed.norm", norm(dims[0]))
    for stage, (dim, blocks, heads) in enumerate(zip(dims, config.depths, config.num_heads, strict=True)):
        hidden = config.hidden_dim(dim)
        for block in range(blocks):
            prefix = f"layers.{stage}.blocks.{block}"
            yield from under(f"{prefix}.norm1", norm(dim))
            yield f"{prefix}.attn.relative_position_bias_table", (places, heads)
            yield f"{prefix}.attn.qkv.weight", (3 * dim, dim)
            if config.qkv_bias is not False:
                yield f"{prefix}.attn.qkv.bias", (3 * dim,)
            yield from under(f"{prefix}.attn.proj", biased(dim, dim))
            yield from under(f"{prefix}.norm2", norm(dim))
            yield from under(f"{prefix}.mlp.fc1", biased(hidden, dim))
            yield from under(f"{prefix}.mlp.fc2", biased(dim, hidden))
        if stage < 3:
            yield f"layers.{stage}.downsample.reduction.weight", (2 * dim, 4 * dim)
            yield from under(f"layers.{stage}.downsample.norm", norm(4 * dim))
    for stage, dim in enumerate(dims):
        yield from under(f"norm{stage}", norm(dim))


def _csp_darknet(config: BackboneConfig) -> Entries:
    assert config.base is not None
    assert config.layers is not None
    yield from under("stem.conv", conv_bn(4 * config.in_chans, config.base, 3))
    before = config.base
    for stage, (dim, blocks) in enumerate(zip(config.out_dims(), config.layers, strict=True), start=1):
        prefix, half = f"stage{stage}", dim // 2
        yield from under(f"{prefix}.0", conv_bn(before, dim, 3))
        if stage == 4:
            yield from under(f"{prefix}.1.conv1", conv_bn(dim, half, 1))
            yield from under(f"{prefix}.1.conv2", conv_bn(4 * half, dim, 1))
        prefix = f"{prefix}.{2 if stage == 4 else 1}"
        yield from under(f"{prefix}.main_conv", conv_bn(dim, half, 1))
        yield from under(f"{prefix}.short_conv", conv_bn(dim, half, 1))
        yield from under(f"{prefix}.final_conv", conv_bn(dim, dim, 1))
        for block in range(blocks):
            yield from under(f"{prefix}.blocks.{block}.conv1", conv_bn(half, half, 1))
            yield from under(f"{prefix}.blocks.{block}.conv2", conv_bn(half, half, 3))
        before = dim
