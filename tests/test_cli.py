"""The command line: what it prints and writes, its exit codes, and its one-sentence errors.

Most tests put a small model of their own in place of a network; those with `network` in their name run a real one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import cli
from fai_fast.cli import options
from fai_fast.cli.paths import find_sources, output_names
from fai_fast.errors import EngineError
from helpers.models import SPEC, Bright
from PIL import Image
from pycocotools import mask as coco


@pytest.fixture
def model(monkeypatch):
    """In place of fai_fast.load; `model.asked` is what it was asked for."""
    made = Bright()

    def load(name, **arguments):
        made.asked = {"name": name, **arguments}
        return made

    monkeypatch.setattr(fai_fast, "load", load)
    return made


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAI_FAST_TRACEBACK", raising=False)
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_picture(path, box=(4, 3, 12, 9), size=(20, 30), mode="RGB"):
    pixels = np.zeros((*size, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return Path(path)


def run(capsys, *argv):
    """Exit code, stdout, stderr."""
    code = cli.main([str(item) for item in argv])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def fails(capsys, *argv, code, stdout=""):
    """The one sentence on stderr."""
    got, out, err = run(capsys, *argv)
    assert (got, out) == (code, stdout)
    [line] = err.splitlines()
    assert line.startswith("fai-fast: error: ")
    return line.removeprefix("fai-fast: error: ")


# ------------------------------------------------------------------------------------------------- predict


def test_predict_writes_json_and_pictures(capsys, model, folder):
    write_picture("a.png")
    code, out, err = run(capsys, "predict", "some-model", "a.png", "--output", "found")
    assert code == 0
    assert out == "a.png  1 car  7.0 ms\n"
    assert err == "fai-fast: 1 picture, 1 object; wrote pictures in found and found/predictions.json\n"
    assert model.closed
    document = json.loads(Path("found/predictions.json").read_text())
    assert document["fai_fast"] == fai_fast.__version__
    assert document["model"] == SPEC.name
    assert document["classes"] == list(SPEC.classes)
    assert (document["task"], document["im_size"]) == ("instance", [384, 640])
    assert (document["engine"], document["precision"]) == ("fake", "fp32")
    [entry] = document["images"]
    assert (entry["file"], entry["size"], entry["picture"]) == ("a.png", [20, 30], "found/a.png")
    latency = entry["latency_ms"]
    assert latency["decode"] > 0
    assert latency["total"] == pytest.approx(latency["decode"] + 7.0)
    [row] = entry["detections"]
    assert (row["class_name"], row["class_id"], row["confidence"]) == ("car", 2, 0.75)
    assert (row["xyxy"], row["area"]) == ([4.0, 3.0, 12.0, 9.0], 48)
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:12] = True
    rle = {**row["mask"], "counts": row["mask"]["counts"].encode()}
    assert np.array_equal(np.array(coco.toBbox(rle)), [4, 3, 8, 6])
    assert coco.area(rle) == mask.sum()
    with Image.open("found/a.png") as drawn:
        assert drawn.size == (30, 20)
        assert (np.asarray(drawn) != np.asarray(Image.open("a.png"))).any()


def test_predict_hands_the_options_on(capsys, model):
    write_picture("a.png")
    options = "--weights w.pth --im-size 384x640 --engine openvino --device cpu --precision fp16 --threads 3"
    code, _, _ = run(
        capsys, "predict", "m", "a.png", *options.split(), "--cache-dir", "kept", "--threshold", "0.25"
    )
    assert code == 0
    assert model.asked == {
        "name": "m",
        "weights": "w.pth",
        "im_size": (384, 640),
        "frame": None,
        "engine": "openvino",
        "device": "cpu",
        "precision": "fp16",
        "num_threads": 3,
        "cache_dir": "kept",
        "pictures": None,
        "verify_precision": True,
        "spec": None,
        "task": None,
    }
    assert model.thresholds == [0.25]


NAMED = "fai-mf-n-shapes"


@pytest.mark.parametrize(
    ("sizes", "options", "im_size"),
    [
        ([(27, 48)], [], (160, 288)),
        ([(48, 27)], [], (288, 160)),
        ([(27, 48), (30, 52), (26, 48)], [], (160, 288)),
        ([(27, 48), (48, 27)], [], (192, 192)),
        ([(40, 44)], [], (192, 192)),
        ([], [], (192, 192)),
        ([(27, 48)], ["--im-size", "192"], 192),
        ([(27, 48)], ["--frame", "1000x1000"], None),
    ],
)
def test_predict_takes_the_shape_that_all_pictures_have(capsys, model, sizes, options, im_size):
    Path("in").mkdir()
    for index, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(f"in/{index}.png")
    Path("in/damaged.png").write_bytes(b"text")
    code, _, err = run(capsys, "predict", NAMED, "in", "--no-images", *options)
    assert code == 1
    assert model.asked["im_size"] == im_size
    assert model.asked["frame"] == ((1000, 1000) if "--frame" in options else None)
    shaped = [line for line in err.splitlines() if "the network's input is" in line]
    assert len(shaped) == (im_size not in (None, 192, (192, 192)))
    assert err.count("the pictures have several shapes") == (len(sizes) == 2)
    if sizes == [(27, 48)] and not options:
        assert shaped == [
            "fai-fast: the network's input is 160x288 in place of 192x192 (height x width), the shape of the pictures, "
            "27x48; --im-size 192 keeps it"
        ]


def test_predict_takes_the_shape_of_a_picture_as_it_is_shown(capsys, model):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 27)).save("a.jpg", exif=exif)
    assert run(capsys, "predict", NAMED, "a.jpg")[0] == 0
    assert model.asked["im_size"] == (288, 160)


@pytest.mark.parametrize(
    "text", ["1080", "1080p", "1920x", "1920x1080x3", "0x1080", "99999x1", "-1x5", "1920*1080"]
)
def test_a_wrong_frame_tells_the_order(capsys, model, text):
    message = fails(capsys, "predict", NAMED, "a.png", f"--frame={text}", code=2)
    assert f"argument --frame: got {text!r}, expected 1920x1080 for width x height" in message


def test_a_frame_and_a_size_exclude_each_other(capsys, model):
    message = fails(capsys, "predict", NAMED, "a.png", "--frame", "1920x1080", "--im-size", "640", code=2)
    assert "--im-size: not allowed with argument --frame" in message


def test_predict_goes_on_after_damaged_pictures(capsys, model):
    for name in "abc":
        write_picture(f"in/{name}.jpg")
    Path("in/b.jpg").write_bytes(Path("in/b.jpg").read_bytes()[:300])
    Path("in/d.png").write_bytes(b"text")
    code, out, err = run(capsys, "predict", "m", "in", "gone.jpg")
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["in/a.jpg", "in/c.jpg"]
    errors = err.splitlines()
    assert errors[0] == "fai-fast: error: gone.jpg: no such file or folder"
    assert errors[1].startswith("fai-fast: error: in/b.jpg is damaged")
    assert errors[2].startswith("fai-fast: error: in/d.png is no picture")
    assert "4 pictures, 2 objects, 3 failed" in errors[3]
    entries = json.loads(Path("predictions/predictions.json").read_text())["images"]
    assert [entry["file"] for entry in entries] == [
        f"in/{name}" for name in ("a.jpg", "b.jpg", "c.jpg", "d.png")
    ]
    assert ["error" in entry for entry in entries] == [False, True, False, True]
    assert sorted(path.name for path in Path("predictions").glob("*.jpg")) == ["a.jpg", "c.jpg"]


def test_predict_refuses_pictures_beyond_a_limit_that_can_be_raised(capsys, model, monkeypatch):
    write_picture("a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    code, out, err = run(capsys, "predict", "m", "a.png")
    assert (code, out) == (1, "")
    assert err.startswith("fai-fast: error: a.png is too large: ")
    code, _, err = run(capsys, "predict", "m", "a.png", "--max-pixels", 599)
    assert code == 1
    assert "a.png is too large: 30 x 20, expected at most 599 pixels" in err
    # Pillow's limit is also one on what it draws.
    assert run(capsys, "predict", "m", "a.png", "--max-pixels", 600, "--no-images")[0] == 0
    del model.asked
    for wrong, message in (
        ("0", "a positive integer"),
        ("1e9", "a positive integer"),
        (2**28 + 1, "at most 268435456"),
    ):
        text = fails(capsys, "predict", "m", "a.png", "--max-pixels", wrong, code=2)
        assert f"--max-pixels: got '{wrong}', expected {message}" in text
    assert not hasattr(model, "asked")


def test_predict_json_on_stdout_is_all_there_is(capsys, model, folder):
    write_picture("a.png", box=(0, 0, 0, 0))
    code, out, err = run(capsys, "predict", "m", "a.png", "--json", "-", "--no-images", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(out)["images"][0]["detections"] == []
    assert json.loads(out)["images"][0]["picture"] is None
    assert [path.name for path in folder.iterdir()] == ["a.png"]


def test_predict_takes_gray_pictures_and_writes_other_formats_as_jpeg(capsys, model):
    write_picture("a.bmp", mode="L")
    assert run(capsys, "predict", "m", "a.bmp")[0] == 0
    with Image.open("predictions/a.jpg") as drawn:
        assert (drawn.format, drawn.mode) == ("JPEG", "RGB")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "."], "--output: a.png would overwrite the input a.png, give another folder"),
        (["--json", "a.png"], "--output: a.png would overwrite the input a.png, give another folder"),
        (
            ["--output", "other/../."],
            "--output: other/../a.png would overwrite the input a.png, give another folder",
        ),
        (["--output", "a.png"], "--output: a.png is a file, expected a folder"),
        (
            ["--json", "other"],
            "--output: other is a folder, expected a place for a file; give another folder",
        ),
    ],
)
def test_predict_never_overwrites_an_input(capsys, model, arguments, message):
    content = write_picture("a.png").read_bytes()
    Path("other").mkdir()
    assert fails(capsys, "predict", "m", "a.png", *arguments, code=2) == message
    assert Path("a.png").read_bytes() == content
    assert not hasattr(model, "asked")


def test_predict_without_pictures_loads_no_model(capsys, model):
    Path("empty").mkdir()
    assert (
        fails(capsys, "predict", "m", "empty", code=1)
        == "empty: no pictures in this folder itself; see --recursive"
    )
    assert fails(capsys, "predict", "m", "empty", "-r", code=1) == "empty: no pictures in this folder"
    assert (
        fails(capsys, "predict", "m", "*.jpg", code=1)
        == "*.jpg: no pictures and no videos match this pattern"
    )
    # Such as a variable of the shell that is not set, which pathlib takes for the folder that the process is in.
    write_picture("a.png")
    assert fails(capsys, "predict", "m", "", code=1) == "'': no such file or folder"
    assert not hasattr(model, "asked")


def test_predict_keeps_the_old_json_when_the_engine_fails(capsys, model, monkeypatch):
    write_picture("a.png")
    Path("found.json").write_text("old")

    def fail(*_, **__):
        raise EngineError("fake: running failed:\nout of memory")

    monkeypatch.setattr(model, "infer", fail)
    text = fails(capsys, "predict", "m", "a.png", "--no-images", "--json", "found.json", code=1)
    assert text == "fake: running failed: out of memory"
    assert Path("found.json").read_text() == "old"
    assert model.closed


# --------------------------------------------------------------------------------------------------- paths


def test_inputs_are_files_folders_and_patterns_sorted_and_once():
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "sub/.hidden.jpg", "notes.txt", "odd.dat"):
        write_picture(f"in/{name}.jpg").rename(f"in/{name}")
    os.symlink("b.jpg", "in/link.jpg")

    def names(*inputs, recursive=False):
        paths, problems = find_sources(inputs, recursive=recursive, leave_out=[Path("out")])
        return [path.as_posix() for path in paths], problems

    assert names("in") == (["in/a.PNG", "in/b.jpg"], [])
    assert names("in", recursive=True) == (["in/a.PNG", "in/b.jpg", "in/sub/c.webp"], [])
    assert names("in/b.jpg", "in", "in/../in/b.jpg")[0] == ["in/b.jpg", "in/a.PNG"]
    assert names("in/*") == (["in/a.PNG", "in/b.jpg"], [])
    assert names("**/*.webp") == (["in/sub/c.webp"], [])
    assert names("in/odd.dat") == (["in/odd.dat"], [])
    assert names("in/x.jpg", "in/*.gif") == (
        [],
        ["in/x.jpg: no such file or folder", "in/*.gif: no pictures and no videos match this pattern"],
    )


def test_a_name_with_pattern_characters_is_a_name_first():
    write_picture("a[1].jpg")
    write_picture("a1.jpg")
    paths, problems = find_sources(["a[1].jpg"], recursive=False, leave_out=[Path("out")])
    assert (paths, problems) == ([Path("a[1].jpg")], [])


def test_earlier_results_are_no_inputs_unless_named():
    for name in ("a.jpg", "out/a.jpg"):
        write_picture(name)
    for inputs in (["."], ["**/*.jpg"]):
        assert find_sources(inputs, recursive=True, leave_out=[Path("out")])[0] == [Path("a.jpg")]
    assert find_sources(["out/a.jpg"], recursive=True, leave_out=[Path("out")])[0] == [Path("out/a.jpg")]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.jpg", "y/b.png"], ["a.jpg", "b.png"]),
        (["x/a.jpg", "y/a.jpg", "y/b.tif"], ["x/a.jpg", "y/a.jpg", "b.jpg"]),
        (["x/a.jpg", "y/A.JPG"], ["x/a.jpg", "y/A.JPG"]),
        (["a.jpg", "z/a.jpg"], ["a.jpg", "z/a.jpg"]),
        (["a.bmp", "a.jpg", "a.tif"], ["a.bmp.jpg", "a.jpg.jpg", "a.tif.jpg"]),
        ([], []),
    ],
)
def test_output_names_tell_pictures_of_one_name_apart(paths, names):
    got = output_names([Path(path) for path in paths])
    assert [path.as_posix() for path in got.values()] == names


@pytest.mark.parametrize(
    "paths",
    [
        ["a.jpg", "A.jpg", "a.JPG"],
        ["a.bmp", "a.jpg", "a.bmp.jpg", "a.bmp.jpg.jpg"],
        ["x/a.bmp", "x/a.gif", "y/a.bmp", "x/A.BMP", "x/a.bmp.jpg"],
    ],
)
def test_output_names_differ_on_any_file_system(paths):
    names = output_names([Path(path) for path in paths])
    assert len({str(name).casefold() for name in names.values()}) == len(paths)
    assert not any(name.is_absolute() or ".." in name.parts for name in names.values())


# ---------------------------------------------------------------------------------------- the other commands


def test_demo_prints_what_it_finds_and_writes_the_picture(capsys, model, folder):
    write_picture("mine.png")
    code, out, err = run(capsys, "demo", "--image", "mine.png", "--output", "drawn.png")
    assert (code, err) == (0, "")
    assert model.asked["name"] == "fai-mf-n-shapes"
    lines = out.splitlines()
    assert lines[0] == f"{SPEC.name}, 384x640, fake fp32 on cpu"
    assert lines[2].split()[:2] == ["class", "score"]
    assert lines[3].split() == ["car", "0.750", "4", "3", "12", "9", "48"]
    assert lines[5] == "ms: decode 0.0  preprocess 1.0  engine 2.0  postprocess 4.0  total 7.0"
    assert lines[6] == f"picture: {folder / 'drawn.png'}"
    with Image.open("drawn.png") as drawn:
        assert drawn.size == (30, 20)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--output", "a.gif"],
            2,
            "--output: got 'a.gif', expected a name that ends with .jpg, .jpeg, .png, .webp",
        ),
        (
            ["--image", "mine.png", "--output", "mine.png"],
            2,
            "--output: mine.png is the picture itself, expected",
        ),
        (["--image", "gone.png"], 1, "--image: no such file: gone.png"),
        (["--image", "mine.png", "--output", "gone/a.jpg"], 2, "--output: no such folder: gone"),
    ],
)
def test_demo_names_what_is_wrong(capsys, model, arguments, code, message):
    write_picture("mine.png")
    got, _, err = run(capsys, "demo", *arguments)
    assert got == code
    assert err.startswith(f"fai-fast: error: {message}")


def test_models_lists_all(capsys):
    code, out, err = run(capsys, "models")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["NAME", "FAMILY", "TASK", "CLASSES", "SIZE", "METRIC", "T4", "MS"]
    assert [row[0] for row in rows[1:]] == list(fai_fast.models())
    by_name = {row[0]: row[1:] for row in rows[1:]}
    assert by_name["fai-mf-s-coco-ins"] == ["fai_mf", "instance", "80", "1024", "AP", "39.0", "12.8"]
    assert by_name["bisenetformer-l-ade"] == ["bisenetformer", "semantic", "150", "640", "mIoU", "45.1", "-"]


def test_models_prints_a_card_or_records(capsys):
    assert (
        run(capsys, "models", "bisenetformer-m-ade")[1]
        == fai_fast.spec("bisenetformer-m-ade").card().rstrip("\n") + "\n"
    )
    record = json.loads(run(capsys, "models", "bisenetformer-m-ade", "--json")[1])
    assert fai_fast.ModelSpec.from_dict(record) == fai_fast.spec("bisenetformer-m-ade")
    assert [item["name"] for item in json.loads(run(capsys, "models", "--json")[1])] == list(
        fai_fast.models()
    )


def test_models_of_an_unknown_name_is_wrong_usage(capsys):
    assert "'nonsense'" in fails(capsys, "models", "nonsense", code=2)


def test_bench_prints_and_writes_figures(capsys, model):
    write_picture("a.png")
    code, out, err = run(
        capsys, "bench", "m", "--image", "a.png", "--runs", "7", "--warmup", "2", "--json", "b.json"
    )
    assert (code, err) == (0, "")
    assert model.ran == ("a.png", 7, 2)
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][-2:] == ["7", "frames"]
    assert rows[2] == ["ms", "mean", "p50", "p90", "p99"]
    assert rows[3] == ["decode", "1.50", "1.00", "2.00", "3.00"]
    assert [row[0] for row in rows[3:]] == ["decode", "preprocess", "engine", "postprocess", "total"]
    document = json.loads(Path("b.json").read_text())
    assert (document["runs"], document["warmup"], document["image"]) == (7, 2, "a.png")
    assert document["milliseconds"]["engine"]["p90"] == 2.0
    assert document["model"]["precision"] == "fp32"
    assert json.loads(run(capsys, "bench", "m", "--json", "-")[1])["runs"] == 50


def test_doctor_prints_text_or_json(capsys):
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    assert "openvino" in out
    document = json.loads(run(capsys, "doctor", "--json")[1])
    assert document["fai_fast"]["version"] == fai_fast.__version__


def test_cache_lists_and_clears(capsys, folder):
    from fai_fast.cache import artefact

    assert run(capsys, "cache", "path")[1] == f"{folder / 'cache'}\n"
    assert run(capsys, "cache")[:2] == (0, f"0 files, 0.0 MB, in {folder / 'cache'}\n")
    artefact(
        folder / "cache" / "models" / "m" / "a.onnx",
        {"n": 1},
        lambda path: path.write_bytes(bytes(2_000_000)) and None,
    )
    out = run(capsys, "cache", "list")[1].splitlines()
    assert out[1].split()[0] == "models/m/a.onnx"
    assert out[1].split()[-2:] == ["2.0", "MB"]
    assert out[2].startswith("1 file, 2.0 MB, in ")
    assert (
        fails(capsys, "cache", "clear", code=2)
        == "cache clear: there is nobody to ask; add --yes to remove everything"
    )
    assert (folder / "cache" / "models" / "m" / "a.onnx").exists()
    assert run(capsys, "cache", "clear", "--yes")[:2] == (
        0,
        f"removed 1 file, 2.0 MB, from {folder / 'cache'}\n",
    )
    assert run(capsys, "cache", "--cache-dir", "other", "path")[1] == f"{folder / 'other'}\n"
    assert run(capsys, "cache")[1].startswith("0 files")


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 1), ("n", 1)])
def test_cache_clear_asks(capsys, monkeypatch, folder, answer, code):
    import io

    from fai_fast.cache import artefact

    path = folder / "cache" / "models" / "m" / "a.txt"
    artefact(path, {}, lambda path: path.write_bytes(b"a") and None)
    stdin = io.StringIO(f"{answer}\n")
    stdin.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stdin)
    got, _, err = run(capsys, "cache", "clear")
    assert got == code
    assert path.exists() == bool(code)
    assert err.endswith("? [y/N] ")


# ---------------------------------------------------------------------------------------- errors and usage


@pytest.mark.parametrize(
    ("text", "value"), [("640", 640), ("384x640", (384, 640)), ("64X32", (64, 32)), ("0640", 640)]
)
def test_sizes(text, value):
    assert options.size(text) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "predict m a.png --im-size 640x",
            "--im-size: got '640x', expected 640, or 384x640 for height x",
        ),
        ("predict m a.png --threshold 1.5", "--threshold: got '1.5', expected 0 to 1"),
        ("predict m a.png --threshold nan", "--threshold: got 'nan', expected 0 to 1"),
        ("bench m --runs 0", "--runs: got '0', expected a positive integer"),
        ("bench m --threads -1", "--threads: got '-1', expected a positive integer"),
        ("export m out.pth", "OUT.onnx: got 'out.pth', expected a name that ends with .onnx"),
        ("export m gone/out.onnx", "OUT.onnx: no such folder: gone"),
        ("export nonsense out.onnx", "MODEL: got 'nonsense'"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    assert message in fails(capsys, *arguments.split(), code=2)


@pytest.mark.parametrize(
    ("arguments", "named", "command"),
    [
        ("", "COMMAND", "fai-fast"),
        ("predict", "MODEL, SOURCE", "fai-fast predict"),
        ("models --jso", "--jso", "fai-fast models"),
        ("nonsense", "'nonsense'", "fai-fast"),
    ],
)
def test_what_argparse_refuses_is_named_beside_the_way_to_help(capsys, arguments, named, command):
    said = fails(capsys, *arguments.split(), code=2)
    assert named in said
    assert said.endswith(f"; see {command} --help")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            ValueError("im_size: got 3, expected multiples of 32"),
            2,
            "--im-size: got 3, expected multiples of 32",
        ),
        (EngineError("openvino: failed\n  badly"), 1, "openvino: failed badly"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (ImportError("needs torch"), 1, "needs torch"),
        (KeyError("x"), 1, "KeyError: 'x' (--traceback shows where it came from)"),
        (MemoryError(), 1, "MemoryError: (--traceback shows where it came from)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_sentence(capsys, monkeypatch, error, code, text):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(fai_fast, "load", fail)
    assert fails(capsys, "bench", "m", code=code) == text


@pytest.mark.parametrize("how", ["before", "after", "environment"])
def test_a_traceback_is_shown_when_asked_for(capsys, monkeypatch, how):
    def fail(*_, **__):
        raise EngineError("no")

    monkeypatch.setattr(fai_fast, "load", fail)
    if how == "environment":
        monkeypatch.setenv("FAI_FAST_TRACEBACK", "1")
    before, after = (["--traceback"] if how == when else [] for when in ("before", "after"))
    assert cli.main([*before, "bench", "m", *after]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("\nfai-fast: error: no\n")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
@pytest.mark.parametrize("first", [True, False])
def test_what_the_library_logs_goes_to_stderr(capsys, monkeypatch, model, quiet, first):
    import logging
    import warnings

    def load(*_, **__):
        logging.getLogger("fai_fast").info("building %s:\nnot there yet", "x.onnx")
        logging.getLogger("fai_fast").warning("slow")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("large", stacklevel=1)
        return model

    monkeypatch.setattr(fai_fast, "load", load)
    code, _, err = run(capsys, *(quiet if first else []), "bench", "m", *([] if first else quiet))
    expected = "fai-fast: building x.onnx: not there yet\nfai-fast: warning: slow\nfai-fast: warning: large\n"
    assert (code, err) == (0, "" if quiet else expected)
    assert not logging.getLogger("fai_fast").handlers


@pytest.mark.parametrize("command", ["demo", "predict", "models", "export", "bench", "doctor", "cache"])
def test_every_command_teaches_with_examples(capsys, command):
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"usage: fai-fast {command}" in out
    assert out.split("examples:\n")[1].count(f"fai-fast {command}") >= 2
    lines = out.split("examples:\n")[1].splitlines()
    assert all(len(line) < 110 for line in lines)


# ------------------------------------------------------------------------------------------- as a program


def program(*argv, **options):
    return subprocess.run(
        [sys.executable, "-m", "fai_fast", *argv],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("env", {})},
        **options,
    )


def test_the_program_says_its_version_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom fai_fast.cli import main\ncode = main(['--version'])\n"
        "print(sorted({'torch', 'onnx', 'openvino', 'PIL', 'tqdm'} & {*sys.modules}), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == f"fai-fast {fai_fast.__version__}\n[] 0\n"


def test_the_program_exits_with_the_code():
    done = program("models", "nonsense")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("fai-fast: error: ")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no broken pipes of this kind")
def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "fai_fast", "models", "--json"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert (done.returncode, done.stderr) == (141, "")


# -------------------------------------------------------------------------------------- a network, for real


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A folder with a small model: model_info.json and its checkpoint."""
    import torch
    from fai_fast import reference
    from helpers.networks import small_spec

    spec = small_spec("fai_mf", "instance", transformer_predictor_dec_layers=1)
    spec = dataclasses.replace(spec, im_size=64)
    torch.manual_seed(0)
    built = reference.build(spec).eval()
    with torch.no_grad():
        built.head.predictor.forward_prediction_heads.classifier.weight *= 20
    place = tmp_path_factory.mktemp("network")
    torch.save({"model": built.state_dict()}, place / "model_final.pth")
    (place / "model_info.json").write_text(json.dumps(spec.to_dict()))
    return place


@pytest.fixture(scope="module")
def exported(network):
    path = network / "exported.onnx"
    fai_fast.export(network, path)
    return path


def test_a_network_is_exported_and_predicts(capsys, network, folder):
    out = network / "small.onnx"
    argv = [
        "export",
        network / "model_info.json",
        out,
        "--weights",
        network / "model_final.pth",
        "--im-size",
        "64x96",
    ]
    code, said, _ = run(capsys, *argv)
    assert code == 0
    lines = [line.split("  ")[0] for line in said.splitlines()]
    assert lines[0].startswith(f"wrote {out}, ")
    assert "images (1, 3, 64, 96), fp32" in said
    figures = dict(line.rsplit("  ", 1) for line in said.splitlines()[1:])
    figures = {name.strip(): value for name, value in figures.items()}
    assert figures["verified against"] == "reference"
    assert float(figures["mask difference"]) < 1e-4

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(f"{name}.png")
    argv = ["predict", out, "*.png", "--threshold", "0.1", "--precision", "fp32", "--threads", "1"]
    code, said, _ = run(capsys, *argv)
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == ["a.png", "b.png"]
    entries = json.loads((folder / "predictions" / "predictions.json").read_text())["images"]
    with fai_fast.load(out, precision="fp32", num_threads=1) as model:
        for entry in entries:
            expected = model.infer(entry["file"], threshold=0.1)
            assert len(expected) > 0
            assert entry["detections"] == expected.to_dict()["detections"]

    code, said, _ = run(capsys, "bench", out, "--image", "a.png", "--runs", "2", "--warmup", "1")
    assert code == 0
    assert all(float(value) > 0 for line in said.splitlines()[3:] for value in line.split()[1:])


def test_the_demo_finds_shapes_without_a_network_connection(capsys, monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    code, out, err = run(capsys, "demo", "--output", "drawn.png")
    assert code == 0
    # One line the first time, none the next, and everything for whoever asks.
    assert err == "fai-fast: fai-mf-n-shapes: being made ready for this machine, which is done once\n"
    code, again, err = run(capsys, "demo", "--output", "drawn.png")
    assert (code, err, again.splitlines()[:3]) == (0, "", out.splitlines()[:3])
    code, _, err = run(capsys, "-v", "demo", "--output", "drawn.png", "--im-size", "64")
    assert (code, "fai-fast: built " in err) == (0, True)
    classes = set(fai_fast.spec("fai-mf-n-shapes").classes)
    rows = [line.split() for line in out.splitlines()[3:]]
    rows = rows[: rows.index([])]
    assert len(rows) >= 3
    assert {row[0] for row in rows} <= classes
    assert all(0.5 <= float(row[1]) <= 1 for row in rows)
    with Image.open("drawn.png") as drawn:
        assert drawn.size[0] >= 320


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_a_name_that_no_terminal_can_show_is_printed_all_the_same(exported, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write_picture("a.png").rename(name)
    done = program(
        *("predict", str(exported), name, "--json", "found.json"),
        cwd=tmp_path,
        env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caf\\udce9.png  ")
    assert json.loads((tmp_path / "found.json").read_text())["images"][0]["file"] == name


# ------------------------------------------------------------------------------------------------ examples

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_example_of_a_camera(capsys, monkeypatch, model):
    """OpenCV without a camera and a window."""
    import cv2

    frames = [np.full((36, 64, 3), value, np.uint8) for value in (255, 0, 255, 255)]
    shown = []

    class Camera:
        def __init__(self, source):
            assert source == 0

        def isOpened(self):
            return True

        def set(self, *_):
            pass

        def read(self):
            return (True, frames[len(shown)]) if len(shown) < len(frames) else (False, None)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(cv2, "imshow", lambda _, frame: shown.append(frame))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(shown) == 3 else -1)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    infer = model.infer
    monkeypatch.setattr(model, "infer", lambda frame, *, color: (infer(frame), color == "bgr" or 1 / 0)[0])
    monkeypatch.setattr(sys, "argv", ["camera.py"])
    runpy.run_path(str(EXAMPLES / "camera.py"))
    assert [bool((frame != 0).any()) for frame in shown] == [True, False, True]
    assert shown[0].tolist() != frames[0].tolist()
    assert capsys.readouterr().out.count("objects") == 3
    assert model.closed


def test_the_example_of_a_checkpoint(capsys, monkeypatch, network, folder):
    write_picture("a.png")
    monkeypatch.setattr(sys, "argv", ["own_checkpoint.py", str(network), "a.png"])
    runpy.run_path(str(EXAMPLES / "own_checkpoint.py"))
    out = capsys.readouterr().out
    assert "small-fai_mf" in out
    assert "verified against the reference network" in out
    assert (folder / "mine.onnx").exists()


def test_the_example_of_a_picture(capsys, monkeypatch, folder):
    monkeypatch.setattr(sys, "argv", ["picture.py"])
    runpy.run_path(str(EXAMPLES / "picture.py"))
    assert "Latency(decode=" in capsys.readouterr().out
    assert (folder / "found.png").exists()
