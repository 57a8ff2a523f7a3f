from __future__ import annotations

from typing import Any

import fai_fast
import numpy as np
import pytest

from bench import peers, scenes
from bench.floor import Floor

KEPT = 20
SIDE = 640  # of the networks' input
SIGMOID = 30  # operations

full = pytest.mark.full
CASES = [
    pytest.param(family, kind, size, id=f"{family}-{kind}-{size[0]}x{size[1]}", marks=marks)
    for family in ("EoMT", "Mask2Former")
    for kind in ("blobs", "noise")
    for size in ((640, 640), (1080, 1920))
    for marks in [() if (kind, size) == ("blobs", (640, 640)) else full]
]


def _scene(family: str, kind: str) -> scenes.Scene:
    """Blobs as real masks are; or what random weights give: all queries see noise, half of them a class."""
    queries = 200 if family == "EoMT" else 100
    if kind == "blobs":
        return scenes.instances(queries=queries)
    rng = np.random.default_rng(6)
    masks = 1.3 * rng.standard_normal((queries, 160, 160), dtype=np.float32)
    classes = rng.standard_normal((queries, 81), dtype=np.float32)
    best = rng.integers(0, 80, queries)
    classes[np.arange(queries), best] = rng.uniform(3, 12, queries)
    return scenes.Scene(masks, classes)


def _rules(family: str, size: tuple[int, int]) -> dict[str, Any]:
    """What `load` takes for a model of that family: fai_fast/networks/families.py."""
    if family == "EoMT":
        return {
            "use_mask_score": True,
            "resampling": fai_fast.Resampling((SIDE, SIDE), of="logits"),
            "letterbox": fai_fast.Letterbox.fit(size, (SIDE, SIDE), "pad"),
        }
    return {
        "use_mask_score": True,
        "multi_label": True,
        "resampling": fai_fast.Resampling((384, 384), nearest=True),
    }


def _candidates(scene: scenes.Scene, threshold: float) -> int:
    e = np.exp(scene.class_logits - scene.class_logits.max(-1, keepdims=True))
    return int(((e / e.sum(-1, keepdims=True))[:, :-1].max(-1) > threshold).sum())


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize(("family", "kind", "size"), CASES)
def test_resampling(family: str, kind: str, size: tuple[int, int], threads: int, compare) -> None:
    scene, rules = _scene(family, kind), _rules(family, size)
    scores = fai_fast.postprocess(scene.mask_logits, scene.class_logits, size, threshold=0.0, **rules)
    threshold = float(scores.confidence[KEPT - 1 : KEPT + 1].mean())

    def ours():
        return fai_fast.postprocess(
            scene.mask_logits,
            scene.class_logits,
            size,
            threshold=threshold,
            num_threads=threads,
            **rules,
        )

    found = ours()
    assert len(found) == KEPT
    rivals = {}
    if hf := peers.load("transformers_resampled"):

        def theirs():
            return hf.instances(family, scene, size, threshold=threshold, side=SIDE)

        mine = sorted(zip(found.class_id.tolist(), found.confidence.tolist(), strict=True))
        segments = theirs()
        if family == "EoMT":
            # It paints masks over each other, and what is nobody's then is no segment.
            assert len(segments) <= KEPT
        else:
            assert [label for label, _ in mine] == [label for label, _ in segments]
            np.testing.assert_allclose(
                [score for _, score in mine], [score for _, score in segments], atol=2e-5, rtol=0
            )
        rivals[f"transformers {family}"] = theirs
    candidates = _candidates(scene, threshold)
    # A kept mask's mean is of a sigmoid for each pixel inside, or for each node.
    inside = int(found.area.sum())
    if family == "Mask2Former":
        inside = inside * 384 * 384 // (size[0] * size[1])
    floor = Floor(
        scene.class_logits.nbytes + candidates * scene.mask_logits[0].nbytes,
        found.packed.bits.nbytes,
        "class logits, masks of queries above the threshold; one bit a pixel of each box; kept masks' sigmoids",
        SIGMOID * inside,
    )
    case = f"{family} {kind} {size[0]}x{size[1]}, {candidates} candidates"
    compare("instances of resampled logits", case, threads, floor, ours, rivals)
