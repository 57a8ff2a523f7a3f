"""Models whose semantic results are sums: their configuration, on the CPU and on a GPU, and their mIoU."""

from __future__ import annotations

import dataclasses
import json
import pickle

import fai_fast
import numpy as np
import pytest
from fai_fast import cli, evaluate
from fai_fast._prepare import Prepared
from fai_fast.model import Model
from helpers import gpu, others, scenes
from helpers.gpu import FakeGpuEngine, Sampling
from helpers.networks import small_spec
from PIL import Image


def by_sum(spec):
    return dataclasses.replace(spec, config=dataclasses.replace(spec.config, combine="sum"))


@pytest.fixture(scope="module")
def spec():
    return small_spec("bisenetformer", transformer_predictor_dec_layers=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network of nobody's, whose queries see several classes."""
    folder = tmp_path_factory.mktemp("model")
    graph = others.write(folder / "theirs.onnx", queries=7, columns=4)
    spec = others.spec(task="semantic", classes=("a", "b", "c"), combine="sum")
    with fai_fast.load(graph, spec=spec, precision="fp32", cache_dir=folder) as model:
        yield model


def frame(seed=1):
    return others.picture(seed)


# ------------------------------------------------------------------------------------------- configuration


def test_the_default_is_in_no_file(spec):
    assert spec.config.combine == "contest"
    assert "combine" not in spec.to_dict()["config"]
    changed = by_sum(spec)
    assert changed.to_dict()["config"]["combine"] == "sum"
    for one in (spec, changed):
        assert fai_fast.ModelSpec.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"combine": "mean"}, r"config.combine: got 'mean', expected"),
        ({"combine": "sum", "predict_all_pixels": False}, r"config.combine: got 'sum', expected 'contest'"),
        ({"combine": "sum", "postprocessing_type": "instance"}, r"config.combine: got 'sum'"),
        ({"combine": "sum", "use_mask_score": True}, r"config.use_mask_score: got True with combine='sum'"),
    ],
)
def test_what_does_not_go_together_is_refused(spec, changes, problem):
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(spec.config, **changes)


# -------------------------------------------------------------------------------------------------- models


def test_a_model_on_the_cpu(model):
    image = frame()
    found = model.infer(image, threshold=0.0)
    assert found.query.tolist() == found.class_id.tolist()
    assert len(found) > 1
    assert found.class_names == ("a", "b", "c")
    # No query has pixels of its own in a sum: these are the masks that it adds up.
    class_ids, scores, masks = model.queries(image)
    assert len(class_ids) == len(scores) == len(masks) == 7
    assert ((masks >= 0).sum(0) > 1).any()
    with model._combining("contest") as contest:
        assert ((contest.queries(image)[2] >= 0).sum(0) <= 1).all()


def test_a_clone_combines_otherwise_on_the_same_engine(model):
    image = frame(2)
    with model._combining("contest") as contest:
        assert contest.spec.config.combine == "contest"
        rows = contest.infer(image, threshold=0.0)
        assert set(rows.query.tolist()) - set(range(3))  # queries, not classes
        with contest._combining("sum") as again:
            assert again.infer(image, threshold=0.0) == model.infer(image, threshold=0.0)
        with pickle.loads(pickle.dumps(contest)) as loaded:
            assert loaded.spec == contest.spec
            assert loaded.infer(image, threshold=0.0) == rows
    with pytest.raises(ValueError, match=r"use_mask_score: got True with combine='sum'"):
        model.infer(image, use_mask_score=True)


@gpu.needed
def test_a_model_on_a_gpu():
    size = (32, 48)
    spec = fai_fast.spec("fai-mf-n-shapes")
    config = dataclasses.replace(
        spec.config,
        postprocessing_type="semantic",
        predict_all_pixels=True,
        use_mask_score=False,
        threshold=0.1,
        combine="sum",
        num_classes=3,
    )
    engine = FakeGpuEngine(Sampling(size=size, columns=4, mean=config.pixel_mean, std=config.pixel_std))
    prepared = Prepared(
        spec=dataclasses.replace(spec, task="semantic", classes=spec.classes[:3], config=config),
        engine=engine,
        gpu=engine,
        size=size,
        batch_size=1,
        num_threads=None,
        provenance={"precision": "fp32", "artefacts": {}},
        weights=None,
    )
    image = scenes.image(3, (41, 57, 3))
    with Model(prepared) as model:
        found = model.infer(image)
        with pytest.raises(ValueError, match=r"use_mask_score: got True with combine='sum'"):
            model.infer(image, use_mask_score=True)
        runs = engine.runs
        contest, again = model._submit_combined(image, ("contest", "sum")).results()
        assert engine.runs == runs + 1
    assert len(found) > 1
    assert again == found
    assert set(contest.query.tolist()) != set(found.query.tolist())
    tensor = fai_fast.preprocess(image, size, mean=config.pixel_mean, std=config.pixel_std)
    masks, classes = engine.network(tensor)
    expected = fai_fast.postprocess(
        masks[0], classes[0], (41, 57), predict_all_pixels=True, combine="sum", threshold=0.1
    )
    assert found.class_id.tolist() == expected.class_id.tolist()
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=0, atol=1e-6)
    assert (found.mask != expected.mask).mean() < (1e-9 if gpu.EMULATOR else 1e-3)


# ---------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Pictures whose truth is what the sums say, but for a corner."""
    root = tmp_path_factory.mktemp("ade")
    for name in ("images", "annotations"):
        (root / name).mkdir()
    for index in range(2):
        image = frame(10 + index)
        truth = model.infer(image, threshold=0.0).label_map + 1
        truth[:20, :20] = 1
        Image.fromarray(image).save(root / "images" / f"{index}.png")
        Image.fromarray(truth.astype(np.uint8)).save(root / "annotations" / f"{index}.png")
    return root


def right(model, folder):
    """Share of labeled pixels that got their class, percent."""
    hits = total = 0
    for path in sorted((folder / "images").iterdir()):
        truth = np.asarray(Image.open(folder / "annotations" / path.name)).astype(int)
        found = model.infer(np.asarray(Image.open(path)), threshold=0.0).label_map + 1
        hits += ((found == truth) & (truth > 0)).sum()
        total += (truth > 0).sum()
    return 100 * hits / total


def test_both_ways_beside_each_other(model, folder):
    sums = evaluate.ade(model, folder, combine="sum")
    assert (sums.combine, sums.other) == ("sum", None)
    assert sums.metrics["sem_seg/pACC"] == pytest.approx(right(model, folder))
    assert evaluate.ade(model, folder).metrics == sums.metrics  # the model's own way
    with model._combining("contest") as contest:
        alone = evaluate.ade(contest, folder)
        assert alone.combine == "contest"
        assert alone.metrics["sem_seg/pACC"] == pytest.approx(right(contest, folder))
        assert alone.metrics != sums.metrics
    both = evaluate.ade(model, folder, combine="both")
    assert both.combine == "contest"
    assert both.metrics == alone.metrics
    assert both.other is not None
    assert both.other.metrics == sums.metrics
    lines = [line.split() for line in both.table().splitlines()]
    assert ["percent", "contest", "sum"] in lines
    name = "sem_seg/mIoU"
    assert [name, f"{alone.metrics[name]:.2f}", f"{sums.metrics[name]:.2f}"] in lines
    [row] = [line for line in lines if line[:1] == ["a"]]
    assert row[-1] == f"{sums.per_class['a']:.2f}"
    document = both.to_dict()
    assert document["other"]["metrics"] == sums.metrics
    assert "confusion" not in document["other"]
    with pytest.raises(ValueError, match="combine: got 'mean'"):
        evaluate.ade(model, folder, combine="mean")


@pytest.fixture
def runs(model, monkeypatch):
    """Grows by one for each run of the network, of clones that are made from here on."""
    counted = []
    make = model._engine.context

    def context():
        made = make()
        run = made.run
        monkeypatch.setattr(made, "run", lambda: counted.append(run()))
        return made

    monkeypatch.setattr(model._engine, "context", context)
    return counted


def test_both_ways_are_of_one_run_of_the_network(model, folder, runs):
    with model.clone() as one:
        evaluate.ade(one, folder)
        alone = len(runs)
        assert alone == 2  # pictures
        report = evaluate.ade(one, folder, combine="both")
    assert report.other is not None
    assert len(runs) - alone == alone


def test_both_are_told_of_the_same_pictures(model, folder):
    report = evaluate.AdeData.read(folder).measure(model, combine="both", stop=lambda: True)
    assert (report.images, report.other.images) == (1, 1)
    assert report.pixels == report.other.pixels


def test_the_command(model, folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fai_fast, "load", lambda *_, **__: model._combining("contest"))
    monkeypatch.setattr(cli.evaluate, "spec_of", lambda *_: model.spec)
    argv = ["eval", "fai-mf-m-ade", "--ade", str(folder), "--json", "out.json"]
    assert cli.main([*argv, "--combine", "both"]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert (document["combine"], document["other"]["combine"]) == ("contest", "sum")
    assert "contest" in capsys.readouterr().out
    assert cli.main([*argv, "--combine", "sum"]) == 0
    assert "classes by sum" in capsys.readouterr().out
    assert cli.main(["eval", "x", "--coco", "a.json", "--images", "b", "--combine", "sum"]) == 2
    assert "--combine: belongs to --ade" in capsys.readouterr().err
