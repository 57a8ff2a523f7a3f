"""Ctrl-C and SIGTERM: what a command has finished is whole and readable, and its exit code is the shells'."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import av
import fai_fast
import numpy as np
import pytest
from fai_fast import cli
from fai_fast.cli import interrupts
from fai_fast.cli.interrupts import Interrupt
from helpers.videos import until
from PIL import Image

SIGNALS = [signal.SIGINT, signal.SIGTERM]
LONG = 120  # seconds that nothing here comes near

# Runs the command line with the usual dispositions, whatever this process was started with. `pause` waits for a signal
# in steps, as an engine does, after it has told that it is there.
BEGIN = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import fai_fast
    from fai_fast import cli

    def pause():
        print("ready", file=sys.stderr, flush=True)
        for _ in range(3000):
            time.sleep(0.01)
            if ended():
                return
        raise AssertionError("no signal came")

    def ended():
        return False
"""
END = """
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.delenv("FAI_FAST_TRACEBACK", raising=False)
    return tmp_path


def start(script, *argv):
    paths = [str(Path(__file__).parent), str(Path(fai_fast.__file__).parents[1])]
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(BEGIN) + textwrap.dedent(script) + textwrap.dedent(END),
            *argv,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])},
    )


def interrupted(kind, script, *argv, again=0):
    """Exit code, stdout and stderr of a command that gets a signal when it says that it is ready."""
    process = start(script, *argv)
    heard = ""
    for line in process.stderr:
        heard += line
        if line == "ready\n":
            for _ in range(1 + again):
                process.send_signal(kind)
    out = process.stdout.read()
    code = process.wait(LONG)
    process.stdout.close()
    process.stderr.close()
    return code, out, heard


# Finds a point in pictures; waits for the signal in the third.
PREDICTS = """
    from helpers.models import Bright

    class Model(Bright):
        def infer(self, image, **options):
            found = super().infer(image, **options)
            if len(self.thresholds) == 3:
                pause()
            return found

    def ended():
        from fai_fast.cli import interrupts
        return any(
            isinstance(item, interrupts.Interrupt) and item.came
            for item in [getattr(signal.getsignal(signal.SIGTERM), "__self__", None)]
        )

    fai_fast.load = lambda *_, **__: Model()
"""


def pictures(count=5):
    Path("in").mkdir()
    for index in range(count):
        pixels = np.zeros((20, 30, 3), np.uint8)
        pixels[3:9, 4:12] = 255
        Image.fromarray(pixels).save(f"in/{index}.png")


@pytest.mark.parametrize("again", [0, 1])
@pytest.mark.parametrize("kind", SIGNALS)
def test_predict(kind, again):
    pictures()
    code, _, err = interrupted(kind, PREDICTS, "predict", "m", "in", again=again)
    assert code == 128 + kind, err
    document = json.loads(Path("predictions/predictions.json").read_text())
    assert document["interrupted"] is True
    assert [entry["file"] for entry in document["images"]] == [f"in/{index}.png" for index in range(3)]
    assert all(len(entry["detections"]) == 1 for entry in document["images"])
    assert sorted(os.listdir("predictions")) == ["0.png", "1.png", "2.png", "predictions.json"]
    for index in range(3):
        Image.open(f"predictions/{index}.png").load()
    assert "3 pictures" in err


def test_predict_to_stdout():
    pictures()
    code, out, _ = interrupted(signal.SIGTERM, PREDICTS, "predict", "m", "in", "--no-images", "--json", "-")
    assert code == 143
    assert len(json.loads(out)["images"]) == 3


def test_predict_keeps_what_it_has_when_the_engine_fails(monkeypatch, capsys):
    from helpers.models import Bright

    class Failing(Bright):
        def infer(self, image, **options):
            if len(self.thresholds) == 3:
                raise fai_fast.EngineError("fake: out of memory")
            return super().infer(image, **options)

    pictures()
    monkeypatch.setattr(fai_fast, "load", lambda *_, **__: Failing())
    assert cli.main(["predict", "m", "in"]) == 1
    assert "fake: out of memory" in capsys.readouterr().err
    document = json.loads(Path("predictions/predictions.json").read_text())
    assert (document["interrupted"], len(document["images"])) == (True, 3)


def test_predict_that_has_nothing_leaves_an_older_file_alone():
    pictures()
    Path("found.json").write_text("older")
    script = """
        def load(*_, **__):
            pause()
        fai_fast.load = load
    """
    code, _, err = interrupted(signal.SIGINT, script, "predict", "m", "in", "--json", "found.json")
    assert (code, Path("found.json").read_text()) == (130, "older")
    assert err.splitlines()[-1] == "fai-fast: error: interrupted"
    # Not the folder either, in which there would be nothing.
    assert sorted(os.listdir()) == ["found.json", "in"]


# The data and the models of the evaluation's own tests, but slow ones.
EVALUATES = """
    from helpers.models import Slow

    def ended():
        return signal.getsignal(signal.SIGTERM).__self__.came

    fai_fast.load = lambda *_, **options: Slow(pause, options)
"""


def labelled(count=6):
    Path("images").mkdir()
    for index in range(count):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(f"images/{index}.png")
    spec = fai_fast.spec("fai-mf-n-shapes")
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in range(count)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(spec.classes)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1,
                "bbox": [0, 0, 8, 8],
                "area": 64,
                "iscrowd": 0,
                "segmentation": [[0, 0, 8, 0, 8, 8, 0, 8]],
            }
            for i in range(count)
        ],
    }
    Path("truth.json").write_text(json.dumps(document))


EVAL = [
    "eval",
    "fai-mf-n-shapes",
    "--images",
    "images",
    "--coco",
    "truth.json",
    "--json",
    "a.json",
]


@pytest.mark.parametrize("kind", SIGNALS)
def test_eval(kind):
    pytest.importorskip("faster_coco_eval")
    labelled()
    code, out, err = interrupted(kind, EVALUATES, *EVAL)
    assert code == 128 + kind, err
    document = json.loads(Path("a.json").read_text())
    assert document["interrupted"] is True
    assert (document["images"], document["objects"], document["detections"]) == (3, 3, 3)
    assert document["metrics"]["segm/AP"] == pytest.approx(100)
    assert "Interrupted" in out


@pytest.mark.parametrize("kind", SIGNALS)
def test_eval_keeps_the_runs_that_were_done(kind):
    pytest.importorskip("faster_coco_eval")
    labelled()
    code, _, err = interrupted(kind, EVALUATES, *EVAL, "--compare", "fp32,fp16,bf16")
    assert code == 128 + kind, err
    document = json.loads(Path("a.json").read_text())
    assert document["interrupted"] is True
    assert [(run["precision"], run["report"]["images"]) for run in document["runs"]] == [
        ("fp32", 6),
        ("fp16", 6),
    ]


@pytest.mark.parametrize("kind", SIGNALS)
def test_export(kind):
    Path("a.onnx").write_text("older")
    script = """
        from fai_fast import exporter
        def write(weights, path, **options):
            path.write_bytes(b"half a graph")
            pause()
        exporter.write = write
    """
    code, _, err = interrupted(kind, script, "export", "fai-mf-n-shapes", "a.onnx")
    assert code == 128 + kind, err
    assert err.splitlines()[-1] == "fai-fast: error: interrupted"
    assert os.listdir() == ["a.onnx"]
    assert Path("a.onnx").read_text() == "older"


@pytest.mark.parametrize("again", [0, 1])
@pytest.mark.parametrize("kind", SIGNALS)
def test_stream(kind, again):
    script = """
        from helpers.videos import Streamed as Model
        fai_fast.load = lambda *_, **__: Model(delay=lambda number: 0.005)
    """
    argv = [
        "stream",
        "m",
        "testsrc=size=64x48:rate=30",
        "--format",
        "lavfi",
        "--json",
        "a.jsonl",
        "--save",
        "a.mp4",
    ]
    process = start(script, *argv)
    # The temporary files are there from the first frame on.
    until(lambda: len(os.listdir()) == 2 or process.poll() is not None)
    for _ in range(1 + again):
        process.send_signal(kind)
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == 128 + kind, err
    assert sorted(os.listdir()) == ["a.jsonl", "a.mp4"]
    entries = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    with av.open("a.mp4") as container:
        assert len(list(container.decode(video=0))) == len(entries) >= 1


# ------------------------------------------------------------------------------------------------- the pieces


@pytest.fixture
def usual():
    before = {kind: signal.getsignal(kind) for kind in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_waits_for_what_is_being_written(usual, kind):
    done = []

    def write(interrupt):
        with interrupt.later():
            signal.raise_signal(kind)
            done.append(1)

    with Interrupt() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            write(interrupt)
        with interrupt.noted():
            signal.raise_signal(kind)
            done.append(2)
        assert (interrupt.came, interrupt.code, done) == (True, 128 + kind, [1, 2])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_ends_even_that(usual, monkeypatch):
    monkeypatch.setattr(interrupts, "ECHO", -1.0)
    with Interrupt() as interrupt, interrupt.noted():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_handlers_of_others_and_ignored_signals_stay(usual):
    came = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert (came, interrupt.came) == ([1], False)


def test_threads_have_no_handlers(usual):
    raised = []

    def run():
        try:
            with Interrupt() as interrupt:
                assert not interrupt.came
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert raised == []
