"""Weights for networks whose published ones cannot be had where this is developed."""

from __future__ import annotations

from functools import cache

import fai_fast
import numpy as np
from numpy.typing import NDArray

from bench import scenes

# Queries and classes further apart than PyTorch puts them at first; and queries look less at the picture: of masks
# without a meaning many pixels lie at the edge where attention stops, and rounding would decide on them.
_SCALES = {
    "query_feat.weight": 10,
    "forward_prediction_heads.classifier.weight": 20,
    "multihead_attn.out_proj.weight": 0.02,
}
_NOTHING = "head.predictor.forward_prediction_heads.classifier.bias"


@cache
def lively(name: str) -> dict[str, NDArray]:
    """A state dict of `name` with which tens of queries find something, each something else.

    With PyTorch's initialization alone, ``weights="random"``, what is in a picture fades from layer to layer, and one
    query wins every pixel. Here batch normalization knows the statistics of pictures, as a trained network's does.
    """
    import torch
    from fai_fast import reference

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        network = reference.build(fai_fast.spec(name)).eval()
        state = network.state_dict()
        for ending, scale in _SCALES.items():
            found = [key for key in state if key.startswith("head.predictor.") and key.endswith(ending)]
            if not found:
                raise KeyError(f"{name} has no {ending}")
            for key in found:
                state[key] *= scale
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.train().momentum = 1.0
        picture = scenes.frame(320, 320)
        pictures = np.stack([np.roll(picture, 40 * i, i % 2)[:: (-1) ** i] for i in range(4)])
        found = network(torch.from_numpy(pictures.transpose(0, 3, 1, 2).astype(np.float32)))
        # As in trained networks, three quarters of the queries find nothing.
        margins = (found.class_logits[..., :-1].amax(-1) - found.class_logits[..., -1]).flatten()
        state[_NOTHING][-1] += margins.sort(descending=True).values[len(margins) // 4] - 0.5
        for norm in norms:
            # Of a mean over the picture there are four values, all alike: dividing by those enlarges rounding.
            norm.running_var.clamp_(min=0.1)
        return {key: value.numpy() for key, value in state.items() if not key.endswith("num_batches_tracked")}
