from __future__ import annotations

import fai_fast
import numpy as np
import pytest

from bench import peers, scenes
from bench.floor import Floor

INSTANCE = {"use_mask_score": True, "predict_all_pixels": False}
SEMANTIC = {"use_mask_score": False, "predict_all_pixels": True}
DECISION = 1e-4
"""How near to its decision a pixel may fall either way, docs/postprocess.md."""

full = pytest.mark.full
CASES = [
    pytest.param("instance", (640, 640), "float32", id="instance-640x640"),
    pytest.param("instance", (1080, 1920), "float32", id="instance-1080x1920", marks=full),
    pytest.param("instance", (640, 640), "float16", id="instance-640x640-float16", marks=full),
    pytest.param("semantic", (640, 640), "float32", id="semantic-640x640"),
    pytest.param("semantic", (1080, 1920), "float32", id="semantic-1080x1920", marks=full),
    pytest.param("semantic", (640, 640), "float16", id="semantic-640x640-float16", marks=full),
]


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True))[:, :-1].max(-1)


def _at(scene: scenes.Scene, size: tuple[int, int], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Resized mask probabilities (Q, n) at n pixels, in float64."""
    masks = 1 / (1 + np.exp(-scene.mask_logits.astype(np.float64)))

    def taps(at, target, source):
        position = ((at + 0.5) * source / target - 0.5).clip(0, source - 1)
        low = position.astype(int)
        return low, np.minimum(low + 1, source - 1), position - low

    top, bottom, down = taps(y, size[0], masks.shape[1])
    left, right, across = taps(x, size[1], masks.shape[2])
    upper = masks[:, top, left] * (1 - across) + masks[:, top, right] * across
    lower = masks[:, bottom, left] * (1 - across) + masks[:, bottom, right] * across
    return upper * (1 - down) + lower * down


def _check(scene: scenes.Scene, size, semantic: bool, ours: fai_fast.Detections, theirs) -> None:
    """The definition's tolerance: the same rows, and masks that differ only where the decision is a draw."""
    assert 20 <= len(ours) <= 25
    mine, other = np.argsort(ours.query), np.argsort(theirs.query)
    np.testing.assert_array_equal(ours.query[mine], theirs.query[other])
    np.testing.assert_array_equal(ours.class_id[mine], theirs.class_id[other])
    np.testing.assert_allclose(ours.confidence[mine], theirs.confidence[other], atol=1e-5, rtol=0)
    row, y, x = np.nonzero(ours.mask[mine] != theirs.mask[other])
    assert len(row) <= 1e-4 * theirs.mask.size, "too many pixels differ to be draws"
    value = _at(scene, size, y, x)
    if semantic:
        second, first = np.sort(_softmax(scene.class_logits)[:, None] * value, axis=0)[-2:]
        margin = first - second
    else:
        margin = np.abs(value[ours.query[mine][row], np.arange(len(row))] - 0.5)
    assert (margin < DECISION).all()
    if not len(row):
        np.testing.assert_array_equal(ours.xyxy[mine], theirs.xyxy[other])


def _floor(scene: scenes.Scene, size, semantic: bool, detections: fai_fast.Detections) -> Floor:
    one = scene.mask_logits[0].nbytes
    if semantic:
        read = scene.class_logits.nbytes + scene.mask_logits.nbytes
        return Floor(read, size[0] * size[1], "all logits; one byte a pixel for the query that won")
    candidates = int((_softmax(scene.class_logits) > 0.5).sum())
    return Floor(
        scene.class_logits.nbytes + candidates * one,
        detections.packed.bits.nbytes,
        "class logits, masks of queries above the threshold only; one bit a pixel of each box",
    )


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize(("kind", "size", "dtype"), CASES)
def test_postprocess(kind: str, size: tuple[int, int], dtype: str, threads: int, compare) -> None:
    semantic = kind == "semantic"
    options = SEMANTIC if semantic else INSTANCE
    scene = scenes.regions() if semantic else scenes.instances()
    if dtype == "float16":
        scene = scene.as_float16()

    def ours():
        return fai_fast.postprocess(
            scene.mask_logits, scene.class_logits, size, num_threads=threads, **options
        )

    detections = ours()
    rivals, agreement = {}, {}
    if torch_steps := peers.load("torch_steps"):
        _check(scene, size, semantic, detections, torch_steps.postprocess(scene, size, **options))
        rivals["plain torch steps"] = lambda: torch_steps.postprocess(scene, size, **options)
    # Its CPU path has no float16, and its definition is another: agreement is reported, not asserted.
    if dtype == "float32" and (hf := peers.load("transformers_mask2former")):
        name = "transformers Mask2Former"
        if semantic:
            rivals[name] = lambda: hf.semantic(scene, size)
            agreement[name] = hf.semantic_agreement(scene, size, detections)
        else:
            rivals[name] = lambda: hf.instances(scene, size)
            agreement[name] = hf.instance_agreement(scene, size, detections)
    case = f"{kind} {size[0]}x{size[1]} {dtype}"
    compare("postprocess", case, threads, _floor(scene, size, semantic, detections), ours, rivals, agreement)
