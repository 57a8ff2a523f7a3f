"""``fai-fast eval``: what it prints and writes, its exit codes, and its one-sentence errors."""

from __future__ import annotations

import json

import fai_fast
import numpy as np
import pytest
from fai_fast import cli
from fai_fast.errors import EngineError
from PIL import Image

pytest.importorskip("faster_coco_eval")
evaluated = pytest.importorskip("test_evaluate")

MODEL = "fai-mf-n-shapes"
LEFT, LOW = evaluated.LEFT, evaluated.LOW


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAI_FAST_TRACEBACK", raising=False)
    evaluated.write(tmp_path, evaluated.objects_of(1, (1, LEFT)) + evaluated.objects_of(2, (1, LOW)))
    return tmp_path


@pytest.fixture
def models(monkeypatch):
    """In place of fai_fast.load: fp16 finds less, bf16 does not run, onnxruntime knows fp32 only."""
    made = []

    def load(name, *, engine, precision, **arguments):
        if name not in (MODEL, "fai-mf-m-ade"):
            raise ValueError(f"name: got {name!r}")
        if precision == "bf16":
            raise EngineError("no bf16 here")
        if engine == "onnxruntime" and precision == "fp16":
            raise ValueError("precision: got 'fp16'")
        if name == "fai-mf-m-ade":
            made.append(evaluated.Oracle({1: evaluated.semantic([[0, 1], [1, 1]])}, evaluated.ADE))
        else:
            made.append(evaluated.Oracle(evaluated.WORSE if precision == "fp16" else evaluated.GOOD))
        made[-1].loaded = {"engine": engine, "precision": precision, **arguments}
        return made[-1]

    monkeypatch.setattr(fai_fast, "load", load)
    return made


def run(capsys, *argv):
    """Exit code, stdout, stderr."""
    code = cli.main(["eval", *map(str, argv)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


COCO = (MODEL, "--images", "images", "--coco", "instances.json")


def test_coco(capsys, models, folder):
    code, out, err = run(
        capsys, *COCO, "--json", "out.json", "--threshold", "0.1", "--limit", "1", "--im-size", "64x96"
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{MODEL} 192x192, oracle fp32, 1 images, 1 objects, 1 detections"
    published = evaluated.SHAPES.metrics["segm/AP"]
    expected = ["segm/AP", "100.00", f"{published:.2f}", f"{100 - published:+.2f}"]
    assert expected in [line.split() for line in out.splitlines()]
    [model] = models
    assert model.asked == [(1, 0.1, 3)]
    assert model.loaded["im_size"] == (64, 96)
    assert model.closed
    content = json.loads((folder / "out.json").read_text())
    assert content["metrics"]["segm/AP"] == 100
    assert content["published"] == evaluated.SHAPES.metrics


def test_the_json_alone_on_stdout(capsys, models):
    code, out, _ = run(capsys, *COCO, "--json", "-")
    assert code == 0
    assert json.loads(out)["metrics"]["segm/AP"] == 100


def test_ade(capsys, models, folder):
    evaluated.write_ade(folder / "ade", np.array([[[1, 1], [2, 2]]]))
    code, out, _ = run(capsys, "fai-mf-m-ade", "--ade", "ade", "--json", "out.json")
    assert code == 0
    # 1 of 2 and 2 of 3.
    lines = [line.split() for line in out.splitlines()]
    assert ["sem_seg/mIoU", "58.33", "44.43", "+13.90"] in lines
    assert ["sem_seg/pACC", "75.00", "80.73", "-5.73"] in lines
    content = json.loads((folder / "out.json").read_text())
    assert content["metrics"]["sem_seg/mIoU"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert content["per_class"]["sky"] is None


def test_a_comparison_that_falls_exits_with_1(capsys, models, folder):
    code, out, err = run(
        capsys,
        *COCO,
        *("--compare", "fp32,bf16,fp16", "--compare-engines", "openvino, onnxruntime", "--json", "out.json"),
    )
    assert code == 1
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[3:]] == [
        [engine, precision]
        for engine in ("openvino", "onnxruntime")
        for precision in ("fp32", "bf16", "fp16")
    ]
    assert [("cannot run here" in line, "fell by more than 0.5" in line) for line in lines[3:]] == [
        (False, False),
        (True, False),
        (False, True),
        (False, False),
        (True, False),
        (True, False),
    ]
    assert "measuring openvino fp16" in err
    content = json.loads((folder / "out.json").read_text())
    assert content["tolerance"] == 0.5
    assert [run["fell"] for run in content["runs"]] == [False, False, True, False, False, False]


def test_comparisons_that_hold_exit_with_0(capsys, models):
    assert run(capsys, *COCO, "--compare", "fp32,bf16")[0] == 0
    assert run(capsys, *COCO, "--compare-engines", "openvino,onnxruntime")[0] == 0
    assert [model.loaded["precision"] for model in models[1:]] == ["auto", "auto"]
    assert run(capsys, *COCO, "--compare", "fp32,fp16", "--tolerance", "0.6")[0] == 0


def test_a_first_configuration_that_does_not_run(capsys, models):
    code, out, err = run(capsys, *COCO, "--compare", "bf16,fp32")
    assert (code, out) == (1, "")
    assert err.endswith("fai-fast: error: no bf16 here\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((MODEL,), "--coco --ade"),
        (("--images", "images", "--coco", "instances.json"), "MODEL: missing, expected fai-fast eval MODEL"),
        ((MODEL, "--coco", "instances.json"), "--coco: needs --images"),
        ((MODEL, "--ade", "ade", "--images", "images"), "--images: belongs to --coco"),
        ((MODEL, "--ade", "ade", "--coco", "instances.json"), "--coco"),
        (("none", *COCO[1:]), "MODEL: got 'none'"),
        ((*COCO, "--limit", "0"), "expected a positive integer"),
        ((*COCO, "--threshold", "2"), "expected 0 to 1"),
        ((*COCO, "--max-pixels", "0"), "--max-pixels: got '0', expected a positive integer"),
        ((*COCO, "--compare", "fp32,fp8"), "--compare: got fp8, expected some of auto, fp32"),
        ((*COCO, "--compare", "fp32,fp32"), "none twice"),
        ((*COCO, "--compare", "fp32,"), "names with commas"),
        ((*COCO, "--compare-engines", "turbo"), "--compare-engines: got turbo"),
        ((*COCO, "--compare", "fp32,bf16", "--precision", "fp32"), "got --precision fp32 too"),
        ((*COCO, "--compare-engines", "openvino", "--engine", "openvino"), "got --engine openvino too"),
    ],
)
def test_wrong_usage(capsys, models, argv, message):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert models == []


def test_wrong_data_sets_are_told_before_the_model_is_loaded(capsys, models, folder):
    (folder / "images" / "2.png").unlink()
    code, _, err = run(capsys, *COCO)
    assert code == 1
    assert "1 of 2 files are missing, in images: 2.png" in err
    assert run(capsys, MODEL, "--ade", "none")[0] == 1
    assert models == []
    code, out, _ = run(capsys, *COCO, "--skip-missing")
    assert code == 0
    assert "Left out, not there: 2.png." in out


def test_pictures_have_a_limit(capsys, models, folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    code, _, err = run(capsys, *COCO)
    assert code == 1
    assert "images/1.png is too large" in err
    code, _, err = run(capsys, *COCO, "--max-pixels", 24 * 32 - 1)
    assert code == 1
    assert "images/1.png is too large: 32 x 24, expected at most 767 pixels" in err
    assert run(capsys, *COCO, "--max-pixels", 24 * 32)[0] == 0
    evaluated.write_ade(folder / "ade", np.array([[[1, 1], [2, 2]]]))
    ade = ("fai-mf-m-ade", "--ade", "ade", "--max-pixels")
    code, _, err = run(capsys, *ade, 3)
    assert code == 1
    assert "is too large: 2 x 2, expected at most 3 pixels" in err
    assert run(capsys, *ade, 4)[0] == 0


@pytest.fixture
def scenes(folder, monkeypatch):
    """Writes so many held-out scenes, and returns what follows ``eval``."""
    pytest.importorskip("cv2")
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(evaluated.TOOLS))
    import shapes_dataset

    def write(count, size):
        shapes_dataset.write(folder / "scenes", count, size)
        return (
            *(MODEL, "--images", "scenes/images", "--coco", "scenes/instances.json"),
            *("--json", "out.json", "--compare", "fp32,bf16,fp16"),
            *("--compare-engines", "openvino,onnxruntime"),
        )

    return write


def test_the_demo_model_on_its_scenes_in_two_engines(capsys, folder, scenes):
    # So few scenes say little of a precision that some CPUs have and others do not.
    code, out, err = run(capsys, *scenes(6, 160), "--tolerance", "0.1")
    assert code == 0, out + err
    runs = json.loads((folder / "out.json").read_text())["runs"]
    assert len(runs) == 6
    by_name = {(run["engine"], run["precision"]): run for run in runs}
    for engine in ("openvino", "onnxruntime"):
        assert abs(by_name[engine, "fp32"]["difference"]) < 0.5
        assert by_name[engine, "fp32"]["report"]["engine"] == engine
        assert 20 < by_name[engine, "fp32"]["report"]["metrics"]["segm/AP"] < 90
    for item in runs:
        assert (item["report"] is None) == (item["problem"] is not None)
    assert "precision 'bf16' was asked for" in by_name["onnxruntime", "bf16"]["problem"]


@pytest.mark.slow
def test_the_demo_model_keeps_its_ap_in_every_precision(capsys, folder, scenes):
    code, out, err = run(capsys, *scenes(500, 256))
    assert code == 0, out + err
    first = json.loads((folder / "out.json").read_text())["runs"][0]["report"]
    assert first["metrics"]["segm/AP"] == pytest.approx(first["published"]["segm/AP"], abs=0.3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("fai-mf-m-ade", *COCO[1:]),
            "fai-mf-m-ade is a semantic model, expected an instance one",
        ),
        (
            ("fai-mf-m-coco-ins", *COCO[1:]),
            "categories of instances.json are no classes of the model",
        ),
        ((MODEL, "--ade", "ade"), "gives masks that may overlap, expected a semantic model"),
    ],
)
def test_a_model_of_another_task_is_refused_before_it_is_made(capsys, models, folder, argv, message):
    evaluated.write_ade(folder / "ade", np.array([[[1, 1], [2, 2]]]))
    code, out, err = run(capsys, *argv)
    assert (code, out, models) == (2, "", [])
    assert message in err
