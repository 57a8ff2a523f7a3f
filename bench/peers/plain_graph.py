"""The whole network as torch.onnx exports it, in ONNX Runtime, which is what FocoosAI's library runs on CPUs.

Its graph ends as FocoosAI's does: class probabilities, and mask probabilities resized to the input's size.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    """images (B, 3, h, w) of 0..255 -> mask probabilities (B, Q, h, w) and class probabilities (B, Q, C).

    In its favour, its workers wait for work within a run in the way that is faster here: spinning or asleep.
    """
    sessions = [_session(path, threads, spinning) for spinning in (True, False)]
    session = min(sessions, key=_seconds)
    return lambda images: session.run(None, {"images": images})


def _session(path: Path, threads: int, spinning: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    # In its favour too: they would spin for 40 ms after each run, on a core that the steps after it need.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _seconds(session: onnxruntime.InferenceSession) -> float:
    """The best of three runs, after one that does not count."""
    images = np.zeros(session.get_inputs()[0].shape, np.float32)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        session.run(None, {"images": images})
        times.append(time.perf_counter() - start)
    return min(times[1:])
