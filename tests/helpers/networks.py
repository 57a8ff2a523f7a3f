"""Networks that are quick to build and to run."""

from __future__ import annotations

import dataclasses

import fai_fast


def small_spec(family: str, task: str = "semantic", **changes):
    """A network that is quick to run: the smallest backbone, few and narrow layers."""
    base = fai_fast.spec("fai-mf-m-ade" if family == "fai_mf" else "bisenetformer-s-ade")
    backbone = dataclasses.replace(base.config.backbone_config, base=16, layers=(2, 2, 2))
    config = dataclasses.replace(
        base.config,
        backbone_config=backbone,
        num_classes=3,
        num_queries=7,
        pixel_decoder_feat_dim=32,
        pixel_decoder_out_dim=32,
        transformer_predictor_out_dim=32,
        head_out_dim=32,
        transformer_predictor_hidden_dim=64,
        transformer_predictor_dim_feedforward=48,
        postprocessing_type=task,
        predict_all_pixels=task == "semantic",
        **changes,
    )
    return dataclasses.replace(
        base,
        name=f"small-{family}",
        task=task,
        classes=("a", "b", "c"),
        config=config,
        per_class={},
        metrics={},
    )


def network(spec, seed=0):
    """A network whose queries are sure of themselves, so that there is something to detect."""
    import torch
    from fai_fast import reference

    torch.manual_seed(seed)
    model = reference.build(spec).eval()
    with torch.no_grad():
        model.head.predictor.forward_prediction_heads.classifier.weight *= 20
    return model
