"""ROS 2's messages to frames and Detections to messages, for anything shaped like them: ROS 2 itself is not needed.

Messages are described in https://github.com/ros2/common_interfaces (sensor_msgs, std_msgs) and
https://github.com/ros-perception/vision_msgs (from 4.0).
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fai_fast._options import Color, YuvMatrix, YuvRange
from fai_fast.detections import Detections
from fai_fast.images import read_image
from fai_fast.ops import preprocess

__all__ = [
    "ENCODINGS",
    "NOTHING",
    "ORDER_UNSAID",
    "Frame",
    "compressed_frame",
    "detections_json",
    "fill_detection_array",
    "fill_image",
    "frame",
    "label_encoding",
    "label_pixels",
    "rgb",
]

Pixels = npt.NDArray[np.uint8]

ENCODINGS: dict[str, tuple[Color, int]] = {
    "rgb8": ("rgb", 3),
    "bgr8": ("bgr", 3),
    "rgba8": ("rgba", 4),
    "bgra8": ("bgra", 4),
    "mono8": ("gray", 1),
    # The first of each pair is sensor_msgs' older name.
    "yuv422": ("uyvy", 2),
    "uyvy": ("uyvy", 2),
    "yuv422_yuy2": ("yuyv", 2),
    "yuyv": ("yuyv", 2),
    "nv12": ("nv12", 1),
    "nv21": ("nv12", 1),
    # OpenCV's names of types, which cv_bridge writes unless it is told more.
    "8UC1": ("gray", 1),
    "8UC3": ("bgr", 3),
    "8UC4": ("bgra", 4),
}
"""Encodings of a sensor_msgs/Image: the ``color`` of :func:`fai_fast.preprocess`, and bytes per pixel of a row."""

ORDER_UNSAID = ("8UC3", "8UC4")
"""Encodings that do not say which channel is which; cv_bridge writes them for OpenCV's images, which are BGR."""

NOTHING = {"mono8": 255, "mono16": 65535}
"""What a label map holds where nothing was found, by its encoding."""


class Frame(NamedTuple):
    """pixels: as :func:`fai_fast.preprocess` takes them; color: its ``color``."""

    pixels: Any
    color: Color


def frame(message: Any) -> Frame:
    """The pixels of a ``sensor_msgs/Image``, as views of ``message.data``: nothing is copied.

    Raises:
        ValueError: another encoding, no pixels, an odd size where chroma is shared by pairs, or ``step`` or the length
            of ``data`` that do not fit; the text says what fits.
    """
    encoding, height, width, step = message.encoding, message.height, message.width, message.step
    if encoding not in ENCODINGS:
        raise ValueError(
            f"encoding: got {encoding!r:.60}{_why_not(encoding)}, expected one of {', '.join(ENCODINGS)}"
        )
    color, channels = ENCODINGS[encoding]
    what = f"for {encoding} of {width}x{height}"
    if height < 1 or width < 1:
        raise ValueError(f"width, height: got {width}x{height}, expected a picture with pixels")
    planar = color == "nv12"
    if (width % 2 and (planar or channels == 2)) or (height % 2 and planar):
        raise ValueError(f"width, height: got {width}x{height}, expected even ones for {encoding}")
    if step < width * channels:
        raise ValueError(f"step: got {step}, expected at least {width * channels} bytes a row {what}")
    rows = height * 3 // 2 if planar else height
    data = np.frombuffer(message.data, np.uint8)
    if data.size != rows * step:
        raise ValueError(
            f"data: got {data.size} bytes, expected {rows * step} = {rows} rows of {step} {what}"
        )
    table = data.reshape(rows, step)[:, : width * channels]
    if not planar:
        return Frame(table if channels == 1 else _split(table, channels), color)
    chroma = _split(table[height:], 2)
    return Frame((table[:height], chroma if encoding == "nv12" else chroma[:, :, ::-1]), color)


def _why_not(encoding: str) -> str:
    """What an encoding is that is not taken, and what makes it one that is; empty where that is not known."""
    if encoding.startswith("bayer_"):
        return ", a mosaic of single colors: let image_proc's debayer node make colors of it first"
    if re.search(r"16|32|64", encoding):
        return (
            ", more than 8 bits, or depth: the message does not say which of its values are black and white, so let "
            "a node that knows the camera make mono8 or rgb8 of it first"
        )
    return ""


def _split(table: Pixels, channels: int) -> Pixels:
    """(rows, n * channels) as (rows, n, channels), of rows with padding too."""
    rows, width = table.shape
    strides = table.strides[0], channels, 1
    return np.lib.stride_tricks.as_strided(table, (rows, width // channels, channels), strides)


def compressed_frame(message: Any) -> Frame:
    """The picture in a ``sensor_msgs/CompressedImage``: JPEG, PNG, or another format that Pillow reads.

    Raises:
        ValueError: a depth image, a Bayer mosaic, no picture, or a damaged one.
    """
    if "compresseddepth" in message.format.lower():
        raise ValueError(f"format: got {message.format!r:.60}, expected jpeg or png in color or gray")
    # "what it was; how it is compressed, and as what": a mosaic that was not made colors of is no gray picture.
    before, _, after = message.format.lower().partition(";")
    if before.strip().startswith("bayer_") and not after.strip().endswith(("bgr8", "rgb8")):
        raise ValueError(
            f"format: got {message.format!r:.60}{_why_not('bayer_')}, expected jpeg or png in color or gray"
        )
    try:
        pixels = read_image(io.BytesIO(message.data))
    except ValueError as error:
        came = f"{len(message.data)} bytes said to be {message.format!r:.60}"
        raise ValueError(f"data: got {came}, expected a JPEG or PNG ({error})") from error
    return Frame(pixels, "rgb")


def rgb(frame: Frame, *, yuv_matrix: YuvMatrix = "bt601", yuv_range: YuvRange = "limited") -> Pixels:
    """The frame in uint8 RGB (H, W, 3), for drawing: a view where the frame holds these channels."""
    pixels, color = frame
    if color in ("rgb", "rgba"):
        return np.asarray(pixels[:, :, :3])
    if color in ("bgr", "bgra"):
        return np.asarray(pixels[:, :, 2::-1])
    size = (pixels[0] if color == "nv12" else pixels).shape[:2]
    # The colors that the network sees: its preprocessing, without resizing and normalizing.
    planes = preprocess(
        pixels, size, mean=0.0, std=1.0, color=color, yuv_matrix=yuv_matrix, yuv_range=yuv_range
    )
    result: Pixels = np.rint(planes[0].transpose(1, 2, 0)).astype(np.uint8)
    return result


# -------------------------------------------------------------------------------------------------- results


def label_encoding(classes: int) -> str:
    """The encoding of label maps of this many classes: "mono8" where they leave 255 for nothing, else "mono16"."""
    return "mono8" if classes <= NOTHING["mono8"] else "mono16"


def label_pixels(detections: Detections, encoding: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """The class of the best detection at each pixel.

    Args:
        detections: with masks, semantic or instances.
        encoding: "mono8" or "mono16".

    Returns:
        uint8 or uint16 (H, W), :data:`NOTHING` where there is none.
    """
    dtype = np.dtype(np.uint8 if encoding == "mono8" else np.uint16)
    semantic = detections.label_map
    if semantic is not None:
        return semantic.astype(dtype)  # -1 becomes the largest value, which is NOTHING
    pixels = np.full(detections.size, NOTHING[encoding], dtype)
    packed = detections.packed
    if packed is None:
        raise ValueError("detections: got boxes only, expected masks")
    crops, boxes, classes = packed.crops(), packed.boxes.tolist(), detections.class_id.tolist()
    # The best comes last, over the others.
    for row in np.argsort(detections.confidence, kind="stable").tolist():
        x1, y1, x2, y2 = boxes[row]
        pixels[y1:y2, x1:x2][crops[row]] = classes[row]
    return pixels


def fill_image(message: Any, pixels: npt.NDArray[Any], encoding: str) -> None:
    """Writes pixels (H, W) or (H, W, channels) into a ``sensor_msgs/Image`` that has no data yet."""
    pixels = np.ascontiguousarray(pixels)
    message.height, message.width = pixels.shape[:2]
    message.encoding = encoding
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = pixels.strides[0]
    # Not `message.data = ...`: rclpy copies what is assigned, and checks each byte of what is not an array.array.
    message.data.frombytes(pixels.reshape(-1).view(np.uint8))


def detections_json(detections: Detections, header: Any) -> str:
    """:meth:`fai_fast.Detections.to_dict` as JSON, with the header that a ``std_msgs/String`` has no place for, and the
    milliseconds of each stage as ``latency``, None where they are not known."""
    stamp = header.stamp
    return json.dumps(
        {
            "header": {"stamp": {"sec": stamp.sec, "nanosec": stamp.nanosec}, "frame_id": header.frame_id},
            **detections.to_dict(),
            "latency": None if detections.latency is None else detections.latency._asdict(),
        },
        allow_nan=False,
    )


def fill_detection_array(
    message: Any, detections: Detections, detection: Callable[[], Any], hypothesis: Callable[[], Any]
) -> None:
    """Writes boxes, classes and scores into a ``vision_msgs/Detection2DArray`` that has a header and no detections.

    Args:
        message: the array.
        detections: whose rows are written, in order.
        detection: makes a ``vision_msgs/Detection2D``.
        hypothesis: makes a ``vision_msgs/ObjectHypothesisWithPose``; its ``class_id`` is the class's name.
    """
    columns = (detections.xyxy.tolist(), detections.class_name.tolist(), detections.confidence.tolist())
    items = []
    for (x1, y1, x2, y2), name, score in zip(*columns, strict=True):
        item, result = detection(), hypothesis()
        item.header = message.header
        item.bbox.center.position.x, item.bbox.center.position.y = (x1 + x2) / 2, (y1 + y2) / 2
        item.bbox.size_x, item.bbox.size_y = x2 - x1, y2 - y1
        result.hypothesis.class_id, result.hypothesis.score = name, score
        item.results = [result]
        items.append(item)
    message.detections = items
