"""Other libraries' ways from logits to masks on the GPU: the same as on the CPU, which test_resampling.py holds against
the truth."""

from __future__ import annotations

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
from fai_fast import Resampling
from fai_fast._rules import Rules
from helpers import gpu, scenes
from helpers.logits import networks, options_of
from hypothesis import given, settings

pytestmark = gpu.needed

sides = st.integers(1, 40)
resamplings = st.builds(
    Resampling,
    logits_size=st.none() | st.tuples(sides, sides),
    of=st.sampled_from(["probabilities", "logits"]),
    nearest=st.booleans(),
)


def graph_of(mask_logits, class_logits, *, resampling, multi_label=False, size=(8, 8), **options):
    rules = Rules(multi_label=multi_label, resampling=resampling).plain()
    return gpu.with_logits(mask_logits, class_logits, size=size, rules=rules, **options)


def compare(
    mask_logits,
    class_logits,
    size,
    *,
    resampling=None,
    multi_label=False,
    activation="softmax",
    letterbox=None,
    resize="stretch",
    predict_all_pixels=False,
    **options,
):
    """Runs both, and returns the GPU's result."""
    resampling = Resampling() if resampling is None else resampling
    graph = graph_of(
        mask_logits,
        class_logits,
        resampling=resampling,
        multi_label=multi_label,
        activation=activation,
        semantic=predict_all_pixels,
        size=(8, 8) if letterbox is None else letterbox.input,
    )
    ours = gpu.detect(graph, np.zeros((*size, 3), np.uint8), resize=resize, **options)
    cpu = fai_fast.postprocess(
        mask_logits,
        class_logits,
        size,
        resampling=resampling,
        multi_label=multi_label,
        class_activation=activation,
        letterbox=letterbox,
        predict_all_pixels=predict_all_pixels,
        **options,
    )
    gpu.same_rows(ours, cpu)
    return ours


@settings(max_examples=120)
@given(
    network=networks(),
    size=st.tuples(sides, sides),
    resampling=resamplings,
    multi_label=st.booleans(),
    options=options_of,
)
def test_any_instances(network, size, resampling, multi_label, options):
    mask_logits, class_logits, activation = network
    options = {**options, "predict_all_pixels": False}
    compare(
        mask_logits,
        class_logits,
        size,
        resampling=resampling,
        multi_label=multi_label,
        activation=activation,
        **options,
    )


@settings(max_examples=80)
@given(
    network=networks(),
    frame=st.tuples(sides, sides),
    target=st.tuples(sides, sides),
    resize=st.sampled_from(["letterbox", "pad"]),
    resampling=resamplings,
    options=options_of,
)
def test_any_part_of_the_input(network, frame, target, resize, resampling, options):
    mask_logits, class_logits, activation = network
    options = {**options, "predict_all_pixels": False}
    compare(
        mask_logits,
        class_logits,
        frame,
        letterbox=fai_fast.Letterbox.fit(frame, target, resize),
        resize=resize,
        resampling=resampling,
        activation=activation,
        **options,
    )


@settings(max_examples=60)
@given(
    network=networks(),
    frame=st.tuples(sides, sides),
    target=st.tuples(sides, sides),
    resize=st.sampled_from(["letterbox", "pad"]),
    logits_size=st.tuples(sides, sides),
    options=options_of,
)
def test_any_semantic_result_of_resized_logits(network, frame, target, resize, logits_size, options):
    mask_logits, class_logits, activation = network
    options = {**options, "predict_all_pixels": True}
    compare(
        mask_logits,
        class_logits,
        frame,
        letterbox=fai_fast.Letterbox.fit(frame, target, resize),
        resize=resize,
        resampling=Resampling(logits_size),
        activation=activation,
        **options,
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    "resampling",
    [Resampling((96, 96), nearest=True), Resampling(nearest=True), Resampling((128, 128), of="logits")],
    ids=["mask2former", "maskformer", "eomt"],
)
def test_a_scene(resampling, dtype):
    mask_logits, class_logits = scenes.blobs(3, queries=30, grid=(40, 48), objects=12, dtype=dtype)
    found = compare(
        mask_logits,
        class_logits,
        (270, 480),
        letterbox=fai_fast.Letterbox.fit((270, 480), (128, 128), "pad"),
        resize="pad",
        resampling=resampling,
        multi_label=True,
        use_mask_score=True,
        threshold=0.2,
    )
    assert len(found) >= 6


def test_frames_of_several_shapes_through_one_graph():
    """A shape's nodes are fewer than the grid's: none of the frame before may be left."""
    mask_logits, class_logits = scenes.blobs(4, queries=12, grid=(20, 20), objects=6)
    resampling = Resampling((33, 31), nearest=True)
    graph = graph_of(mask_logits, class_logits, resampling=resampling, size=(64, 64))
    for size in ((50, 50), (20, 90), (90, 20), (50, 50)):
        ours = gpu.detect(
            graph, np.zeros((*size, 3), np.uint8), resize="pad", threshold=0.2, use_mask_score=True
        )
        cpu = fai_fast.postprocess(
            mask_logits,
            class_logits,
            size,
            letterbox=fai_fast.Letterbox.fit(size, (64, 64), "pad"),
            resampling=resampling,
            threshold=0.2,
            use_mask_score=True,
        )
        assert len(cpu) > 2
        gpu.same_rows(ours, cpu)


def test_images_of_a_batch_have_pairs_of_their_own():
    pictures = [scenes.blobs(seed, queries=12, grid=(20, 20), objects=6, classes=5) for seed in (5, 6, 7)]
    mask_logits, class_logits = (np.stack(arrays) for arrays in zip(*pictures, strict=True))
    rng = np.random.default_rng(8)
    class_logits = (0.5 * rng.standard_normal(class_logits.shape)).astype(np.float16)
    class_logits[:, ::2, :2] += 2
    graph = graph_of(mask_logits, class_logits, resampling=Resampling(), multi_label=True)
    size = (40, 50)
    for _ in range(2):
        gpu.submit(graph, [gpu.item(np.zeros((*size, 3), np.uint8)) for _ in range(3)], threshold=0.1)
        found = gpu.take(graph)
        assert len(found) == 3
        for image, ours in enumerate(found):
            cpu = fai_fast.postprocess(
                mask_logits[image], class_logits[image], size, threshold=0.1, multi_label=True
            )
            assert len(cpu) > len(set(cpu.query.tolist()))
            gpu.same_rows(ours, cpu)


def test_the_best_pairs_are_kept():
    mask_logits, class_logits = scenes.blobs(9, queries=12, grid=(20, 20), objects=6, classes=5)
    class_logits = (2 * np.random.default_rng(10).standard_normal(class_logits.shape)).astype(np.float32)
    graph = graph_of(mask_logits, class_logits, resampling=Resampling(), multi_label=True)
    frame = np.zeros((40, 50, 3), np.uint8)
    gpu.submit(graph, [gpu.item(frame)], threshold=0.2)
    [everything] = gpu.take(graph)
    gpu.submit(graph, [gpu.item(frame)], threshold=0.2)
    [best] = gpu.take(graph, top_k=3)
    gpu.same_rows(best, everything[:3])
