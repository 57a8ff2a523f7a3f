"""The pixel decoders: a backbone's features -> mask features, and the levels that the queries attend to."""

from __future__ import annotations

import numpy as np

from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.fold import Affine, Params, sine_position
from fai_fast.exporter.transformer import feed_forward, self_attention
from fai_fast.registry import ModelConfig

__all__ = ["bisenet", "fpn"]


def fpn(b: Builder, p: Params, config: ModelConfig, features: list[Value]) -> tuple[Value, list[Value]]:
    """Mask features (B, M, H/4, W/4); levels 1/32, 1/16, 1/8."""
    x = features[3]
    if config.pixel_decoder_transformer_layers:
        x = _encoder(b, p, config, x)
    with b.scope("fpn"):
        x = b.conv(x, *p.at("layer_4").conv_norm("", "norm"), "layer4", relu=True)
        levels = [x]
        for level in (3, 2, 1):
            fine = b.conv(
                features[level - 1], *p.at(f"adapter_{level}").conv_norm("", "norm"), f"adapter{level}"
            )
            coarse = b.resize(x, f"upsample{level}", (fine.shape[2], fine.shape[3]), "nearest")
            x = b.add(fine, coarse, f"sum{level}")
            x = b.conv(x, *p.at(f"layer_{level}").conv_norm("", "norm"), f"layer{level}", relu=True)
            levels.append(x)
        last = p.at("mask_features")
        return b.conv(levels.pop(), last["weight"], last["bias"], "mask_features"), levels


def _encoder(b: Builder, p: Params, config: ModelConfig, x: Value) -> Value:
    """A transformer encoder over the places of a map."""
    dim, heads = config.pixel_decoder_feat_dim, config.pixel_decoder_transformer_nheads
    batch, _, height, width = x.shape
    position = sine_position(height, width, dim)
    with b.scope("encoder"):
        x = b.conv(x, p.at("input_proj")["weight"], p.at("input_proj")["bias"], "input")
        x = b.transpose(b.reshape(x, (batch, dim, height * width)), (0, 2, 1), "tokens")
        x = b.cast(x, np.float32)
        encoder = p.at("transformer").at("encoder")
        for index in range(config.pixel_decoder_transformer_layers):
            layer = encoder.at("layers").at(index)
            with b.scope(f"layer{index}"):
                x = self_attention(b, layer.at("self_attn"), layer.at("norm1"), heads, x, position)
                x = feed_forward(b, layer, layer.at("norm2"), x)
        # The convolution that follows pads with zeros, so that a shift could not go into its bias.
        norm = encoder.at("norm")
        x = b.layer_norm(x, "norm", norm["weight"], norm["bias"])
        return b.reshape(b.transpose(x, (0, 2, 1)), (batch, dim, height, width), "map")


def bisenet(b: Builder, p: Params, config: ModelConfig, features: list[Value]) -> tuple[Value, list[Value]]:
    """Mask features (B, M, H/8, W/8); levels 1/32, 1/16."""
    _, res3, res4, res5 = features
    context = p.at("cp")
    with b.scope("context"):
        average = b.conv(
            b.global_mean(res5, "mean"), *context.at("conv_avg").conv_norm("conv", "bn"), "avg", relu=True
        )
        f32 = b.add(_refine(b, context.at("arm32"), res5, "arm32"), average, "f32")
        head32 = context.at("conv_head32").conv_norm("conv", "bn")
        upsampled = b.conv(_resize_to(b, f32, res4, "upsample32"), *head32, "head32", relu=True)
        f16 = b.add(_refine(b, context.at("arm16"), res4, "arm16"), upsampled, "f16")
        head16 = context.at("conv_head16").conv_norm("conv", "bn")
        f8 = b.conv(_resize_to(b, f16, res3, "upsample16"), *head16, "f8", relu=True)
    with b.scope("fusion"):
        return _fuse(b, p.at("ffm"), p.at("conv_out"), res3, f8), [f32, f16]


def _resize_to(b: Builder, x: Value, like: Value, name: str) -> Value:
    return b.resize(x, name, (like.shape[2], like.shape[3]), "linear")


def _refine(b: Builder, p: Params, x: Value, name: str) -> Value:
    with b.scope(name):
        x = b.conv(x, p.at("proj")["weight"], None, "proj")
        x = b.conv(x, *p.at("conv").conv_norm("conv", "bn"), "conv", relu=True)
        weights = b.conv(b.global_mean(x, "mean"), *p.conv_norm("conv_atten", "bn_atten"), "attention")
        return b.mul(x, b.sigmoid(weights), "refined")


def _fuse(b: Builder, p: Params, last: Params, detail: Value, context: Value) -> Value:
    # The projections and the 1x1 convolution after their sum are all linear: one 1x1 convolution for each input.
    weight, bias = p.at("convblk").conv_norm("conv", "bn")
    block = Affine(weight[:, :, 0, 0], bias)
    fine, coarse = block.after(p.at("proj1").affine()), p.at("proj2").affine()
    x = b.conv(detail, fine.weight[:, :, None, None], fine.bias + block.weight @ coarse.bias, "detail")
    y = b.conv(context, (block.weight @ coarse.weight)[:, :, None, None], None, "context")
    x = b.relu(b.add(x, y, "sum"))
    weights = b.conv(b.global_mean(x, "mean"), p.at("conv1")["weight"], None, "squeeze", relu=True)
    weights = b.sigmoid(b.conv(weights, p.at("conv2")["weight"], None, "excite"))
    # x a + x = x (a + 1), and a has one number for a whole map.
    x = b.mul(x, b.add(weights, b.constant(np.ones(1), "one"), "plus_one"), "weighted")
    return b.conv(x, *last.conv_norm("conv", "bn"), "mask_features", relu=True)
