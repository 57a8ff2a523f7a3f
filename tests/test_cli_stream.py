"""``fai-fast stream``: what it prints and writes, and that what it writes is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path

import av
import fai_fast
import numpy as np
import pytest
from fai_fast import cli
from fai_fast.cli.stream import RATE, TICKS, _Timing
from fai_fast.errors import EngineError
from fai_fast.stream import Stream
from helpers.videos import SIZE, picture, set_display_matrix, stream_threads, until, value, write_video
from helpers.videos import Streamed as Model
from PIL import Image


@pytest.fixture
def model(monkeypatch):
    made = Model()

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
    return tmp_path


NAME = "fai-mf-n-shapes"


def run(capsys, *argv, name=NAME):
    """Exit code, stdout, stderr."""
    code = cli.main(["stream", *([] if name is None else [name]), *map(str, argv)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert stream_threads() == []
    return code, captured.out, captured.err


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def frames(path):
    """(seconds, RGB) of each frame of a video."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_it_writes_json_lines_and_a_video(capsys, model, folder):
    write_video("in.mp4", 12, rate=20)
    began = datetime.now(timezone.utc)
    code, out, err = run(capsys, "in.mp4", "--json", "out.jsonl", "--save", "out.mp4")
    assert (code, out) == (0, "")
    told, *others = err.splitlines(keepends=True)
    assert told == (
        "fai-fast: the network's input is 160x224 in place of 192x192 (height x width), the shape of the source's "
        "frames, 48x64; --im-size 192 keeps it\n"
    )
    err = "".join(others)
    assert err.startswith("fai-fast: 12 frames, ")
    assert err.endswith(" 0 dropped; wrote out.jsonl and out.mp4\n")
    assert model.asked["name"] == fai_fast.spec("fai-mf-n-shapes")
    entries = lines(Path("out.jsonl").read_text())
    assert [entry["frame"] for entry in entries] == list(range(12))
    assert [entry["pts"] for entry in entries] == pytest.approx([index / 20 for index in range(12)])
    for index, entry in enumerate(entries):
        assert entry["size"] == list(SIZE)
        [row] = entry["detections"]
        assert row["xyxy"] == [0, 0, 1, 1]
        assert row["confidence"] == pytest.approx(model.seen[index] / 256)
        assert entry.keys() == {"file", "frame", "pts", "time", "size", "latency_ms", "detections"}
        assert entry["file"] == "in.mp4"
    times = [datetime.fromisoformat(entry["time"].replace("Z", "+00:00")) for entry in entries]
    assert times == sorted(times)
    assert began - timedelta(seconds=1) <= times[0] <= times[-1] <= datetime.now(timezone.utc)
    drawn = frames("out.mp4")
    assert [seconds for seconds, _ in drawn] == pytest.approx([index / 20 for index in range(12)])
    for index, (_, image) in enumerate(drawn):
        assert image.shape == (*SIZE, 3)
        # Away from the label.
        assert abs(int(image[40, 50].mean()) - (255 - value(index))) < 12
    with av.open("out.mp4") as container:
        assert container.streams.video[0].average_rate == 20
    assert sorted(os.listdir()) == ["in.mp4", "out.jsonl", "out.mp4"]


def test_options_reach_the_stream(capsys, model, monkeypatch):
    made = {}

    def make(model, source, **options):
        assert model is None
        made.update(source=source, **options)
        return Stream(model, source, **options)

    monkeypatch.setattr(fai_fast.stream, "Stream", make)
    write_video("in.mp4", 12)
    options = "--stride 3 --depth 1 --threshold 0.25 --max-frames 2 --latest --timeout 5 --engine openvino"
    options += " --max-pixels 5000"
    argv = ["in.mp4", *options.split(), "--option", "probesize=5000", "--json", "-"]
    code, out, _ = run(capsys, *argv, name="m")
    assert code == 0
    # Of a file, the newest may be the last already.
    assert len(lines(out)) in (1, 2)
    assert (model.asked["name"], model.asked["engine"]) == ("m", "openvino")
    assert model.served == {"threshold": 0.25}
    assert made == {
        "source": "in.mp4",
        "policy": "latest",
        "depth": 1,
        "stride": 3,
        "on_error": "raise",
        "timeout": 5.0,
        "format": None,
        "options": {"probesize": "5000"},
        "max_pixels": 5000,
    }


SHAPED = "fai-fast: the network's input is"


@pytest.mark.parametrize(
    ("size", "options", "asked"),
    [
        ((48, 64), [], {"im_size": (160, 224), "frame": None}),
        ((64, 48), [], {"im_size": (224, 160), "frame": None}),
        ((48, 56), [], {"im_size": (192, 192), "frame": None}),
        ((48, 64), ["--im-size", "192"], {"im_size": 192, "frame": None}),
        ((48, 64), ["--im-size", "64x96"], {"im_size": (64, 96), "frame": None}),
        ((48, 64), ["--frame", "1920x1080"], {"im_size": None, "frame": (1080, 1920)}),
        ((48, 64), "a.onnx", {"im_size": None, "frame": None}),
        ((48, 64), "a.engine", {"im_size": None, "frame": None}),
        ((48, 64), "a.openvino", {"im_size": None, "frame": None}),
        ((48, 64), "unheard-of", {"im_size": None, "frame": None}),
    ],
)
def test_the_input_gets_the_shape_of_the_source_unless_it_is_said(capsys, model, size, options, asked):
    write_video("in.mkv", 4, codec="ffv1", size=size)
    name, options = (options, []) if isinstance(options, str) else (NAME, options)
    code, out, err = run(capsys, "in.mkv", "--json", "-", *options, name=name)
    assert code == 0
    assert {name: model.asked[name] for name in asked} == asked
    # Nothing is lost by looking at the first frame.
    assert [entry["frame"] for entry in lines(out)] == [0, 1, 2, 3]
    assert err.count(SHAPED) == (asked["im_size"] in ((160, 224), (224, 160)))


def test_a_turned_video_has_the_shape_that_it_is_shown_in(capsys, model):
    set_display_matrix(write_video(Path("in.mp4"), 2), 0, 1, -1, 0)
    assert run(capsys, "in.mp4")[0] == 0
    assert model.asked["im_size"] == (224, 160)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_what_can_be_read_only_once_is_read_once(capsys, model):
    write_video("in.mkv", 6, codec="ffv1")
    content = Path("in.mkv").read_bytes()
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(content))
    writer.start()
    code, out, _ = run(capsys, "pipe", "--json", "-")
    writer.join()
    assert code == 0
    assert [entry["frame"] for entry in lines(out)] == list(range(6))
    assert model.asked["im_size"] == (160, 224)


def test_a_source_that_stays_silent_does_not_wait_for_ever(capsys, model):
    os.mkfifo("pipe")
    # Held open, so that the reader waits for what is in it.
    with open(os.open("pipe", os.O_RDWR), "wb"):
        assert cli.main(["stream", NAME, "pipe", "--timeout", "0.5"]) == 1
    assert "no frame from pipe for 0.5 s" in capsys.readouterr().err
    until(lambda: stream_threads() == [])


def test_pictures_have_a_shape_too(capsys, model):
    Path("in").mkdir()
    for index in range(3):
        Image.fromarray(picture(index, (64, 48))).save(f"in/{index}.png")
    assert run(capsys, "in")[0] == 0
    assert model.asked["im_size"] == (224, 160)
    # A first one that is damaged has none.
    Path("in/0.png").write_bytes(b"text")
    code, _, err = run(capsys, "in")
    assert code == 1
    assert model.asked["im_size"] == (192, 192)
    assert SHAPED not in err


def test_all_and_stride(capsys, model):
    write_video("in.mkv", 12, codec="ffv1", size=(47, 65))
    code, out, err = run(capsys, "in.mkv", "--all", "--stride", "5", "--save", "out.mov", "--json", "-", "-q")
    assert (code, err) == (0, "")
    assert [entry["frame"] for entry in lines(out)] == [0, 5, 10]
    drawn = frames("out.mov")
    # Chroma is halved, so that an odd row and column get another one.
    assert [image.shape for _, image in drawn] == [(48, 66, 3)] * 3
    assert [seconds for seconds, _ in drawn] == pytest.approx([0, 0.2, 0.4])


def write_at(path, times, size=SIZE):
    """A video whose frames are shown at these milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index % 20, size), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_a_saved_video_has_the_sources_timing(capsys, model, monkeypatch, suffix, encoder):
    """A recording of a screen: some frames, a minute in which nothing changes, some more."""
    if encoder != "libx264":
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    times = [*range(0, 1000, 50), *range(61_000, 61_250, 50), 61_377]
    write_at("in.mp4", times)
    code, out, _ = run(capsys, "in.mp4", "--save", f"out.{suffix}", "--json", "-")
    assert code == 0
    assert [entry["pts"] for entry in lines(out)] == pytest.approx([time / 1000 for time in times])
    saved = [seconds for seconds, _ in frames(f"out.{suffix}")]
    assert saved == pytest.approx([time / 1000 for time in times], abs=0.0011)
    with av.open(f"out.{suffix}") as container:
        assert container.streams.video[0].codec_context.name.startswith(
            "h264" if encoder == "libx264" else encoder
        )


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)])
def test_a_saved_video_has_the_sources_rate(capsys, model, rate):
    write_video("in.mp4", 30, rate=rate)
    assert run(capsys, "in.mp4", "--save", "out.mp4")[0] == 0
    saved = [seconds for seconds, _ in frames("out.mp4")]
    assert saved == pytest.approx([float(index / rate) for index in range(30)], abs=1e-4)
    with av.open("out.mp4") as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(float(rate), rel=1e-3)
        assert container.duration / 1e6 == pytest.approx(float(30 / rate), rel=0.02)


def test_timing_goes_on_where_a_source_begins_anew():
    timing = _Timing(Fraction(25))
    step = TICKS // 25
    #     first, later than expected, the same again, opened again, after that, without a time
    asked = [95_000.0, 95_000.2, 95_000.2, 3.0, 3.04, None, 3.2]
    places = [timing.place(pts) for pts in asked]
    assert places == [0, 5 * step, 5 * step + 1, 6 * step + 1, 7 * step + 1, 8 * step + 1, 11 * step + 1]
    timing = _Timing(RATE)
    assert [timing.place(None) for _ in range(3)] == [0, TICKS // 30, TICKS // 15]


@pytest.mark.parametrize("size", [(48, 1), (1, 1), (1, 64), (47, 64), (48, 65)])
def test_sides_that_are_odd_get_one_pixel_more(capsys, model, size):
    Path("in").mkdir()
    for index in range(3):
        Image.fromarray(picture(index, size)).save(f"in/{index}.png")
    code, _, err = run(capsys, "in", "--save", "out.mp4")
    assert code == 0
    even = tuple(side + side % 2 for side in size)
    assert f"the video is {even[0]}x{even[1]} pixels (height x width) for {size[0]}x{size[1]}, as" in err
    assert [image.shape for _, image in frames("out.mp4")] == [(*even, 3)] * 3
    write_video("in.mkv", 3, codec="ffv1")
    assert "even sides" not in run(capsys, "in.mkv", "--save", "out.mp4")[2]


@pytest.mark.parametrize(
    "name", ["d:x/out.mp4", "12:30:00.mkv", "http:x.mov", "-v.mp4", "file:a.mp4", "a%03d.mp4"]
)
def test_a_file_to_write_is_a_file_whatever_it_is_called(capsys, model, name):
    Path("d:x").mkdir()
    write_video(Path("in:1.mp4").absolute(), 3)
    assert run(capsys, "in:1.mp4", f"--save={name}")[0] == 0
    assert len(frames(Path(name).absolute())) == 3
    assert len(list(Path(name).parent.iterdir())) == (1 if name.startswith("d:") else 3)


def test_no_more_frames_than_are_asked_for(capsys, model):
    write_video("in.mp4", 12)
    code, out, _ = run(capsys, "in.mp4", "--all", "--max-frames", "5", "--json", "-")
    assert code == 0
    assert [entry["frame"] for entry in lines(out)] == [0, 1, 2, 3, 4]


def test_pictures_of_several_sizes_fit_into_one_video(capsys, model):
    Path("in").mkdir()
    for index, size in enumerate([(48, 64), (64, 48), (20, 20)]):
        Image.fromarray(picture(index, size)).save(f"in/{index}.png")
    Path("in/1b.png").write_bytes(b"text")
    code, out, err = run(capsys, "in", "--save", "out.mkv", "--json", "-")
    assert code == 1
    assert [entry["frame"] for entry in lines(out)] == [0, 1, 3]
    assert [entry["pts"] for entry in lines(out)] == [None] * 3
    assert [entry["file"] for entry in lines(out)] == ["in/0.png", "in/1.png", "in/2.png"]
    _, *errors = err.splitlines()
    assert errors[0].startswith("fai-fast: error: frame 2: in/1b.png is no picture")
    assert errors[1].endswith(", 1 failed; wrote out.mkv")
    assert [image.shape for _, image in frames("out.mkv")] == [(48, 64, 3)] * 3


def test_a_source_that_fails_leaves_what_came_before(capsys, model):
    write_video("in.avi", 12, codec="mjpeg", pix_fmt="yuvj420p")
    data = Path("in.avi").read_bytes()
    places = [i for i in range(len(data)) if data[i : i + 3] == b"\xff\xd8\xff"]
    damaged = bytearray(data)
    damaged[places[7] : places[7] + 590] = bytes(590)
    Path("in.avi").write_bytes(damaged)
    code, _, err = run(capsys, "in.avi", "--json", "out.jsonl", "--save", "out.mp4")
    assert code == 1
    assert err.splitlines()[1].startswith("fai-fast: error: frame 7: in.avi is damaged at 0.280 s: ")
    assert [entry["frame"] for entry in lines(Path("out.jsonl").read_text())] == [*range(7), *range(8, 12)]
    assert [round(25 * seconds) for seconds, _ in frames("out.mp4")] == [*range(7), *range(8, 12)]


def test_an_engine_that_fails_ends_it(capsys, model):
    model._fail = lambda number: EngineError("out of memory") if number == 3 else None
    write_video("in.mp4", 12)
    code, _, err = run(capsys, "in.mp4", "--json", "out.jsonl")
    assert code == 1
    assert err.splitlines()[1] == "fai-fast: error: frame 3: out of memory"
    assert len(lines(Path("out.jsonl").read_text())) == 3


@pytest.mark.parametrize("source", ["text.mp4", "gone.mp4"])
def test_a_source_that_gives_nothing_leaves_older_files(capsys, model, source):
    Path("text.mp4").write_text("no video")
    for name in ("out.jsonl", "out.mp4"):
        Path(name).write_text("old")
    code, out, err = run(capsys, source, "--json", "out.jsonl", "--save", "out.mp4")
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith("fai-fast: error: ")
    assert source in line
    assert [Path(name).read_text() for name in ("out.jsonl", "out.mp4")] == ["old", "old"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.mp4", "--save", "out.gif"], "--save: got 'out.gif', expected a name that ends with .mp4"),
        (["in.mp4", "--save", "-"], "--save: got '-', expected a name that ends with .mp4"),
        (["in.mp4", "--save", "./in.mp4"], "--save: in.mp4 is the source itself, expected another name"),
        (["file:in.mp4", "--save", "in.mp4"], "--save: in.mp4 is the source itself, expected another name"),
        (["in.mp4", "--json", "in.mp4"], "--json: in.mp4 is the source itself, expected another name"),
        (["in.mp4", "--json", "gone/a.jsonl"], "--json: no such folder: gone"),
        (["in.mp4", "--json", "."], "--json: . is a folder, expected a file's name"),
        (["in.mp4", "--latest", "--all"], "--latest"),
        (["in.mp4", "--option", "fast"], "--option: got 'fast', expected NAME=VALUE"),
        (
            ["in.mp4", "--max-pixels", "many"],
            "--max-pixels: got 'many', expected a positive integer",
        ),
        (["in.mp4", "--timeout", "0"], "--timeout: got '0', expected seconds above 0"),
    ],
)
def test_wrong_usage_loads_no_model(capsys, model, arguments, message):
    content = write_video("in.mp4", 2) and Path("in.mp4").read_bytes()
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fai-fast: error: ")
    assert message in err
    assert Path("in.mp4").read_bytes() == content
    assert not hasattr(model, "asked")


@pytest.mark.parametrize("limit", [3071, 3072])
def test_pictures_beyond_the_limit_are_refused(capsys, model, limit):
    write_video("in.mp4", 2)
    code, _, err = run(capsys, "in.mp4", "--max-pixels", limit)
    if limit == 3072:
        assert (code, len(model.seen)) == (0, 2)
    else:
        assert (code, len(model.seen)) == (1, 0)
        assert err.startswith("fai-fast: error: in.mp4 is too large: 64 x 48, expected at most 3071 pixels")


def test_reconnect_is_for_live_sources(capsys, model):
    write_video("in.mp4", 2)
    code, _, err = run(capsys, "in.mp4", "--reconnect")
    assert code == 2
    assert err.startswith("fai-fast: error: --reconnect: got in.mp4, expected an address, a camera")


def test_without_pyav_the_way_to_it_is_told(capsys, model, monkeypatch):
    write_video("in.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, err = run(capsys, "in.mp4")
    assert code == 1
    assert "pip install 'fai-fast[video]'" in err


def test_a_network_finds_the_same_in_a_video_as_in_its_frames(capsys, folder):
    """With the real model, lossless, so that the pictures are those of the file."""
    write_video("in.mkv", 3, codec="ffv1", size=(60, 80))
    code, out, _ = run(capsys, "in.mkv", "--threshold", "0.05", "--json", "-")
    assert code == 0
    with fai_fast.load("fai-mf-n-shapes", frame=(60, 80)) as model:
        assert model.size == (160, 224)
        for entry, frame in zip(lines(out), av.open("in.mkv").decode(video=0), strict=True):
            planes = tuple(
                np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
                for plane in frame.planes
            )
            expected = model.infer(planes, color="i420", threshold=0.05)
            assert entry["detections"] == expected.to_dict()["detections"]
            assert entry["latency_ms"]["total"] > 0


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_whole_files(folder, kind):
    script = """
        import signal, sys
        # A job in the background is started with it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import fai_fast
        from fai_fast import cli
        from helpers.videos import Streamed as Model
        def load(name, **arguments):
            return Model(delay=lambda number: 0.005)
        fai_fast.load = load
        sys.exit(cli.main(sys.argv[1:]))
    """
    paths = [str(Path(__file__).parent), str(Path(fai_fast.__file__).parents[1])]
    arguments = [
        "stream",
        NAME,
        "testsrc=size=64x48:rate=30",
        "--format",
        "lavfi",
        "--json",
        "a.jsonl",
        "--save",
        "a.mp4",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])},
    )
    # The temporary files are there from the first frame on.
    until(lambda: len(os.listdir()) == 2 or process.poll() is not None)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + kind, err
    assert "wrote a.jsonl and a.mp4" in err
    assert sorted(os.listdir()) == ["a.jsonl", "a.mp4"]
    entries = lines(Path("a.jsonl").read_text())
    assert len(entries) == len(frames("a.mp4")) >= 1
