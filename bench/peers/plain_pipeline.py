"""The pipeline that people have: torch's resize, the plain graph in ONNX Runtime, the definition's steps in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bench.peers import plain_graph
from bench.peers.torch_steps import Rows, boxes


def load(
    spec, size: tuple[int, int], threads: int, folder: Path, weights: Any = "random"
) -> Callable[..., Rows]:
    """(frame uint8 (H, W, 3), threshold) -> the rows of a network with the weights that `fai_fast.load` would take."""
    path = folder / "plain.onnx"
    export(spec, size, path, weights)
    return pipeline(plain_graph.load(path, threads), size, spec.config)


def export(spec, size: tuple[int, int], path: Path, weights: Any = "random") -> None:
    # Here, since a process that only runs the pipeline has no need of it.
    import fai_fast.weights
    from fai_fast import reference

    network = reference.build(spec)
    state = fai_fast.weights.load_weights(spec, weights).state
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=False)
    plain_graph.export(network.eval(), path, size, 1)


def pipeline(
    graph: Callable[[NDArray], list[NDArray]], size: tuple[int, int], config: Any
) -> Callable[..., Rows]:
    """What is around the graph. Of `config`: mask_threshold, predict_all_pixels, use_mask_score."""

    def run(frame: np.ndarray, threshold: float) -> Rows:
        x = torch.from_numpy(frame).permute(2, 0, 1)[None]
        x = F.interpolate(x, size, mode="bilinear", align_corners=False).float()
        masks, classes = (torch.from_numpy(output)[0] for output in graph(x.contiguous().numpy()))
        if tuple(masks.shape[-2:]) != frame.shape[:2]:
            masks = plain_graph.resized(masks[None], frame.shape[:2])[0]
        return _rows(masks, classes, config, threshold)

    return run


def _rows(masks: torch.Tensor, classes: torch.Tensor, config, threshold: float) -> Rows:
    scores, labels = classes.max(-1)
    if config.predict_all_pixels:
        winner = (scores[:, None, None] * masks).argmax(0)
        binary = winner == torch.arange(len(scores))[:, None, None]
    else:
        binary = masks >= config.mask_threshold
    inside = binary.float()
    area = inside.sum((1, 2))
    if config.use_mask_score:
        scores = scores * ((masks * inside).sum((1, 2)) / (area + 0.01))
    keep = torch.nonzero((area >= 2) & (scores > threshold))[:, 0]
    keep = keep[scores[keep].argsort(descending=True, stable=True)]
    kept = binary[keep].numpy()
    return Rows(keep.numpy(), labels[keep].numpy(), scores[keep].numpy(), boxes(kept), kept)
