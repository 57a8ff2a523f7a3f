"""Instances of transformers' image processors of networks whose logits are resized first, without a network."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers.models import eomt, mask2former
from transformers.utils import logging

logging.set_verbosity_error()  # torchvision may be missing, it says; none of this needs it


def _processor(module, name):
    # The one that is written without torchvision has the same rules.
    return getattr(module, f"{name}Pil", None) or getattr(module, name)


_EOMT = _processor(eomt, "EomtImageProcessor")(do_pad=True)
_MASK2FORMER = _processor(mask2former, "Mask2FormerImageProcessor")()


def instances(family, scene, size, *, threshold, side):
    """The segments' classes and scores; `side` is the longest of EoMT's input."""
    outputs = SimpleNamespace(
        masks_queries_logits=torch.from_numpy(scene.mask_logits)[None],
        class_queries_logits=torch.from_numpy(scene.class_logits)[None],
    )
    if family == "EoMT":
        options = {"size": {"shortest_edge": side, "longest_edge": side}}
        processor = _EOMT
    else:
        options, processor = {"return_binary_maps": True}, _MASK2FORMER
    [found] = processor.post_process_instance_segmentation(
        outputs, threshold=threshold, target_sizes=[size], **options
    )
    return sorted((info["label_id"], info["score"]) for info in found["segments_info"])


def semantic_crops(mask_logits, class_logits, starts, side, size):
    """int64 (H, W), the class of each pixel of crops side by side: logits (N, Q, h, w) and (N, Q, K)."""
    outputs = SimpleNamespace(
        masks_queries_logits=torch.from_numpy(mask_logits),
        class_queries_logits=torch.from_numpy(class_logits),
        patch_offsets=[torch.tensor([0, start, start + side]) for start in starts],
    )
    options = {"size": {"shortest_edge": side, "longest_edge": None}}
    return _EOMT.post_process_semantic_segmentation(outputs, target_sizes=[size], **options)[0].numpy()
