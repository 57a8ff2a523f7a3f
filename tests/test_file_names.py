"""Any file that is there is a file, whatever its name looks like: an address, an option, a pattern, a protocol."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import cli
from fai_fast.engines import onnxruntime, openvino
from fai_fast.images import read_image
from fai_fast.registry import bundled_path, load_spec
from fai_fast.weights import load_weights
from helpers import others
from PIL import Image

# Each is the name of a file, or of one in folders of such names.
NAMES = (
    "2026-10-03T12:30:00",
    "-v",
    "--help",
    "concat:a",
    "subfile,,start,1,end,2,,:a",
    "http:a",
    "http:/host/a",
    "rtsp:/admin:pass@host/a",
    "file:a",
    "pipe:0",
    "fd:",
    "d:x/a",
    "a?b#c=d&e",
    "img%03d",
    "a[1]*",
    "~root",
    "$HOME",
    "a b\tc",
    "ünï",
)
BUNDLED = bundled_path("fai-mf-n-shapes.safetensors")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def forms(path):
    """The ways in which a user may give a path."""
    absolute = os.path.abspath(path)
    doubled = str(path).replace(":/", "://", 1)  # names the same file
    return [str(path), Path(path), absolute, Path(absolute), doubled]


def made(name, suffix):
    path = Path(name + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A network of two convolutions, which is exported, compiled and run in milliseconds."""
    return others.write(tmp_path_factory.mktemp("theirs") / "a.onnx")


@pytest.fixture(scope="module")
def graph(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "a.onnx"
    fai_fast.export(theirs, path, spec=others.spec())
    return path


def test_pictures(name):
    pixels = np.full((6, 8, 3), 200, np.uint8)
    path = made(name, ".png")
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    for form in forms(path):
        np.testing.assert_array_equal(read_image(form), pixels)


def test_weights(name):
    path = made(name, ".safetensors")
    shutil.copy(BUNDLED, path)
    expected = load_weights("fai-mf-n-shapes").sha256
    for form in forms(path):
        assert load_weights("fai-mf-n-shapes", form).sha256 == expected


def test_graphs(name, graph):
    path = made(name, ".onnx")
    shutil.copy(graph, path)
    for form in forms(path):
        with fai_fast.load(form, precision="fp32") as model:
            assert model.size == (64, 64)
    for engine in (openvino, onnxruntime):
        ready = engine.load(path)
        ready.context().run()
        ready.close()


def test_exports(name, theirs):
    path = made(name, ".onnx")
    before = set(Path().rglob("*"))
    for form in forms(path):
        fai_fast.export(theirs, form, spec=others.spec(), verify=False)
        assert set(Path().rglob("*")) - before == {path}
        path.unlink()


def test_records_of_models(name):
    path = made(name, ".json")
    path.write_text(json.dumps(fai_fast.spec("fai-mf-n-shapes").to_dict()))
    for form in forms(path):
        assert load_spec(form).name == "fai-mf-n-shapes"


def test_the_command_line(name, capsys, monkeypatch):
    from helpers.models import Bright

    monkeypatch.setattr(fai_fast, "load", lambda *_, **__: Bright())
    path = made(name, ".png")
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[3:9, 4:12] = 255
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    for number, form in enumerate((str(path), os.path.abspath(path))):
        argv = ["predict", "--output", f"out:{number}", "--json", "f:o-und.json", "m", "--", form]
        assert cli.main(argv) == 0, capsys.readouterr().err
        [entry] = json.loads(Path("f:o-und.json").read_text())["images"]
        assert (entry["file"], len(entry["detections"])) == (form, 1)
        assert [item.name for item in Path(f"out:{number}").iterdir()] == [path.name]


def test_coco(name):
    pytest.importorskip("faster_coco_eval")
    from fai_fast.evaluate import CocoData

    path, pictures = made(name, ".json"), Path(f"{name}-pictures")
    pictures.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(pictures / "a:b.png")
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a:b.png", "height": 8, "width": 8}],
                "categories": [{"id": 1, "name": "circle"}],
                "annotations": [],
            }
        )
    )
    for form in forms(path):
        assert len(CocoData.read(pictures, form).images) == 1
