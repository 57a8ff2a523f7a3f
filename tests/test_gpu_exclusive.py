"""Instances that compete for pixels with their logits, of the CUDA kernels against the CPU's: the same to the bit."""

from __future__ import annotations

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
from fai_fast import Resampling, _core
from fai_fast._rules import Rules
from helpers import gpu, scenes
from helpers.logits import exclusive_options_of, networks
from hypothesis import given, settings

pytestmark = gpu.needed

sides = st.integers(1, 50) | st.sampled_from([1, 2, 63, 64, 65, 129])


def graph_of(
    mask_logits, class_logits, *, multi_label=True, overlap_threshold=0.8, logits_size=None, **options
):
    resampling = Resampling(logits_size, of="logits")
    rules = Rules(multi_label=multi_label, resampling=resampling, overlap_threshold=overlap_threshold)
    return gpu.with_logits(mask_logits, class_logits, rules=rules.plain(), **options)


def cpu_of(mask_logits, class_logits, size, *, activation="softmax", logits_size=None, **options):
    options = {"multi_label": True, "overlap_threshold": 0.8, **options}
    resampling = Resampling(logits_size, of="logits")
    return fai_fast.postprocess(
        mask_logits, class_logits, size, class_activation=activation, resampling=resampling, **options
    )


def compare(mask_logits, class_logits, size, *, letterbox=None, activation="softmax", **options):
    """Runs both, and returns the GPU's result."""
    thresholds = {name: options.pop(name) for name in ("threshold", "mask_threshold") if name in options}
    input_size = (8, 8) if letterbox is None else letterbox.input
    graph = graph_of(mask_logits, class_logits, activation=activation, size=input_size, **options)
    resize = "stretch" if letterbox is None else "letterbox"
    ours = gpu.detect(graph, np.zeros((*size, 3), np.uint8), resize=resize, **thresholds)
    cpu = cpu_of(
        mask_logits, class_logits, size, activation=activation, letterbox=letterbox, **options, **thresholds
    )
    gpu.same_rows(ours, cpu)
    if gpu.EMULATOR is not None:
        np.testing.assert_array_equal(ours.confidence, cpu.confidence)
        np.testing.assert_array_equal(ours.mask, cpu.mask)
    return ours


@settings(max_examples=120)
@given(network=networks(), size=st.tuples(sides, sides), options=exclusive_options_of)
def test_any_network(network, size, options):
    mask_logits, class_logits, activation = network
    compare(mask_logits, class_logits, size, activation=activation, **options)


@settings(max_examples=50)
@given(
    network=networks(),
    frame=st.tuples(sides, sides),
    target=st.tuples(sides, sides),
    logits_size=st.none() | st.tuples(sides, sides),
    options=exclusive_options_of,
)
def test_any_letterbox(network, frame, target, logits_size, options):
    mask_logits, class_logits, activation = network
    letterbox = fai_fast.Letterbox.fit(frame, target)
    compare(
        mask_logits,
        class_logits,
        frame,
        letterbox=letterbox,
        activation=activation,
        logits_size=logits_size,
        **options,
    )


@settings(max_examples=12)
@given(
    network=networks(queries=st.sampled_from([254, 255, 256, 257, 300]), side=st.integers(1, 10)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    options=exclusive_options_of,
)
def test_many_queries(network, size, options):
    mask_logits, class_logits, activation = network
    compare(mask_logits, class_logits, size, activation=activation, **options)


@pytest.mark.parametrize("mask_dtype", [np.float32, np.float16])
@pytest.mark.parametrize("class_dtype", [np.float32, np.float16])
def test_every_precision(mask_dtype, class_dtype):
    mask_logits, class_logits = scenes.blobs(3, queries=12, grid=(20, 28), objects=6, classes=4)
    options = {"threshold": 0.2, "overlap_threshold": 0.1}
    found = compare(mask_logits.astype(mask_dtype), class_logits.astype(class_dtype), (61, 85), **options)
    assert len(found) > 2


@pytest.mark.parametrize("queries", [30, 300])
def test_a_camera_frame_of_objects(queries):
    """Of labels of one byte and of two."""
    mask_logits, class_logits = scenes.blobs(
        7, queries=queries, grid=(40, 40), objects=14, classes=4, dtype=np.float16
    )
    more = compare(mask_logits, class_logits, (1080, 1920), threshold=0.3, overlap_threshold=0.05)
    fewer = compare(mask_logits, class_logits, (1080, 1920), threshold=0.3, overlap_threshold=0.2)
    assert len(more) > len(fewer) >= 1


@pytest.mark.parametrize("classes", [2, 300])
def test_pairs_are_more_than_queries(classes):
    """Of equal ones those of the first queries and classes are taken, beyond the threads of a block too."""
    rng = np.random.default_rng(4)
    masks = rng.normal(0, 3, (9, 6, 5)).astype(np.float32)
    logits = np.zeros((9, classes), np.float32)
    logits[:, [0, classes - 1]] = 1
    options = {"activation": "sigmoid", "threshold": 0.0, "overlap_threshold": 0.0, "mask_threshold": -1.0}
    found = compare(masks, logits, (20, 30), **options)
    assert len(found) >= 2


@pytest.mark.parametrize("queries", [41, 300])
def test_more_contestants_than_are_kept_at_hand(queries):
    """Every query is as good as every other, so that none can be left out of a tile."""
    rng = np.random.default_rng(8)
    masks = (1 + rng.normal(0, 0.2, (queries, 12, 10))).astype(np.float32)
    classes = np.zeros((queries, 3), np.float32)
    classes[:, 0] = 4 + rng.normal(0, 0.01, queries)
    found = compare(masks, classes, (50, 43), overlap_threshold=0.001)
    assert len(found) > 15


def test_large_cells():
    """Of many pixels each, where the contest's tiles are few."""
    rng = np.random.default_rng(4)
    masks = rng.normal(0, 3, (6, 2, 3)).astype(np.float32)
    classes = rng.normal(0, 3, (6, 5)).astype(np.float32)
    found = compare(masks, classes, (300, 411), threshold=0.1, mask_threshold=0.2, overlap_threshold=0.1)
    assert len(found) >= 1


def test_nobody():
    mask_logits, class_logits = scenes.noise(1, queries=7, grid=(8, 8))
    assert len(compare(mask_logits, class_logits, (31, 47), threshold=1.0)) == 0


def test_frames_of_one_graph_follow_each_other():
    """Nothing of a frame is left in the next: sizes, thresholds and logits change, and masks outgrow their room."""
    graph = None
    for seed, size, threshold in (
        (1, (60, 80), 0.3),
        (2, (31, 200), 0.1),
        (3, (60, 80), 0.99),
        (4, (900, 1300), 0.2),
        (5, (90, 40), 0.2),
    ):
        mask_logits, class_logits = scenes.blobs(seed, queries=14, grid=(16, 18), objects=8, classes=4)
        if graph is None:
            graph = graph_of(mask_logits, class_logits, overlap_threshold=0.1)
        _core.copy_to_device(graph.mask_logits, mask_logits)
        _core.copy_to_device(graph.class_logits, class_logits)
        ours = gpu.detect(graph, np.zeros((*size, 3), np.uint8), threshold=threshold)
        gpu.same_rows(
            ours, cpu_of(mask_logits, class_logits, size, threshold=threshold, overlap_threshold=0.1)
        )


def test_images_of_a_batch_are_apart():
    images = [scenes.blobs(seed, queries=10, grid=(16, 18), objects=7, classes=3) for seed in range(3)]
    masks, classes = (np.stack(arrays) for arrays in zip(*images, strict=True))
    graph = graph_of(masks, classes, overlap_threshold=0.1)
    sizes = [(40, 50), (33, 31), (64, 64)]
    gpu.submit(graph, [gpu.item(np.zeros((*size, 3), np.uint8)) for size in sizes], threshold=0.2)
    for found, mask, class_, size in zip(gpu.take(graph), masks, classes, sizes, strict=True):
        gpu.same_rows(found, cpu_of(mask, class_, size, threshold=0.2, overlap_threshold=0.1))


def test_boolean_masks_on_the_device_are_of_instances():
    mask_logits, class_logits = scenes.blobs(7, queries=20, grid=(24, 24), objects=12, classes=3)
    class_logits[:, :2] = class_logits.max(axis=1, keepdims=True)
    graph = graph_of(mask_logits, class_logits, overlap_threshold=0.1)
    gpu.submit(graph, [gpu.item(np.zeros((50, 70, 3), np.uint8))], threshold=0.3)
    [found] = gpu.take(graph, masks_device=True)
    assert len(found) >= 2
    interface = found.masks_device.__cuda_array_interface__
    there = gpu.download(interface["data"][0], interface["shape"], np.bool_)
    np.testing.assert_array_equal(there, found.mask)


def test_what_the_device_has_no_room_for_is_refused():
    with pytest.raises(ValueError, match="mask_logits' queries: got 1025, expected 1 to 1024"):
        graph_of(np.zeros((1025, 2, 2), np.float32), np.zeros((1025, 3), np.float32))


def test_the_mask_score_is_refused():
    mask_logits, class_logits = scenes.blobs(7, queries=6, grid=(24, 24))
    graph = graph_of(mask_logits, class_logits)
    with pytest.raises(ValueError, match="use_mask_score: got True with overlap_threshold, expected False"):
        gpu.submit(graph, [gpu.item(np.zeros((50, 70, 3), np.uint8))], use_mask_score=True)
