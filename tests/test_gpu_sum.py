"""Semantic results by sum on the GPU: the CPU's, to the last bit."""

from __future__ import annotations

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from helpers import gpu, scenes
from helpers.logits import networks
from helpers.results import same_bits
from hypothesis import given, settings

pytestmark = gpu.needed

sides = st.integers(1, 50) | st.sampled_from([1, 2, 63, 64, 65, 129])
BY_SUM = {"by_sum": True}


def same(ours, mask_logits, class_logits, size, *, letterbox=None, activation="softmax", threshold=0.5):
    """The emulator's result is the CPU's bit for bit; a real GPU may decide otherwise where rounding does."""
    options = {"threshold": threshold, "class_activation": activation}
    if gpu.EMULATOR is None:
        box = letterbox and (letterbox.input, letterbox.content, letterbox.offset)
        truth = reference.semantic_sums(mask_logits, class_logits, size, letterbox=box, **options)
        reference.assert_sums_match(truth, ours)
        return
    cpu = fai_fast.postprocess(
        mask_logits,
        class_logits,
        size,
        letterbox=letterbox,
        predict_all_pixels=True,
        combine="sum",
        **options,
    )
    same_bits(ours, cpu)


def compare(mask_logits, class_logits, size, *, letterbox=None, activation="softmax", threshold=0.5):
    """Runs both, and returns the GPU's result."""
    graph = gpu.with_logits(
        mask_logits,
        class_logits,
        semantic=True,
        activation=activation,
        rules=BY_SUM,
        size=(8, 8) if letterbox is None else letterbox.input,
    )
    frame = np.zeros((*size, 3), np.uint8)
    resize = "stretch" if letterbox is None else "letterbox"
    ours = gpu.detect(graph, frame, resize=resize, threshold=threshold)
    same(
        ours, mask_logits, class_logits, size, letterbox=letterbox, activation=activation, threshold=threshold
    )
    return ours


@settings(max_examples=80)
@given(
    network=networks(), size=st.tuples(sides, sides), threshold=st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0])
)
def test_any_network(network, size, threshold):
    mask_logits, class_logits, activation = network
    compare(mask_logits, class_logits, size, activation=activation, threshold=threshold)


@settings(max_examples=40)
@given(network=networks(), frame=st.tuples(sides, sides), target=st.tuples(sides, sides))
def test_any_letterbox(network, frame, target):
    mask_logits, class_logits, activation = network
    letterbox = fai_fast.Letterbox.fit(frame, target)
    compare(mask_logits, class_logits, frame, letterbox=letterbox, activation=activation, threshold=0.05)


@pytest.mark.parametrize("queries", [127, 128, 129, 300, 1024])
def test_more_queries_than_are_at_hand(queries):
    mask_logits, class_logits = scenes.noise(3, queries=queries, grid=(9, 11), classes=5)
    assert len(compare(mask_logits, class_logits, (20, 31), threshold=0.0)) > 1


@pytest.mark.parametrize("classes", [1, 2, 40, 41, 80, 81, 120, 254, 255, 256, 300, 2048])
@pytest.mark.parametrize("spread", [0.02, 4.0])
def test_any_number_of_classes(classes, spread):
    """With a small spread no class can be left out of a tile, so that more compete than are kept at hand."""
    rng = np.random.default_rng(classes)
    masks = rng.normal(0, 1, (6, 9, 10)).astype(np.float32)
    logits = (spread * rng.standard_normal((6, classes + 1))).astype(np.float32)
    found = compare(masks, logits, (37, 29), threshold=-1.0)
    assert len(found) >= 1


@pytest.mark.parametrize("mask_dtype", [np.float32, np.float16])
@pytest.mark.parametrize("class_dtype", [np.float32, np.float16])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_every_precision(mask_dtype, class_dtype, activation):
    mask_logits, class_logits = scenes.blobs(3, queries=12, grid=(20, 28), objects=6)
    found = compare(
        mask_logits.astype(mask_dtype),
        class_logits.astype(class_dtype)[:, : None if activation == "softmax" else -1],
        (61, 85),
        activation=activation,
        threshold=0.0,
    )
    assert len(found) > 2


@pytest.mark.parametrize("grid", [(1, 1), (1, 70), (70, 1), (3, 33), (9, 8)])
@pytest.mark.parametrize("size", [(29, 41), (1, 97), (130, 1), (3, 2)])
def test_any_grid(grid, size):
    mask_logits, class_logits = scenes.noise(4, queries=5, grid=grid)
    compare(mask_logits, class_logits, size, threshold=0.0)


def test_a_camera_frame_of_objects():
    mask_logits, class_logits = scenes.blobs(7, queries=20, grid=(40, 40), objects=10, dtype=np.float16)
    assert len(compare(mask_logits, class_logits, (270, 480), threshold=0.2)) >= 3


@pytest.mark.parametrize("value", [0.0, 5.0, -200.0, -np.inf, np.inf])
@pytest.mark.parametrize("classes", [7, 50])
def test_ties_go_to_the_first_class(value, classes):
    masks = np.full((3, 9, 9), value, np.float32)
    found = compare(masks, np.zeros((3, classes + 1), np.float32), (20, 33), threshold=-1.0)
    assert found.class_id.tolist() == [0]
    assert found.mask.all()


def test_nan_takes_its_query_out_and_no_other():
    mask_logits, class_logits = scenes.blobs(10, queries=9, grid=(16, 17), objects=9)
    mask_logits[1, 7, 5] = mask_logits[4, 15, 16] = np.nan
    class_logits[6, 0] = class_logits[7, -1] = np.nan
    class_logits[8, 3] = np.inf
    assert len(compare(mask_logits, class_logits, (40, 50), threshold=0.0)) > 1


@pytest.mark.parametrize("classes", [4, 60])
def test_nothing_but_nan(classes):
    masks = np.full((5, 6, 7), np.nan, np.float32)
    found = compare(masks, np.zeros((5, classes + 1), np.float32), (19, 23), threshold=-1.0)
    assert len(found) == 0
    assert (found.label_map == -1).all()


def test_a_batch_with_fewer_frames_than_images():
    pairs = [scenes.blobs(seed, queries=8, grid=(14, 15), objects=5) for seed in range(3)]
    masks, classes = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    graph = gpu.with_logits(masks, classes, semantic=True, rules=BY_SUM, size=(16, 16))
    shapes = [(30, 40), (17, 70), (64, 5)]
    for count in (3, 1, 2, 3):
        frames = [np.zeros((*shape, 3), np.uint8) for shape in shapes[:count]]
        gpu.submit(graph, [gpu.item(frame) for frame in frames], threshold=0.1)
        found = gpu.take(graph)
        assert len(found) == count
        for index, ours in enumerate(found):
            same(ours, masks[index], classes[index], shapes[index], threshold=0.1)


@pytest.mark.parametrize("classes", [7, 300])
def test_masks_in_the_memory_of_the_gpu(classes):
    mask_logits, class_logits = scenes.noise(5, queries=8, grid=(12, 13), classes=classes)
    graph = gpu.with_logits(mask_logits, class_logits, semantic=True, rules=BY_SUM)
    gpu.submit(graph, [gpu.item(np.zeros((30, 45, 3), np.uint8))], threshold=-1.0)
    [found] = gpu.take(graph, masks_device=True)
    interface = found.masks_device.__cuda_array_interface__
    there = gpu.download(interface["data"][0], interface["shape"], np.uint8)
    assert len(found) > 2
    np.testing.assert_array_equal(there.astype(bool), found.mask)


@gpu.emulated
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_logits_that_are_resized_first(dtype, resize):
    mask_logits, class_logits = scenes.blobs(3, queries=12, grid=(20, 28), objects=6, dtype=dtype)
    size = (61, 85)
    letterbox = fai_fast.Letterbox.fit(size, (40, 40)) if resize == "letterbox" else None
    graph = gpu.with_logits(
        mask_logits, class_logits, semantic=True, rules={**BY_SUM, "logits_size": (45, 50)}, size=(40, 40)
    )
    ours = gpu.detect(graph, np.zeros((*size, 3), np.uint8), resize=resize, threshold=0.0)
    cpu = fai_fast.postprocess(
        mask_logits,
        class_logits,
        size,
        letterbox=letterbox,
        predict_all_pixels=True,
        combine="sum",
        threshold=0.0,
        resampling=fai_fast.Resampling(logits_size=(45, 50)),
    )
    assert len(ours) > 2
    same_bits(ours, cpu)


def test_what_cannot_be_done_is_refused():
    shapes = (3, 5, 5), (3, 2050)
    with pytest.raises(ValueError, match=r"class_logits: got 2049 classes with combine='sum' on a GPU"):
        gpu.frame_graph(*shapes, predict_all_pixels=True, rules=BY_SUM)
    graph = gpu.frame_graph(shapes[0], (3, 4), predict_all_pixels=True, rules=BY_SUM)
    assert graph.capture(lambda stream: None) is None
    with pytest.raises(ValueError, match=r"use_mask_score: got True with combine='sum'"):
        gpu.submit(graph, [gpu.item(np.zeros((9, 9, 3), np.uint8))], use_mask_score=True)
