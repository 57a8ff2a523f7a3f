from __future__ import annotations

import fai_fast
import numpy as np
import pytest
from fai_fast._crops import Crops, postprocess_crops

from bench import peers, scenes
from bench.floor import Floor
from bench.test_postprocess import _at

BY_SUM = {"predict_all_pixels": True, "combine": "sum", "threshold": 0.0}
ROUNDING = 1e-5
"""How near to each other a pixel's two largest sums may be, of float32 numbers, where the first may be either."""
SIGMOID = 30
"""Operations of one sigmoid of ours, as of any that is as exact: a polynomial of degree 7, and a division."""

full = pytest.mark.full
CASES = [
    pytest.param("regions", (640, 640), id="regions-640x640"),
    pytest.param("regions", (1080, 1920), id="regions-1080x1920", marks=full),
    pytest.param("noise", (640, 640), id="noise-640x640", marks=full),
    pytest.param("noise", (1080, 1920), id="noise-1080x1920", marks=full),
]


def _noise(queries: int = 100, side: int = 160, classes: int = 150) -> scenes.Scene:
    """Nothing to hold on to: every pixel is another class's."""
    rng = np.random.default_rng(4)
    masks = rng.normal(0, 3, (queries, side, side)).astype(np.float32)
    return scenes.Scene(masks, rng.normal(0, 3, (queries, classes + 1)).astype(np.float32))


def _probabilities(scene: scenes.Scene) -> np.ndarray:
    logits = scene.class_logits.astype(np.float64)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True))[:, :-1]


def _check(scene: scenes.Scene, size: tuple[int, int], ours: fai_fast.Detections, theirs: np.ndarray) -> None:
    """The same classes, but where two sums are within rounding of each other, or a class has a single pixel."""
    labels = ours.label_map
    assert labels is not None
    y, x = np.nonzero((labels != theirs) & (labels >= 0))
    assert len(y) <= 1e-3 * theirs.size, "too many pixels differ to be draws"
    assert (labels < 0).sum() < scene.class_logits.shape[1]
    sums = np.sort(_probabilities(scene).T @ _at(scene, size, y, x), axis=0)
    assert (sums[-1] - sums[-2] < ROUNDING).all()


def _floor(scene: scenes.Scene, size: tuple[int, int]) -> Floor:
    return Floor(
        scene.class_logits.nbytes + scene.mask_logits.nbytes,
        size[0] * size[1],
        "all logits; one byte a pixel; a sigmoid for every mask logit, and the sums of the class that wins",
        (SIGMOID + 2) * scene.mask_logits.size,
    )


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize(("kind", "size"), CASES)
def test_semantic_sum(kind: str, size: tuple[int, int], threads: int, compare) -> None:
    scene = scenes.regions() if kind == "regions" else _noise()

    def ours():
        return fai_fast.postprocess(
            scene.mask_logits, scene.class_logits, size, num_threads=threads, **BY_SUM
        )

    rivals = {}
    if hf := peers.load("transformers_mask2former"):
        _check(scene, size, ours(), hf.semantic_sum(scene, size))
        rivals["transformers MaskFormer"] = lambda: hf.semantic_sum(scene, size)
    case = f"{kind} {size[0]}x{size[1]} float32"
    compare("semantic by sum", case, threads, _floor(scene, size), ours, rivals)


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize(
    "size", [(640, 768), pytest.param((1080, 1920), marks=full)], ids=["640x768", "1080x1920"]
)
@pytest.mark.parametrize("kind", ["regions", pytest.param("noise", marks=full)])
def test_semantic_crops(kind: str, size: tuple[int, int], threads: int, compare) -> None:
    """Two crops, as of EoMT's models of ADE20K: an input of 512, and logits of a quarter of that."""
    scene = scenes.regions(side=128) if kind == "regions" else _noise(side=128)
    crops = Crops.of(size, (512, 512))
    masks = np.stack([scene.mask_logits, np.roll(scene.mask_logits, 40, axis=2)])
    classes = np.stack([scene.class_logits] * 2)

    def ours():
        return postprocess_crops(masks, classes, crops, num_threads=threads)

    rivals = {}
    if hf := peers.load("transformers_resampled"):
        theirs = hf.semantic_crops(masks, classes, crops.starts, 512, size)
        assert (ours().label_map != theirs).mean() < 1e-3
        rivals["transformers EoMT"] = lambda: hf.semantic_crops(masks, classes, crops.starts, 512, size)
    nodes = crops.whole[0] * crops.whole[1] * masks.shape[1]
    floor = Floor(
        classes.nbytes + masks.nbytes,
        size[0] * size[1],
        "all logits; one byte a pixel; a sigmoid for every query and pixel of the stretched frame, and the sums of the "
        "class that wins",
        (SIGMOID + 2) * nodes,
    )
    compare("semantic by sum, crops", f"{kind} {size[0]}x{size[1]} float32", threads, floor, ours, rivals)
