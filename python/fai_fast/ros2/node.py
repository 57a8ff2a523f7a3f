"""The node ``fai_fast``: newest picture in, label map, detections and drawn picture out. docs/ros2.md describes it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fai_fast._arguments import check_choice
from fai_fast._extras import install
from fai_fast._options import YUV_MATRICES, YUV_RANGES
from fai_fast._redaction import redacted, scrubbed
from fai_fast._sizes import aspects_differ, size_text
from fai_fast.errors import FaiFastError
from fai_fast.model import Model, load
from fai_fast.render import draw
from fai_fast.ros2 import messages
from fai_fast.ros2.messages import Frame

__all__ = ["main"]

HELP = """\
python -m fai_fast.ros2 --ros-args -p model:=NAME [-p PARAMETER:=VALUE ...] [-r '~/image:=/camera/image_raw' ...]

Finds objects in the pictures of a ROS 2 topic. Reads ~/image (sensor_msgs/Image) and ~/image/compressed
(sensor_msgs/CompressedImage); writes ~/label_map, ~/detections, ~/drawn and, where vision_msgs is installed,
~/detection_array. `ros2 param describe /fai_fast NAME` tells what a parameter does. All of it: docs/ros2.md."""

# Read once, when the node starts: name, default, description.
PARAMETERS: tuple[tuple[str, Any, str], ...] = (
    (
        "model",
        "",
        "a name that `fai-fast models` lists, a folder with model_info.json, or an exported .onnx file",
    ),
    ("weights", "", "a file, an address, or 'random'; empty: the model's own"),
    ("engine", "auto", "one that `fai-fast doctor` lists"),
    ("device", "auto", "'auto', 'cpu', 'cuda' or 'cuda:1'"),
    ("precision", "auto", "'fp32', 'fp16', 'bf16' or 'auto'"),
    ("im_size", [0], "the network's input, multiples of 32: [side] or [height, width]; [0]: the model's own"),
    (
        "frame",
        [0],
        "in place of im_size: [height, width] of the pictures, whose shape the input gets; [0]: no matter",
    ),
    ("num_threads", 0, "0: all cores"),
    ("yuv_matrix", "bt601", "'bt601' or 'bt709', of yuv encodings"),
    ("yuv_range", "limited", "'limited' or 'full', of yuv encodings"),
    ("publish_label_map", True, "whether there is ~/label_map"),
    ("publish_detections", True, "whether there is ~/detections"),
    ("publish_detection_array", True, "whether there is ~/detection_array, where vision_msgs is installed"),
)
QUIET = 5.0  # seconds between two errors of one topic


def main(argv: Sequence[str]) -> int:
    """Runs the node until it is interrupted.

    Args:
        argv: the program's name and ROS 2's arguments.

    Returns:
        0 after SIGINT, SIGTERM or ROS 2's shutdown; 1 where there is no ROS 2 or no such model; 2 for other arguments.
    """
    if {"-h", "--help"} & set(argv[1:]):
        print(HELP)
        return 0
    try:
        return _run(list(argv))
    except KeyboardInterrupt:
        return 0


def _run(argv: list[str]) -> int:
    try:
        import rclpy
        import sensor_msgs.msg  # noqa: F401
        import std_msgs.msg  # noqa: F401
        from rclpy.exceptions import ParameterException
        from rclpy.executors import ExternalShutdownException
        from rclpy.utilities import remove_ros_args
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return _fail(
            1,
            f"ROS 2 for Python cannot be imported: {install('ros2')} into a virtual environment (Linux, "
            f"x86-64), or source a ROS 2 installation for Python {version}: {error}",
        )
    try:
        unknown = remove_ros_args(argv)[1:]
        if unknown:
            return _fail(2, f"got {unknown[0]!r}, expected --ros-args before ROS 2's arguments\n\n{HELP}")
        rclpy.init(args=argv)
    except RuntimeError as error:  # rclpy's own have no public names
        return _fail(2, f"ROS 2 refuses the arguments: {error}")

    node = model = None
    try:
        node = rclpy.create_node("fai_fast")
        try:
            model = _load(node)
            Segmenter(node, model)
        except (ParameterException, FaiFastError, ImportError, OSError, TypeError, ValueError) as error:
            node.get_logger().fatal(scrubbed(str(error)))
            return 1
        rclpy.spin(node)
    except ExternalShutdownException:
        pass
    except RuntimeError:
        if rclpy.ok():
            raise
        # SIGTERM came in the middle of something, which then found ROS 2 shut down.
    finally:
        if node is not None:
            node.destroy_node()
        if model is not None:
            model.close()
        rclpy.try_shutdown()
    return 0


def _fail(code: int, text: str) -> int:
    print(f"fai_fast.ros2: {text}", file=sys.stderr)
    return code


def _load(node: Any) -> Model:
    """The model that the node's parameters ask for, which it declares."""
    from rcl_interfaces.msg import ParameterDescriptor

    value = {}
    for name, default, description in PARAMETERS:
        descriptor = ParameterDescriptor(description=description, read_only=True)
        value[name] = node.declare_parameter(name, default, descriptor).value
    if not value["model"]:
        raise ValueError(
            "model: got none, expected a name or a path: --ros-args -p model:=bisenetformer-m-ade"
        )
    im_size = list(value["im_size"])
    if len(im_size) not in (1, 2):
        raise ValueError(f"im_size: got {im_size}, expected [side] or [height, width]")
    frame = list(value["frame"])
    if frame != [0] and len(frame) != 2:
        raise ValueError(f"frame: got {frame}, expected [height, width]")
    # Otherwise every picture would fail, after minutes of export.
    check_choice("yuv_matrix", value["yuv_matrix"], YUV_MATRICES)
    check_choice("yuv_range", value["yuv_range"], YUV_RANGES)
    node.get_logger().info(f"loading {redacted(value['model'])}")
    return load(
        value["model"],
        weights=value["weights"] or None,
        engine=value["engine"],
        device=value["device"],
        precision=value["precision"],
        im_size=None if im_size == [0] else im_size[0] if len(im_size) == 1 else im_size,
        frame=None if frame == [0] else frame,
        num_threads=value["num_threads"] or None,
    ).warmup()


class Segmenter:
    """Subscriptions and publishers of a node, and a model between them.

    A frame runs in its subscription's callback. Of those that come meanwhile the middleware keeps the newest, so that
    the node skips frames and never falls behind.
    """

    def __init__(self, node: Any, model: Model) -> None:
        from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
        from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CompressedImage, Image
        from std_msgs.msg import String

        self._node = node
        self._model = model
        self._log = node.get_logger()
        self._last_error: dict[str, float] = {}
        self._told: set[str] = set()
        own = all(list(node.get_parameter(name).value) == [0] for name in ("im_size", "frame"))
        fixed = str(node.get_parameter("model").value).lower().endswith((".onnx", ".engine"))
        self._look_at_shape = own and not fixed
        self._layout = {name: node.get_parameter(name).value for name in ("yuv_matrix", "yuv_range")}
        self._label_encoding = messages.label_encoding(len(model.spec.classes))

        node.declare_parameter(
            "threshold",
            float(model.spec.config.threshold),
            ParameterDescriptor(
                description="scores above it are reported; may change while the node runs",
                floating_point_range=[FloatingPointRange(from_value=0.0, to_value=1.0)],
            ),
        )
        node.declare_parameter(
            "draw", False, ParameterDescriptor(description="whether ~/drawn is written; may change likewise")
        )

        # Reliable, so that subscribers of every kind get them.
        results = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, history=HistoryPolicy.KEEP_LAST, depth=5)
        self._outputs: list[tuple[Any, Callable[[Frame, Any, Any], Any]]] = []
        self._drawn = node.create_publisher(Image, "~/drawn", results)
        if node.get_parameter("publish_label_map").value:
            self._outputs.append((node.create_publisher(Image, "~/label_map", results), self._label_map))
        if node.get_parameter("publish_detections").value:
            self._outputs.append((node.create_publisher(String, "~/detections", results), self._json))
        array = _vision_msgs() if node.get_parameter("publish_detection_array").value else None
        if array is not None:
            publisher = node.create_publisher(array.Detection2DArray, "~/detection_array", results)
            self._outputs.append((publisher, self._array))

        newest = QoSProfile(
            reliability=ReliabilityPolicy.BEST_EFFORT, history=HistoryPolicy.KEEP_LAST, depth=1
        )
        inputs = []
        for kind, name, convert in (
            (Image, "~/image", messages.frame),
            (CompressedImage, "~/image/compressed", messages.compressed_frame),
        ):
            topic = node.resolve_topic_name(name)
            node.create_subscription(kind, name, self._callback(topic, convert), newest)
            inputs.append(topic)
        height, width = model.size
        self._log.info(f"{model.spec.name}, {height}x{width}, reads {' and '.join(inputs)}")

    def _callback(self, topic: str, convert: Callable[[Any], Frame]) -> Callable[[Any], None]:
        def receive(message: Any) -> None:
            wanted = [output for output in self._outputs if output[0].get_subscription_count()]
            if self._drawn.get_subscription_count() and self._node.get_parameter("draw").value:
                wanted.append((self._drawn, self._picture))
            if not wanted:
                return
            encoding = getattr(message, "encoding", None)
            if encoding in messages.ORDER_UNSAID and encoding not in self._told:
                self._told.add(encoding)
                self._log.warning(
                    f"{topic}: encoding {encoding} does not say the order of the channels, and is read as BGR, which "
                    "is OpenCV's; let the camera's node say bgr8 or rgb8"
                )
            try:
                frame = convert(message)
                detections = self._model.infer(
                    frame.pixels,
                    threshold=self._node.get_parameter("threshold").value,
                    color=frame.color,
                    **self._layout,
                )
                self._tell_shape(topic, detections.size)
                # All of them, or none where one fails.
                made = [(publisher, make(frame, detections, message.header)) for publisher, make in wanted]
            except (FaiFastError, OSError, TypeError, ValueError) as error:
                self._tell(topic, error)
                return
            for publisher, result in made:
                publisher.publish(result)

        return receive

    def _tell_shape(self, topic: str, size: tuple[int, int]) -> None:
        """Says once that pictures have another shape than the input, where nobody has asked for that one."""
        if not self._look_at_shape or not aspects_differ(size, self._model.size):
            return
        self._look_at_shape = False
        self._log.info(
            f"{topic}: pictures are {size_text(size)} (height x width), the network's input is "
            f"{size_text(self._model.size)}; the parameter frame:='[{size[0]}, {size[1]}]' gives it their shape"
        )

    def _tell(self, topic: str, error: Exception) -> None:
        """Logs what is wrong with a frame, unless the topic had one a moment ago: a camera repeats its mistakes."""
        now = time.monotonic()
        if now - self._last_error.get(topic, -QUIET) >= QUIET:
            self._last_error[topic] = now
            self._log.error(f"{topic}: {scrubbed(str(error))}")

    def _label_map(self, frame: Frame, detections: Any, header: Any) -> Any:
        return self._image(
            messages.label_pixels(detections, self._label_encoding), self._label_encoding, header
        )

    def _picture(self, frame: Frame, detections: Any, header: Any) -> Any:
        return self._image(draw(messages.rgb(frame, **self._layout), detections), "rgb8", header)

    def _image(self, pixels: Any, encoding: str, header: Any) -> Any:
        from sensor_msgs.msg import Image

        message = Image(header=header)
        messages.fill_image(message, pixels, encoding)
        return message

    def _json(self, frame: Frame, detections: Any, header: Any) -> Any:
        from std_msgs.msg import String

        return String(data=messages.detections_json(detections, header))

    def _array(self, frame: Frame, detections: Any, header: Any) -> Any:
        kinds = _vision_msgs()
        message = kinds.Detection2DArray(header=header)
        messages.fill_detection_array(message, detections, kinds.Detection2D, kinds.ObjectHypothesisWithPose)
        return message


def _vision_msgs() -> Any:
    """``vision_msgs.msg``, or None where it is not installed."""
    try:
        import vision_msgs.msg
    except ModuleNotFoundError:
        return None
    return vision_msgs.msg
