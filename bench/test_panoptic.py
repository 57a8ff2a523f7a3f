from __future__ import annotations

import fai_fast
import numpy as np
import pytest

from bench import peers, scenes
from bench.floor import Floor

THINGS, CLASSES, THRESHOLD = 80, 133, 0.8  # COCO's; the threshold is the processors' own
STUFF = tuple(range(THINGS, CLASSES))
DRAWS = 1e-4
"""Share of the pixels at most that float32 may decide either way, docs/postprocess.md."""

full = pytest.mark.full
SIZES = [pytest.param((640, 640), id="640x640"), pytest.param((1080, 1920), id="1080x1920", marks=full)]


def _competing(scene: scenes.Scene) -> int:
    e = np.exp(scene.class_logits - scene.class_logits.max(-1, keepdims=True))
    share = e / e.sum(-1, keepdims=True)
    return int(((share.argmax(-1) < CLASSES) & (share.max(-1) > THRESHOLD)).sum())


def _check(ours: fai_fast.Detections, theirs) -> None:
    """MaskFormer's definition is ours: the same segments and scores, and the same class of each pixel."""
    label_map, segments = theirs
    mine = sorted(
        (class_id, round(score, 5))
        for class_id, score in zip(ours.class_id.tolist(), ours.confidence.tolist(), strict=True)
    )
    assert [class_id for class_id, _ in mine] == [class_id for class_id, _ in segments]
    np.testing.assert_allclose(
        [score for _, score in mine], [score for _, score in segments], atol=2e-5, rtol=0
    )
    assert (ours.label_map != label_map).mean() <= DRAWS


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("size", SIZES)
def test_panoptic(size: tuple[int, int], threads: int, compare) -> None:
    """MaskFormer's rules, against its processor, and that of Mask2Former, whose result is nearly the same."""
    scene = scenes.panoptic()

    def ours(stuff=STUFF):
        return _found(scene, size, threads, stuff=stuff)

    things = ours(stuff=())
    assert 15 <= len(things) <= 20
    assert len(ours()) < len(things)
    rivals, agreement = {}, {}
    if hf := peers.load("transformers_panoptic"):
        _check(things, hf.classes("MaskFormer", scene, size, threshold=THRESHOLD))
        for family in ("MaskFormer", "Mask2Former"):
            name = f"transformers {family}"
            rivals[name] = lambda f=family: hf.segments(f, scene, size, threshold=THRESHOLD, stuff=STUFF)
            labels = hf.classes(family, scene, size, threshold=THRESHOLD)[0]
            agreement[name] = float((things.label_map == labels).mean())
    compare("panoptic", _case(scene, size), threads, _floor(scene, size), ours, rivals, agreement)


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("size", SIZES)
def test_panoptic_of_mask2former(size: tuple[int, int], threads: int, compare) -> None:
    """Mask2Former's own rules: logits are resized to 384 x 384 first."""
    scene = scenes.panoptic()

    def ours(stuff=STUFF):
        return _found(scene, size, threads, stuff=stuff, resampling=fai_fast.Resampling((384, 384)))

    rivals, agreement = {}, {}
    if hf := peers.load("transformers_panoptic"):
        name = "transformers Mask2Former"
        rivals[name] = lambda: hf.segments("Mask2Former", scene, size, threshold=THRESHOLD, stuff=STUFF)
        labels = hf.classes("Mask2Former", scene, size, threshold=THRESHOLD)[0]
        agreement[name] = float((ours(stuff=()).label_map == labels).mean())
        assert agreement[name] > 1 - 10 * DRAWS
    case = f"{_case(scene, size)}, through 384x384"
    compare("panoptic", case, threads, _floor(scene, size), ours, rivals, agreement)


def _found(scene: scenes.Scene, size: tuple[int, int], threads: int, *, stuff, **options):
    return fai_fast.postprocess(
        scene.mask_logits,
        scene.class_logits,
        size,
        threshold=THRESHOLD,
        panoptic=fai_fast.Panoptic(stuff=stuff),
        num_threads=threads,
        **options,
    )


def _case(scene: scenes.Scene, size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}, {_competing(scene)} competing"


def _floor(scene: scenes.Scene, size: tuple[int, int]) -> Floor:
    return Floor(
        scene.class_logits.nbytes + _competing(scene) * scene.mask_logits[0].nbytes,
        size[0] * size[1],
        "class logits, masks of the queries that compete only; one byte a pixel",
    )
