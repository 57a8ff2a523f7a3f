"""Strategies for mask and class logits, and for the options to run them with."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np

from helpers import scenes

sides = st.integers(1, 40)
special = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 100.0, -100.0])


few = st.integers(1, 30)


@st.composite
def networks(draw, queries=few, side=sides):
    """Mask and class logits, from realistic to hostile, and the options to run them with."""
    activation = draw(st.sampled_from(["softmax", "sigmoid"]))
    count = draw(queries)
    grid = (draw(side), draw(side))
    classes = draw(st.sampled_from([1, 2, 7, 80]))
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    seed = draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["blobs", "noise", "soft", "whole"]))
    if kind == "blobs":
        mask_logits, class_logits = scenes.blobs(seed, count, grid, objects=5, classes=classes, dtype=dtype)
    elif kind == "whole":
        # Whole numbers: many exact ties and exact hits of the thresholds.
        rng = np.random.default_rng(seed)
        mask_logits = rng.integers(-2, 3, (count, *grid)).astype(dtype)
        class_logits = rng.integers(-2, 3, (count, classes + 1)).astype(dtype)
    else:
        spread = 3.0 if kind == "noise" else 0.3
        mask_logits, class_logits = scenes.noise(seed, count, grid, classes, spread, dtype)
    if activation == "sigmoid":
        class_logits = class_logits[:, :-1].copy()
    for array in (mask_logits, class_logits):
        for place, value in draw(st.lists(st.tuples(st.integers(0, 2**30), special), max_size=4)):
            array.reshape(-1)[place % array.size] = value
    return mask_logits, class_logits, activation


options_of = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from([0.5, 0.3, 0.05, 0.0, 1.0, -1.0]) | st.floats(0, 1),
        "mask_threshold": st.sampled_from([0.5, 0.5, 0.3, 0.0, 1.0, -0.5]) | st.floats(0, 1),
        "use_mask_score": st.booleans(),
        "predict_all_pixels": st.booleans(),
    }
)


panoptic_options_of = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from([0.8, 0.5, 0.3, 0.05, 0.0, 1.0, -1.0]) | st.floats(0, 1),
        "mask_threshold": st.sampled_from([0.5, 0.5, 0.3, 0.0, 1.0, -0.5]) | st.floats(0, 1),
        "overlap_threshold": st.sampled_from([0.8, 0.5, 0.1, 0.0, 1.0]) | st.floats(0, 1),
        "weighted": st.booleans(),
        "stuff": st.tuples(st.sampled_from([0.0, 0.01, 0.5, 1.0]), st.integers(0, 2**16)),
    }
)
"""Of a panoptic result, for :func:`panoptic_options`."""


exclusive_options_of = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from([0.8, 0.5, 0.3, 0.05, 0.0, 1.0, -1.0]) | st.floats(0, 1),
        "mask_threshold": st.sampled_from([0.5, 0.5, 0.3, 0.0, 1.0, -0.5]) | st.floats(0, 1),
        "overlap_threshold": st.sampled_from([0.8, 0.5, 0.1, 0.0, 1.0]) | st.floats(0, 1),
        "multi_label": st.booleans(),
    }
)
"""Of instances that compete for pixels."""


def panoptic_options(options, class_logits, activation):
    """With the ids of stuff, of which there are as many as the network has classes, for a share and a seed."""
    share, seed = options["stuff"]
    classes = class_logits.shape[-1] - (activation == "softmax")
    stuff = np.random.default_rng(seed).permutation(classes)[: int(np.ceil(share * classes))]
    return {**options, "stuff": stuff.tolist()}
