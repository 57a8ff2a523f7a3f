"""A panoptic network from its file to results: options, streams, drawing, evaluation, the commands."""

from __future__ import annotations

import dataclasses
import json
import pickle

import fai_fast
import numpy as np
import pytest
from fai_fast import cli, evaluate
from helpers.colors import BLACK, BLUE, CONFIG, GREEN, QUERIES, RED, SPEC, graph
from PIL import Image

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# How the commands are told to run it.
ONE = ["--engine", "onnxruntime", "--precision", "fp32"]


def street(left=8):
    frame = np.zeros((128, 128, 3), np.uint8)
    frame[:64] = BLUE
    frame[80:112, left : left + 32] = RED
    frame[80:112, 80:112] = GREEN
    return frame


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The network as `fai-fast export` writes it: with its record."""
    folder = tmp_path_factory.mktemp("theirs")
    onnx.save(graph(), folder / "plain.onnx")
    fai_fast.export(folder / "plain.onnx", folder / "theirs.onnx", spec=SPEC)
    return folder / "theirs.onnx"


@pytest.fixture(scope="module")
def model(file, tmp_path_factory):
    with fai_fast.load(
        file, engine="onnxruntime", precision="fp32", cache_dir=tmp_path_factory.mktemp("cache")
    ) as made:
        yield made


def test_queries_have_the_masks_that_segments_are_made_of(model):
    class_ids, scores, masks = model.queries(street())
    assert class_ids.tolist()[:4] == [query[0] for query in QUERIES[:4]]
    np.testing.assert_allclose(scores[:4], [query[1] for query in QUERIES[:4]], atol=1e-6)
    found = model.infer(street())
    for query, mask in zip(found.query, found.mask, strict=True):
        assert (masks[query] >= 0)[mask].mean() > 0.9  # but for what is unsure at its border
    # The last, which no segment is of, lies over all of them.
    assert (masks[4] == class_ids[4]).all()


def test_a_picture(model):
    d = model.infer(street())
    assert d.class_name.tolist() == ["sky", "car", "car", "road"]
    assert d.is_thing.tolist() == [False, True, True, False]
    assert d.confidence.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert repr(d) == "Detections(4 in 128x128, 2 things and 2 stuff: car 2, sky 1, road 1)"
    expected = np.select([(street() == color).all(-1) for color in (BLUE, RED, GREEN, BLACK)], [1, 0, 0, 2])
    assert (d.label_map == expected).mean() > 0.95
    assert model.spec.task == "panoptic"
    assert model.info()["task"] == "panoptic"


def test_classes_that_are_not_wanted_are_void(model):
    d = model.infer(street(), classes=["car", "road"])
    whole = model.infer(street())
    np.testing.assert_array_equal(d.label_map, np.where(whole.label_map == 1, -1, whole.label_map))
    assert d.is_thing.tolist() == [True, True, False]


def test_the_threshold_decides_which_queries_are_segments(model):
    assert model.infer(street(), threshold=0.65).class_name.tolist() == ["sky", "car", "car"]
    # One that does not compete leaves its pixels to others; one below the threshold of its class leaves them void.
    assert model.infer(street(), threshold={"road": 0.65}).label_map.min() == -1
    assert len(model.infer(street(), threshold=0.95)) == 0
    assert model.infer(street(), threshold=0.95).is_thing.tolist() == []


def test_what_makes_no_sense_is_refused(model):
    with pytest.raises(ValueError, match=r"^top_k: got 2 for a panoptic model, whose pixels would lose"):
        model.infer(street(), top_k=2)
    with pytest.raises(ValueError, match=r"^use_mask_score: got True with panoptic"):
        model.infer(street(), use_mask_score=True)
    with pytest.raises(ValueError, match=r"use_mask_score: got True for the task 'panoptic', expected False"):
        dataclasses.replace(CONFIG, use_mask_score=True)


def test_all_ways_to_run_give_the_same(model):
    d = model.infer(street())
    assert model.submit(street()).result() == d
    assert model.infer_batch([street(), street()])[1] == d
    assert pickle.loads(pickle.dumps(d)) == d
    with pickle.loads(pickle.dumps(model)) as again:
        assert again.infer(street()) == d


def test_things_of_a_stream_are_tracked(model):
    class Numbers:
        def update(self, detections):
            detections.tracker_id = np.arange(len(detections)) + 5
            return detections

    frames = [street(8), street(12)]
    with model.stream(frames, track=Numbers()) as stream:
        found = [d for _, d in stream]
    assert [d.tracker_id.tolist() for d in found] == [[-1, 5, 6, -1]] * 2
    assert all(d.label_map is not None for d in found)


@pytest.fixture(scope="module")
def data(file, tmp_path_factory):
    """Pictures, and as their truth what predict says of them."""
    folder = tmp_path_factory.mktemp("data")
    for name, left in (("a", 8), ("b", 16)):
        Image.fromarray(street(left)).save(folder / f"{name}.png")
    argv = ["predict", str(file), str(folder), "--format", "panoptic", "--output", str(folder / "out")]
    assert cli.main([*argv, *ONE, "--cache-dir", str(folder / "cache")]) == 0
    truth = folder / "out" / "panoptic.json"
    document = json.loads(truth.read_text())
    assert [category["isthing"] for category in document["categories"]] == [1, 0, 0]
    for image in document["images"]:
        image["file_name"] = image["file_name"].rpartition("/")[2]
    truth.write_text(json.dumps(document))
    return folder, truth


def test_what_predict_writes_is_what_eval_finds(model, file, data, tmp_path):
    folder, truth = data
    figures = tmp_path / "figures.json"
    argv = ["eval", str(file), "--images", str(folder), "--panoptic", str(truth), "--json", str(figures)]
    assert cli.main([*argv, *ONE, "--cache-dir", str(folder / "cache")]) == 0
    content = json.loads(figures.read_text())
    assert content["metrics"]["panoptic/PQ"] == 100
    assert content["quality"]["car"] == {"pq": 100, "sq": 100, "rq": 100, "found": 4, "wrong": 0, "missed": 0}
    report = evaluate.panoptic(model, folder, truth)
    assert report.metrics == content["metrics"]
    # So do its predictions, which are matched by the pictures' names.
    argv = ["eval", str(truth), "--panoptic", str(truth), "--json", str(figures)]
    assert cli.main(argv) == 0
    assert json.loads(figures.read_text())["metrics"] == content["metrics"]


def test_int8_is_held_against_labels(file, data, tmp_path):
    pytest.importorskip("nncf")
    folder, truth = data
    report = fai_fast.quantize(
        file.with_name("plain.onnx"), folder, tmp_path / "theirs.openvino", spec=SPEC, panoptic=truth,
        tolerance=1.0, cache_dir=tmp_path, progress=False,
    )  # fmt: skip
    accuracy = report.verification["fp32"]["accuracy"]
    assert (accuracy["metric"], accuracy["of"], accuracy["fp32"]) == ("panoptic/PQ", "panoptic.json", 100.0)
    with fai_fast.load(tmp_path / "theirs.openvino", cache_dir=tmp_path) as small:
        assert small.spec.task == "panoptic"
        assert small.infer(street()).is_thing is not None


def test_a_low_precision_is_held_against_fp32(file, tmp_path):
    pictures = [street(left) for left in (0, 8, 16, 24)]
    with fai_fast.load(
        file, engine="openvino", precision="auto", cache_dir=tmp_path, pictures=pictures
    ) as made:
        assert repr(made.infer(street())).startswith("Detections(4 in 128x128, 2 things and 2 stuff")
        # None where the machine computes in fp32 alone.
        metrics = {verdict["metric"] for verdict in made.info()["precision_verdicts"].values()}
        assert metrics <= {"panoptic quality"}
