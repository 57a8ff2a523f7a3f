"""``fai-fast predict`` and ``eval`` with a panoptic model."""

from __future__ import annotations

import json
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, Latency, cli, evaluate
from helpers import panoptic as evaluated
from helpers.models import Bright
from PIL import Image

NAMES = evaluated.NAMES


class Halves:
    """Finds a car where a picture is bright, and the sky everywhere else."""

    spec = evaluated.spec_of()
    size = (64, 64)

    def infer(self, image, **options):
        bright = image.mean(-1) > 127
        source = np.where(bright, 0, 1).astype(np.uint8)
        height, width = bright.shape
        return Detections(
            xyxy=np.tile([0, 0, width, height], (2, 1)), confidence=[0.9, 0.8], class_id=[1, 2], query=[0, 1],
            size=bright.shape, class_names=NAMES, label_source=source, is_thing=[True, False],
        )._with_latency(Latency(0.0, 1.0, 2.0, 4.0))  # fmt: skip

    def info(self):
        return {"engine": {"engine": "fake", "device": "cpu"}, "precision": "fp32", "im_size": self.size}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAI_FAST_TRACEBACK", raising=False)
    return tmp_path


@pytest.fixture
def picture(folder):
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:50] = 255
    (folder / "photos").mkdir()
    Image.fromarray(image).save(folder / "photos" / "street.png")
    return Path("photos", "street.png")


def predict(monkeypatch, *argv, model=None):
    monkeypatch.setattr(fai_fast, "load", lambda *_, **__: model or Halves())
    return cli.main(["predict", "theirs.onnx", *map(str, argv), "--output", "out"])


def test_predictions_say_what_is_a_thing(monkeypatch, picture, folder):
    assert predict(monkeypatch, picture) == 0
    content = json.loads((folder / "out" / "predictions.json").read_text())
    assert content["task"] == "panoptic"
    assert [row["is_thing"] for row in content["images"][0]["detections"]] == [True, False]
    with Image.open(folder / "out" / "street.png") as drawn:
        assert drawn.width > 60  # the legend


def test_cocos_panoptic_files(monkeypatch, picture, folder):
    assert predict(monkeypatch, picture, "--no-images", "--format", "panoptic", "--format", "coco") == 0
    content = json.loads((folder / "out" / "panoptic.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": str(picture), "height": 40, "width": 60}]
    assert content["categories"] == [
        {"id": i, "name": name, "isthing": int(i < 2)} for i, name in enumerate(NAMES)
    ]
    [record] = content["annotations"]
    assert (record["image_id"], record["file_name"]) == (1, "street.png")
    assert [(item["id"], item["category_id"], item["area"]) for item in record["segments_info"]] == [
        (1, 1, 200),
        (2, 2, 2200),
    ]
    with Image.open(folder / "out" / "panoptic" / "street.png") as png:
        pixels = np.asarray(png).astype(int)
    assert np.bincount((pixels @ [1, 256, 65536]).ravel()).tolist() == [0, 200, 2200]
    instances = json.loads((folder / "out" / "predictions.coco.json").read_text())
    assert instances["categories"] == [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    # What predict writes is a truth that eval reads.
    data = evaluate.PanopticData.read(None, folder / "out" / "panoptic.json")
    assert data.score(folder / "out" / "panoptic.json").metrics["panoptic/PQ"] == 100


def test_what_an_earlier_run_has_written_is_left_alone(monkeypatch, picture, capsys):
    assert predict(monkeypatch, picture, "--no-images", "--format", "panoptic") == 0
    Path("out", "predictions.json").unlink()
    assert predict(monkeypatch, picture, "--no-images", "--format", "panoptic") == 2
    assert "--format panoptic: out/panoptic is there already" in capsys.readouterr().err
    assert predict(monkeypatch, picture, "--no-images", "--format", "panoptic", "--overwrite") == 0


def test_other_models_have_no_panoptic_files(monkeypatch, picture, capsys, folder):
    argv = (picture, "--no-images", "--format", "panoptic")
    assert predict(monkeypatch, *argv, model=Bright()) == 2
    expected = "--format panoptic: fai-mf-s-coco-ins is a model of the task instance, expected a panoptic one"
    assert expected in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_top_k_is_refused(monkeypatch, picture, capsys):
    assert predict(monkeypatch, picture, "--top-k", "3") == 2
    assert "--top-k: got 3 for a panoptic model, whose pixels would lose" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- eval


@pytest.fixture
def models(monkeypatch, folder):
    """In place of fai_fast.load: fp16 finds less."""
    evaluated.write(folder, evaluated.TRUTH)
    made = []

    def load(name, *, precision, **arguments):
        good = evaluated.GOOD
        made.append(evaluated.Oracle(good if precision != "fp16" else {1: good[1], 2: good[2][[]]}))
        return made[-1]

    monkeypatch.setattr(fai_fast, "load", load)
    monkeypatch.setattr("fai_fast.cli.evaluate.spec_of", lambda *_: evaluated.spec_of())
    return made


def run(capsys, *argv):
    """Exit code, stdout, stderr."""
    code = cli.main(["eval", *map(str, argv)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


TRUTH = ("theirs.onnx", "--images", "images", "--panoptic", "truth.json")


def test_eval(capsys, models, folder):
    code, out, err = run(capsys, *TRUTH, "--json", "out.json")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "theirs 64x64, oracle fp32, 2 images, 6 segments, 6 predicted"
    content = json.loads((folder / "out.json").read_text())
    assert content["metrics"]["panoptic/PQ"] == pytest.approx((evaluated.CARS + 100) / 4)
    assert content["quality"]["car"]["found"] == 2
    # The model's own threshold, unless another is asked for.
    assert models[0].asked == [(1, 0.5), (2, 0.5)]
    assert run(capsys, *TRUTH, "--threshold", "0.25", "--limit", "1")[0] == 0
    assert models[1].asked == [(1, 0.25)]


def test_predictions_in_place_of_a_model(capsys, models, folder):
    evaluated.write(folder, evaluated.FOUND, "found", categories=False)
    code, out, err = run(capsys, "found.json", "--panoptic", "truth.json", "--json", "out.json")
    assert (code, err, models) == (0, "", [])
    assert out.splitlines()[0] == "found.json, 2 images"
    content = json.loads((folder / "out.json").read_text())
    assert content["metrics"]["panoptic/PQ"] == pytest.approx((evaluated.CARS + 100) / 4)
    assert content["quality"]["car"]["found"] == 2
    for more in (("--images", "images"), ("--compare", "fp32,bf16"), ("--threshold", "0.5")):
        code, _, err = run(capsys, "found.json", "--panoptic", "truth.json", *more)
        assert code == 2
        assert f"{more[0]}" in err
        assert "belongs to a MODEL to run, and got predictions in found.json" in err


def test_eval_compares(capsys, models):
    code, out, _ = run(capsys, *TRUTH, "--compare", "fp32,fp16")
    assert code == 1
    assert "fell by more than 0.5" in out
    assert run(capsys, *TRUTH, "--compare", "fp32,bf16")[0] == 0


def test_the_folder_of_the_pngs(capsys, models, folder):
    (folder / "truth").rename(folder / "pngs")
    code, _, err = run(capsys, *TRUTH)
    assert code == 1
    assert "--segments: no such folder: truth; give --segments, the folder of the PNGs" in err
    assert models == []
    assert run(capsys, *TRUTH, "--segments", "pngs")[0] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("theirs.onnx", "--panoptic", "truth.json"), "--panoptic: needs --images"),
        (("theirs.onnx", "--ade", "ade", "--segments", "pngs"), "--segments: belongs to --panoptic"),
        ((*TRUTH, "--coco", "instances.json"), "--coco"),
    ],
)
def test_wrong_usage(capsys, models, argv, message):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert models == []


def test_a_model_of_another_task_is_told_before_it_is_loaded(capsys, models, monkeypatch):
    monkeypatch.setattr("fai_fast.cli.evaluate.spec_of", lambda *_: fai_fast.spec("fai-mf-n-shapes"))
    code, _, err = run(capsys, *TRUTH)
    assert code == 2
    assert "expected a panoptic one; measure it with coco()" in err
    assert models == []
