"""The golden postprocessing cases: their files, settings and float64 truth."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import reference

CASES = sorted((Path(__file__).parents[1] / "data" / "postprocess").glob("*.npz"))
SETTINGS = ("threshold", "mask_threshold", "use_mask_score", "predict_all_pixels")


def load(path):
    with np.load(path) as stored:
        return dict(stored)


@functools.cache
def truth_of(path):
    case = load(path)
    return reference.postprocess(
        case["mask_logits"], case["class_logits"], case["size"].tolist(), **settings_of(case)
    )


def settings_of(case):
    return {name: case[name].item() for name in SETTINGS}
