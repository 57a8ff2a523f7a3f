"""``fai-fast bench``: what each stage of a frame takes on this machine."""

from __future__ import annotations

import argparse

from fai_fast.cli.demo import header
from fai_fast.cli.messages import table, write_json, write_line
from fai_fast.cli.options import MODEL_HELP, add_model_options, check_target, count, load, unsized

HELP = "measure what each stage of a frame takes"
DESCRIPTION = """\
Runs one frame after another and prints, for each stage, the milliseconds that half, 90 % and 99 % of the frames stay
below. Without --image the frame is noise of 1080x1920, in memory, so that nothing is decoded. Postprocessing takes
longer the more there is in the picture: measure with one of your own, and with the model's own weights.
"""
EPILOG = """\
examples:
  fai-fast bench fai-mf-n-shapes
  fai-fast bench bisenetformer-m-ade --image street.jpg --im-size 384x640
  fai-fast bench fai-mf-m-coco-ins --im-size 640 --weights random --threads 2     no download
  fai-fast bench fai-mf-n-shapes --runs 500 --json measured.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--image", metavar="PATH", help="a picture; its decoding is measured too")
    parser.add_argument(
        "--runs", type=count, default=50, metavar="N", help="measured frames; default: %(default)s"
    )
    parser.add_argument(
        "--warmup", type=count, default=5, metavar="N", help="frames before them; default: %(default)s"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures as JSON too; - for stdout, in place of the table"
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from fai_fast.images import read_image

    check_target("--json", args.json)

    if args.image is not None:
        read_image(args.image)  # damaged ones are told before the model is loaded
    # What is measured is the size that the figures stand for, not what noise or a picture would get.
    spec = unsized(args.model, args)
    with load(spec or args.model, args, None if spec is None else spec.input_size) as model:
        measured = model.benchmark(args.image, runs=args.runs, warmup=args.warmup)
        info = model.info()
        title = header(model)
    if args.json != "-":
        rows = [
            (stage, *(f"{times[key]:.2f}" for key in ("mean", "p50", "p90", "p99")))
            for stage, times in measured.items()
        ]
        write_line(f"{title}, {args.runs} frames")
        write_line("")
        write_line(table(("ms", "mean", "p50", "p90", "p99"), rows))
    if args.json is not None:
        write_json(
            args.json,
            {
                "image": args.image,
                "runs": args.runs,
                "warmup": args.warmup,
                "milliseconds": measured,
                "model": info,
            },
        )
    return 0
