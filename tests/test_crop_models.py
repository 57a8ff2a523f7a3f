"""Networks that see crops side by side: the results of transformers' own processor, and models in every call."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import fai_fast
import numpy as np
import pytest
from fai_fast import cli, evaluate
from fai_fast._crops import Crops, middle_crop, postprocess_crops
from fai_fast._prepare import Prepared
from fai_fast.model import Model
from fai_fast.ops import preprocess_frame
from fai_fast.registry.card import model_card
from helpers import gpu, others
from helpers.crops import FRAMES, RESIZED, logits, noise
from helpers.families import SIDE, small
from helpers.gpu import FakeGpuEngine, Sampling
from PIL import Image


def splitting(side: int = SIDE) -> Any:
    """transformers' own image processor of such networks."""
    transformers = pytest.importorskip("transformers", reason="compares with transformers' own processor")
    size = {"shortest_edge": side, "longest_edge": None}
    return transformers.EomtImageProcessorPil(size=size, do_split_image=True)


def of_processor(masks: Any, classes: Any, offsets: Any, frame: tuple[int, int], side: int = SIDE) -> Any:
    """Its scores (C, H, W)."""
    torch = pytest.importorskip("torch")
    given = SimpleNamespace(
        masks_queries_logits=torch.as_tensor(masks),
        class_queries_logits=torch.as_tensor(classes),
        patch_offsets=[torch.as_tensor(offset) for offset in offsets],
    )
    [found] = splitting(side).post_process_semantic_segmentation(
        given, target_sizes=[frame], return_segmentation_scores=True
    )
    return found.segmentation_scores.numpy()


def assert_same_but_ties(labels: Any, scores: Any, tie: float = 1e-5) -> None:
    """Each pixel's class is the processor's, or one whose sum is the same up to rounding.

    A class with a single pixel is no row here.
    """
    best = scores.argmax(0)
    assert (np.bincount(best.ravel())[best[labels < 0]] == 1).all()
    labels = np.where(labels < 0, best, labels)
    own = np.take_along_axis(scores, labels[None].astype(np.int64), 0)[0]
    assert (scores.max(0) - own).max() < tie
    assert (labels != best).mean() < 2e-3
    assert len(np.unique(labels)) > 1


# -------------------------------------------------------------------------------------- models of anybody


@pytest.mark.parametrize("frame", FRAMES)
def test_crops_are_those_of_the_processor(frame):
    """To the bit, where nothing is resized."""
    picture = noise(frame)
    given = splitting()(images=picture, return_tensors="np")
    crops = Crops.of(frame, (SIDE, SIDE))
    assert crops.whole == frame
    assert [list(offset) for offset in given["patch_offsets"]] == [[0, s, s + SIDE] for s in crops.starts]
    for index, expected in enumerate(given["pixel_values"]):
        ours, _ = preprocess_frame(
            picture,
            (SIDE, SIDE),
            mean=(123.675, 116.28, 103.53),
            std=(58.395, 57.12, 57.375),
            part=crops.part(index),
        )
        np.testing.assert_allclose(ours[0], expected, rtol=0, atol=1e-5)


def test_sizes_and_starts_are_those_of_the_processor():
    rng = np.random.default_rng(3)
    frames = [*RESIZED, *(tuple(rng.integers(5, 150, 2).tolist()) for _ in range(40))]
    for frame in frames:
        if max(frame) > 8 * min(frame):
            continue
        given = splitting(16)(images=noise(frame), return_tensors="np")
        crops = Crops.of(frame, (16, 16))
        assert [offset[1] for offset in given["patch_offsets"]] == list(crops.starts), frame
        assert given["patch_offsets"][-1][2] == max(crops.whole), frame


# -------------------------------------------------------------------------------------- models of anybody


@pytest.mark.parametrize("frame", [*FRAMES, *RESIZED])
def test_results_are_those_of_the_processor(frame):
    crops = Crops.of(frame, (SIDE, SIDE))
    masks, classes = logits(len(crops.starts), sum(frame))
    found = postprocess_crops(masks, classes, crops, num_threads=1)
    offsets = [[0, start, start + SIDE] for start in crops.starts]
    assert_same_but_ties(found.label_map, of_processor(masks, classes, offsets, frame))
    assert found == postprocess_crops(masks, classes, crops, num_threads=3)
    assert found.query.tolist() == found.class_id.tolist()


# -------------------------------------------------------------------------------------- models of anybody


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def network():
    """One whose pixels have several classes."""
    pytest.importorskip("torch")
    network = small("eomt")
    for parameter, factor in (
        (network.query.weight, 30),
        (network.mask_head.fc3.weight, 5),
        (network.class_predictor.weight, 3),
    ):
        parameter.data *= factor
    return network


@pytest.fixture(scope="module")
def eomt(network, cache):
    options = {"engine": "openvino", "precision": "fp32", "num_threads": 1, "cache_dir": cache}
    with fai_fast.load(network, processor=splitting(), **options) as model:
        yield model


@pytest.fixture(scope="module")
def file(network, eomt, cache):
    path = cache / "eomt.onnx"
    fai_fast.export(network, path, processor=splitting(), cache_dir=cache)
    return path


def of_library(network: Any, picture: Any) -> Any:
    """Scores (C, H, W) of transformers' own processor and model."""
    torch = pytest.importorskip("torch")
    given = splitting()(images=picture, return_tensors="pt")
    with torch.no_grad():
        said = network(pixel_values=given["pixel_values"])
    masks, classes = said.masks_queries_logits, said.class_queries_logits
    return of_processor(masks, classes, given["patch_offsets"], picture.shape[:2])


def test_the_processor_says_it(eomt):
    config = eomt.spec.config
    assert (eomt.spec.task, config.resize, config.combine) == ("semantic", "crops", "sum")
    assert fai_fast.ModelSpec.from_dict(json.loads(json.dumps(eomt.spec.to_dict()))) == eomt.spec
    assert "seen as squares side by side along their longer side" in model_card(eomt.spec)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_frame_of_the_right_height_has_the_librarys_labels(network, eomt, frame):
    picture = others.picture(sum(frame), frame)
    assert_same_but_ties(eomt.infer(picture).label_map, of_library(network, picture), tie=1e-4)


def test_a_larger_frame_has_nearly_the_librarys_labels(network, eomt):
    """What differs is how frames are made smaller, without antialiasing."""
    picture = others.picture(1, (120, 213))
    labels = eomt.infer(picture).label_map
    assert (labels == of_library(network, picture).argmax(0)).mean() > 0.9
    assert (labels == eomt.infer(picture, resize="stretch").label_map).mean() < 1


def test_all_ways_in_give_the_same(eomt, file, cache, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    picture = others.picture(2, (90, 150))
    expected = eomt.infer(picture)
    Image.fromarray(picture).save(tmp_path / "p.png")
    assert eomt.infer(tmp_path / "p.png") == expected
    assert eomt.infer(torch.from_numpy(picture)) == expected
    assert eomt.infer(picture[:, :, ::-1], color="bgr") == expected
    assert eomt.submit(picture).result(60) == expected
    [(_, found)] = eomt.stream([picture], policy="all")
    assert found == expected
    assert expected.latency.engine > 0
    assert expected.latency.preprocess > 0
    with fai_fast.load(file, engine="openvino", precision="fp32", num_threads=1, cache_dir=cache) as other:
        assert other.spec.config == eomt.spec.config
        assert other.infer(picture) == expected
    monkeypatch.chdir(tmp_path)
    said = ["--json", "p.json", "--precision", "fp32", "--cache-dir", str(cache)]
    assert cli.main(["predict", str(file), "p.png", *said]) == 0
    rows = json.loads((tmp_path / "p.json").read_text())["images"][0]["detections"]
    assert [row["class_id"] for row in rows] == expected.class_id.tolist()


# -------------------------------------------------------------------------------------- models of anybody


def spec_of(im_size: Any = 64, **options: Any) -> fai_fast.ModelSpec:
    settings = {"task": "semantic", "combine": "sum", "resize": "crops", "threshold": 0.0, **options}
    return others.spec(im_size, classes=("a", "b", "c"), **settings)


@pytest.fixture(scope="module")
def graph(cache):
    return others.write(cache / "theirs.onnx", queries=7, columns=4, **others.OPEN)


def load(graph, cache, **options):
    return fai_fast.load(graph, spec=spec_of(), precision="fp32", num_threads=1, cache_dir=cache, **options)


@pytest.fixture(scope="module")
def model(graph, cache):
    with load(graph, cache) as model:
        yield model


def by_hand(graph, picture):
    """A result of each crop's outputs, by ONNX's own definitions of its operators."""
    import onnx

    spec, crops = spec_of(), Crops.of(picture.shape[:2], (64, 64))
    network = onnx.load(graph)
    said = [
        others.outputs(
            network,
            preprocess_frame(
                picture,
                (64, 64),
                mean=spec.config.pixel_mean,
                std=spec.config.pixel_std,
                part=crops.part(index),
            )[0],
        )
        for index in range(len(crops.starts))
    ]
    return postprocess_crops(*(np.concatenate(arrays) for arrays in zip(*said, strict=True)), crops)


def test_batches_of_crops_of_several_frames(graph, cache, model):
    """Of different numbers of crops, which fill no batch."""
    pictures = [others.picture(seed, size) for seed, size in enumerate([(64, 170), (80, 80), (150, 64)])]
    expected = [model.infer(picture) for picture in pictures]
    for picture, found in zip(pictures, expected, strict=True):
        assert (found.label_map != by_hand(graph, picture).label_map).mean() < 1e-3
        assert found.size == picture.shape[:2]
    assert model.infer_batch(pictures) == expected
    with load(graph, cache, batch_size=2) as pairs:
        assert [found.label_map.tolist() for found in pairs.infer_batch(pictures)] == [
            found.label_map.tolist() for found in expected
        ]


def test_options_of_results_hold(model):
    picture = others.picture(5, (64, 150))
    found = model.infer(picture)
    assert len(found) > 1
    best = found.confidence[0]
    assert len(model.infer(picture, threshold=float(best) - 1e-6)) == 1
    name = found.class_names[found.class_id[1]]
    assert model.infer(picture, classes=[name]).class_id.tolist() == [found.class_id[1]]
    one = model.infer(picture, resize="stretch")
    assert one.size == found.size
    assert (one.label_map != found.label_map).any()
    with pytest.raises(ValueError, match=r"use_mask_score: got True with combine='sum', expected False"):
        model.infer(picture, use_mask_score=True)
    with pytest.raises(ValueError, match=r"image: got a frame of 3 x 300 .* 100 crops"):
        model.infer(np.zeros((3, 300, 3), np.uint8))
    with pytest.raises(ValueError, match="image: got shape"):
        model.infer(np.zeros((3, 300, 5), np.uint8))


def test_what_crops_do_not_have_is_refused(model, graph, cache):
    picture = others.picture(5, (64, 150))
    with pytest.raises(
        ValueError, match=r"resize: got 'crops', each of which has queries of its own, expected"
    ):
        model.queries(picture)
    assert len(model.queries(picture, resize="stretch")[0]) == 7
    with pytest.raises(
        ValueError, match=r"combine: got 'contest' for pears, which sees crops, expected 'sum'"
    ):
        model._combining("contest")
    with pytest.raises(ValueError, match=r"im_size: got 64 x 96 .* expected a square"):
        load(graph, cache, im_size=(64, 96))
    with (
        fai_fast.load(graph, spec=spec_of(resize="stretch"), precision="fp32", cache_dir=cache) as other,
        pytest.raises(
            ValueError, match=r"resize: got 'crops' for pears, whose config.resize is 'stretch', exp"
        ),
    ):
        other.infer(picture, resize="crops")
    with pytest.raises(ValueError, match=r"resize: got 'crops'"):
        fai_fast.preprocess(picture, (64, 64), mean=0, std=1, resize="crops")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"combine": "contest"}, r"config.resize: got 'crops' with combine='contest', expected 'sum'"),
        ({"im_size": (64, 96)}, r"im_size: got \(64, 96\) with config.resize='crops', expected a square"),
    ],
)
def test_what_does_not_go_together_is_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        spec_of(**options)


def test_a_low_precision_is_looked_at_on_the_crop_in_the_middle():
    picture, spec = noise((64, 150)), spec_of()
    tensor = middle_crop(picture, spec, (64, 64))
    [expected] = fai_fast.preprocess(
        picture[:, 43 : 43 + 64], (64, 64), mean=spec.config.pixel_mean, std=spec.config.pixel_std
    )
    assert np.array_equal(tensor[0], expected)


def test_an_evaluation_is_of_sums(model, tmp_path):
    for name in ("images", "annotations"):
        (tmp_path / name).mkdir()
    picture = others.picture(4, (64, 150))
    Image.fromarray(picture).save(tmp_path / "images" / "0.png")
    truth = (model.infer(picture).label_map + 1).astype(np.uint8)
    Image.fromarray(truth).save(tmp_path / "annotations" / "0.png")
    for combine in (None, "sum"):
        report = evaluate.ade(model, tmp_path, combine=combine)
        assert report.metrics["sem_seg/pACC"] == pytest.approx(100)
    with pytest.raises(ValueError, match="combine: got 'contest' for pears"):
        evaluate.ade(model, tmp_path, combine="both")


@gpu.needed
def test_the_engine_of_a_gpu_runs_between_what_the_cpu_does(caplog):
    spec = spec_of(32)
    config = spec.config
    engine = FakeGpuEngine(Sampling(size=(32, 32), columns=4, mean=config.pixel_mean, std=config.pixel_std))
    prepared = Prepared(
        spec=spec,
        engine=engine,
        gpu=engine,
        size=(32, 32),
        batch_size=1,
        num_threads=1,
        provenance={"precision": "fp32", "artefacts": {}},
        weights=None,
    )
    picture = others.picture(3, (40, 90))
    with caplog.at_level(logging.INFO, "fai_fast"), Model(prepared) as model:
        found = model.infer(picture)
        assert model.info()["execution"].endswith("crops are cut and put together on the CPU")
        with pytest.raises(
            ValueError, match="masks_device: got True for a model whose results are made on the CPU"
        ):
            model.infer(picture, masks_device=True)
    assert "only its engine runs on the GPU" in caplog.text
    crops = Crops.of((40, 90), (32, 32))
    said = [
        engine.network(
            preprocess_frame(
                picture, (32, 32), mean=config.pixel_mean, std=config.pixel_std, part=crops.part(index)
            )[0]
        )
        for index in range(len(crops.starts))
    ]
    expected = postprocess_crops(*(np.concatenate(arrays) for arrays in zip(*said, strict=True)), crops)
    assert (found.label_map != expected.label_map).mean() < 1e-3
