"""``fai-fast models``: what there is, and the model card of each."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fai_fast._sizes import size_text
from fai_fast.cli.messages import STDOUT, table, write_json, write_line
from fai_fast.cli.options import usage

if TYPE_CHECKING:
    from fai_fast import ModelSpec

HELP = "list the models, or print the card of one"
DESCRIPTION = """\
Without NAME, a table of all models: SIZE is the network's input that the model was trained at (the side of a square, or
height x width), METRIC its published accuracy in percent, and T4 MS FocoosAI's published latency of the engine alone on
a Tesla T4 with TensorRT at 640x640. With NAME, its model card: architecture, input and output, classes with published
figures, latencies.
"""
EPILOG = """\
examples:
  fai-fast models
  fai-fast models fai-mf-m-coco-ins
  fai-fast models path/to/model_info.json
  fai-fast models --json > models.json
"""

# The one that each task is usually judged by.
HEADLINES = {"segm/AP": "AP", "sem_seg/mIoU": "mIoU", "panoptic/PQ": "PQ"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a model, or a folder or file with model_info.json"
    )
    parser.add_argument("--json", action="store_true", help="print the records as JSON")


def run(args: argparse.Namespace) -> int:
    import fai_fast
    from fai_fast.registry import load_spec

    if args.name is not None:
        with usage():
            spec = load_spec(args.name)
        if args.json:
            write_json(STDOUT, spec.to_dict())
        else:
            write_line(spec.card())
        return 0
    specs = [load_spec(name) for name in fai_fast.models()]
    if args.json:
        write_json(STDOUT, [spec.to_dict() for spec in specs])
    else:
        header = ("name", "family", "task", "classes", "size", "metric", "t4 ms")
        write_line(table(tuple(title.upper() for title in header), [_row(spec) for spec in specs], left=3))
    return 0


def _row(spec: ModelSpec) -> tuple[str, ...]:
    metric = next(
        (f"{HEADLINES[key]} {spec.metrics[key]:.1f}" for key in HEADLINES if key in spec.metrics), "-"
    )
    t4 = [item.mean_ms for item in spec.published_latency if "T4" in item.device and "ensorrt" in item.engine]
    latency = f"{min(t4):.1f}" if t4 else "-"
    size = str(spec.im_size) if isinstance(spec.im_size, int) else size_text(spec.im_size)
    return spec.name, spec.family, spec.task, str(len(spec.classes)), size, metric, latency
