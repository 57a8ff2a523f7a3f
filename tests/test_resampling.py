"""How other libraries get from logits to masks: against the float64 reference, and against transformers' processors."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import torch
from fai_fast import Resampling
from fai_fast.ops import raw_queries
from helpers import scenes
from helpers.logits import networks, options_of, sides
from hypothesis import given, settings

INSTANCES = {"predict_all_pixels": False}
RESAMPLINGS = [
    Resampling((29, 37)),
    Resampling(of="logits"),
    Resampling((40, 40), of="logits"),
    Resampling(nearest=True),
    Resampling((33, 20), nearest=True),
    Resampling((12, 9), of="logits", nearest=True),
]
IDS = ["size", "logits", "both", "nearest", "size-nearest", "all"]


def plain(letterbox):
    return letterbox and (letterbox.input, letterbox.content, letterbox.offset)


def truth_of(mask_logits, class_logits, size, *, resampling, letterbox=None, **options):
    return reference.postprocess(
        mask_logits,
        class_logits,
        size,
        letterbox=plain(letterbox),
        logits_size=resampling.logits_size,
        of_logits=resampling.of == "logits",
        use_nearest=resampling.nearest,
        **options,
    )


def check(mask_logits, class_logits, size, **options):
    result = fai_fast.postprocess(mask_logits, class_logits, size, **options)
    reference.assert_matches(truth_of(mask_logits, class_logits, size, **options), result)
    return result


resamplings = st.builds(
    Resampling,
    logits_size=st.none() | st.tuples(sides, sides),
    of=st.sampled_from(["probabilities", "logits"]),
    nearest=st.booleans(),
)


@settings(max_examples=150)
@given(network=networks(), size=st.tuples(sides, sides), resampling=resamplings, options=options_of)
def test_any_instances(network, size, resampling, options):
    mask_logits, class_logits, activation = network
    options |= INSTANCES
    check(mask_logits, class_logits, size, class_activation=activation, resampling=resampling, **options)


@settings(max_examples=100)
@given(
    network=networks(),
    frame=st.tuples(sides, sides),
    target=st.tuples(sides, sides),
    resampling=resamplings,
    options=options_of,
)
def test_any_letterboxed_instances(network, frame, target, resampling, options):
    mask_logits, class_logits, activation = network
    options |= INSTANCES
    letterbox = fai_fast.Letterbox.fit(frame, target)
    check(
        mask_logits,
        class_logits,
        frame,
        class_activation=activation,
        letterbox=letterbox,
        resampling=resampling,
        **options,
    )


@pytest.mark.parametrize("use_mask_score", [False, True])
@pytest.mark.parametrize("resampling", RESAMPLINGS, ids=IDS)
@pytest.mark.parametrize("size", [(160, 160), (161, 443), (50, 30)])
def test_realistic_instances(resampling, size, use_mask_score):
    mask_logits, class_logits = scenes.blobs(3, queries=16, grid=(60, 80), objects=12)
    result = check(
        mask_logits,
        class_logits,
        size,
        use_mask_score=use_mask_score,
        threshold=0.3,
        resampling=resampling,
    )
    assert len(result) >= 6


def noise(spread, queries=12, grid=(24, 30)):
    """Masks full of boundaries, as of random weights, and sure classes."""
    rng = np.random.default_rng(int(10 * spread))
    class_logits = (3 * rng.standard_normal((queries, 5))).astype(np.float32)
    return (spread * rng.standard_normal((queries, *grid))).astype(np.float32), class_logits


@pytest.mark.parametrize("use_mask_score", [False, True])
@pytest.mark.parametrize("resampling", RESAMPLINGS, ids=IDS)
@pytest.mark.parametrize("size", [(40, 40), (61, 443)])
def test_noise(resampling, size, use_mask_score):
    options = {"use_mask_score": use_mask_score, "threshold": 0.2, "resampling": resampling}
    assert len(check(*noise(2.0), size, **options)) >= 6


def test_pixels_at_an_edge_are_all_on_its_node():
    """As many pixels as nodes, none of them between two, but not one on each."""
    mask_logits = np.array([[[1.0, -1.0], [1.0, -1.0]], [[-1.0, 1.0], [1.0, -1.0]]], np.float32)
    class_logits = np.array([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]], np.float32)
    found = check(
        mask_logits,
        class_logits,
        (2, 2),
        letterbox=fai_fast.Letterbox((2, 2), (8, 8), (2, 2), (0, 0)),
        use_mask_score=True,
        resampling=Resampling(of="logits"),
    )
    assert found.query.tolist() == [0]
    assert found.area.tolist() == [4]


@pytest.mark.parametrize("mask_threshold", [0.5, 0.8, 0.2])
@pytest.mark.parametrize("spread", [0.3, 1.5, 20.0])
@pytest.mark.parametrize("resampling", RESAMPLINGS, ids=IDS)
def test_a_threshold_leaves_out_rows_and_changes_none(resampling, spread, mask_threshold):
    """Masks whose mean probability surely does not suffice are not drawn: as if they had been."""
    network, size = noise(spread), (40, 90)
    options = {"use_mask_score": True, "mask_threshold": mask_threshold, "resampling": resampling}
    rows = fai_fast.postprocess(*network, size, threshold=0.0, **options)
    if mask_threshold == 0.5:
        assert len(rows) == len(network[0])
    between = (rows.confidence[1:].astype(np.float64) + rows.confidence[:-1]) / 2
    for threshold in [*rows.confidence.tolist(), *between.tolist()]:
        found = fai_fast.postprocess(*network, size, threshold=threshold, **options)
        assert found == rows[rows.confidence > np.float32(threshold)]


@settings(max_examples=60)
@given(
    network=networks(side=st.integers(1, 24)),
    size=st.tuples(sides, sides),
    logits_size=st.tuples(sides, sides),
)
def test_semantic_results_of_resized_logits(network, size, logits_size):
    mask_logits, class_logits, activation = network
    check(
        mask_logits,
        class_logits,
        size,
        class_activation=activation,
        predict_all_pixels=True,
        threshold=0.0,
        resampling=Resampling(logits_size),
    )


@settings(max_examples=60)
@given(network=networks(side=st.integers(1, 24)), size=st.tuples(sides, sides), use_mask_score=st.booleans())
def test_semantic_results_of_interpolated_logits(network, size, use_mask_score):
    mask_logits, class_logits, activation = network
    check(
        mask_logits,
        class_logits,
        size,
        class_activation=activation,
        predict_all_pixels=True,
        use_mask_score=use_mask_score,
        threshold=0.0,
        resampling=Resampling(of="logits"),
    )


# ------------------------------------------------------------------------------- several classes a query


@settings(max_examples=150)
@given(network=networks(), size=st.tuples(sides, sides), options=options_of)
def test_any_pairs(network, size, options):
    mask_logits, class_logits, activation = network
    options |= INSTANCES
    truth = reference.postprocess(mask_logits, class_logits, size, class_activation=activation, **options)
    found = fai_fast.postprocess(
        mask_logits, class_logits, size, class_activation=activation, multi_label=True, **options
    )
    assert list(zip(-found.confidence, found.query, found.class_id, strict=True)) == sorted(
        zip(-found.confidence, found.query, found.class_id, strict=True)
    )
    chosen, probability = reference.best_pairs(class_logits, activation, options["threshold"])
    pairs = {pair for pair in chosen if not truth.dropped[pair[0]]}
    ours = set(zip(found.query.tolist(), found.class_id.tolist(), strict=True))
    assert len(ours) == len(found)
    # Probabilities that float32 cannot tell from the last that is considered, or from the threshold.
    every = np.sort(probability[~np.isnan(probability)])[::-1]
    edges = [options["threshold"], *every[len(mask_logits) - 1 : len(mask_logits) + 1]]
    for query, class_id in pairs ^ ours:
        score = probability[query, class_id]
        area = truth.possible[query].sum() < 2 or truth.certain[query].sum() < 2
        fused = (
            options["use_mask_score"]
            and score * truth.score_range(query)[0] <= options["threshold"] * truth.class_score[query] + 1e-5
        )
        assert (query, class_id) in pairs or any(abs(score - edge) < 1e-6 for edge in edges)
        assert (query, class_id) in ours or area or fused or any(abs(score - edge) < 1e-6 for edge in edges)
    for query in set(found.query.tolist()):
        rows = np.flatnonzero(found.query == query)
        mask = found.mask[rows]
        assert (mask == mask[0]).all()
        wrong = (truth.certain[query] & ~mask[0]) | (mask[0] & ~truth.possible[query])
        assert not wrong.any()
        # Of a class without any probability there is no share to tell.
        if truth.class_score[query] <= 1e-6:
            continue
        share = truth.score(query, mask[0]) / truth.class_score[query]
        for row in rows:
            expected = share * probability[query, found.class_id[row]]
            assert found.confidence[row] == pytest.approx(expected, abs=1e-5)


def test_rows_of_a_query_share_its_mask():
    mask_logits, class_logits = scenes.blobs(1, queries=8, grid=(40, 40), objects=4)
    class_logits[:, :3] = class_logits.max(axis=1, keepdims=True)
    found = fai_fast.postprocess(mask_logits, class_logits, (300, 300), threshold=0.1, multi_label=True)
    one = fai_fast.postprocess(mask_logits, class_logits, (300, 300), threshold=0.1)
    assert len(found) > len(one) > 0
    rows = {}
    for query, mask in zip(found.query.tolist(), found.mask, strict=True):
        rows.setdefault(query, mask)
        np.testing.assert_array_equal(mask, rows[query])


@pytest.mark.parametrize("resampling", RESAMPLINGS, ids=IDS)
def test_raw_queries_are_resampled_as_rows_are(resampling):
    rng = np.random.default_rng(5)
    logits = rng.normal(-1, 4, (6, 12, 16)).astype(np.float32), rng.normal(0, 1, (6, 4)).astype(np.float32)
    class_ids, scores, masks = raw_queries(*logits, (37, 90), resampling=resampling)
    rows = fai_fast.postprocess(*logits, (37, 90), threshold=0.0, resampling=resampling, multi_label=True)
    assert len(set(rows.query.tolist())) < len(rows) == 6  # several of a query
    best: dict[int, tuple[float, int]] = {}
    for query, score, label, mask in zip(rows.query, rows.confidence, rows.class_id, rows.mask, strict=True):
        assert np.array_equal(masks[query] != -1, mask)
        best.setdefault(query, (score, label))
    assert best == {query: (scores[query], class_ids[query]) for query in best}
    assert not np.array_equal(raw_queries(*logits, (37, 90))[2], masks)


def test_equal_pairs_are_those_of_the_first_queries_and_classes():
    mask_logits = np.full((3, 4, 4), 5.0, np.float32)
    found = fai_fast.postprocess(
        mask_logits,
        np.zeros((3, 4), np.float32),
        (8, 8),
        threshold=0.3,
        class_activation="sigmoid",
        multi_label=True,
    )
    assert list(zip(found.query.tolist(), found.class_id.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 2)]


# --------------------------------------------------------------------------- as transformers' processors


def processor(family, name):
    module = pytest.importorskip(f"transformers.models.{family}", reason="transformers is not installed")
    if importlib.util.find_spec("torchvision") is None:
        # Most families have a second processor, which is written without it.
        name += "Pil"
        if not hasattr(module, name):
            pytest.skip(f"{family}'s processor needs torchvision, which is not installed")
    return getattr(module, name)()


def outputs(mask_logits, class_logits, **more):
    masks, classes = torch.from_numpy(mask_logits)[None], torch.from_numpy(class_logits)[None]
    return SimpleNamespace(
        masks_queries_logits=masks,
        class_queries_logits=classes,
        pred_masks=masks,
        logits=classes,
        **more,
    )


def scene(seed, queries=20, grid=(24, 32), classes=5, spread=2.0):
    """Logits that are smooth, as networks' are, with several classes a query."""
    rng = np.random.default_rng(seed)
    mask_logits, _ = scenes.blobs(seed, queries, grid, objects=queries // 2, classes=classes)
    return mask_logits, (rng.standard_normal((queries, classes)) * spread).astype(np.float32)


def same_instances(found, truth, segments, masks):
    """Rows that are theirs, in any order: classes, scores, and all pixels that rounding does not turn."""
    # A mask of one pixel is none here.
    theirs = sorted(
        (-info["score"], info["label_id"], index)
        for index, info in enumerate(segments)
        if masks[index].sum() >= 2
    )
    assert len(found) == len(theirs)
    for row, (score, label, index) in enumerate(theirs):
        assert found.class_id[row] == label
        assert found.confidence[row] == pytest.approx(-score, abs=2e-5)
        differ = found.mask[row] != masks[index]
        assert not (differ & (truth.margin[found.query[row]] > 1e-4)).any()


@pytest.mark.parametrize("size", [(480, 640), (131, 97), (384, 384), (30, 20)])
@pytest.mark.parametrize(
    ("family", "name", "logits_size"),
    [
        ("mask2former", "Mask2FormerImageProcessor", (384, 384)),
        ("maskformer", "MaskFormerImageProcessor", None),
    ],
)
def test_instances_of_mask2former_and_maskformer(family, name, logits_size, size):
    theirs = processor(family, name)
    mask_logits, class_logits = scene(5, classes=6)
    # Their default for what is inside: a logit above 0.
    options = {"use_mask_score": True, "threshold": 0.3, "resampling": Resampling(logits_size, nearest=True)}
    found = fai_fast.postprocess(mask_logits, class_logits, size, multi_label=True, **options)
    assert len(found) > len(set(found.query.tolist())) > 3
    [expected] = theirs.post_process_instance_segmentation(
        outputs(mask_logits, class_logits), threshold=0.3, target_sizes=[size], return_binary_maps=True
    )
    same_instances(
        found,
        truth_of(mask_logits, class_logits, size, **options),
        expected["segments_info"],
        expected["segmentation"].numpy().astype(bool),
    )


@pytest.mark.parametrize("size", [(480, 640), (131, 97), (30, 20)])
def test_instances_of_rf_detr(size):
    """Its processor needs torchvision; this is what it does with logits."""
    mask_logits, class_logits = scene(6, classes=6)
    options = {"threshold": 0.6, "class_activation": "sigmoid", "resampling": Resampling(of="logits")}
    found = fai_fast.postprocess(mask_logits, class_logits, size, multi_label=True, **options)
    assert len(found) > len(set(found.query.tolist())) > 3
    scores, pairs = torch.from_numpy(class_logits).sigmoid().flatten().topk(len(class_logits))
    pairs = pairs[scores > 0.6]
    logits = torch.from_numpy(mask_logits)[None, pairs // 6]
    masks = torch.nn.functional.interpolate(logits, size=size, mode="bilinear")[0] > 0
    infos = [
        {"label_id": int(pair) % 6, "score": float(score)} for pair, score in zip(pairs, scores, strict=False)
    ]
    truth = truth_of(mask_logits, class_logits, size, **options)
    same_instances(found, truth, infos, masks.numpy())


@pytest.mark.parametrize("size", [(480, 640), (131, 97), (64, 64), (30, 21)])
def test_instances_of_eomt(size):
    theirs = processor("eomt", "EomtImageProcessor")
    side = 160
    mask_logits, class_logits = scene(7, grid=(40, 40), classes=6)
    class_logits *= 2
    box = fai_fast.Letterbox.fit(size, (side, side), "pad")
    options = {
        "use_mask_score": True,
        "threshold": 0.3,
        "letterbox": box,
        "resampling": Resampling((side, side), of="logits"),
    }
    found = fai_fast.postprocess(mask_logits, class_logits, size, **options)
    assert len(found) > 3
    [expected] = theirs.post_process_instance_segmentation(
        outputs(mask_logits, class_logits),
        target_sizes=[size],
        threshold=0.3,
        size={"shortest_edge": side, "longest_edge": side},
    )
    # They paint the masks over each other, in the order of the queries.
    truth = truth_of(mask_logits, class_logits, size, **options)
    order = np.argsort(found.query)
    painted = np.full(size, -1)
    for label, row in enumerate(order):
        painted[found.mask[row]] = label
    sure = (truth.margin[found.query] > 1e-4).all(axis=0)
    np.testing.assert_array_equal(painted[sure], expected["segmentation"].numpy()[sure])
    assert sure.mean() > 0.99
    infos = expected["segments_info"]
    assert found.class_id[order].tolist() == [info["label_id"] for info in infos]
    np.testing.assert_allclose(found.confidence[order], [info["score"] for info in infos], atol=2e-5)


@pytest.mark.parametrize("size", [(120, 160), (131, 97), (64, 64)])
def test_panoptic_results_of_eomt(size):
    theirs = processor("eomt", "EomtImageProcessor")
    side = 160
    mask_logits, class_logits = scene(8, grid=(40, 40), classes=6)
    class_logits *= 2
    found = fai_fast.postprocess(
        mask_logits,
        class_logits,
        size,
        threshold=0.3,
        letterbox=fai_fast.Letterbox.fit(size, (side, side), "pad"),
        resampling=Resampling((side, side), of="logits"),
        panoptic=fai_fast.Panoptic(stuff=(3, 4), overlap_threshold=0.3, weighted=False),
    )
    assert len(found) > 2
    [expected] = theirs.post_process_panoptic_segmentation(
        outputs(mask_logits, class_logits),
        target_sizes=[size],
        threshold=0.3,
        overlap_mask_area_threshold=0.3,
        stuff_classes=[3, 4],
        size={"shortest_edge": side, "longest_edge": side},
    )
    labels = expected["segmentation"].numpy()
    segments = {info["id"]: info for info in expected["segments_info"]}
    assert len(segments) == len(found)
    differ = 0
    for info in segments.values():
        mask = labels == info["id"]
        row = int(np.argmax([(mask & other).sum() for other in found.mask]))
        assert found.class_id[row] == info["label_id"]
        assert found.confidence[row] == pytest.approx(info["score"], abs=2e-5)
        differ += (mask != found.mask[row]).sum()
    # Rounding turns a pixel here and there.
    assert differ <= 4


# ------------------------------------------------------------------- resized where they are asked for


def resized(mask_logits, size):
    """The logits at the nodes of another grid as the kernels round them: float32, down first, then across."""

    def taps(inputs, count):
        at = ((np.arange(count) + 0.5) * (inputs / count) - 0.5).clip(0, inputs - 1)
        index = at.astype(int)
        return index, np.minimum(index + 1, inputs - 1), (at - index).astype(np.float32)

    top, bottom, down = taps(mask_logits.shape[1], size[0])
    left, right, across = taps(mask_logits.shape[2], size[1])
    a, b = mask_logits[:, top], mask_logits[:, bottom]
    rows = a + (b - a) * down[:, None]
    a, b = rows[:, :, left], rows[:, :, right]
    return a + (b - a) * across


TASKS = [
    {"predict_all_pixels": True, "threshold": 0.0},
    {"predict_all_pixels": True, "threshold": 0.0, "combine": "sum"},
    {"threshold": 0.02, "panoptic": fai_fast.Panoptic(stuff=(1, 4, 7), overlap_threshold=0.3)},
    {"threshold": 0.02, "panoptic": fai_fast.Panoptic(weighted=False, overlap_threshold=0.3)},
]


def same_bits(a, b):
    for name in ("class_id", "confidence", "xyxy", "area", "label_map"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("options", TASKS, ids=["contest", "sum", "panoptic", "unweighted"])
@pytest.mark.parametrize("logits_size", [(96, 80), (48, 40), (24, 20), (13, 9), (150, 7), (5, 77)])
@pytest.mark.parametrize("queries", [12, 70])
def test_resizing_on_the_way_is_resizing_first(options, logits_size, queries):
    """Nodes are made as they are asked for, 16 at a time; more than 64 queries need a second word of notes."""
    mask_logits, class_logits = scenes.blobs(
        8, queries=queries, grid=(48, 40), objects=queries // 2, classes=12
    )
    found = fai_fast.postprocess(
        mask_logits, class_logits, (101, 83), resampling=Resampling(logits_size), num_threads=2, **options
    )
    first = fai_fast.postprocess(
        resized(mask_logits, logits_size), class_logits, (101, 83), num_threads=1, **options
    )
    assert len(found) > 1
    same_bits(found, first)


@pytest.mark.parametrize("options", TASKS[1:], ids=["sum", "panoptic", "unweighted"])
@pytest.mark.parametrize(("where", "letterboxed"), [((2, 20), False), ((2, 20), True), ((47, 0), True)])
def test_nan_between_no_nodes_takes_its_query_out_as_well(options, where, letterboxed):
    """Beside a letterboxed frame's part of the logits, and where nodes are too few to lie between all of them."""
    letterbox = fai_fast.Letterbox.fit((40, 80), (96, 80)) if letterboxed else None
    resampling = Resampling((96, 80) if letterboxed else (6, 5))
    mask_logits, class_logits = scenes.blobs(8, queries=6, grid=(48, 40), objects=6, classes=12)

    def found(masks, classes):
        return fai_fast.postprocess(
            masks, classes, (40, 80), letterbox=letterbox, resampling=resampling, num_threads=1, **options
        )

    whole = found(mask_logits, class_logits)
    others = [found(np.delete(mask_logits, q, 0), np.delete(class_logits, q, 0)) for q in range(6)]
    lost = next(q for q, other in enumerate(others) if (other.label_map != whole.label_map).any())
    mask_logits[lost][where] = np.nan
    same_bits(found(mask_logits, class_logits), others[lost])


@pytest.mark.parametrize("options", TASKS, ids=["contest", "sum", "panoptic", "unweighted"])
@pytest.mark.parametrize("logits_size", [(96, 80), (13, 9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("where", [(20, 11), (0, 17), (31, 39)])
def test_nan_among_resized_logits_takes_its_query_out(options, logits_size, dtype, where):
    """Also at an edge that no node lies near, in a grid of fewer nodes than logits."""
    mask_logits, class_logits = scenes.blobs(8, queries=12, grid=(48, 40), objects=8, classes=12, dtype=dtype)

    def found(masks, classes):
        return fai_fast.postprocess(masks, classes, (101, 83), resampling=Resampling(logits_size), **options)

    whole = found(mask_logits, class_logits)
    areas = [found(np.delete(mask_logits, q, 0), np.delete(class_logits, q, 0)) for q in range(12)]
    lost = next(q for q, other in enumerate(areas) if (other.label_map != whole.label_map).any())
    mask_logits[(lost, *where)] = np.nan
    same_bits(found(mask_logits, class_logits), areas[lost])
