"""The names and shapes of a network's parameters and buffers, told by its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator

from fai_fast.registry.spec import BackboneConfig, ModelSpec

__all__ = ["BLOCKS", "count_parameters", "is_optional", "state_shapes"]

Shape = tuple[int, ...]
Entries = Iterator[tuple[str, Shape]]

# Blocks in each stage of a ResNet, by depth.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def state_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every parameter and buffer of the network in order, as its ``state_dict()`` names and shapes them."""
    config = spec.config
    feat = config.pixel_decoder_feat_dim
    entries = dict(_under("pixel_decoder.backbone", _backbone(config.backbone_config)))
    dims = backbone_dims(config.backbone_config)
    decoder = (
        _fpn(spec, dims) if spec.family == "fai_mf" else _bisenet(dims, feat, config.pixel_decoder_out_dim)
    )
    entries.update(_under("pixel_decoder", decoder))
    entries["head.criterion.empty_weight"] = (config.num_classes + 1,)
    entries.update(_under("head.predictor", _predictor(spec, levels=3 if spec.family == "fai_mf" else 2)))
    return entries


def count_parameters(spec: ModelSpec) -> int:
    """How many numbers the network learns: no running statistics, no loss weights."""
    total = 0
    for key, shape in state_shapes(spec).items():
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked", "empty_weight")):
            size = 1
            for side in shape:
                size *= side
            total += size
    return total


def is_optional(key: str) -> bool:
    """Whether a checkpoint may lack `key`, or have it where the network does not: no output depends on it."""
    return key.rpartition(".")[2] in ("num_batches_tracked", "empty_weight")


def backbone_dims(config: BackboneConfig) -> tuple[int, int, int, int]:
    """Channels of res2, res3, res4, res5."""
    if config.model_type == "resnet":
        return 256, 512, 1024, 2048
    assert config.base is not None
    return config.base, 4 * config.base, 8 * config.base, 16 * config.base


def _backbone(config: BackboneConfig) -> Entries:
    return _resnet(config) if config.model_type == "resnet" else _stdc(config)


def _resnet(config: BackboneConfig) -> Entries:
    assert config.depth is not None
    for index, (before, after) in enumerate([(config.in_chans, 32), (32, 32), (32, 64)], start=1):
        yield from _under(f"conv1.conv1_{index}", _conv_norm(before, after, 3))
    before = 64
    for level, blocks in enumerate(BLOCKS[config.depth]):
        width = 64 << level
        for block in range(blocks):
            prefix = f"res_layers.{level}.blocks.{block}"
            yield from _under(f"{prefix}.branch2a", _conv_norm(before, width, 1))
            yield from _under(f"{prefix}.branch2b", _conv_norm(width, width, 3))
            yield from _under(f"{prefix}.branch2c", _conv_norm(width, 4 * width, 1))
            if block == 0:
                short = f"{prefix}.short" if level == 0 else f"{prefix}.short.conv"
                yield from _under(short, _conv_norm(before, 4 * width, 1))
            before = 4 * width


def _stdc(config: BackboneConfig) -> Entries:
    assert config.base is not None
    assert config.layers is not None
    base = config.base
    yield from _under("features.0", _conv_bn(config.in_chans, base // 2, 3))
    yield from _under("features.1", _conv_bn(base // 2, base, 3))
    index, before = 2, base
    for width, blocks in zip(backbone_dims(config)[1:], config.layers, strict=True):
        for block in range(blocks):
            parts = [before, width // 2, width // 4, width // 8, width // 8]
            for conv in range(4):
                kernel = 1 if conv == 0 else 3
                yield from _under(
                    f"features.{index}.conv_list.{conv}", _conv_bn(parts[conv], parts[conv + 1], kernel)
                )
            if block == 0:
                yield f"features.{index}.avd_layer.0.weight", (parts[1], 1, 3, 3)
                yield from _under(f"features.{index}.avd_layer.1", _batch_norm(parts[1]))
            index, before = index + 1, width


def _fpn(spec: ModelSpec, dims: tuple[int, int, int, int]) -> Entries:
    config, dim = spec.config, spec.config.pixel_decoder_feat_dim
    hidden = config.pixel_decoder_transformer_dim_feedforward
    if config.pixel_decoder_transformer_layers:
        yield from _under("input_proj", _biased(dim, dims[3], 1, 1))
        for layer in range(config.pixel_decoder_transformer_layers):
            prefix = f"transformer.encoder.layers.{layer}"
            yield from _under(f"{prefix}.self_attn", _attention(dim))
            yield from _under(f"{prefix}.linear1", _biased(hidden, dim))
            yield from _under(f"{prefix}.linear2", _biased(dim, hidden))
            yield from _under(f"{prefix}.norm1", _norm(dim))
            yield from _under(f"{prefix}.norm2", _norm(dim))
        yield from _under("transformer.encoder.norm", _norm(dim))
    for level in (1, 2, 3):
        yield from _under(f"adapter_{level}", _normed_conv(dims[level - 1], dim, 1))
        yield from _under(f"layer_{level}", _normed_conv(dim, dim, 3))
    yield from _under(
        "layer_4", _normed_conv(dim if config.pixel_decoder_transformer_layers else dims[3], dim, 3)
    )
    yield from _under("mask_features", _biased(config.pixel_decoder_out_dim, dim, 3, 3))


def _bisenet(dims: tuple[int, int, int, int], dim: int, out_dim: int) -> Entries:
    yield from _under("cp.arm32", _refinement(dims[3], dim))
    yield from _under("cp.conv_avg", _conv_bn(dims[3], dim, 1))
    yield from _under("cp.conv_head32", _conv_bn(dim, dim, 3))
    yield from _under("cp.arm16", _refinement(dims[2], dim))
    yield from _under("cp.conv_head16", _conv_bn(dim, dim, 3))
    yield from _under("ffm.proj1", _biased(dim, dims[1], 1, 1))
    yield from _under("ffm.proj2", _biased(dim, dim, 1, 1))
    yield from _under("ffm.convblk", _conv_bn(dim, dim, 1))
    yield "ffm.conv1.weight", (dim // 4, dim, 1, 1)
    yield "ffm.conv2.weight", (dim, dim // 4, 1, 1)
    yield from _under("conv_out", _conv_bn(dim, out_dim, 3))


def _refinement(before: int, after: int) -> Entries:
    yield "proj.weight", (after, before, 1, 1)
    yield from _under("conv", _conv_bn(after, after, 3))
    yield "conv_atten.weight", (after, after, 1, 1)
    yield from _under("bn_atten", _batch_norm(after))


def _predictor(spec: ModelSpec, levels: int) -> Entries:
    config, dim = spec.config, spec.config.transformer_predictor_hidden_dim
    hidden = config.transformer_predictor_dim_feedforward
    for kind, attention in (("self", "self_attn"), ("cross", "multihead_attn")):
        for layer in range(config.transformer_predictor_dec_layers):
            prefix = f"transformer_{kind}_attention_layers.{layer}"
            yield from _under(f"{prefix}.{attention}", _attention(dim))
            yield from _under(f"{prefix}.norm", _norm(dim))
    for layer in range(config.transformer_predictor_dec_layers):
        prefix = f"transformer_ffn_layers.{layer}"
        yield from _under(f"{prefix}.linear1", _biased(hidden, dim))
        yield from _under(f"{prefix}.linear2", _biased(dim, hidden))
        yield from _under(f"{prefix}.norm", _norm(dim))
    yield "query_feat.weight", (config.num_queries, dim)
    yield "query_embed.weight", (config.num_queries, dim)
    for level in range(levels):
        yield from _under(f"input_proj.{level}", _biased(dim, config.pixel_decoder_feat_dim, 1, 1))
    heads = "forward_prediction_heads"
    yield from _under(f"{heads}.decoder_norm", _norm(dim))
    yield from _under(f"{heads}.classifier", _biased(config.num_classes + 1, dim))
    for layer, out in enumerate((dim, dim, config.transformer_predictor_out_dim)):
        yield from _under(f"{heads}.mask_classifier.layers.{layer}", _biased(out, dim))


def _under(prefix: str, entries: Entries) -> Entries:
    for key, shape in entries:
        yield f"{prefix}.{key}", shape


def _biased(*shape: int) -> Entries:
    yield "weight", shape
    yield "bias", shape[:1]


def _norm(dim: int) -> Entries:
    yield "weight", (dim,)
    yield "bias", (dim,)


def _batch_norm(dim: int) -> Entries:
    yield from _norm(dim)
    yield "running_mean", (dim,)
    yield "running_var", (dim,)
    yield "num_batches_tracked", ()


def _conv_norm(before: int, after: int, kernel: int, norm: str = "norm") -> Entries:
    yield "conv.weight", (after, before, kernel, kernel)
    yield from _under(norm, _batch_norm(after))


def _conv_bn(before: int, after: int, kernel: int) -> Entries:
    return _conv_norm(before, after, kernel, norm="bn")


def _normed_conv(before: int, after: int, kernel: int) -> Entries:
    yield "weight", (after, before, kernel, kernel)
    yield from _under("norm", _batch_norm(after))


def _attention(dim: int) -> Entries:
    yield "in_proj_weight", (3 * dim, dim)
    yield "in_proj_bias", (3 * dim,)
    yield from _under("out_proj", _biased(dim, dim))
