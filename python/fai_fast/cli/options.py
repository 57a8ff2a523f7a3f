"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fai_fast._arguments import MAX_SIDE
from fai_fast.cli.messages import STDOUT, UsageError
from fai_fast.detections.selection import class_ids_of
from fai_fast.images import MOST_PIXELS

if TYPE_CHECKING:
    from fai_fast import ModelSpec
    from fai_fast.model import Model

__all__ = [
    "add_max_pixels",
    "add_model_options",
    "add_old_model",
    "add_result_options",
    "add_size_options",
    "add_spec",
    "check_order",
    "check_target",
    "count",
    "frame",
    "is_model",
    "load",
    "number",
    "result_options",
    "shaped",
    "size",
    "spec_of",
    "unsized",
    "usage",
]

_log = logging.getLogger("fai_fast")

# Files whose input has its size.
_FIXED = (".onnx", ".openvino", ".engine")

MODEL_HELP = (
    "a name that `fai-fast models` lists, a folder or file with FocoosAI's model_info.json, or an .onnx or .openvino "
    "file that `fai-fast export` or `fai-fast quantize` wrote; with --spec, any .onnx file with mask and class logits"
)
SOURCE_HELP = (
    "a picture, a folder or a pattern ('a/*.jpg') of pictures, a video, an address (rtsp://, http://), a camera (0, "
    "/dev/video0), or - for a video from standard input"
)


def add_model_options(
    parser: argparse.ArgumentParser, size_default: str = "the model's own", *, any_model: bool = True
) -> None:
    """What :func:`fai_fast.load` takes; `size_default` says what the network's input is without an option.

    `any_model` is whether the user names the model.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        metavar="W",
        help="a file (.pth, .safetensors), an http(s) address, or `random` to measure speed without any; default: the "
        "model's own, fetched once",
    )
    if any_model:
        add_spec(group)
    add_size_options(group, size_default)
    group.add_argument(
        "--engine",
        default="auto",
        metavar="E",
        help="one that `fai-fast doctor` lists, such as tensorrt, torch-cuda and openvino, or auto: the fastest that "
        "works; default: auto",
    )
    group.add_argument(
        "--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:1; default: auto"
    )
    group.add_argument(
        "--precision",
        default="auto",
        metavar="P",
        help="fp32, fp16, bf16, int8, or auto: the fastest here that finds on pictures what fp32 finds; default: auto",
    )
    group.add_argument(
        "--pictures",
        metavar="DIR",
        help="a folder of pictures to hold a low precision against fp32 on; default: drawn shapes",
    )
    group.add_argument(
        "--threads", type=count, metavar="N", help="default: all cores that the process may use"
    )
    group.add_argument("--cache-dir", metavar="DIR", help="default: see `fai-fast cache path`")


def add_size_options(parser: argparse._ActionsContainer, default: str = "the model's own") -> None:
    """The network's input, as it is or by the camera's frames."""
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--im-size",
        type=size,
        metavar="N|HxW",
        help="the network's input, multiples of 32: 640 for a square, or 384x640, height x width, as networks' sizes "
        f"are written everywhere here; default: {default}",
    )
    sizes.add_argument(
        "--frame",
        type=frame,
        metavar="WxH",
        help="in place of --im-size: what the frames are, 1920x1080, width x height, as cameras write it; the input "
        "gets their aspect and about the model's own number of pixels",
    )


def add_spec(parser: argparse._ActionsContainer) -> None:
    """What a network of somebody else is."""
    parser.add_argument(
        "--spec",
        metavar="FILE",
        help="of an .onnx file of somebody else: JSON that says what it is, with name, task, classes, im_size, and "
        "config where that is not as usual; see docs/foreign.md",
    )
    parser.add_argument(
        "--task",
        choices=("instance", "semantic", "panoptic"),
        help="of a folder or name of transformers, what its results are; default: what its name, its processor or its "
        "classes say; see docs/networks.md",
    )


def add_max_pixels(parser: argparse._ActionsContainer) -> None:
    """The limit on pictures from files."""
    parser.add_argument(
        "--max-pixels",
        type=_pixels,
        metavar="N",
        help=f"refuse larger pictures, which a small file can claim; up to {MOST_PIXELS}, default: 178956970",
    )


def add_result_options(parser: argparse._ActionsContainer) -> None:
    """Which of what is found is wanted."""
    parser.add_argument(
        "--threshold",
        type=_threshold,
        action="append",
        metavar="T|CLASS=T",
        help="leave out what scores less; person=0.7 is for one class, may be repeated, and goes before the one for "
        "all; default: the model's own",
    )
    parser.add_argument(
        "--classes",
        action="append",
        metavar="NAMES",
        help="report these classes only: names with commas between them; may be repeated, and has to be for names with "
        "commas in them; default: all",
    )
    parser.add_argument(
        "--top-k",
        type=count,
        metavar="N",
        help="report at most N objects of a picture, the best; not for semantic and panoptic models; default: all",
    )


def result_options(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """What :func:`add_result_options` says, for ``infer`` and ``stream`` of a model."""
    given: list[tuple[str | None, float]] = args.threshold or []
    for_all = [value for name, value in given if name is None]
    by_class = {name: value for name, value in given if name is not None}
    threshold: Any = for_all[-1] if for_all else None
    if by_class:
        classes = model.spec.classes
        with usage():
            named = {
                i: value for key, value in by_class.items() for i in class_ids_of("threshold", [key], classes)
            }
        threshold = {**(dict.fromkeys(range(len(classes)), threshold) if for_all else {}), **named}
    options: dict[str, Any] = {"threshold": threshold}
    if args.classes is not None:
        known = {name.strip() for name in model.spec.classes}
        options["classes"] = [
            name
            for text in args.classes
            for name in ([text] if text.strip() in known else [part.strip() for part in text.split(",")])
        ]
        # Told once, rather than of each picture.
        with usage():
            class_ids_of("classes", options["classes"], model.spec.classes)
    if args.top_k is not None:
        if model.spec.task != "instance":
            raise UsageError(
                f"--top-k: got {args.top_k} for a {model.spec.task} model, whose pixels would lose their class, "
                "expected none"
            )
        options["top_k"] = args.top_k
    return options


def _threshold(text: str) -> tuple[str | None, float]:
    """0.5, or person=0.7."""
    name, equals, value = text.rpartition("=")
    if equals and not name:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 to 1, or CLASS=0.7")
    return (name if equals else None), number(value)


def add_old_model(parser: argparse.ArgumentParser) -> None:
    """``--model M``, as commands were written before MODEL came first; it goes on working, and is not shown."""
    parser.add_argument("--model", dest="old_model", metavar="M", help=argparse.SUPPRESS)


def is_model(text: str) -> bool:
    """Whether it can only be meant as a model: a name, a graph, a record, or a folder with one."""
    from fai_fast.registry import models
    from fai_fast.registry.model_info import FILE_NAME

    path = Path(text)
    return (
        text in models()
        or path.suffix.lower() in (*_FIXED, ".json", ".pth", ".safetensors")
        or (path / FILE_NAME).is_file()
    )


def check_order(command: str, model: str, sources: Sequence[str]) -> None:
    """UsageError where a source came first and the model after it."""
    if len(sources) == 1 and is_model(sources[0]) and not is_model(model):
        raise UsageError(
            f"MODEL: got {model!r}, and the model {sources[0]!r} as SOURCE; the model comes first: "
            f"fai-fast {command} {sources[0]} {model}"
        )


def check_target(option: str, target: str | None) -> None:
    """UsageError where a file cannot be written, which is better known before hours of work; "-" is stdout."""
    if target is None or target == STDOUT:
        return
    path = Path(target)
    if not target or path.is_dir():
        raise UsageError(f"{option}: {target or repr(target)} is a folder, expected a file's name")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: no such folder: {path.parent}")
    if not os.access(path if path.exists() and not path.is_file() else path.parent, os.W_OK):
        raise UsageError(f"{option}: no permission to write to {path.parent}")


def load(
    model: str | ModelSpec,
    args: argparse.Namespace,
    im_size: tuple[int, int] | None = None,
    *,
    verify_precision: bool = True,
) -> Model:
    """The model that the options ask for.

    Args:
        model: what the user named, or the record of it.
        args: with the options of :func:`add_model_options`.
        im_size: (height, width) of the input, which :func:`shaped` gave.
        verify_precision: see :func:`fai_fast.load`.

    Raises:
        UsageError: for a name or value that there is not.
    """
    import fai_fast

    with usage():
        return fai_fast.load(
            model,
            weights=args.weights,
            engine=args.engine,
            device=args.device,
            precision=args.precision,
            im_size=im_size if args.im_size is None and args.frame is None else args.im_size,
            frame=args.frame,
            num_threads=args.threads,
            cache_dir=args.cache_dir,
            pictures=args.pictures,
            verify_precision=verify_precision,
            spec=getattr(args, "spec", None),
            task=getattr(args, "task", None),
        )


def unsized(model: str, args: argparse.Namespace) -> ModelSpec | None:
    """The record of a model whose input may still get any size; None where an option or its file has settled it.

    It is what to load, as reading a folder again would tell again what is odd in it.
    """
    from fai_fast.registry import load_spec

    if args.im_size is not None or args.frame is not None or model.lower().endswith(_FIXED):
        return None
    try:
        return load_spec(model)
    except (OSError, TypeError, ValueError):  # which load() will say again
        return None


def shaped(spec: ModelSpec, frame: tuple[int, int] | None, what: str) -> tuple[int, int]:
    """The size for frames (height, width) whose aspect is not about the model's own, which one line tells.

    The model's own where that is as good, or nothing is known of the frames. `what` is what they are of.
    """
    from fai_fast._sizes import aspects_differ, fit_size, size_text

    own = spec.input_size
    if frame is None or not aspects_differ(frame, own):
        return own
    fitting = fit_size(frame, area=own[0] * own[1])
    if not aspects_differ(fitting, own):
        return own
    _log.info(
        "the network's input is %s in place of %s (height x width), the shape of %s, %s; --im-size %s keeps it",
        size_text(fitting),
        size_text(own),
        what,
        size_text(frame),
        spec.im_size if isinstance(spec.im_size, int) else size_text(own),
    )
    return fitting


def spec_of(
    model: str, given: str | None = None, task: str | None = None, cache_dir: str | None = None
) -> ModelSpec:
    """What is known of a model before it is loaded: what its file says, or `given`, the file of --spec.

    `task` is that of --task, for networks of transformers, of which the cache may know what they are. Raises
    FileNotFoundError, ValueError, WeightsError where there is none such.
    """
    from fai_fast.cache import cache_folder
    from fai_fast.networks.pretrained import find
    from fai_fast.registry import load_spec

    if given is not None:
        from fai_fast.networks.foreign import spec_from

        return spec_from(given)
    if model.endswith(".onnx"):
        from fai_fast.exporter import read_metadata

        return read_metadata(model).spec
    if model.endswith(".engine"):
        from fai_fast.exporter.tensorrt import read_record

        return read_record(model).spec
    if model.endswith(".openvino"):
        from fai_fast.quantizer import read_info

        return read_info(model).spec
    theirs = find(model, task=task, memory=cache_folder(cache_dir))
    return load_spec(model) if theirs is None else theirs.spec


@contextmanager
def usage() -> Iterator[None]:
    """Where every TypeError and ValueError is of a value from the command line."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def size(text: str) -> int | tuple[int, int]:
    """640, or 384x640 as (height, width)."""
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 640, or 384x640 for height x width")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def frame(text: str) -> tuple[int, int]:
    """1920x1080, width x height, as (height, width)."""
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    if match is None or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected 1920x1080 for width x height, each 1 to {MAX_SIDE}"
        )
    return int(match[2]), int(match[1])


def count(text: str) -> int:
    """A positive integer."""
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive integer")
    return int(text)


def _pixels(text: str) -> int:
    value = count(text)
    if value > MOST_PIXELS:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected at most {MOST_PIXELS}")
    return value


def number(text: str) -> float:
    """A number of 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 to 1")
    return value
