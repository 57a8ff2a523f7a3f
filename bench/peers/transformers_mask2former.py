"""transformers' Mask2Former image processor, without a network or a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from transformers.utils import logging

logging.set_verbosity_error()  # torchvision is missing, it says; none of this needs it
from transformers import Mask2FormerImageProcessor, MaskFormerImageProcessor  # noqa: E402

_processor = Mask2FormerImageProcessor()
# Its sums are of the masks as they are, where Mask2Former's go through 384 x 384 first.
_maskformer = MaskFormerImageProcessor()


def _outputs(scene):
    return SimpleNamespace(
        masks_queries_logits=torch.from_numpy(scene.mask_logits)[None],
        class_queries_logits=torch.from_numpy(scene.class_logits)[None],
    )


def instances(scene, size, *, threshold=0.5, binary=False):
    """By default a map of segment ids, where the last of overlapping masks wins; `binary`: a stack."""
    return _processor.post_process_instance_segmentation(
        _outputs(scene), threshold=threshold, target_sizes=[size], return_binary_maps=binary
    )[0]


def semantic(scene, size):
    """int64 (H, W), the class of each pixel."""
    return _processor.post_process_semantic_segmentation(_outputs(scene), target_sizes=[size])[0].numpy()


def semantic_sum(scene, size):
    """int64 (H, W), the class of each pixel by the sum over all queries."""
    return _maskformer.post_process_semantic_segmentation(_outputs(scene), target_sizes=[size])[0].numpy()


def instance_agreement(scene, size, detections):
    """Mean over our rows of the best IoU with a segment of the same class."""
    result = instances(scene, size, binary=True)
    theirs = result["segmentation"].numpy().astype(bool)
    labels = np.array([segment["label_id"] for segment in result["segments_info"]])
    best = []
    for mask, class_id in zip(detections.mask, detections.class_id, strict=True):
        same = theirs[labels == class_id]
        overlap = (same & mask).sum((1, 2)) / np.maximum((same | mask).sum((1, 2)), 1)
        best.append(overlap.max(initial=0.0))
    return float(np.mean(best))


def semantic_agreement(scene, size, detections):
    """Share of the pixels with a class in ours that have the same class in theirs."""
    ours = detections.label_map
    return float((ours == semantic(scene, size))[ours >= 0].mean())
