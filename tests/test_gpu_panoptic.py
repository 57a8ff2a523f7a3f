"""Panoptic results of the CUDA kernels against the CPU's: the same segments, pixel for pixel."""

from __future__ import annotations

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
import reference_panoptic
from fai_fast import Panoptic, _core
from fai_fast._rules import Rules
from helpers import gpu, scenes
from helpers.logits import networks, panoptic_options, panoptic_options_of
from hypothesis import given, settings

pytestmark = gpu.needed

WEIGHTED = pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "unweighted"])
sides = st.integers(1, 50) | st.sampled_from([1, 2, 63, 64, 65, 129])


def graph_of(mask_logits, class_logits, rules, **options):
    return gpu.with_logits(
        mask_logits, class_logits, semantic=True, rules=Rules(panoptic=rules).plain(), **options
    )


def compare(mask_logits, class_logits, size, *, letterbox=None, activation="softmax", **options):
    """Runs both, and returns the GPU's result."""
    thresholds = {name: options.pop(name) for name in ("threshold", "mask_threshold") if name in options}
    rules = Panoptic(**options)
    graph = graph_of(
        mask_logits,
        class_logits,
        rules,
        activation=activation,
        size=(8, 8) if letterbox is None else letterbox.input,
    )
    resize = "stretch" if letterbox is None else "letterbox"
    ours = gpu.detect(graph, np.zeros((*size, 3), np.uint8), resize=resize, **thresholds)
    common = {**thresholds, "panoptic": rules, "class_activation": activation}
    gpu.same(ours, gpu.expected(mask_logits, class_logits, size, letterbox=letterbox, **common))
    return ours


@settings(max_examples=120)
@given(network=networks(), size=st.tuples(sides, sides), options=panoptic_options_of)
def test_any_network(network, size, options):
    mask_logits, class_logits, activation = network
    options = panoptic_options(options, class_logits, activation)
    compare(mask_logits, class_logits, size, activation=activation, **options)


@settings(max_examples=50)
@given(
    network=networks(),
    frame=st.tuples(sides, sides),
    target=st.tuples(sides, sides),
    options=panoptic_options_of,
)
def test_any_letterbox(network, frame, target, options):
    mask_logits, class_logits, activation = network
    options = panoptic_options(options, class_logits, activation)
    letterbox = fai_fast.Letterbox.fit(frame, target)
    compare(mask_logits, class_logits, frame, letterbox=letterbox, activation=activation, **options)


@settings(max_examples=12)
@given(
    network=networks(queries=st.sampled_from([254, 255, 256, 257, 300]), side=st.integers(1, 10)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    options=panoptic_options_of,
)
def test_many_queries(network, size, options):
    mask_logits, class_logits, activation = network
    options = panoptic_options(options, class_logits, activation)
    compare(mask_logits, class_logits, size, activation=activation, **options)


@WEIGHTED
@pytest.mark.parametrize("mask_dtype", [np.float32, np.float16])
@pytest.mark.parametrize("class_dtype", [np.float32, np.float16])
def test_every_precision(weighted, mask_dtype, class_dtype):
    mask_logits, class_logits = scenes.blobs(3, queries=12, grid=(20, 28), objects=6)
    options = {"threshold": 0.3, "overlap_threshold": 0.4, "weighted": weighted}
    found = compare(mask_logits.astype(mask_dtype), class_logits.astype(class_dtype), (61, 85), **options)
    assert len(found) > 2


@WEIGHTED
@pytest.mark.parametrize("queries", [30, 300])
def test_a_camera_frame_of_objects(weighted, queries):
    """Of labels of one byte and of two; some segments are fused, and some are none."""
    mask_logits, class_logits = scenes.blobs(
        7, queries=queries, grid=(40, 40), objects=14, classes=4, dtype=np.float16
    )
    options = {"threshold": 0.3, "weighted": weighted}
    things = compare(mask_logits, class_logits, (1080, 1920), overlap_threshold=0.1, **options)
    fewer = compare(mask_logits, class_logits, (1080, 1920), overlap_threshold=0.3, **options)
    fused = compare(
        mask_logits, class_logits, (1080, 1920), overlap_threshold=0.1, stuff=[0, 1, 2, 3], **options
    )
    assert len(things) > len(fewer) >= 3
    assert len(things) > len(fused) >= 2
    assert fused.area.sum() == things.area.sum() > fewer.area.sum()


@WEIGHTED
def test_large_cells(weighted):
    """Of many pixels each, where the contest's tiles are few."""
    rng = np.random.default_rng(4)
    masks = rng.normal(0, 3, (6, 2, 3)).astype(np.float32)
    classes = rng.normal(0, 3, (6, 5)).astype(np.float32)
    options = {"threshold": 0.1, "mask_threshold": 0.2, "overlap_threshold": 0.1, "weighted": weighted}
    assert len(compare(masks, classes, (300, 411), **options)) >= 1


@pytest.mark.parametrize("queries", [41, 300])
@WEIGHTED
def test_more_contestants_than_are_kept_at_hand(weighted, queries):
    """Every query is as good as every other, so that none can be left out of a tile."""
    rng = np.random.default_rng(8)
    masks = rng.normal(0, 0.2, (queries, 12, 10)).astype(np.float32)
    classes = np.zeros((queries, 3), np.float32)
    classes[:, 0] = 4 + rng.normal(0, 0.01, queries)
    options = {"threshold": 0.5, "mask_threshold": 0.5, "overlap_threshold": 0.01, "weighted": weighted}
    found = compare(masks, classes, (50, 43), **options)
    assert len(found) > 15
    fused = compare(masks, classes, (50, 43), stuff=[0], **options)
    assert len(fused) == 1
    assert fused.area[0] == found.area.sum()


@WEIGHTED
@pytest.mark.parametrize("logits_size", [None, (23, 31)])
def test_logits_are_what_is_interpolated(weighted, logits_size):
    """As EoMT's segments are; on the CPU it is what the reference says."""
    for seed in range(4):
        mask_logits, class_logits = scenes.blobs(seed, queries=14, grid=(16, 18), objects=8, classes=4)
        rules = Panoptic(stuff=(0, 2), overlap_threshold=0.2, weighted=weighted)
        resampling = fai_fast.Resampling(logits_size, of="logits")
        common = {"threshold": 0.3, "panoptic": rules, "resampling": resampling}
        cpu = fai_fast.postprocess(mask_logits, class_logits, (60, 71), **common)
        truth = reference_panoptic.panoptic(
            mask_logits,
            class_logits,
            (60, 71),
            threshold=0.3,
            stuff=rules.stuff,
            overlap_threshold=0.2,
            weighted=weighted,
            logits_size=logits_size,
            of_logits=True,
        )
        assert not truth.unclear
        reference_panoptic.assert_matches(truth, cpu)
        plain = Rules(panoptic=rules, resampling=resampling).plain()
        graph = gpu.with_logits(mask_logits, class_logits, semantic=True, rules=plain)
        ours = gpu.detect(graph, np.zeros((60, 71, 3), np.uint8), threshold=0.3)
        gpu.same(ours, gpu.Expected(cpu, None if gpu.EMULATOR else truth))


def test_nobody():
    mask_logits, class_logits = scenes.noise(1, queries=7, grid=(8, 8))
    found = compare(mask_logits, class_logits, (31, 47), threshold=1.0)
    assert len(found) == 0
    assert (found.label_map == -1).all()


def test_frames_of_one_graph_follow_each_other():
    """Nothing of a frame is left in the next: sizes, thresholds and logits change."""
    rules = Panoptic(stuff=(0, 2), overlap_threshold=0.3)
    graph = None
    for seed, size, threshold in (
        (1, (60, 80), 0.3),
        (2, (31, 200), 0.6),
        (3, (60, 80), 0.99),
        (4, (90, 40), 0.2),
    ):
        mask_logits, class_logits = scenes.blobs(seed, queries=14, grid=(16, 18), objects=8, classes=4)
        if graph is None:
            graph = graph_of(mask_logits, class_logits, rules)
        _core.copy_to_device(graph.mask_logits, mask_logits)
        _core.copy_to_device(graph.class_logits, class_logits)
        ours = gpu.detect(graph, np.zeros((*size, 3), np.uint8), threshold=threshold)
        gpu.same(ours, gpu.expected(mask_logits, class_logits, size, threshold=threshold, panoptic=rules))


def test_images_of_a_batch_are_apart():
    images = [scenes.blobs(seed, queries=10, grid=(16, 18), objects=7, classes=3) for seed in range(3)]
    masks, classes = (np.stack(arrays) for arrays in zip(*images, strict=True))
    rules = Panoptic(stuff=(1,), overlap_threshold=0.3)
    graph = graph_of(masks, classes, rules)
    sizes = [(40, 50), (33, 31), (64, 64)]
    gpu.submit(graph, [gpu.item(np.zeros((*size, 3), np.uint8)) for size in sizes], threshold=0.3)
    for found, mask, class_, size in zip(gpu.take(graph), masks, classes, sizes, strict=True):
        gpu.same(found, gpu.expected(mask, class_, size, threshold=0.3, panoptic=rules))


def test_boolean_masks_on_the_device_are_of_segments():
    mask_logits, class_logits = scenes.blobs(7, queries=20, grid=(24, 24), objects=12, classes=3)
    rules = Panoptic(stuff=(0, 1), overlap_threshold=0.3)
    graph = graph_of(mask_logits, class_logits, rules)
    gpu.submit(graph, [gpu.item(np.zeros((50, 70, 3), np.uint8))], threshold=0.3)
    [found] = gpu.take(graph, masks_device=True)
    assert len(found) >= 2
    interface = found.masks_device.__cuda_array_interface__
    there = gpu.download(interface["data"][0], interface["shape"], np.bool_)
    np.testing.assert_array_equal(there, found.mask)


def test_the_mask_score_is_refused():
    mask_logits, class_logits = scenes.blobs(7, queries=6, grid=(24, 24))
    graph = graph_of(mask_logits, class_logits, Panoptic())
    with pytest.raises(ValueError, match="use_mask_score: got True with panoptic, expected False"):
        gpu.submit(graph, [gpu.item(np.zeros((50, 70, 3), np.uint8))], use_mask_score=True)
