"""The backbones: normalized images (B, 3, H, W) -> res2..res5 at 1/4, 1/8, 1/16, 1/32 of the size."""

from __future__ import annotations

from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.convnext import convnextv2
from fai_fast.exporter.csp_darknet import csp_darknet
from fai_fast.exporter.fold import Params
from fai_fast.exporter.mobilenet import mobilenet_v2
from fai_fast.exporter.swin import swin
from fai_fast.registry import BackboneConfig
from fai_fast.registry.backbones import RESNET_BLOCKS

__all__ = ["backbone"]


def backbone(b: Builder, p: Params, config: BackboneConfig, images: Value) -> list[Value]:
    kinds = {
        "resnet": _resnet,
        "stdc": _stdc,
        "mobilenet_v2": mobilenet_v2,
        "convnextv2": convnextv2,
        "swin": swin,
        "csp_darknet": csp_darknet,
    }
    with b.scope("backbone"):
        return kinds[config.model_type](b, p, config, images)


def _resnet(b: Builder, p: Params, config: BackboneConfig, x: Value) -> list[Value]:
    assert config.depth is not None
    variant = config.variant or "d"
    for index in (1,) if variant in ("a", "b") else (1, 2, 3):
        stem = p.at("conv1").at(f"conv1_{index}").conv_norm("conv", "norm")
        x = b.conv(x, *stem, f"stem{index}", stride=2 if index == 1 else 1, relu=True)
    x = b.pool(x, "stem_pool", "Max", 3, 1)
    features = []
    block_of = _bottleneck if config.depth >= 50 else _basic_block
    for stage, blocks in enumerate(RESNET_BLOCKS[config.depth]):
        for block in range(blocks):
            with b.scope(f"res{stage + 2}/block{block}"):
                x = block_of(b, p.at("res_layers").at(stage).at("blocks").at(block), x, variant, stage, block)
        features.append(x)
    return features


def _bottleneck(b: Builder, p: Params, x: Value, variant: str, stage: int, block: int) -> Value:
    stride = 2 if stage > 0 and block == 0 else 1
    strides = (stride, 1) if variant == "a" else (1, stride)
    y = b.conv(x, *p.at("branch2a").conv_norm("conv", "norm"), "a", stride=strides[0], relu=True)
    y = b.conv(y, *p.at("branch2b").conv_norm("conv", "norm"), "b", stride=strides[1], relu=True)
    y = b.conv(y, *p.at("branch2c").conv_norm("conv", "norm"), "c")
    return b.relu(b.add(y, _shortcut(b, p.at("short"), x, variant, stride, block), "sum"))


def _basic_block(b: Builder, p: Params, x: Value, variant: str, stage: int, block: int) -> Value:
    stride = 2 if stage > 0 and block == 0 else 1
    y = b.conv(x, *p.at("branch2a").conv_norm("conv", "norm"), "a", stride=stride, relu=True)
    y = b.conv(y, *p.at("branch2b").conv_norm("conv", "norm"), "b")
    return b.relu(b.add(y, _shortcut(b, p.at("short"), x, variant, stride, block), "sum"))


def _shortcut(b: Builder, p: Params, x: Value, variant: str, stride: int, block: int) -> Value:
    if block > 0:
        return x
    if variant == "d" and stride == 2:
        x = b.pool(x, "short_pool", "Average", 2, 0)
        return b.conv(x, *p.at("conv").conv_norm("conv", "norm"), "short")
    return b.conv(x, *p.conv_norm("conv", "norm"), "short", stride=stride)


def _stdc(b: Builder, p: Params, config: BackboneConfig, x: Value) -> list[Value]:
    assert config.layers is not None
    features = p.at("features")
    for index in (0, 1):
        x = b.conv(x, *features.at(index).conv_norm("conv", "bn"), f"stem{index + 1}", stride=2, relu=True)
    outputs = [x]
    block_of = _add_block if config.block_type == "add" else _cat_block
    index = 2
    for stage, blocks in enumerate(config.layers):
        for block in range(blocks):
            with b.scope(f"res{stage + 3}/block{block}"):
                x = block_of(b, features.at(index), x, len(config.block_widths(16)), halves=block == 0)
            index += 1
        outputs.append(x)
    return outputs


def _cat_block(b: Builder, p: Params, x: Value, count: int, halves: bool) -> Value:
    convs = p.at("conv_list")
    x = b.conv(x, *convs.at(0).conv_norm("conv", "bn"), "conv0", relu=True)
    parts = [b.pool(x, "skip", "Average", 3, 1) if halves else x]
    if halves:
        x = b.conv(x, *p.at("avd_layer").conv_norm("0", "1"), "halve", stride=2, groups=x.shape[1])
    for index in range(1, count):
        x = b.conv(x, *convs.at(index).conv_norm("conv", "bn"), f"conv{index}", relu=True)
        parts.append(x)
    return b.concat(parts, 1, "cat")


def _add_block(b: Builder, p: Params, x: Value, count: int, halves: bool) -> Value:
    convs = p.at("conv_list")
    y = b.conv(x, *convs.at(0).conv_norm("conv", "bn"), "conv0", relu=True)
    if halves:
        y = b.conv(y, *p.at("avd_layer").conv_norm("0", "1"), "halve", stride=2, groups=y.shape[1])
        x = b.conv(x, *p.at("skip").conv_norm("0", "1"), "skip_halve", stride=2, groups=x.shape[1])
        x = b.conv(x, *p.at("skip").conv_norm("2", "3"), "skip")
    parts = [y]
    for index in range(1, count):
        y = b.conv(y, *convs.at(index).conv_norm("conv", "bn"), f"conv{index}", relu=True)
        parts.append(y)
    return b.add(b.concat(parts, 1, "cat"), x, "sum")
