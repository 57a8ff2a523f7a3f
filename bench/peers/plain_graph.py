"""The whole network as torch.onnx exports it, in ONNX Runtime, which is what FocoosAI's library runs on CPUs.

Its graph ends as FocoosAI's does: class probabilities, and mask probabilities resized to the input's size.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


class _Plain(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        output = self.network(images)
        masks = resized(output.mask_logits.sigmoid(), images.shape[-2:])
        return masks, output.class_logits.softmax(-1)[..., :-1]


def resized(masks: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)


def export(network: torch.nn.Module, path: Path, size: tuple[int, int], batch: int) -> None:
    """Writes the graph of `network`, whose input is (batch, 3, *size) of 0..255."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing remarks on every fixed shape
        torch.onnx.export(
            _Plain(network.eval()),
            (torch.rand(batch, 3, *size) * 255,),
            path,
            input_names=["images"],
            output_names=["masks", "classes"],
            opset_version=17,
            dynamo=False,
        )


def load(path: Path, threads: int) -> Callable[[NDArray], list[NDArray]]:
    """images (B, 3, h, w) of 0..255 -> mask probabilities (B, Q, h, w) and class probabilities (B, Q, C)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})
