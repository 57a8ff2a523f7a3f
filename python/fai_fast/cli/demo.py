"""``fai-fast demo``: real detections on a picture that comes with the package."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fai_fast.cli.messages import UsageError, table, write_line
from fai_fast.cli.options import add_model_options, check_target, load

if TYPE_CHECKING:
    from fai_fast import Detections, Latency, Model

HELP = "find shapes in a picture that comes with the package, and draw them"
DESCRIPTION = """\
Runs the small model fai-mf-n-shapes on its sample picture, prints what it finds and what each stage took, and writes
the picture with masks, boxes and labels. Needs no network: weights and picture come with the package.
"""
EPILOG = """\
examples:
  fai-fast demo
  fai-fast demo --output /tmp/found.png
  fai-fast demo --image shapes_of_mine.jpg --threads 1
"""

MODEL = "fai-mf-n-shapes"
SAMPLE = "shapes.jpg"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        default="shapes_demo.jpg",
        metavar="FILE",
        help="the picture to write, .jpg, .png or .webp; default: %(default)s",
    )
    parser.add_argument("--image", metavar="PATH", help="another picture; default: the sample of the package")
    add_model_options(parser, any_model=False)
    # Whoever tries it for the first time wants to see what is found, not how that came about.
    parser.set_defaults(level=logging.WARNING)


def run(args: argparse.Namespace) -> int:
    from fai_fast import render, samples
    from fai_fast.images import read_image

    image = samples.path(SAMPLE) if args.image is None else Path(args.image)
    output = Path(args.output)
    check_output(output, image)
    frame = read_image(image)
    with load(MODEL, args) as model:
        model.warmup()
        detections = model.infer(image)
        latency = detections.latency
        # Specks far away would make a box of half the picture: parts of less than a thousandth of it go.
        detections = detections.clean(min_area=max(1, frame.shape[0] * frame.shape[1] // 1000))
        write_line(header(model))
        write_line("")
        write_line(found(detections))
        write_line("")
        if latency is not None:
            write_line(stages(latency))
        render.save(output, render.draw(frame, detections, color_by="instance"))
    write_line(f"picture: {output.absolute()}")
    return 0


def check_output(output: Path, image: Path) -> None:
    """UsageError where the picture cannot be written; told before the model is loaded."""
    from fai_fast.render import SUFFIXES

    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--output: got {output.name!r}, expected a name that ends with {', '.join(SUFFIXES)}"
        )
    check_target("--output", str(output))
    if output.exists() and image.exists() and os.path.samefile(output, image):
        raise UsageError(f"--output: {output} is the picture itself, expected another name")


def header(model: Model) -> str:
    """The model, its input, and what runs it."""
    info = model.info()
    height, width = model.size
    engine = info["engine"]
    return (
        f"{model.spec.name}, {height}x{width}, {engine['engine']} {info['precision']} on {engine['device']}"
    )


def found(detections: Detections) -> str:
    """A table of the rows."""
    if detections.is_empty():
        return "nothing found"
    columns = zip(
        detections.class_name.tolist(),
        detections.confidence.tolist(),
        detections.xyxy.tolist(),
        detections.area.tolist(),
        strict=True,
    )
    rows = [
        (name, f"{score:.3f}", " ".join(f"{edge:4.0f}" for edge in box), f"{area:.0f}")
        for name, score, box, area in columns
    ]
    return table(("class", "score", "x1   y1   x2   y2", "pixels"), rows)


def stages(latency: Latency) -> str:
    """What each stage took."""
    times = [*latency._asdict().items(), ("total", latency.total)]
    return "ms: " + "  ".join(f"{stage} {value:.1f}" for stage, value in times)
