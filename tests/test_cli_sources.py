"""One convention for all commands: MODEL, then SOURCE; what a source may be; where results go; the window."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, cli
from fai_fast.cli import growing, window
from fai_fast.cli.growing import Document, Lines
from fai_fast.cli.messages import UsageError
from fai_fast.cli.paths import Moving, find_sources, moving, output_names, stream_source
from fai_fast.cli.words import Words, in_own_words, words
from fai_fast.errors import EngineError
from helpers.videos import Both, until, write_video
from PIL import Image


@pytest.fixture
def model(monkeypatch):
    made = Both()

    def load(name, **arguments):
        made.asked = {"name": name, **arguments}
        return made

    monkeypatch.setattr(fai_fast, "load", load)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAI_FAST_TRACEBACK", raising=False)
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    return tmp_path


def run(capsys, *argv):
    """Exit code, stdout, stderr."""
    code = cli.main([str(item) for item in argv])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def fails(capsys, *argv, code=2):
    """The one sentence on stderr."""
    got, out, err = run(capsys, *argv)
    assert (got, out) == (code, "")
    [line] = err.splitlines()
    assert line.startswith("fai-fast: error: ")
    return line.removeprefix("fai-fast: error: ")


def write_picture(path, box=(4, 3, 12, 9)):
    pixels = np.zeros((20, 30, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return Path(path)


def document(folder="predictions"):
    return json.loads(Path(folder, "predictions.json").read_text())


def frames(path):
    with av.open(str(path)) as container:
        return len(list(container.decode(video=0)))


# ------------------------------------------------------------------------------------------- the convention


@pytest.mark.parametrize(
    ("argv", "name", "said"),
    [
        (["m", "in.mp4"], "m", None),
        (["in.mp4", "--model", "m"], "m", "fai-fast stream m in.mp4"),
        (["--model", "m", "in.mp4"], "m", "fai-fast stream m in.mp4"),
        (["in.mp4"], "fai-mf-n-shapes", "fai-fast stream fai-mf-n-shapes in.mp4"),
    ],
)
def test_stream_takes_the_model_first_and_the_old_spellings_with_a_hint(capsys, model, argv, name, said):
    write_video("in.mp4", 3)
    code, out, err = run(capsys, "stream", *argv, "--json", "-")
    assert (code, len(out.splitlines())) == (0, 3)
    asked = model.asked["name"]
    assert getattr(asked, "name", asked) == name
    hints = [line for line in err.splitlines() if "hint" in line]
    assert hints == ([] if said is None else [f"fai-fast: hint: the model comes first: {said}"])
    assert "hint" not in run(capsys, "stream", *argv, "--json", "-", "--quiet")[2]


def test_eval_takes_the_model_first_and_the_old_spelling_with_a_hint(capsys):
    truth = ["--coco", "none.json", "--images", "."]
    _, _, new = run(capsys, "eval", "fai-mf-n-shapes", *truth)
    _, _, old = run(capsys, "eval", "--model", "fai-mf-n-shapes", *truth)
    assert "none.json" in new
    assert old == f"fai-fast: hint: the model comes first: fai-fast eval fai-mf-n-shapes ...\n{new}"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("stream fai-mf-n-shapes", "SOURCE: missing, expected a video, an address, a camera or pictures: "
         "fai-fast stream fai-mf-n-shapes SOURCE"),
        ("stream m in.mp4 --model m", "--model: got 'm', and MODEL 'm' too, expected MODEL only"),
        ("eval m --model n --ade .", "--model: got 'n', and MODEL 'm' too, expected MODEL only"),
        ("eval --ade .", "MODEL: missing, expected fai-fast eval MODEL; see fai-fast eval --help"),
        ("stream in.mp4 fai-mf-s-coco-ins", "MODEL: got 'in.mp4', and the model 'fai-mf-s-coco-ins' as SOURCE; the "
         "model comes first: fai-fast stream fai-mf-s-coco-ins in.mp4"),
        ("predict in.png fai-mf-s-coco-ins", "MODEL: got 'in.png', and the model 'fai-mf-s-coco-ins' as SOURCE; the "
         "model comes first: fai-fast predict fai-mf-s-coco-ins in.png"),
        ("stream m a.mp4 b.mp4", "'b.mp4': one argument too many; see fai-fast stream --help"),
    ],
)  # fmt: skip
def test_a_command_line_in_another_order_is_told_the_order(capsys, model, argv, text):
    assert fails(capsys, *argv.split()) == text
    assert not hasattr(model, "asked")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("predict m a.png --conf 0.3", "--conf: no such option (did you mean --threshold?)"),
        ("predict m a.png --conf=0.3", "--conf: no such option (did you mean --threshold?)"),
        ("stream m a.mp4 --confidence 0.3", "--confidence: no such option (did you mean --threshold?)"),
        ("predict m a.png --treshold 0.3", "--treshold: no such option (did you mean --threshold?)"),
        ("bench m --imgsz 640", "--imgsz: no such option (did you mean --im-size?)"),
        ("stream m a.mp4 --out x.mp4", "--out: no such option (did you mean --save?)"),
        ("predict m a.png --out x", "--out: no such option (did you mean --output?)"),
        ("predict m a.png --zzz", "--zzz: no such option"),
        ("predict m a.png --model m", "--model: no such option, as MODEL and what it works on stand without one"),
        ("predict m a.png --conf 1 --view", "--conf: no such option (did you mean --threshold?); "
         "--view: no such option (did you mean --show?)"),
    ],
)  # fmt: skip
def test_options_that_there_are_not_name_those_that_were_meant(capsys, model, argv, text):
    command = argv.split()[0]
    assert fails(capsys, *argv.split()) == f"{text}; see fai-fast {command} --help"
    assert not hasattr(model, "asked")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("pedict", " (did you mean predict?)"),
        ("detect", " (did you mean predict?)"),
        ("val", " (did you mean eval?)"),
        ("benchmark", " (did you mean bench?)"),
        ("help", " (did you mean --help?)"),
        ("zzzzz", ""),
    ],
)
def test_commands_that_there_are_not_name_those_that_were_meant(capsys, word, near):
    assert fails(capsys, word, "m") == f"{word!r}: no such command{near}; see fai-fast --help"
    assert fails(capsys, "--quiet", word) == f"{word!r}: no such command{near}; see fai-fast --help"


def test_help_and_version_come_before_any_word(capsys):
    for option in ("--help", "--version"):
        code, out, err = run(capsys, option, "nonsense")
        assert (code, err) == (0, "")
        assert "fai-fast" in out


# ------------------------------------------------------------------------------------------------ own words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("im_size: got 3, expected", "--im-size: got 3, expected"),
        ("num_threads: got 0", "--threads: got 0"),
        ("name_or_path: no such file", "MODEL: no such file"),
        ("source: no such file", "SOURCE: no such file"),
        ("frame 3: source: a.mp4 is damaged", "frame 3: a.mp4 is damaged"),
        ("a is large; raise max_pixels= for one", "a is large; raise --max-pixels for one"),
        ("pass a path as weights=", "pass a path as --weights"),
        ("give weights='a b.pth'", "give --weights 'a b.pth'"),
        ("use load(NAME, weights='x.pth'), please", "use fai-fast stream NAME --weights 'x.pth', please"),
        # What is not an argument of the command's stays as it is.
        ("color: got 'x'", "color: got 'x'"),
        (
            "no frame from http://a/b?format=mjpeg&timeout=3",
            "no frame from http://a/b?format=mjpeg&timeout=3",
        ),
        ("the source: it is gone", "the source: it is gone"),
    ],
)
def test_errors_are_in_the_words_of_the_command_line(text, said):
    assert in_own_words(text) == text
    names = {
        name: f"--{name.replace('_', '-')}"
        for name in ("im_size", "max_pixels", "weights", "format", "timeout")
    }
    names |= {"num_threads": "--threads", "name_or_path": "MODEL", "source": "SOURCE"}
    before = words.set(Words("fai-fast stream", names))
    try:
        assert in_own_words(text) == said
    finally:
        words.reset(before)


def test_no_error_of_a_command_has_a_name_of_pythons(capsys, folder):
    """With the library's own checks, which know nothing of the command line."""
    write_picture("a.png")
    for options, said in (
        ("--device gpu", "--device: got 'gpu'"),
        ("--engine fast", "--engine: got 'fast'"),
        ("--precision half", "--precision: got 'half'"),
        ("--im-size 33", "--im-size: got (33, 33)"),
    ):
        code, out, err = run(capsys, "predict", "fai-mf-n-shapes", "a.png", *options.split())
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].startswith(f"fai-fast: error: {said}")
    Path("rand.pth").write_bytes(b"PK\x03\x04")
    text = fails(capsys, "predict", "rand.pth", "a.png")
    assert text.startswith("MODEL: rand.pth ")
    assert "fai-fast predict NAME --weights 'rand.pth'" in text
    assert sorted(os.listdir()) == ["a.png", "rand.pth"]
    # The words are gone with the command.
    assert in_own_words("im_size: got 3") == "im_size: got 3"


# -------------------------------------------------------------------------------------------------- sources


def test_what_a_source_means(folder):
    write_picture("a.png")
    Path("7").mkdir()
    write_video("clip.MP4", 1)
    os.mkfifo("pipe")
    assert stream_source("0") == 0
    assert stream_source("7") == "7"
    assert moving("0") == Moving(0, "camera 0", Path("camera-0.mp4"))
    assert moving("7") is None
    assert moving("a.png") is None
    assert moving(".") is None
    assert moving("gone.mp4") is None
    assert moving("*.mp4") is None
    assert moving("clip.MP4") == Moving("clip.MP4", "clip.MP4", Path("clip.MP4"))
    assert moving(f"file://{folder}/clip.MP4").path == folder / "clip.MP4"
    assert moving("-") == Moving("-", "standard input", Path("stdin.mp4"))
    assert moving("pipe") == Moving("pipe", "pipe", Path("pipe"))
    assert moving("/dev/video99").source == "/dev/video99"
    camera = moving("rtsp://me:secret@camera/1?token=x")
    assert camera.source == "rtsp://me:secret@camera/1?token=x"
    assert "secret" not in camera.name
    assert "secret" not in str(camera.path)
    assert camera.path.suffix == ".mp4"
    assert len(camera.path.parts) == 1


def test_patterns_mean_videos_too_and_folders_do_not(folder):
    write_picture("in/b.png")
    write_video("in/a.mp4", 1)
    found, problems = find_sources(["in/*", "in", "in/a.mp4"], recursive=False, leave_out=[])
    assert problems == []
    assert found == [Moving("in/a.mp4", "in/a.mp4", Path("in/a.mp4")), Path("in/b.png")]
    assert [path.name for path in output_names([Path("in/a.mp4"), Path("b/a.avi")]).values()] == [
        "a.mp4",
        "a.mp4",
    ]


def test_predict_takes_pictures_and_videos(capsys, model, folder):
    write_picture("a.png")
    write_video("clip.avi", 5, codec="mjpeg", pix_fmt="yuvj420p")
    code, out, err = run(capsys, "predict", "m", "a.png", "clip.avi", "--threshold", "0.25")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "a.png  1 car  7.0 ms"
    assert lines[1].startswith("clip.avi  5 frames, 5 objects  ")
    assert (
        err
        == "fai-fast: 6 pictures, 6 objects; wrote pictures in predictions and predictions/predictions.json\n"
    )
    assert sorted(os.listdir("predictions")) == ["a.png", "clip.mp4", "predictions.json"]
    assert frames("predictions/clip.mp4") == 5
    content = document()
    assert "interrupted" not in content
    first, *rest = content["images"]
    assert (first["file"], first["picture"]) == ("a.png", "predictions/a.png")
    assert "frame" not in first
    assert [entry["frame"] for entry in rest] == list(range(5))
    assert [entry["pts"] for entry in rest] == pytest.approx([index / 25 for index in range(5)])
    assert {(entry["file"], entry["picture"]) for entry in rest} == {("clip.avi", "predictions/clip.mp4")}
    assert [len(entry["detections"]) for entry in rest] == [1] * 5
    assert model.served["threshold"] == 0.25


def test_predict_of_a_video_goes_on_after_damaged_frames_and_ends_with_the_engine(capsys, model):
    model._streamed._fail = lambda number: ValueError("no") if number == 1 else None
    write_video("a.mp4", 4)
    write_picture("b.png")
    code, _, err = run(capsys, "predict", "m", "a.mp4", "b.png")
    assert code == 1
    assert "fai-fast: error: a.mp4: frame 1: no\n" in err
    entries = document()["images"]
    assert ["error" in entry for entry in entries] == [False, True, False, False, False]
    assert frames("predictions/a.mp4") == 3
    model._streamed._fail = lambda number: (
        EngineError("out of memory") if len(model._streamed.seen) > 6 else None
    )
    code, _, err = run(capsys, "predict", "m", "a.mp4", "b.png")
    assert code == 1
    assert "out of memory" in err
    content = document("predictions-2")
    assert content["interrupted"] is True
    assert 1 <= len(content["images"]) == frames("predictions-2/a.mp4") < 4


def test_a_file_that_is_no_video_draws_nothing_and_says_nothing_of_pictures(capsys, model):
    Path("a.mp4").write_text("text")
    code, out, err = run(capsys, "predict", "m", "a.mp4")
    assert (code, out) == (1, "")
    assert "a.mp4 is no video that FFmpeg can read" in err
    assert (
        err.splitlines()[-1] == "fai-fast: 1 picture, 0 objects, 1 failed; wrote predictions/predictions.json"
    )


# -------------------------------------------------------------------------------------------- runs that do not mix


def test_each_run_has_a_folder_of_its_own(capsys, model, folder):
    for name in ("a.png", "b.png"):
        write_picture(name)
    for name in ("a.png", "b.png", "a.png"):
        assert run(capsys, "predict", "m", name)[0] == 0
    assert sorted(os.listdir()) == ["a.png", "b.png", "predictions", "predictions-2", "predictions-3"]
    assert sorted(os.listdir("predictions-2")) == ["b.png", "predictions.json"]
    # What earlier runs have drawn is not taken for pictures.
    assert run(capsys, "predict", "m", ".", "-r")[0] == 0
    assert [entry["file"] for entry in document("predictions-4")["images"]] == ["a.png", "b.png"]
    # A file of that name, and a folder that is empty.
    Path("predictions-5").write_text("a file")
    Path("predictions-6").mkdir()
    assert run(capsys, "predict", "m", "a.png")[0] == 0
    assert sorted(os.listdir("predictions-6")) == ["a.png", "predictions.json"]


def test_output_decides_and_overwrite_replaces(capsys, model, folder):
    for name in ("a.png", "b.png"):
        write_picture(name)
    assert run(capsys, "predict", "m", "a.png", "-o", "found")[0] == 0
    Path("found/notes.txt").write_text("mine")
    text = "--output: found has {} of an earlier run; give another folder, or --overwrite"
    before = {path: path.read_bytes() for path in Path("found").iterdir()}
    assert fails(capsys, "predict", "m", "b.png", "-o", "found") == text.format("predictions.json")
    assert fails(capsys, "predict", "m", "a.png", "-o", "found") == text.format("a.png")
    assert {path: path.read_bytes() for path in Path("found").iterdir()} == before
    assert run(capsys, "predict", "m", "b.png", "-o", "found", "--overwrite")[0] == 0
    assert sorted(os.listdir("found")) == ["b.png", "notes.txt", "predictions.json"]
    assert [entry["file"] for entry in document("found")["images"]] == ["b.png"]


def test_overwrite_takes_away_neither_sources_nor_what_it_does_not_know(capsys, model, folder):
    write_picture("a.png")
    assert run(capsys, "predict", "m", "a.png", "-o", "found")[0] == 0
    drawn = Path("found/a.png").read_bytes()
    assert run(capsys, "predict", "m", "found/a.png", "-o", "found", "--overwrite", "--no-images")[0] == 0
    assert Path("found/a.png").read_bytes() == drawn
    # Nor a file outside of it that somebody's JSON names.
    Path("found/predictions.json").write_text(
        json.dumps({"images": [{"picture": "a.png"}, {"picture": "/etc/x"}]})
    )
    assert run(capsys, "predict", "m", "a.png", "-o", "found", "--overwrite", "--no-images")[0] == 0
    assert Path("a.png").exists()
    Path("found/predictions.json").write_text("[]")
    text = fails(capsys, "predict", "m", "a.png", "-o", "found", "--overwrite")
    assert text.startswith("--overwrite: found/predictions.json is not of an earlier run")


def test_a_run_that_comes_to_nothing_leaves_no_folder(capsys, model, monkeypatch, folder):
    write_picture("a.png")

    def fail(*_, **__):
        raise EngineError("no")

    monkeypatch.setattr(fai_fast, "load", fail)
    assert fails(capsys, "predict", "m", "a.png", "-o", "x/y", code=1) == "no"
    assert os.listdir() == ["a.png"]


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        ("bench m --json {}", "--json"),
        ("eval fai-mf-n-shapes --ade . --json {}", "--json"),
        ("quantize fai-mf-n-shapes --images . --json {}", "--json"),
        ("quantize fai-mf-n-shapes --images . -o {}.openvino", "--output"),
        ("stream m a.mp4 --json {}", "--json"),
        ("stream m a.mp4 --save {}.mp4", "--save"),
        ("export fai-mf-n-shapes {}.onnx", "OUT.onnx"),
        ("demo -o {}.png", "--output"),
    ],
)
def test_where_to_write_is_looked_at_before_the_work(capsys, monkeypatch, argv, option):
    def fail(*_, **__):
        raise AssertionError("work was begun")

    for name in ("load", "export", "quantize"):
        monkeypatch.setattr(fai_fast, name, fail)
    write_video("a.mp4", 1)
    assert fails(capsys, *argv.format("nodir/x").split()) == f"{option}: no such folder: nodir"
    Path("d.openvino").mkdir()
    for suffix in (".png", ".onnx", ".mp4"):
        Path(f"d{suffix}").mkdir()
    Path("d").mkdir()
    assert " is a folder, expected a file's name" in fails(capsys, *argv.format("d").split())


# ------------------------------------------------------------------------------------------------------ JSON


def test_a_document_is_valid_after_every_entry(folder):
    Path("a.json").write_text("older")
    Path("a.json").chmod(0o640)
    with Document("a.json", "images") as result:
        assert Path("a.json").read_text() == "older"
        for number in range(4):
            result.write({"model": "m"}, {"n": number})
            now = json.loads(Path("a.json").read_text())
            assert now == {"model": "m", "images": [{"n": n} for n in range(number + 1)], "interrupted": True}
        result.end(interrupted=False)
    assert json.loads(Path("a.json").read_text()) == {"model": "m", "images": [{"n": n} for n in range(4)]}
    assert Path("a.json").stat().st_mode & 0o777 == 0o640
    assert len(Path("a.json").read_text().splitlines()) == 6
    with Document("b.json", "images") as result:
        result.write({}, {"n": 0})
    assert json.loads(Path("b.json").read_text()) == {"images": [{"n": 0}], "interrupted": True}
    with Document("c.json", "images") as result:
        result.end(interrupted=False)
    assert sorted(os.listdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize("kind", [Document, Lines])
def test_a_full_disk_leaves_what_was_whole(folder, monkeypatch, kind):
    real = growing._write

    def full(file, content):
        if b"last" in content and b"n" in content:
            file.write(content[:3])
            raise OSError(28, "No space left on device")
        real(file, content)

    monkeypatch.setattr(growing, "_write", full)

    def write(result, entry):
        result.write(*([{}] if kind is Document else []), entry)

    with kind("a.json", *(["images"] if kind is Document else [])) as result:
        write(result, {"n": 1})
        write(result, {"n": 2})
        with pytest.raises(OSError, match="No space"):
            write(result, {"n": "last"})
    text = Path("a.json").read_text()
    if kind is Lines:
        assert [json.loads(line) for line in text.splitlines()] == [{"n": 1}, {"n": 2}]
    else:
        assert json.loads(text) == {"images": [{"n": 1}, {"n": 2}], "interrupted": True}


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_document_on_stdout_or_in_a_pipe_is_valid_at_its_end(folder, monkeypatch, interrupted):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    for target in ("-", "pipe"):
        with Document(target, "images") as result:
            for number in range(3):
                result.write({"model": "m"}, {"n": number})
            result.end(interrupted=interrupted)
        text = out.getvalue() if target == "-" else os.read(reader, 10_000).decode()
        expected = {"model": "m", "images": [{"n": 0}, {"n": 1}, {"n": 2}]}
        assert json.loads(text) == expected | ({"interrupted": True} if interrupted else {})
    os.close(reader)


def started(script, *argv):
    paths = [str(Path(__file__).parent), str(Path(fai_fast.__file__).parents[1])]
    begin = """
        import signal, sys
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(kind, signal.default_int_handler if kind == signal.SIGINT else signal.SIG_DFL)
        import fai_fast
        from fai_fast import cli
    """
    end = "sys.exit(cli.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(begin) + textwrap.dedent(script) + end, *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])},
    )


# Frames without an end, as of a camera.
ENDLESS = """
from helpers.videos import Both, arrays_for_ever
class Endless(Both):
    def stream(self, source, **options):
        return super().stream(arrays_for_ever(), policy="all")
fai_fast.load = lambda *_, **__: Endless()
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("command", ["stream", "predict"])
def test_json_is_whole_however_a_command_ends(folder, kind, command):
    Path("here").mkdir()
    target = Path("here/a.json")
    argv = {
        "predict": ["predict", "m", "/dev/video99", "--no-images"],
        "stream": ["stream", "m", "testsrc=size=64x48:rate=30", "--format", "lavfi", "--all"],
    }[command]
    argv += ["--json", str(target)]
    process = started(ENDLESS, *argv)
    try:
        until(lambda: process.poll() is not None or (target.exists() and target.read_text().count("\n") > 25))
    finally:
        process.send_signal(kind)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (-9 if kind == signal.SIGKILL else 128 + kind), err
    text = target.read_text()
    if command == "stream":
        entries = [json.loads(line) for line in text.splitlines()]
    else:
        content = json.loads(text)
        assert content["interrupted"] is True
        entries = content["images"]
    assert len(entries) >= 20
    assert [entry["frame"] for entry in entries] == list(range(len(entries)))
    assert os.listdir("here") == ["a.json"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_predict_of_a_camera_leaves_a_whole_video(folder, kind):
    process = started(ENDLESS, "predict", "m", "/dev/video99", "-o", "found")
    document_ = Path("found/predictions.json")
    try:
        until(
            lambda: (
                process.poll() is not None or (document_.exists() and document_.read_text().count("\n") > 10)
            )
        )
    finally:
        process.send_signal(kind)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + kind, err
    content = document("found")
    assert content["interrupted"] is True
    assert len(content["images"]) == frames("found/dev-video99.mp4") >= 5


# ---------------------------------------------------------------------------------------------------- the window


class StandIn:
    """In place of a window: what was shown, and whether it was waited for; ends after `most` pictures."""

    def __init__(self, most=1000):
        self.shown, self.waited, self.closed, self._most = [], [], 0, most

    def show(self, picture, *, wait):
        self.shown.append(picture.copy())
        self.waited.append(wait)
        return len(self.shown) < self._most

    def close(self):
        self.closed += 1


@pytest.fixture
def stand_in(monkeypatch):
    made = StandIn()
    for command in ("predict", "stream"):
        monkeypatch.setattr(sys.modules[f"fai_fast.cli.{command}"], "open_window", lambda: made)
    return made


def test_show_of_pictures_waits_and_of_videos_does_not(capsys, model, stand_in):
    write_picture("a.png")
    write_video("b.mp4", 3)
    assert run(capsys, "predict", "m", "a.png", "b.mp4", "--show", "--no-images")[0] == 0
    assert stand_in.waited == [True, False, False, False]
    assert stand_in.closed == 1
    # As it is drawn, not as it came.
    assert (stand_in.shown[0] != np.asarray(Image.open("a.png"))).any()
    assert sorted(os.listdir("predictions")) == ["predictions.json"]


def test_q_ends_the_run_and_what_was_found_stays(capsys, model, stand_in):
    stand_in._most = 2
    for name in "abc":
        write_picture(f"{name}.png")
    write_video("v.mp4", 5)
    assert run(capsys, "predict", "m", "a.png", "b.png", "c.png", "--show")[0] == 0
    assert [entry["file"] for entry in document()["images"]] == ["a.png", "b.png"]
    assert document()["interrupted"] is True
    stand_in.shown.clear()
    assert run(capsys, "stream", "m", "v.mp4", "--show", "--json", "a.jsonl", "--save", "a.mp4")[0] == 0
    assert len(Path("a.jsonl").read_text().splitlines()) == frames("a.mp4") == 2
    stand_in.shown.clear()
    assert run(capsys, "predict", "m", "v.mp4", "a.png", "--show", "-o", "found")[0] == 0
    assert document("found")["interrupted"] is True
    assert len(document("found")["images"]) == frames("found/v.mp4") == 2


def test_without_a_screen_a_window_is_an_error_before_the_model(capsys, model, monkeypatch):
    write_picture("a.png")
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for command in ("predict", "stream"):
        assert fails(capsys, command, "m", "a.png", "--show").startswith("--show: there is no screen here")
    assert not hasattr(model, "asked")
    assert os.listdir() == ["a.png"]


class FakeCv2:
    """OpenCV with a window in which `keys` are pressed one after another, and that is closed after `lives` looks."""

    class error(Exception):
        pass

    WINDOW_NORMAL, WINDOW_KEEPRATIO, WND_PROP_VISIBLE = 0, 0, 4

    def __init__(self, keys=(), lives=100):
        self.keys, self.lives, self.shown, self.sizes, self.open = list(keys), lives, [], [], False

    def namedWindow(self, *_):
        self.open = True

    def imshow(self, _, picture):
        self.shown.append(picture.copy())

    def resizeWindow(self, _, width, height):
        self.sizes.append((width, height))

    def waitKey(self, delay):
        return self.keys.pop(0) if self.keys else -1

    def getWindowProperty(self, *_):
        self.lives -= 1
        return 1 if self.lives > 0 else 0

    def destroyWindow(self, _):
        if not self.open:
            raise self.error("no window")
        self.open = False


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")


def test_a_window_of_opencv(screen, monkeypatch):
    fake = FakeCv2(keys=[-1, -1, ord(" "), -1, ord("q")])
    monkeypatch.setitem(sys.modules, "cv2", fake)
    shown = window.open_window()
    picture = np.zeros((1440, 2560, 3), np.uint8)
    picture[..., 0] = 200
    assert shown.show(picture, wait=True)
    assert fake.keys == [-1, ord("q")]
    assert fake.sizes == [(1280, 720)]
    assert fake.shown[0][0, 0].tolist() == [0, 0, 200]
    assert shown.show(picture, wait=False)
    assert not shown.show(picture, wait=False)
    shown.close()
    shown.close()
    assert not fake.open
    # One that was closed ends a wait.
    monkeypatch.setitem(sys.modules, "cv2", FakeCv2(lives=3))
    assert not window.open_window().show(picture, wait=True)


def test_a_window_of_matplotlib_where_opencv_has_none(screen, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    headless = FakeCv2()
    monkeypatch.setattr(headless, "namedWindow", lambda *_: (_ for _ in ()).throw(FakeCv2.error("no GUI")))
    monkeypatch.setitem(sys.modules, "cv2", headless)
    with pytest.raises(
        UsageError, match=r"--show: the OpenCV here has no windows .* and the Matplotlib here has no"
    ):
        window.open_window()
    assert plt.get_fignums() == []
    # A canvas that says it belongs to a toolkit.
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "stand-in", raising=False)
    monkeypatch.setattr(matplotlib.figure.Figure, "show", lambda self: None)
    pressed, seen = ["x", "q"], []

    def loop(canvas, timeout):
        if pressed:
            seen.append(canvas.figure.axes[0].get_images()[0].get_array())
            canvas.callbacks.process("key_press_event", matplotlib.backend_bases.KeyEvent(
                "key_press_event", canvas, pressed.pop(0)))  # fmt: skip

    monkeypatch.setattr(FigureCanvasAgg, "start_event_loop", loop)
    shown = window.open_window()
    picture = np.full((20, 30, 3), 7, np.uint8)
    assert shown.show(picture, wait=True)
    assert not shown.show(picture + 1, wait=True)
    assert [drawn.mean() for drawn in seen] == [7, 8]
    shown.close()
    assert plt.get_fignums() == []


def test_without_either_the_way_to_a_window_is_told(screen, monkeypatch):
    for name in ("cv2", "matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError) as error:
        window.open_window()
    assert str(error.value) == (
        "--show: OpenCV is not installed and Matplotlib is not installed; pip install opencv-python, or pip install "
        "matplotlib pyqt6"
    )


def test_the_stand_ins_are_models():
    assert isinstance(Both().infer(np.full((4, 4, 3), 255, np.uint8)), Detections)
