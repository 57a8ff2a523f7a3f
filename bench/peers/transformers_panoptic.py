"""transformers' panoptic results of MaskFormer's image processor and of Mask2Former's, without a network."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from transformers.utils import logging

logging.set_verbosity_error()  # torchvision is missing, it says; none of this needs it
from transformers import Mask2FormerImageProcessor, MaskFormerImageProcessor  # noqa: E402

_PROCESSORS = {"MaskFormer": MaskFormerImageProcessor(), "Mask2Former": Mask2FormerImageProcessor()}


def segments(family, scene, size, *, threshold, stuff):
    """(H, W) numbers of segments, and what each is: `family` is MaskFormer or Mask2Former."""
    outputs = SimpleNamespace(
        masks_queries_logits=torch.from_numpy(scene.mask_logits)[None],
        class_queries_logits=torch.from_numpy(scene.class_logits)[None],
    )
    [found] = _PROCESSORS[family].post_process_panoptic_segmentation(
        outputs, threshold=threshold, label_ids_to_fuse=set(stuff), target_sizes=[size]
    )
    return found["segmentation"].numpy(), found["segments_info"]


def classes(family, scene, size, *, threshold):
    """(H, W), the class of each pixel, -1 where it is nobody's; and the segments' classes and scores, none fused."""
    numbers, found = segments(family, scene, size, threshold=threshold, stuff=())
    of_number = np.full(len(found) + 2, -1)
    for segment in found:
        of_number[segment["id"]] = segment["label_id"]
    return of_number[numbers], sorted((s["label_id"], round(s["score"], 5)) for s in found)
