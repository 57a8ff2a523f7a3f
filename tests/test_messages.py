"""What a newcomer is told: the messages of the library, in words, with what was meant and what to do."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import fai_fast
import numpy as np
import onnx
import pytest
from fai_fast import Latency, _options, cli, download
from fai_fast.engines import gpu, select
from fai_fast.errors import CudaError, WeightsError
from fai_fast.exporter import ExportReport, read_metadata
from fai_fast.exporter import tensorrt as exporter_tensorrt
from fai_fast.images import read_image
from fai_fast.ops import frame_arguments
from fai_fast.weights import locate

SPEC = fai_fast.spec("fai-mf-n-shapes")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_picture_and_several_pictures_say_where_they_belong():
    for call in (
        lambda image: fai_fast.preprocess(image, (32, 32), mean=0, std=1),
        lambda image: frame_arguments(image),
    ):
        with pytest.raises(
            TypeError, match=r"^image: got None, expected a picture; cv2\.imread returns None for a"
        ):
            call(None)
        with pytest.raises(
            TypeError, match=r"^image: got a list of 2, expected one picture; model\.infer_batch"
        ):
            call([np.zeros((4, 4, 3), np.uint8)] * 2)


def test_folders_and_videos_say_where_they_belong():
    with pytest.raises(
        IsADirectoryError, match=r"^image: \. is a folder, expected a picture's file; model\.stream"
    ):
        read_image(".")
    Path("a.MP4").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"^image: a\.MP4 is no picture that Pillow can read; model\.stream .* videos$"
    ):
        read_image("a.MP4")
    Path("a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^image: a\.png is no picture that Pillow can read$"):
        read_image("a.png")


def test_a_checkpoint_in_place_of_a_model_is_told_the_call():
    Path("rand.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        ValueError, match=r"^model: rand\.pth is a checkpoint, .*: load\(NAME, weights='rand\.pth'\)"
    ):
        fai_fast.load("rand.pth")


def test_a_foreign_graph_is_told_apart_from_a_damaged_one():
    tensor = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [tensor], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])])  # fmt: skip
    model = onnx.helper.make_model(graph)
    onnx.save(model, "foreign.onnx")
    with pytest.raises(
        ValueError, match=r"foreign\.onnx was not written by fai_fast\.export, so it does not say"
    ):
        read_metadata("foreign.onnx")
    onnx.helper.set_model_props(model, {"fai_fast.name": json.dumps("m")})
    onnx.save(model, "half.onnx")
    with pytest.raises(ValueError, match=r"or is damaged: batch is missing; export it again$") as caught:
        read_metadata("half.onnx")
    assert "KeyError" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "near"), [("Random", True), ("rand0m", True), ("RANDOM", True), ("best.pth", False)]
)
def test_weights_that_are_nearly_random(word, near):
    with pytest.raises(WeightsError) as caught:
        locate("fai-mf-n-shapes", word)
    assert str(caught.value) == f"weights: {word} does not exist" + (
        "; did you mean 'random'?" if near else ""
    )


def test_without_a_network_the_error_is_short(monkeypatch, folder):
    import socket

    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WeightsError, match="could not be downloaded: Name or service not known") as caught:
        locate("fai-mf-s-coco-ins", cache_dir=folder)
    lines = traceback.format_exception(caught.value)
    assert "During handling" not in "".join(lines)
    assert "direct cause" not in "".join(lines)
    assert "urllib" not in "".join(lines)
    assert download.__name__ in sys.modules


@pytest.mark.parametrize(
    ("device", "meant"),
    [
        ("gpu", "cuda"),
        ("GPU:1", "cuda:1"),
        ("cuda0", "cuda:0"),
        ("1", "cuda:1"),
        ("cup", "cpu"),
        ("CPU", "cpu"),
    ],
)
def test_devices_that_are_called_otherwise(device, meant):
    with pytest.raises(ValueError, match=rf"^device: got {device!r}, expected .*; did you mean {meant!r}\?$"):
        select.check_device(device)


def test_devices_that_there_are_not():
    with pytest.raises(
        ValueError, match=r"^device: got 'xpu7x', expected one of 'auto', 'cpu', 'cuda', 'cuda:N'$"
    ):
        select.check_device("xpu7x")
    for wrong in (True, 1.0, None, -1):
        with pytest.raises(TypeError, match=r"^device: got "):
            fai_fast.load("fai-mf-n-shapes", device=wrong)


def without_gpu(monkeypatch):
    def fail(*_):
        raise CudaError("no NVIDIA GPU here")

    monkeypatch.setattr(gpu, "devices", fail)
    monkeypatch.setattr(gpu, "device", fail)


def test_a_number_is_a_gpu(monkeypatch):
    assert select.device_name(1) == "cuda:1"
    assert select.device_name("cpu") == "cpu"
    without_gpu(monkeypatch)
    with pytest.raises(CudaError, match="no NVIDIA GPU here"):
        fai_fast.load("fai-mf-n-shapes", device=1)


def test_tensorrt_without_a_gpu_names_the_way_to_an_engine_for_another(monkeypatch):
    without_gpu(monkeypatch)
    for engine in ("tensorrt", "tensorrt_rtx"):
        with pytest.raises(
            CudaError, match=r"^no NVIDIA GPU here; .* fai-fast export MODEL OUT\.engine --target sm75$"
        ):
            select.candidates(engine)
    with pytest.raises(CudaError, match=r"^no NVIDIA GPU here$"):
        select.candidates("torch-cuda")
    text = r"^target: got 'current', .* but no NVIDIA GPU here; .* target='sm75' for a Tesla T4; there are 'sm75', "
    with pytest.raises(CudaError, match=text):
        exporter_tensorrt.check_builder(("current",))


def test_the_command_line_says_so_in_its_own_words(monkeypatch, capsys):
    without_gpu(monkeypatch)
    assert cli.main(["export", "fai-mf-n-shapes", "out.engine"]) == 1
    err = capsys.readouterr().err
    assert "--target: got 'current', the GPU that is here" in err
    assert "such as --target 'sm75'" in err
    assert os.listdir() == []


def test_options_that_ffmpeg_would_ignore_are_refused():
    pytest.importorskip("av")
    from fai_fast.stream import ffmpeg
    from helpers.videos import Fake, write_video

    write_video("a.mp4", 1)
    model = Fake()
    for name, near in (("vide_size", "'video_size'"), ("rtsp_transprt", "'rtsp_transport'")):
        text = rf"^options: got '{name}', which FFmpeg has not for any input, did you mean {near}\?$"
        with pytest.raises(ValueError, match=text):
            fai_fast.Stream(model, "a.mp4", options={name: "secret"})
    model.close()
    # Of devices, protocols, demuxers, and of all formats.
    ffmpeg.check_names(
        dict.fromkeys(("video_size", "tls_verify", "rtsp_transport", "probesize", "user_agent"), "")
    )
    # A word that is a value of one is not one.
    with pytest.raises(ValueError, match=r"^options: got 'nobuffer'"):
        ffmpeg.check_names({"nobuffer": "1"})
    assert "nobuffer" not in ffmpeg._names()


def test_the_command_line_names_the_option_that_ffmpeg_lacks(capsys, monkeypatch):
    from helpers.videos import Both, write_video

    write_video("a.mp4", 1)
    model = Both()
    monkeypatch.setattr(fai_fast, "load", lambda *_, **__: model)
    assert cli.main(["stream", "m", "a.mp4", "--option", "vide_size=1x1"]) == 2
    model.close()
    assert capsys.readouterr().err == (
        "fai-fast: error: --option: got 'vide_size', which FFmpeg has not for any input, did you mean 'video_size'?\n"
    )


def test_the_demo_looks_for_its_folder_before_it_computes(capsys, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(fai_fast, "load", fail)
    assert cli.main(["demo", "-o", "nodir/x.png"]) == 2
    assert capsys.readouterr().err == "fai-fast: error: --output: no such folder: nodir\n"


# ------------------------------------------------------------------------------------------- what is printed


def test_latency_shows_its_total():
    assert repr(Latency(0.0, 1.25, 7.12345, 0.5)) == (
        "Latency(decode=0.0, preprocess=1.25, engine=7.123, postprocess=0.5, total=8.873)"
    )


def test_a_spec_and_a_report_are_one_line(folder):
    text = str(SPEC)
    assert text == repr(SPEC)
    assert text.startswith(f"<ModelSpec {SPEC.name}: fai_mf, instance, {len(SPEC.classes)} classes, input ")
    assert len(text) < 110
    verification = {"against": "reference", "mask_difference": 2e-6, "class_difference": 1e-6}
    report = ExportReport(
        Path("a.onnx"), SPEC, (64, 96), 1, "fp32", "w", "0", verification, 1.0, file_size=2_500_000
    )
    assert str(report) == (
        f"<ExportReport a.onnx: {SPEC.name} 64x96 fp32, 2.5 MB, verified against the reference network (within 2e-06)>"
    )
    engine = ExportReport(
        Path("a.engine"),
        SPEC,
        (64, 96),
        4,
        "fp16",
        "w",
        "0",
        None,
        1.0,
        "tensorrt",
        ("sm75",),
        "tensorrt_rtx 1",
        10,
    )
    assert str(engine) == (
        f"<ExportReport a.engine: {SPEC.name} 64x96 fp16, batch 4 for sm75 by tensorrt_rtx 1, 0.0 MB, not verified>"
    )
    assert report.to_dict()["verification"] == verification


def test_an_export_logs_its_verification_in_words(caplog, monkeypatch):
    from fai_fast.exporter import verify

    made = verify.Verification("stored", "openvino 1", 1, 2e-6, 1e-6, 1.0)
    monkeypatch.setattr(verify, "verify", lambda *_: made)
    caplog.set_level(logging.DEBUG, "fai_fast")
    report = fai_fast.export("fai-mf-n-shapes", "a.onnx", im_size=64)
    [line] = [record.getMessage() for record in caplog.records if ": exported " in record.getMessage()]
    assert line.endswith(" s, verified against stored outputs of the reference network (within 2e-06)")
    assert report.verification == made.to_dict()


def test_render_is_there_without_an_import():
    code = "import sys, fai_fast; assert 'fai_fast.render' not in sys.modules; print(fai_fast.render.draw.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout, done.stderr) == ("draw\n", "")


def test_a_type_checker_refuses_devices_that_there_are_not(folder):
    pytest.importorskip("mypy")
    assert inspect.signature(fai_fast.load).parameters["device"].annotation == "Device | int"
    # The types alone: with NumPy's in it, the checker takes minutes.
    Path("options.py").write_text(Path(_options.__file__).read_text())
    Path("a.py").write_text(
        "from options import Device\n"
        "def load(device: Device | int) -> None: ...\n"
        "load('auto'); load('cuda:1'); load(1)\n"
        "load('gpu')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(folder / "cache"), "a.py"],
        capture_output=True,
        text=True,
        timeout=600,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert errors[0].startswith('a.py:4: error: Argument 1 to "load" has incompatible type')
