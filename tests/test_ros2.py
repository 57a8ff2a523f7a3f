"""fai_fast.ros2: conversion of messages and the node's logic without ROS 2, and the node in a real one on loopback.

The last part needs the extra `ros2`; FAI_FAST_REQUIRE_ROS2=1 makes its absence a failure.
"""

from __future__ import annotations

import array
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections
from fai_fast.images import read_image
from fai_fast.render import draw
from fai_fast.ros2 import messages, node
from PIL import Image
from reference import to_rgb

ROOT = Path(__file__).parents[1]
SAMPLE = Path(fai_fast.__file__).parent / "registry" / "samples" / "shapes.jpg"
WAIT = 60.0  # seconds, only against hanging
ALL = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21")
ALL += ("8UC1", "8UC3", "8UC4")


def image_message(encoding, rows, width, height=None, padding=0):
    """A sensor_msgs/Image of bytes (rows, row bytes), with `padding` bytes after each row, as rclpy fills it."""
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return SimpleNamespace(
        header=header(),
        encoding=encoding,
        height=len(rows) if height is None else height,
        width=width,
        step=padded.shape[1],
        is_bigendian=1,
        data=array.array("B", padded.tobytes()),
    )


def header():
    return SimpleNamespace(stamp=SimpleNamespace(sec=7, nanosec=123), frame_id="camera")


def random_message(encoding, height=6, width=10, padding=0):
    """A message, and the RGB of its pixels by tests/reference.py."""
    rng = np.random.default_rng(3)
    if encoding in ("nv12", "nv21"):
        rows = rng.integers(0, 256, (height * 3 // 2, width), np.uint8)
        plain = rows.copy()
        if encoding == "nv21":
            plain[height:] = plain[height:].reshape(-1, 2)[:, ::-1].reshape(-1, width)
        return image_message(encoding, rows, width, height, padding), to_rgb(plain, "nv12")
    channels, color = {
        "rgb8": (3, "rgb"),
        "bgr8": (3, "bgr"),
        "rgba8": (4, "rgba"),
        "bgra8": (4, "bgra"),
        "mono8": (1, "gray"),
        "yuv422": (2, "uyvy"),
        "uyvy": (2, "uyvy"),
        "yuv422_yuy2": (2, "yuyv"),
        "yuyv": (2, "yuyv"),
        "8UC1": (1, "gray"),
        "8UC3": (3, "bgr"),
        "8UC4": (4, "bgra"),
    }[encoding]
    pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
    truth = to_rgb(pixels[:, :, 0] if channels == 1 else pixels, color)
    return image_message(encoding, pixels.reshape(height, -1), width, padding=padding), truth


# -------------------------------------------------------------------------------------------- messages in


def test_the_encodings_are_those_tested_here():
    assert tuple(messages.ENCODINGS) == ALL


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ALL)
def test_a_frame_is_a_view_with_the_messages_colors(encoding, padding):
    message, truth = random_message(encoding, padding=padding)
    frame = messages.frame(message)
    memory = np.frombuffer(message.data, np.uint8)
    planes = frame.pixels if isinstance(frame.pixels, tuple) else (frame.pixels,)
    assert all(np.shares_memory(plane, memory) for plane in planes)
    seen = fai_fast.preprocess(frame.pixels, truth.shape[:2], mean=0.0, std=1.0, color=frame.color)
    np.testing.assert_allclose(seen[0].transpose(1, 2, 0), truth, atol=0.01)
    drawn_on = messages.rgb(frame)
    assert drawn_on.dtype == np.uint8
    np.testing.assert_allclose(drawn_on, truth, atol=0.51)


def test_yuv_is_read_as_the_camera_says():
    message, _ = random_message("yuyv")
    pixels = np.frombuffer(message.data, np.uint8).reshape(6, 10, 2)
    seen = messages.rgb(messages.frame(message), yuv_matrix="bt709", yuv_range="full")
    np.testing.assert_allclose(seen, to_rgb(pixels, "yuyv", "bt709", "full"), atol=0.51)


@pytest.mark.parametrize(
    ("encoding", "change", "text"),
    [
        (
            "rgb8",
            {"encoding": "bayer_rggb8"},
            r"got 'bayer_rggb8', a mosaic .*debayer node.* expected one of rgb8, ",
        ),
        ("rgb8", {"encoding": "bayer_grbg16"}, r"encoding: got 'bayer_grbg16', a mosaic .*debayer"),
        (
            "rgb8",
            {"encoding": "mono16"},
            r"encoding: got 'mono16', more than 8 bits, or depth: .*mono8 or rgb8",
        ),
        ("rgb8", {"encoding": "16UC1"}, r"encoding: got '16UC1', more than 8 bits"),
        ("rgb8", {"encoding": "32FC1"}, r"encoding: got '32FC1', more than 8 bits"),
        ("rgb8", {"encoding": "rgb16"}, r"encoding: got 'rgb16', more than 8 bits"),
        ("rgb8", {"encoding": "8UC2"}, r"encoding: got '8UC2', expected one of rgb8"),
        ("rgb8", {"encoding": ""}, r"encoding: got ''"),
        ("rgb8", {"step": 29}, r"step: got 29, expected at least 30 bytes a row for rgb8 of 10x6"),
        ("rgb8", {"step": 31}, r"data: got 180 bytes, expected 186 = 6 rows of 31 for rgb8 of 10x6"),
        ("rgb8", {"height": 7}, r"data: got 180 bytes, expected 210"),
        ("rgb8", {"width": 11}, r"step: got 30, expected at least 33"),
        ("rgb8", {"height": 0}, r"width, height: got 10x0"),
        ("rgb8", {"data": array.array("B")}, r"data: got 0 bytes, expected 180"),
        ("yuyv", {"width": 9}, r"width, height: got 9x6, expected even ones for yuyv"),
        ("nv12", {"height": 5}, r"width, height: got 10x5, expected even ones for nv12"),
        ("nv12", {"height": 4}, r"data: got 90 bytes, expected 60 = 6 rows of 10 for nv12 of 10x4"),
    ],
)
def test_an_image_that_does_not_fit_is_explained(encoding, change, text):
    message, _ = random_message(encoding)
    vars(message).update(change)
    with pytest.raises(ValueError, match=text):
        messages.frame(message)


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return array.array("B", file.getvalue())


@pytest.mark.parametrize("shape", [(12, 16, 3), (12, 16)])
def test_compressed_pictures_are_decoded(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    png = SimpleNamespace(format="rgb8; png compressed bgr8", data=encoded(pixels, "PNG"))
    frame = messages.compressed_frame(png)
    assert frame.color == "rgb"
    np.testing.assert_array_equal(frame.pixels, pixels if len(shape) == 3 else np.dstack([pixels] * 3))
    jpeg = SimpleNamespace(format="jpeg", data=encoded(pixels, "JPEG"))
    np.testing.assert_array_equal(messages.compressed_frame(jpeg).pixels, read_image(bytes(jpeg.data)))


def test_what_is_no_picture_is_explained():
    png = encoded(np.zeros((40, 40, 3), np.uint8), "PNG")
    for data in (png[:40], array.array("B", b"nonsense"), array.array("B")):
        with pytest.raises(
            ValueError, match=rf"data: got {len(data)} bytes said to be 'jpeg', expected a JPEG"
        ):
            messages.compressed_frame(SimpleNamespace(format="jpeg", data=data))
    with pytest.raises(ValueError, match="format: got '16UC1; compressedDepth png', expected jpeg or png"):
        messages.compressed_frame(SimpleNamespace(format="16UC1; compressedDepth png", data=png))


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("bayer_rggb8; jpeg compressed", False),
        ("bayer_rggb8; jpeg compressed ", False),
        ("bayer_gbrg16; png compressed", False),
        ("bayer_rggb8; jpeg compressed bayer_rggb8", False),
        ("bayer_rggb8; jpeg compressed mono8", False),
        ("bayer_rggb8; jpeg compressed bgr8", True),
        ("bgr8; jpeg compressed bgr8", True),
        ("mono8; jpeg compressed mono8", True),
        ("8UC3; png compressed bgr8", True),
        ("png", True),
        ("", True),
    ],
)
def test_a_compressed_mosaic_is_no_gray_picture(said, taken):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8)
    message = SimpleNamespace(format=said, data=encoded(pixels, "PNG"))
    if taken:
        assert messages.compressed_frame(message).pixels.shape == (12, 16, 3)
    else:
        with pytest.raises(ValueError, match=rf"format: got '{said}', a mosaic of single colors: .*debayer"):
            messages.compressed_frame(message)


def test_compressed_pictures_of_16_bits_are_refused():
    data = encoded(np.zeros((12, 16), np.uint16), "PNG")
    with pytest.raises(ValueError, match=r"data: got .* expected 8 bits a channel"):
        messages.compressed_frame(SimpleNamespace(format="mono16; png compressed", data=data))


# ------------------------------------------------------------------------------------------- messages out


def instances(classes=(4, 2, 9), scores=(0.6, 0.9, 0.7), size=(20, 30)):
    """Three masks, each over a part of the one before."""
    mask = np.zeros((3, *size), bool)
    mask[0, 2:12, 3:20], mask[1, 5:15, 8:25], mask[2, 10:18, 4:28] = True, True, True
    boxes = [[3, 2, 20, 12], [8, 5, 25, 15], [4, 10, 28, 18]]
    return Detections(xyxy=boxes, confidence=scores, class_id=classes, size=size, mask=mask)


@pytest.mark.parametrize(("encoding", "nothing"), [("mono8", 255), ("mono16", 65535)])
def test_the_label_map_of_instances_shows_the_best_at_each_pixel(encoding, nothing):
    found = instances(classes=(4, 2, 300 if encoding == "mono16" else 9))
    truth = np.full(found.size, nothing)
    for y, x in np.ndindex(found.size):
        rows = [row for row in range(3) if found.mask[row, y, x]]
        if rows:
            truth[y, x] = found.class_id[max(rows, key=lambda row: found.confidence[row])]
    pixels = messages.label_pixels(found, encoding)
    assert pixels.dtype == (np.uint8 if encoding == "mono8" else np.uint16)
    np.testing.assert_array_equal(pixels, truth)
    assert len(np.unique(truth)) == 4


@pytest.mark.parametrize(("encoding", "nothing"), [("mono8", 255), ("mono16", 65535)])
def test_the_label_map_of_a_semantic_result_is_its_own(encoding, nothing):
    source = np.array([[0, 0, 1], [2, 255, 1]], np.uint8)
    found = Detections(
        xyxy=[[0, 0, 2, 1], [2, 0, 3, 2]],
        confidence=[0.9, 0.8],
        class_id=[6, 3],
        size=(2, 3),
        query=[0, 1],
        label_source=source,
    )
    expected = [[6, 6, 3], [nothing, nothing, 3]]
    np.testing.assert_array_equal(messages.label_pixels(found, encoding), expected)


def test_an_empty_result_is_a_label_map_of_nothing():
    pixels = messages.label_pixels(Detections.empty((4, 6)), "mono8")
    assert pixels.shape == (4, 6)
    assert (pixels == 255).all()


def test_boxes_make_no_label_map():
    with pytest.raises(ValueError, match="expected masks"):
        messages.label_pixels(
            Detections(xyxy=[[0, 0, 1, 1]], confidence=[1], class_id=[0], size=(2, 2)), "mono8"
        )


def test_a_byte_holds_255_classes_and_nothing():
    assert [messages.label_encoding(n) for n in (1, 255, 256, 1000)] == ["mono8", "mono8", "mono16", "mono16"]


@pytest.mark.parametrize(("encoding", "dtype", "shape"), [
    ("mono8", np.uint8, (5, 7)),
    ("mono16", np.uint16, (5, 7)),
    ("rgb8", np.uint8, (5, 7, 3)),
])  # fmt: skip
def test_an_image_message_holds_the_pixels(encoding, dtype, shape):
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    message = SimpleNamespace(data=array.array("B"))
    messages.fill_image(message, pixels[:, ::-1], encoding)
    assert (message.height, message.width, message.encoding) == (5, 7, encoding)
    assert message.step == 7 * pixels.strides[1]
    assert message.is_bigendian == (sys.byteorder == "big")
    held = np.frombuffer(message.data, dtype).reshape(shape)
    np.testing.assert_array_equal(held, pixels[:, ::-1])


def test_the_json_has_the_header_and_everything_of_the_detections():
    found = instances()
    text = json.loads(messages.detections_json(found, header()))
    assert text.pop("header") == {"stamp": {"sec": 7, "nanosec": 123}, "frame_id": "camera"}
    assert text.pop("latency") is None
    assert text == json.loads(found.to_json())


# --------------------------------------------------------------------------------- the node, without ROS 2


class Message(SimpleNamespace):
    """Any of ROS 2's messages: fields given, or made when first asked for."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = array.array("B") if name == "data" else Message()
        setattr(self, name, value)
        return value


class FakeNode:
    """What the node asks of rclpy, with everything that is published."""

    def __init__(self, **parameters):
        self.parameters = {name: value for name, value, _ in node.PARAMETERS} | parameters
        self.errors, self.published, self.inputs, self.listening = [], {}, {}, {}
        self.warnings = []

    def declare_parameter(self, name, default, descriptor):
        self.parameters.setdefault(name, default)
        return self.get_parameter(name)

    def get_parameter(self, name):
        return SimpleNamespace(value=self.parameters[name])

    def get_logger(self):
        return SimpleNamespace(info=lambda text: None, warning=self.warnings.append, error=self.errors.append)

    def resolve_topic_name(self, name):
        return name.replace("~", "/fai_fast")

    def create_subscription(self, kind, topic, callback, qos):
        self.inputs[topic] = callback

    def create_publisher(self, kind, topic, qos):
        sent = self.published[topic] = []
        self.listening[topic] = 1
        return SimpleNamespace(publish=sent.append, get_subscription_count=lambda: self.listening[topic])


class FakeModel:
    spec = SimpleNamespace(name="fake", classes=("a",) * 10, config=SimpleNamespace(threshold=0.25))
    size = (32, 32)

    def __init__(self):
        self.asked = []

    def infer(self, pixels, **options):
        self.asked.append(options)
        size = pixels.shape[:2]
        if size == (2, 2):
            raise fai_fast.EngineError("engine: broke")
        return instances(size=size)


@pytest.fixture
def fake_ros(monkeypatch):
    """Modules named as ROS 2's. Returns a function that takes vision_msgs away."""

    def module(name, *names, **values):
        made = types.ModuleType(name)
        vars(made).update({item: type(item, (Message,), {}) for item in names}, **values)
        parent, _, last = name.rpartition(".")
        monkeypatch.setitem(sys.modules, name, made)
        if parent:
            monkeypatch.setattr(sys.modules[parent], last, made, raising=False)

    for package in ("rclpy", "rcl_interfaces", "sensor_msgs", "std_msgs", "vision_msgs"):
        module(package)
    policy = SimpleNamespace(RELIABLE=1, BEST_EFFORT=2, KEEP_LAST=1)
    module("rclpy.qos", "QoSProfile", HistoryPolicy=policy, ReliabilityPolicy=policy)
    module("rcl_interfaces.msg", "FloatingPointRange", "ParameterDescriptor")
    module("sensor_msgs.msg", "Image", "CompressedImage")
    module("std_msgs.msg", "String")
    module("vision_msgs.msg", "Detection2DArray", "Detection2D", "ObjectHypothesisWithPose")

    def without_vision_msgs():
        monkeypatch.delitem(sys.modules, "vision_msgs.msg")
        monkeypatch.setitem(sys.modules, "vision_msgs", types.ModuleType("vision_msgs"))

    return without_vision_msgs


def test_every_output_has_the_sources_header(fake_ros):
    ros, model = FakeNode(draw=True, yuv_range="full"), FakeModel()
    node.Segmenter(ros, model)
    message, truth = random_message("bgr8", 20, 30)
    ros.inputs["~/image"](message)
    assert model.asked == [{"threshold": 0.25, "color": "bgr", "yuv_matrix": "bt601", "yuv_range": "full"}]
    assert {topic: len(sent) for topic, sent in ros.published.items()} == dict.fromkeys(
        ("~/drawn", "~/label_map", "~/detections", "~/detection_array"), 1
    )
    sent = {topic: one for topic, [one] in ros.published.items()}
    for topic in ("~/drawn", "~/label_map", "~/detection_array"):
        assert sent[topic].header is message.header
    assert json.loads(sent["~/detections"].data)["header"]["stamp"] == {"sec": 7, "nanosec": 123}
    drawn = np.frombuffer(sent["~/drawn"].data, np.uint8).reshape(20, 30, 3)
    np.testing.assert_array_equal(drawn, draw(truth.astype(np.uint8), instances()))
    labels = np.frombuffer(sent["~/label_map"].data, np.uint8).reshape(20, 30)
    np.testing.assert_array_equal(labels, messages.label_pixels(instances(), "mono8"))


def test_detection_arrays_have_the_boxes_in_order(fake_ros):
    ros = FakeNode()
    node.Segmenter(ros, FakeModel())
    ros.inputs["~/image"](random_message("rgb8", 20, 30)[0])
    [message] = ros.published["~/detection_array"]
    boxes = []
    for item in message.detections:
        assert item.header is message.header
        center = np.array([item.bbox.center.position.x, item.bbox.center.position.y])
        half = np.array([item.bbox.size_x, item.bbox.size_y]) / 2
        boxes.append([*(center - half), *(center + half)])
    found = instances()
    np.testing.assert_allclose(boxes, found.xyxy)
    results = [(result.hypothesis.class_id, result.hypothesis.score) for [result] in
               (item.results for item in message.detections)]  # fmt: skip
    assert results == list(zip(found.class_name.tolist(), found.confidence.tolist(), strict=True))


def test_only_what_is_asked_for_is_there(fake_ros):
    ros = FakeNode(publish_label_map=False, publish_detection_array=False)
    node.Segmenter(ros, FakeModel())
    assert set(ros.published) == {"~/drawn", "~/detections"}
    fake_ros()
    ros = FakeNode()
    node.Segmenter(ros, FakeModel())
    assert set(ros.published) == {"~/drawn", "~/detections", "~/label_map"}


def test_nothing_runs_for_nobody_and_drawing_starts_when_asked_for(fake_ros):
    ros, model = FakeNode(), FakeModel()
    node.Segmenter(ros, model)
    message, _ = random_message("rgb8", 20, 30)
    ros.listening = {"~/drawn": 1, "~/label_map": 0, "~/detections": 0, "~/detection_array": 0}
    ros.inputs["~/image"](message)
    assert not model.asked
    ros.parameters |= {"draw": True, "threshold": 0.75}
    ros.inputs["~/image"](message)
    assert [asked["threshold"] for asked in model.asked] == [0.75]
    assert [topic for topic, sent in ros.published.items() if sent] == ["~/drawn"]


def test_errors_name_the_topic_and_are_not_repeated(fake_ros, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(node, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    ros = FakeNode()
    node.Segmenter(ros, FakeModel())
    message, _ = random_message("rgb8", 20, 30)
    message.step = 7
    for _ in range(3):
        ros.inputs["~/image"](message)
        ros.inputs["~/image/compressed"](SimpleNamespace(format="jpeg", data=array.array("B", b"no")))
    assert len(ros.errors) == 2
    assert ros.errors[0] == "/fai_fast/image: step: got 7, expected at least 90 bytes a row for rgb8 of 30x20"
    assert ros.errors[1].startswith("/fai_fast/image/compressed: data: got 2 bytes said to be 'jpeg'")
    clock[0] += node.QUIET
    ros.inputs["~/image"](random_message("rgb8", 2, 2)[0])
    assert ros.errors[2:] == ["/fai_fast/image: engine: broke"]
    message.step = 90
    ros.inputs["~/image"](message)
    assert len(ros.published["~/label_map"]) == 1


def test_an_order_that_is_not_said_is_told_once(fake_ros):
    ros, model = FakeNode(), FakeModel()
    node.Segmenter(ros, model)
    message, _ = random_message("8UC3", 20, 30)
    for _ in range(3):
        ros.inputs["~/image"](message)
    assert [options["color"] for options in model.asked] == ["bgr"] * 3
    [told] = ros.warnings
    assert told.startswith(
        "/fai_fast/image: encoding 8UC3 does not say the order of the channels, and is read as BGR"
    )
    ros.inputs["~/image"](random_message("bgr8", 20, 30)[0])
    assert (len(ros.warnings), ros.errors) == (1, [])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"yuv_matrix": "bt2020"}, "yuv_matrix: got 'bt2020', expected one of 'bt601', "),
        ({"yuv_range": "tv"}, "yuv_range: got 'tv', expected one of 'limited', 'full'"),
        ({"frame": [1080]}, r"frame: got \[1080\], expected \[height, width\]"),
        ({"frame": [1080, 1920, 3]}, r"frame: got \[1080, 1920, 3\]"),
        ({"im_size": [1, 2, 3]}, r"im_size: got \[1, 2, 3\], expected \[side\] or \[height, width\]"),
    ],
)
def test_wrong_parameters_are_refused_before_the_model_is_loaded(fake_ros, monkeypatch, parameters, message):
    monkeypatch.setattr(node, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        node._load(FakeNode(model="fai-mf-n-shapes", **parameters))


@pytest.mark.parametrize(
    ("parameters", "im_size", "frame"),
    [
        ({}, None, None),
        ({"im_size": [640]}, 640, None),
        ({"im_size": [384, 640]}, [384, 640], None),
        ({"frame": [1080, 1920]}, None, [1080, 1920]),
        # load() refuses it.
        ({"im_size": [640], "frame": [1080, 1920]}, 640, [1080, 1920]),
    ],
)
def test_the_size_goes_to_the_model(fake_ros, monkeypatch, parameters, im_size, frame):
    asked = {}

    def load(name, **options):
        asked.update(options)
        return SimpleNamespace(warmup=lambda: None)

    monkeypatch.setattr(node, "load", load)
    node._load(FakeNode(model="fai-mf-n-shapes", **parameters))
    assert (asked["im_size"], asked["frame"]) == (im_size, frame)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, 1),
        ({"im_size": [32]}, 0),
        ({"frame": [32, 32]}, 0),
        ({"model": "a.onnx"}, 0),
    ],
)
def test_pictures_of_another_shape_are_told_once(fake_ros, parameters, told):
    ros, said = FakeNode(**parameters), []
    ros.get_logger = lambda: SimpleNamespace(info=said.append, warning=said.append, error=said.append)
    node.Segmenter(ros, FakeModel())
    del said[:]
    for size in ((30, 32), (20, 30), (20, 30), (30, 20)):
        ros.inputs["~/image"](random_message("rgb8", *size)[0])
    assert (
        said
        == [
            "/fai_fast/image: pictures are 20x30 (height x width), the network's input is 32x32; the parameter "
            "frame:='[20, 30]' gives it their shape"
        ]
        * told
    )


def test_secrets_of_addresses_are_not_logged(fake_ros, monkeypatch):
    said = []

    def failing(pixels, **_):
        raise OSError("http://admin:hunter22@camera/live?token=abcdef: no answer")

    ros, model = FakeNode(), FakeModel()
    model.infer = failing
    node.Segmenter(ros, model)
    ros.inputs["~/image"](random_message("bgr8", 20, 30)[0])
    assert ros.errors == ["/fai_fast/image: http://camera/live: no answer"]
    ros.get_logger = lambda: SimpleNamespace(info=said.append)
    monkeypatch.setattr(node, "load", lambda *_, **__: SimpleNamespace(warmup=lambda: None))
    ros.parameters["model"] = "http://admin:hunter22@host/a.onnx?token=abcdef"
    node._load(ros)
    assert said == ["loading http://host/a.onnx"]


def test_help_needs_no_ros(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    assert node.main(["ros2", "--help"]) == 0
    assert "-p model:=NAME" in capsys.readouterr().out


def test_a_missing_ros_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    assert node.main(["ros2"]) == 1
    error = capsys.readouterr().err
    assert "pip install 'fai-fast[ros2]'" in error
    assert "source a ROS 2 installation" in error


# -------------------------------------------------------------------------------- the node, in a real ROS 2


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Discovery on this machine only, on a domain that other runs hardly take; the node's name tells them apart."""
    if os.environ.get("FAI_FAST_REQUIRE_ROS2") != "1":
        pytest.importorskip("rclpy", reason="the extra `ros2` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        # With what comes with ROS 2, pictures of this size hardly ever arrive.
        patch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", str(ROOT / "examples" / "fastdds.xml"))
        patch.setenv("ROS_LOG_DIR", str(tmp_path_factory.mktemp("log")))
        yield


def arguments(*parameters):
    pairs = [word for parameter in parameters for word in ("-p", parameter)]
    return [sys.executable, "-m", "fai_fast.ros2", "--ros-args", *pairs]


@contextmanager
def process(log, *arguments):
    """A node that runs; its stderr goes to the file `log`."""
    with log.open("w") as stderr, subprocess.Popen(arguments, stderr=stderr, stdout=stderr) as running:
        try:
            yield running
        finally:
            running.kill()


class Robot:
    """Publishes pictures and keeps what comes back, by stamp."""

    def __init__(self, rclpy, name):
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CompressedImage, Image
        from std_msgs.msg import String

        self.rclpy = rclpy
        self.node = rclpy.create_node(f"{name}_robot")
        self.kinds = {"image": Image, "compressed": CompressedImage}
        self.cameras = {
            "image": self.node.create_publisher(Image, f"{name}/camera", qos_profile_sensor_data),
            "compressed": self.node.create_publisher(
                CompressedImage, f"{name}/image/compressed", qos_profile_sensor_data
            ),
        }
        self.received = {"label_map": {}, "drawn": {}, "detections": {}}
        for topic, kind in (("label_map", Image), ("drawn", Image), ("detections", String)):
            self.node.create_subscription(
                kind, f"{name}/{topic}", lambda message, topic=topic: self.keep(topic, message), 10
            )
        self.stamp = 0

    def keep(self, topic, message):
        if topic == "detections":
            message = json.loads(message.data)
            assert message["header"]["frame_id"] == "left"
            stamp = message["header"]["stamp"]["sec"]
        else:
            assert message.header.frame_id == "left"
            stamp = message.header.stamp.sec
        self.received[topic][stamp] = message

    def until(self, happened, act=lambda: None):
        end = time.monotonic() + WAIT
        while not (result := happened()):
            assert time.monotonic() < end, "it took too long"
            act()
            self.rclpy.spin_once(self.node, timeout_sec=0.2)
        return result

    def send(self, camera="image", **fields):
        self.stamp += 1
        message = self.kinds[camera](**fields)
        message.header.stamp.sec, message.header.frame_id = self.stamp, "left"
        self.cameras[camera].publish(message)
        return self.stamp

    def answers(self, topics, camera="image", **fields):
        """What the node says to one picture, which is sent until it does: best effort may lose it."""
        sent = set()

        def complete():
            common = sent.intersection(*(self.received[topic] for topic in topics))
            return [self.received[topic][min(common)] for topic in topics] if common else None

        return self.until(complete, lambda: sent.add(self.send(camera, **fields)))

    def set_parameter(self, name, value):
        """Whether the node took it, and why not."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        client = self.client(SetParameters)
        parameter = Parameter(name, value=value).to_parameter_msg()
        future = client.call_async(SetParameters.Request(parameters=[parameter]))
        [result] = self.until(lambda: future.result() if future.done() else None).results
        self.node.destroy_client(client)
        return result.successful, result.reason

    def client(self, kind):
        client = self.node.create_client(
            kind, f"{self.node.get_name().removesuffix('_robot')}/set_parameters"
        )
        assert client.wait_for_service(timeout_sec=WAIT)
        return client


def raw(pixels, encoding, padding=0):
    height, width = pixels.shape[:2]
    message = image_message(encoding, pixels.reshape(height, -1), width, padding=padding)
    return {name: value for name, value in vars(message).items() if name != "header"}


@pytest.fixture(scope="module")
def sample():
    return read_image(SAMPLE)


@pytest.fixture(scope="module")
def found(sample):
    with fai_fast.load("fai-mf-n-shapes") as model:
        yield model(sample)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what rclpy itself imports
def test_the_node_on_loopback(environment, sample, found, tmp_path):
    import rclpy

    name = f"fai_fast_{os.getpid()}"
    remap = [f"__node:={name}", f"~/image:=/{name}/camera"]
    command = [
        *arguments("model:=fai-mf-n-shapes", "draw:=true"),
        *(word for rule in remap for word in ("-r", rule)),
    ]
    log = tmp_path / "log"
    rclpy.init(args=[])
    try:
        with process(log, *command) as running:
            robot = Robot(rclpy, name)
            topics = ["label_map", "detections", "drawn"]
            labels, text, drawn = robot.answers(topics, **raw(sample, "rgb8"))
            truth = messages.label_pixels(found, "mono8")
            assert (labels.encoding, labels.step) == ("mono8", sample.shape[1])
            np.testing.assert_array_equal(np.frombuffer(labels.data, np.uint8).reshape(truth.shape), truth)
            assert len(np.unique(truth)) > 2
            assert text.pop("latency")["engine"] > 0
            assert {**text, "header": None} == {**json.loads(found.to_json()), "header": None}
            pixels = np.frombuffer(drawn.data, np.uint8).reshape(sample.shape)
            np.testing.assert_array_equal(pixels, draw(sample, found))

            [same] = robot.answers(["label_map"], **raw(sample[:, :, ::-1], "bgr8", padding=3))
            assert same.data == labels.data
            png = {"format": "png", "data": encoded(sample, "PNG")}
            [same] = robot.answers(["label_map"], "compressed", **png)
            assert same.data == labels.data

            # A camera that sends nonsense: the node says so, once for a while, and goes on.
            wrong = {**raw(sample, "rgb8"), "step": 5}
            robot.until(lambda: "/camera: step: got 5" in log.read_text(), lambda: robot.send(**wrong))
            robot.answers(["label_map"], **raw(sample, "rgb8"))

            assert robot.set_parameter("threshold", 1.0) == (True, "")
            [text] = robot.answers(["detections"], **raw(sample, "rgb8"))
            assert text["detections"] == []
            for value in (1.5, -0.1, float("nan"), "high"):
                taken, reason = robot.set_parameter("threshold", value)
                assert not taken
                assert reason
            assert not robot.set_parameter("model", "fai-mf-s-coco-ins")[0]
            [text] = robot.answers(["detections"], **raw(sample, "rgb8"))
            assert text["detections"] == []

            running.send_signal(signal.SIGINT)
            assert running.wait(WAIT) == 0
        assert "Traceback" not in log.read_text()
    finally:
        rclpy.try_shutdown()


@pytest.mark.parametrize(
    ("parameters", "code", "text"),
    [
        ((), 1, "model: got none, expected a name or a path"),
        (("model:=no-such-model",), 1, "model: got 'no-such-model'"),
        (("model:=fai-mf-n-shapes", "yuv_matrix:=bt2020"), 1, "yuv_matrix: got 'bt2020'"),
        (("nonsense",), 2, "ROS 2 refuses the arguments"),
    ],
)
def test_a_node_that_cannot_start_says_why(environment, parameters, code, text):
    ended = subprocess.run(arguments(*parameters), capture_output=True, text=True, timeout=WAIT)
    assert ended.returncode == code
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr
