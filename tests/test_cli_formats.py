"""``fai-fast predict`` and ``stream``: which rows are wanted, and the formats beside the JSON."""

from __future__ import annotations

import csv
import io
import json

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, cli
from helpers.models import Bright
from PIL import Image


class Asked(Bright):
    """Bright, which takes what else may be asked for."""

    def __init__(self):
        super().__init__()
        self.options = []

    def infer(self, image, **options):
        self.options.append(options)
        return super().infer(image)


@pytest.fixture(autouse=True)
def model(monkeypatch, tmp_path):
    made = Asked()
    monkeypatch.setattr(fai_fast, "load", lambda *_, **__: made)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def pictures(tmp_path):
    """Two of one name, one of them without an object."""
    for folder, value in (("a", 255), ("b", 0)):
        (tmp_path / folder).mkdir()
        image = np.zeros((40, 60, 3), np.uint8)
        image[10:20, 30:50] = value
        Image.fromarray(image).save(tmp_path / folder / "same.png")
    return [tmp_path / "a" / "same.png", tmp_path / "b" / "same.png"]


def predict(*argv):
    return cli.main(["predict", "fai-mf-s-coco-ins", *map(str, argv), "--no-images", "--output", "out"])


def test_what_is_wanted_reaches_the_model(model, pictures):
    assert predict(pictures[0]) == 0
    assert model.options.pop() == {"threshold": None}
    argv = ("--threshold", "0.4", "--threshold", "person=0.7", "--threshold", "car=0.2", "--top-k", "3")
    assert (
        predict(pictures[0], *argv, "--classes", "person, car", "--classes", "traffic light", "--overwrite")
        == 0
    )
    options = model.options.pop()
    names = model.spec.classes
    expected = dict.fromkeys(range(80), 0.4) | {names.index("person"): 0.7, names.index("car"): 0.2}
    assert options == {"threshold": expected, "classes": ["person", "car", "traffic light"], "top_k": 3}
    assert predict(pictures[0], "--threshold", "person=0.7", "--overwrite") == 0
    assert model.options.pop() == {"threshold": {0: 0.7}}


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--threshold", "person=2"], "expected 0 to 1"),
        (["--threshold", "=0.5"], "expected 0 to 1, or CLASS=0.7"),
        (["--threshold", "persn=0.5"], "did you mean 'person'"),
        (["--top-k", "0"], "expected a positive integer"),
        (
            ["--classes", "car,persn"],
            "error: --classes: got 'persn', which is none of the 80 classes; did you mean 'person'",
        ),
        (["--format", "docx"], "invalid choice: 'docx'"),
    ],
)
def test_what_is_wrong_is_told(pictures, capsys, argv, text):
    assert predict(pictures[0], *argv) == 2
    assert text in capsys.readouterr().err
    assert not (pictures[0].parents[1] / "out").exists()


def test_a_semantic_model_has_no_top_k(pictures, monkeypatch, capsys):
    monkeypatch.setattr(Asked, "spec", fai_fast.spec("fai-mf-m-ade"))
    assert predict(*pictures, "--top-k", "3") == 2
    assert capsys.readouterr().err.count("--top-k: got 3 for a semantic model") == 1


def test_names_with_commas(model, pictures, monkeypatch):
    monkeypatch.setattr(Asked, "spec", fai_fast.spec("fai-mf-m-ade"))
    assert predict(pictures[0], "--classes", "road, route", "--classes", "sky,wall") == 0
    assert model.options.pop()["classes"] == ["road, route", "sky", "wall"]


def test_formats(model, pictures, tmp_path):
    pytest.importorskip("cv2")
    formats = ("jsonl", "csv", "coco", "yolo", "labelme", "png")
    assert predict(*pictures, *(word for name in formats for word in ("--format", name))) == 0
    out = tmp_path / "out"
    expected = Bright().infer(np.asarray(Image.open(pictures[0])))

    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == list(map(str, pictures))
    assert all(line["time"].endswith("Z") for line in lines)
    assert Detections.from_dict(lines[0]) == expected

    rows = list(csv.DictReader(io.StringIO((out / "predictions.csv").read_text())))
    assert [(row["file"], row["class_name"], row["area"]) for row in rows] == [
        (str(pictures[0]), "car", "200")
    ]

    coco = json.loads((out / "predictions.coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == list(map(str, pictures))
    [annotation] = coco["annotations"]
    assert annotation["category_id"] == 3
    assert {"id": 13, "name": "stop sign"} in coco["categories"]
    back = Detections.from_coco(coco["annotations"], size=(40, 60), class_names=expected.class_names)
    assert back.packed == expected.packed

    text = (out / "labels" / "same.txt").read_text()
    assert Detections.from_yolo(text, size=(40, 60)).packed == expected.packed
    assert (out / "labels" / "same-2.txt").read_text() == ""
    shapes = json.loads((out / "labelme" / "same.json").read_text())
    assert Detections.from_labelme(shapes, class_names=expected.class_names).packed == expected.packed
    image = np.asarray(Image.open(out / "masks" / "same.png"))
    np.testing.assert_array_equal(image, np.where(expected.mask[0], 2, 255))
    assert (np.asarray(Image.open(out / "masks" / "same-2.png")) == 255).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_is_read_by_its_own_tools(pictures, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    assert predict(*pictures, "--format", "coco") == 0
    read = coco.COCO(str(tmp_path / "out" / "predictions.coco.json"))
    [annotation] = read.loadAnns(read.getAnnIds(imgIds=[1]))
    assert read.annToMask(annotation).sum() == annotation["area"] == 200
    assert read.loadCats(annotation["category_id"])[0]["name"] == "car"


def test_formats_of_an_earlier_run_stay(pictures, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("mine")
    assert predict(pictures[0], "--format", "csv") == 2
    assert "--format csv: out/predictions.csv is there already" in capsys.readouterr().err
    assert (tmp_path / "out" / "predictions.csv").read_text() == "mine"
    assert predict(pictures[0], "--format", "csv", "--overwrite") == 0
    assert (tmp_path / "out" / "predictions.csv").read_text().startswith("file,time,")


def test_outlines_need_opencv(pictures, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cv2", None)
    assert predict(pictures[0], "--format", "yolo") == 1
    assert "pip install 'fai-fast[polygons]'" in capsys.readouterr().err


def test_tracks_are_asked_for(monkeypatch, pictures, capsys):
    asked = {}

    class Stream:
        def __init__(self, model, source, **options):
            asked.update(options)
            raise ValueError("far enough")

    monkeypatch.setattr("fai_fast.stream.Stream", Stream)
    assert cli.main(["stream", "fai-mf-n-shapes", str(pictures[0]), "--track"]) == 2
    assert asked["track"] is True
    assert "far enough" in capsys.readouterr().err
    asked.clear()
    assert cli.main(["stream", "fai-mf-n-shapes", str(pictures[0])]) == 2
    assert "track" not in asked
