"""The names and shapes of a network's parameters and buffers, told by its configuration alone."""

from __future__ import annotations

from fai_fast.registry.backbone_shapes import backbone_shapes
from fai_fast.registry.parameter_shapes import (
    Entries,
    Shape,
    attention,
    batch_norm,
    biased,
    conv_bn,
    norm,
    normed_conv,
    under,
)
from fai_fast.registry.spec import ModelSpec, own_config

__all__ = ["MAPS", "count_parameters", "decoder_levels", "is_optional", "state_shapes"]

# That the decoder of a family attends to, where it has the layers for it.
MAPS = {"fai_mf": 3, "bisenetformer": 2}


def state_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every parameter and buffer of the network in order, as its ``state_dict()`` names and shapes them."""
    config = own_config(spec)
    feat = config.pixel_decoder_feat_dim
    entries = dict(under("pixel_decoder.backbone", backbone_shapes(config.backbone_config)))
    dims = config.backbone_config.out_dims()
    decoder = (
        _fpn(spec, dims) if spec.family == "fai_mf" else _bisenet(dims, feat, config.pixel_decoder_out_dim)
    )
    entries.update(under("pixel_decoder", decoder))
    entries["head.criterion.empty_weight"] = (config.num_classes + 1,)
    entries.update(under("head.predictor", _predictor(spec, decoder_levels(spec))))
    return entries


def decoder_levels(spec: ModelSpec) -> int:
    """How many maps the decoder attends to: one a layer in turns, so that fewer layers than maps leave some out."""
    return min(MAPS[spec.family], own_config(spec).transformer_predictor_dec_layers)


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
    # The last one is an index that follows from the size of a Swin's windows.
    return key.rpartition(".")[2] in ("num_batches_tracked", "empty_weight", "relative_position_index")


def _fpn(spec: ModelSpec, dims: tuple[int, int, int, int]) -> Entries:
    config = own_config(spec)
    dim = config.pixel_decoder_feat_dim
    hidden = config.pixel_decoder_transformer_dim_feedforward
    if config.pixel_decoder_transformer_layers:
        yield from under("input_proj", biased(dim, dims[3], 1, 1))
        for layer in range(config.pixel_decoder_transformer_layers):
            prefix = f"transformer.encoder.layers.{layer}"
            yield from under(f"{prefix}.self_attn", attention(dim))
            yield from under(f"{prefix}.linear1", biased(hidden, dim))
            yield from under(f"{prefix}.linear2", biased(dim, hidden))
            yield from under(f"{prefix}.norm1", norm(dim))
            yield from under(f"{prefix}.norm2", norm(dim))
        yield from under("transformer.encoder.norm", norm(dim))
    for level in (1, 2, 3):
        yield from under(f"adapter_{level}", normed_conv(dims[level - 1], dim, 1))
        yield from under(f"layer_{level}", normed_conv(dim, dim, 3))
    yield from under(
        "layer_4", normed_conv(dim if config.pixel_decoder_transformer_layers else dims[3], dim, 3)
    )
    yield from under("mask_features", biased(config.pixel_decoder_out_dim, dim, 3, 3))


def _bisenet(dims: tuple[int, int, int, int], dim: int, out_dim: int) -> Entries:
    yield from under("cp.arm32", _refinement(dims[3], dim))
    yield from under("cp.conv_avg", conv_bn(dims[3], dim, 1))
    yield from under("cp.conv_head32", conv_bn(dim, dim, 3))
    yield from under("cp.arm16", _refinement(dims[2], dim))
    yield from under("cp.conv_head16", conv_bn(dim, dim, 3))
    yield from under("ffm.proj1", biased(dim, dims[1], 1, 1))
    yield from under("ffm.proj2", biased(dim, dim, 1, 1))
    yield from under("ffm.convblk", conv_bn(dim, dim, 1))
    yield "ffm.conv1.weight", (dim // 4, dim, 1, 1)
    yield "ffm.conv2.weight", (dim, dim // 4, 1, 1)
    yield from under("conv_out", conv_bn(dim, out_dim, 3))


def _refinement(before: int, after: int) -> Entries:
    yield "proj.weight", (after, before, 1, 1)
    yield from under("conv", conv_bn(after, after, 3))
    yield "conv_atten.weight", (after, after, 1, 1)
    yield from under("bn_atten", batch_norm(after))


def _predictor(spec: ModelSpec, levels: int) -> Entries:
    config = own_config(spec)
    dim = config.transformer_predictor_hidden_dim
    hidden = config.transformer_predictor_dim_feedforward
    for kind, module in (("self", "self_attn"), ("cross", "multihead_attn")):
        for layer in range(config.transformer_predictor_dec_layers):
            prefix = f"transformer_{kind}_attention_layers.{layer}"
            yield from under(f"{prefix}.{module}", attention(dim))
            yield from under(f"{prefix}.norm", norm(dim))
    for layer in range(config.transformer_predictor_dec_layers):
        prefix = f"transformer_ffn_layers.{layer}"
        yield from under(f"{prefix}.linear1", biased(hidden, dim))
        yield from under(f"{prefix}.linear2", biased(dim, hidden))
        yield from under(f"{prefix}.norm", norm(dim))
    yield "query_feat.weight", (config.num_queries, dim)
    yield "query_embed.weight", (config.num_queries, dim)
    for level in range(levels):
        yield from under(f"input_proj.{level}", biased(dim, config.pixel_decoder_feat_dim, 1, 1))
    heads = "forward_prediction_heads"
    yield from under(f"{heads}.decoder_norm", norm(dim))
    yield from under(f"{heads}.classifier", biased(config.num_classes + 1, dim))
    for layer, out in enumerate((dim, dim, config.transformer_predictor_out_dim)):
        yield from under(f"{heads}.mask_classifier.layers.{layer}", biased(out, dim))
