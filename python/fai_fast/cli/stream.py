"""``fai-fast stream``: a video or a camera to live statistics, JSON lines and an annotated video."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fai_fast._extras import install
from fai_fast._files import replacing
from fai_fast._redaction import redacted
from fai_fast.cli.growing import Lines
from fai_fast.cli.interrupts import Interrupt
from fai_fast.cli.messages import STDOUT, UsageError, complain, counted, hint, sentence, write_line
from fai_fast.cli.options import (
    MODEL_HELP,
    SOURCE_HELP,
    add_max_pixels,
    add_model_options,
    add_old_model,
    add_result_options,
    check_order,
    check_target,
    count,
    is_model,
    load,
    result_options,
    shaped,
    unsized,
    usage,
)
from fai_fast.cli.paths import stream_source
from fai_fast.cli.window import open_window
from fai_fast.errors import FaiFastError

if TYPE_CHECKING:
    from fai_fast import Detections
    from fai_fast.stream import Frame, Stream, StreamStats

HELP = "find objects in a video or a camera's pictures, live"
DESCRIPTION = f"""\
Runs a model on every frame of a video file, or on the newest frame of a live source, and shows how it keeps up. SOURCE
is what `fai-fast predict` takes too: a video file, - for standard input, an address (rtsp://, http://), a camera (0,
/dev/video0), a picture, or a folder or pattern of pictures. Videos need PyAV: {install("video")}
Ctrl-C ends it. A video that it writes is complete then, and not there before; lines of JSON are there as they come,
and stay whole however it ends.
"""
EPILOG = """\
a line of the JSON, for each frame:
  {"file": the source, or of a folder the picture, "frame": number in the source, "pts": seconds or null,
   "time": when it came, as 2026-11-26T11:40:00.123Z, "size": [H, W],
   "latency_ms": {"decode": ..., ..., "total": ...}, "detections": [as in `fai-fast predict --help`]}

examples:
  fai-fast stream fai-mf-s-coco-ins street.mp4 --save found.mp4
  fai-fast stream fai-mf-s-coco-ins 0 --show
  fai-fast stream bisenetformer-m-ade 0 --option video_size=1280x720 --option input_format=mjpeg
  fai-fast stream fai-mf-s-coco-ins rtsp://camera/1 --reconnect --json - | jq '.detections[].class_name'
  fai-fast stream fai-mf-n-shapes long.mkv --stride 10 --json found.jsonl --max-frames 1000
"""

# Of commands that name no model, as they could once.
DEFAULT = "fai-mf-n-shapes"
SUFFIXES = (".mp4", ".mkv", ".mov")
# Seconds between two statistics: on a terminal, and elsewhere.
REFRESH, REPORT = 0.25, 5.0
# Of an annotated video whose source has no rate.
RATE = Fraction(30)
# Ticks a second of its timestamps: exact for the usual rates, and what 16 bits, which MPEG-4 has for it, can hold.
TICKS = 60_000

_log = logging.getLogger("fai_fast")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s MODEL SOURCE [options]"
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    # Not there where the command is written as it was before.
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=SOURCE_HELP)
    add_old_model(parser)
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument(
        "--latest",
        action="store_const",
        const="latest",
        dest="policy",
        help="drop frames rather than fall behind; the default for live sources",
    )
    policy.add_argument(
        "--all",
        action="store_const",
        const="all",
        dest="policy",
        help="use every frame; the default for files",
    )
    parser.add_argument(
        "--stride", type=count, default=1, metavar="N", help="use every N-th frame; default: %(default)s"
    )
    parser.add_argument(
        "--depth",
        type=count,
        default=2,
        metavar="N",
        help="frames in the model at once; default: %(default)s",
    )
    add_result_options(parser)
    parser.add_argument(
        "--track",
        action="store_true",
        help=f"number objects from frame to frame, as tracker_id: {install('track')}",
    )
    parser.add_argument("--max-frames", type=count, metavar="N", help="end after N results")
    group = parser.add_argument_group("source")
    group.add_argument(
        "--reconnect", action="store_true", help="open a live source again when it ends or fails"
    )
    group.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="seconds without a frame after which the source has failed; default: 10 for live ones",
    )
    group.add_argument(
        "--format", metavar="F", help="of FFmpeg, where it does not guess it: v4l2, avfoundation, ..."
    )
    group.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of FFmpeg's input, such as video_size=1280x720; may be repeated",
    )
    add_max_pixels(group)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", metavar="FILE", help="write a line of JSON a frame; - for stdout, as they come"
    )
    group.add_argument(
        "--save", metavar="FILE", help=f"write a video with what was found drawn on it: {', '.join(SUFFIXES)}"
    )
    group.add_argument(
        "--show", action="store_true", help="show it in a window with what was found drawn on it; q ends it"
    )
    add_model_options(parser, "of the model's own number of pixels, in the shape of the source's frames")


def run(args: argparse.Namespace) -> int:
    from fai_fast.stream import Stream

    args.model, args.source = _model_and_source(args)
    _check_outputs(args)
    interrupt: Interrupt = args.interrupt
    source = stream_source(args.source)
    from fai_fast import render

    with ExitStack() as stack:
        window = None
        if args.show:
            window = open_window()
            stack.callback(window.close)
        # Not at all where it is not asked for: it imports a tracker.
        tracking: dict[str, Any] = {"track": True} if args.track else {}
        with _reconnectable():
            stream = Stream(
                None,
                source,
                policy=args.policy,
                depth=args.depth,
                stride=args.stride,
                on_error="reconnect" if args.reconnect else "raise",
                timeout=args.timeout,
                format=args.format,
                options=dict(args.option),
                max_pixels=args.max_pixels,
                **tracking,
            )
        stack.enter_context(stream)
        spec = unsized(args.model, args)
        # Before the model, whose input gets the shape of the frames.
        size = None if spec is None else shaped(spec, stream._first_size(), "the source's frames")
        model = stack.enter_context(load(args.model if spec is None else spec, args, size))
        with usage():
            model._serve(stream, **result_options(args, model))
        lines = None if args.json is None else stack.enter_context(Lines(args.json))
        video = None if args.save is None else stack.enter_context(Video(Path(args.save), args.stride))
        statistics = stack.enter_context(_Statistics(stream, quiet=args.quiet))
        frames = failed = 0
        try:
            while frames != args.max_frames:
                try:
                    frame, detections = next(stream)
                except StopIteration:
                    break
                except (OSError, ValueError, FaiFastError) as error:
                    # What the library calls it is no option here.
                    complain(re.sub(r"^(frame \d+: )?(?:source|image): ", r"\1", sentence(error)))
                    failed += 1
                    # What an engine cannot do with this frame, it cannot do with the next.
                    if isinstance(error, FaiFastError):
                        break
                    continue
                # No file ends within a line, or within a frame.
                with interrupt.later():
                    if lines is not None:
                        lines.write(_line(_file_of(frame, source), frame, detections))
                    if video is not None or window is not None:
                        picture = render.draw(frame.image(), detections)
                    if video is not None:
                        video.write(frame, picture, stream.rate)
                statistics.show(frame, detections)
                frames += 1
                if window is not None and not window.show(picture, wait=False):
                    break
            interrupt.hold()
        except KeyboardInterrupt:
            if not interrupt.came:  # some other handler's
                raise
            interrupt.hold()
        if not failed and lines is not None:
            lines.open()  # also where there was no frame
        stats = stream.stats()
    written = " and ".join(item for item in (args.json, args.save) if item not in (None, STDOUT))
    if stats.frames or not failed:
        _log.info(
            "%s, %.1f fps, %s, %d dropped%s%s",
            counted(stats.frames, "frame"),
            stats.fps,
            _latency(stream, stats),
            stats.dropped,
            f", {failed} failed" if failed else "",
            f"; wrote {written}" if written and stats.frames else "",
        )
    return interrupt.code if interrupt.came else 1 if failed else 0


def _latency(stream: Stream, stats: StreamStats) -> str:
    """What a frame took: of a live source from its capture; of others, where every frame waits, in the model alone."""
    if stream.policy == "latest":
        return f"p50 {stats.p50:.1f} ms, p99 {stats.p99:.1f} ms from capture (model {stats.model_p50:.1f})"
    return f"model {stats.model_p50:.1f} ms a frame"


def _model_and_source(args: argparse.Namespace) -> tuple[str, str]:
    """MODEL and SOURCE, also where the command is written as it was before: ``SOURCE --model M``, or SOURCE alone."""
    if args.source is not None:
        if args.old_model is not None:
            raise UsageError(
                f"--model: got {args.old_model!r}, and MODEL {args.model!r} too, expected MODEL only"
            )
        check_order("stream", args.model, [args.source])
        return args.model, args.source
    if args.old_model is None and is_model(args.model):
        raise UsageError(
            f"SOURCE: missing, expected a video, an address, a camera or pictures: fai-fast stream {args.model} SOURCE"
        )
    model, source = args.old_model or DEFAULT, args.model
    hint(f"the model comes first: fai-fast stream {model} {source}", quiet=args.quiet)
    return model, source


@contextmanager
def _reconnectable() -> Iterator[None]:
    """Where a wrong value of Python's ``on_error`` is a wrong ``--reconnect``."""
    try:
        with usage():
            yield
    except UsageError as error:
        raise UsageError(str(error).replace("on_error: got 'reconnect' for ", "--reconnect: got ")) from error


def _file_of(frame: Frame, source: str | int) -> str:
    """What the frame is of, without secrets: its file's path, else the source."""
    return redacted(str(source)) if frame.path is None else frame.path


def _line(file: str, frame: Frame, detections: Detections) -> dict[str, Any]:
    """What the JSON says of a frame."""
    latency = detections.latency
    came = time.time() - (time.perf_counter() - frame.captured)
    return {
        "file": file,
        "frame": frame.id,
        "pts": frame.pts,
        "time": datetime.fromtimestamp(came, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z",
        "size": list(frame.size),
        "latency_ms": None if latency is None else {**latency._asdict(), "total": latency.total},
        "detections": detections.to_dict()["detections"],
    }


def _check_outputs(args: argparse.Namespace) -> None:
    """UsageError where an output cannot be written; told before the model is loaded."""
    from fai_fast.stream.opening import local_path

    for option, target in (("--json", args.json), ("--save", args.save)):
        if target is None or (option == "--json" and target == STDOUT):
            continue
        path = Path(target)
        if option == "--save" and path.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"--save: got {path.name!r}, expected a name that ends with {', '.join(SUFFIXES)}"
            )
        check_target(option, target)
        source = local_path(args.source)
        if path.exists() and os.path.exists(source) and os.path.samefile(path, source):
            raise UsageError(f"{option}: {path} is the source itself, expected another name")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected seconds above 0")
    return value


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE")
    return name, value


# ---------------------------------------------------------------------------------------------------- outputs


class _Output:
    """A file that is begun with its first frame, so that a source that gives none leaves an older file alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = ExitStack()

    def __enter__(self: Any) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def _begin(self) -> Path:
        return self._files.enter_context(replacing(self._path))


class Video(_Output):
    """An annotated video, timed as the source from its first frame; H.264 where the encoder is there, else MPEG-4."""

    def __init__(self, path: Path, stride: int) -> None:
        super().__init__(path)
        import av

        self._av: Any = av
        self._stride = stride
        self._stream: Any = None
        self._timing: _Timing | None = None

    def write(self, frame: Frame, picture: npt.NDArray[np.uint8], rate: Fraction | None) -> None:
        """A frame of the source, as `picture` shows it. `rate` is the source's."""
        if self._timing is None:
            rate = rate / self._stride if rate is not None and 0 < rate <= 240 else RATE
            self._timing = _Timing(rate)
            self._open(picture.shape[:2], rate)
        packed = self._av.VideoFrame.from_ndarray(self._fitted(picture), format="rgb24")
        packed.pts, packed.time_base = self._timing.place(frame.pts), Fraction(1, TICKS)
        self._container.mux(self._stream.encode(packed))

    def _open(self, size: tuple[int, int], rate: Fraction) -> None:
        path = self._begin()
        options = {"movflags": "faststart"} if path.suffix.lower() in (".mp4", ".mov") else {}
        # FFmpeg takes what is before a colon for a protocol.
        self._container = self._files.enter_context(self._av.open(f"file:{path}", "w", options=options))
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        stream = self._container.add_stream(codec, rate=rate.limit_denominator(1001))
        stream.codec_context.time_base = Fraction(1, TICKS)
        # Chroma has half the size.
        stream.height, stream.width = (side + side % 2 for side in size)
        if (stream.height, stream.width) != size:
            _log.info(
                "the video is %dx%d pixels (height x width) for %dx%d, as its format has even sides only: the last row "
                "or column is there twice",
                stream.height,
                stream.width,
                *size,
            )
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            # Encoding takes longer than all else: this keeps up with 1080p on two cores, for files somewhat larger.
            stream.options = {"preset": "superfast"}
        else:
            stream.bit_rate = 4_000_000
        self._stream = stream
        self._files.callback(lambda: self._container.mux(stream.encode(None)))

    def _fitted(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        height, width = self._stream.height, self._stream.width
        lower, right = height - picture.shape[0], width - picture.shape[1]
        if lower == right == 0:
            return picture
        if lower in (0, 1) and right in (0, 1):
            return np.pad(picture, ((0, lower), (0, right), (0, 0)), mode="edge")
        from PIL import Image, ImageOps

        return np.asarray(ImageOps.pad(Image.fromarray(picture), (width, height)))


class _Timing:
    """Where frames are in a saved video, ticks from the first one: as far apart as in the source, and in order."""

    def __init__(self, rate: Fraction) -> None:
        self._step = max(1, round(TICKS / rate))
        self._place = -self._step
        self._pts: float | None = None
        # What is added to the source's time.
        self._shift = 0

    def place(self, pts: float | None) -> int:
        """Of the next frame, which the source shows at `pts` seconds; one step on where that is unknown or less."""
        if pts is None:
            self._place += self._step
            return self._place
        ticks = round(pts * TICKS)
        if self._pts is None or pts < self._pts:
            # A source that was opened again begins anew.
            self._shift = self._place + self._step - ticks
        self._pts = pts
        self._place = max(self._place + 1, ticks + self._shift)
        return self._place


class _Statistics:
    """How the stream keeps up: one line that changes on a terminal, elsewhere a line now and then."""

    def __init__(self, stream: Stream, *, quiet: bool) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        self._stream = stream
        self._quiet = quiet
        self._bar = tqdm(bar_format="{desc}", file=sys.stderr, leave=False, disable=True if quiet else None)
        self._next = time.monotonic() + (REPORT if self._bar.disable else 0)

    def show(self, frame: Frame, detections: Detections) -> None:
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        stats = self._stream.stats()
        text = (
            f"frame {frame.id}{'' if frame.pts is None else f' at {frame.pts:.1f} s'}, "
            f"{counted(len(detections), 'object')}, {stats.fps:.1f} fps, {_latency(self._stream, stats)}, "
            f"{stats.dropped} dropped" + (f", {stats.reconnects} reconnects" if stats.reconnects else "")
        )
        if self._bar.disable:
            self._next = now + REPORT
            write_line(f"fai-fast: {text}", sys.stderr)
        else:
            self._next = now + REFRESH
            self._bar.set_description_str(text)

    def __enter__(self) -> _Statistics:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
