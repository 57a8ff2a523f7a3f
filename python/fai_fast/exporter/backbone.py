"""The backbones: normalized images (B, 3, H, W) -> res2..res5 at 1/4, 1/8, 1/16, 1/32 of the size."""

from __future__ import annotations

from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.fold import Params
from fai_fast.registry import BackboneConfig

__all__ = ["backbone"]

RESNET_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def backbone(b: Builder, p: Params, config: BackboneConfig, images: Value) -> list[Value]:
    with b.scope("backbone"):
        return (_resnet if config.model_type == "resnet" else _stdc)(b, p, config, images)


def _resnet(b: Builder, p: Params, config: BackboneConfig, x: Value) -> list[Value]:
    assert config.depth is not None
    for index in (1, 2, 3):
        stem = p.at("conv1").at(f"conv1_{index}").conv_norm("conv", "norm")
        x = b.conv(x, *stem, f"stem{index}", stride=2 if index == 1 else 1, relu=True)
    x = b.pool(x, "stem_pool", "Max", 3, 1)
    features = []
    for stage, blocks in enumerate(RESNET_BLOCKS[config.depth]):
        for block in range(blocks):
            with b.scope(f"res{stage + 2}/block{block}"):
                x = _bottleneck(b, p.at("res_layers").at(stage).at("blocks").at(block), x, stage, block)
        features.append(x)
    return features


def _bottleneck(b: Builder, p: Params, x: Value, stage: int, block: int) -> Value:
    halves = stage > 0 and block == 0
    y = b.conv(x, *p.at("branch2a").conv_norm("conv", "norm"), "a", relu=True)
    y = b.conv(y, *p.at("branch2b").conv_norm("conv", "norm"), "b", stride=2 if halves else 1, relu=True)
    y = b.conv(y, *p.at("branch2c").conv_norm("conv", "norm"), "c")
    if halves:
        x = b.pool(x, "short_pool", "Average", 2, 0)
        x = b.conv(x, *p.at("short").at("conv").conv_norm("conv", "norm"), "short")
    elif block == 0:
        x = b.conv(x, *p.at("short").conv_norm("conv", "norm"), "short")
    return b.relu(b.add(y, x, "sum"))


def _stdc(b: Builder, p: Params, config: BackboneConfig, x: Value) -> list[Value]:
    assert config.layers is not None
    features = p.at("features")
    for index in (0, 1):
        x = b.conv(x, *features.at(index).conv_norm("conv", "bn"), f"stem{index + 1}", stride=2, relu=True)
    outputs = [x]
    index = 2
    for stage, blocks in enumerate(config.layers):
        for block in range(blocks):
            with b.scope(f"res{stage + 3}/block{block}"):
                x = _cat_block(b, features.at(index), x, halves=block == 0)
            index += 1
        outputs.append(x)
    return outputs


def _cat_block(b: Builder, p: Params, x: Value, halves: bool) -> Value:
    convs = p.at("conv_list")
    x = b.conv(x, *convs.at(0).conv_norm("conv", "bn"), "conv0", relu=True)
    parts = [b.pool(x, "skip", "Average", 3, 1) if halves else x]
    if halves:
        x = b.conv(x, *p.at("avd_layer").conv_norm("0", "1"), "halve", stride=2, groups=x.shape[1])
    for index in (1, 2, 3):
        x = b.conv(x, *convs.at(index).conv_norm("conv", "bn"), f"conv{index}", relu=True)
        parts.append(x)
    return b.concat(parts, 1, "cat")
