"""Small networks of transformers with random weights: of every family one that runs in milliseconds."""

from __future__ import annotations

from typing import Any

LABELS = ("person", "sky", "car", "road", "tree")
SIDE = 64


def small(kind: str, seed: int = 0) -> Any:
    """A network of the family, of five classes and twelve queries, in evaluation mode."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = {
            "mask2former": _mask2former,
            "maskformer": _maskformer,
            "oneformer": _oneformer,
            "eomt": _eomt,
            "eomt_dinov3": _eomt_dinov3,
            "rf_detr": _rf_detr,
        }[kind]()
        # Random weights leave masks and classes that hardly depend on the picture.
        for name, parameter in model.named_parameters():
            if name.endswith(("class_predictor.weight", "class_embed.weight")):
                parameter.data *= 8
    return model.eval()


class Words:
    """In place of OneFormer's tokenizer: a number for each letter."""

    def __call__(self, texts: list[str], padding: str, max_length: int, truncation: bool) -> dict[str, Any]:
        assert (padding, truncation) == ("max_length", True)
        ids = [ord(letter) % 90 + 1 for letter in texts[0]][:max_length]
        rest = [0] * (max_length - len(ids))
        return {"input_ids": [ids + [7] * len(rest)], "attention_mask": [[1] * len(ids) + rest]}


def processor(kind: str) -> Any:
    """What has to be said beside the network, if anything."""
    return {"tokenizer": Words()} if kind == "oneformer" else None


def _labels() -> dict[int, str]:
    return dict(enumerate(LABELS))


def _swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        image_size=SIDE,
        embed_dim=24,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 3, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _mask2former() -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=4,
        dim_feedforward=48,
        num_queries=12,
        id2label=_labels(),
    )
    return Mask2FormerForUniversalSegmentation(config)


def _maskformer() -> Any:
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    decoder = DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=12,
    )
    config = MaskFormerConfig(
        fpn_feature_size=32,
        mask_feature_size=32,
        backbone_config=_swin(),
        decoder_config=decoder,
        id2label=_labels(),
    )
    return MaskFormerForInstanceSegmentation(config)


def _oneformer() -> Any:
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation

    config = OneFormerConfig(
        backbone_config=_swin(),
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        dim_feedforward=48,
        num_queries=12,
        is_training=False,
        task_seq_len=24,
        text_encoder_width=32,
        text_encoder_context_length=24,
        id2label=_labels(),
    )
    return OneFormerForUniversalSegmentation(config)


def _eomt() -> Any:
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        num_queries=12,
        num_blocks=2,
        num_register_tokens=2,
        id2label=_labels(),
    )
    return EomtForUniversalSegmentation(config)


def _eomt_dinov3() -> Any:
    from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

    config = EomtDinov3Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        num_queries=12,
        num_blocks=2,
        num_register_tokens=2,
        id2label=_labels(),
    )
    return EomtDinov3ForUniversalSegmentation(config)


def _rf_detr() -> Any:
    from transformers import AutoConfig, RfDetrConfig, RfDetrForInstanceSegmentation

    backbone = AutoConfig.for_model(
        "rf_detr_dinov2",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        num_windows=2,
        out_features=["stage1", "stage2"],
    )
    config = RfDetrConfig(
        backbone_config=backbone,
        d_model=32,
        decoder_ffn_dim=32,
        decoder_layers=1,
        decoder_self_attention_heads=4,
        decoder_cross_attention_heads=4,
        num_queries=12,
        group_detr=1,
        decoder_n_points=2,
        id2label=_labels(),
    )
    return RfDetrForInstanceSegmentation(config)
