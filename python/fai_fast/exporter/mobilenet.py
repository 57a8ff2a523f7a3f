"""MobileNetV2's part of the deployed graph."""

from __future__ import annotations

from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.fold import Params
from fai_fast.registry import BackboneConfig
from fai_fast.registry.backbones import InvertedBlock

__all__ = ["mobilenet_v2"]

_TAPS = (2, 3, 5, 7)


def mobilenet_v2(b: Builder, p: Params, config: BackboneConfig, x: Value) -> list[Value]:
    """res2..res5."""
    x = _conv(b, p.at("conv1"), x, "stem", stride=2)
    features: dict[int, Value] = {}
    for block in config.inverted_blocks():
        with b.scope(f"layer{block.layer}/block{block.number}"):
            x = _block(b, p.at(f"layer{block.layer}").at(block.number).at("conv"), block, x)
        features[block.layer] = x
    return [features[layer] for layer in _TAPS]


def _block(b: Builder, p: Params, block: InvertedBlock, x: Value) -> Value:
    y, index = x, 0
    if block.hidden != block.before:
        y, index = _conv(b, p.at(0), y, "up"), 1
    y = _conv(b, p.at(index), y, "middle", stride=block.stride, groups=block.hidden)
    y = _conv(b, p.at(index + 1), y, "down")
    return b.add(x, y, "sum") if block.adds else y


def _conv(b: Builder, p: Params, x: Value, name: str, stride: int = 1, groups: int = 1) -> Value:
    return b.relu6(b.conv(x, *p.conv_norm("", "norm"), name, stride=stride, groups=groups))
