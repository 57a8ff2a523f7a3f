"""``fai-fast quantize``: a model's int8 form for CPUs, from pictures of what it is for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fai_fast._extras import install
from fai_fast.cli.messages import STDOUT, UsageError, write_json, write_line
from fai_fast.cli.options import add_size_options, add_spec, check_target, count, number, usage

if TYPE_CHECKING:
    from fai_fast import QuantizeReport

SUFFIX = ".openvino"
HELP = "make a model's int8 form for CPUs, from some pictures"
DESCRIPTION = f"""\
Makes the int8 form of a model, which runs two to four times as fast as fp32 on CPUs with instructions for it (VNNI,
AMX; `fai-fast doctor` says whether there are any here), from some hundred pictures of what the model is for. They need
no labels. The result counts once it finds on the pictures what fp32 finds; with --coco, --ade or --panoptic, once its
AP, mIoU or PQ falls by no more than --tolerance. Without -o it goes into the cache, from which `fai-fast predict MODEL`
takes it.

Needs {install("quantize")}; running the result does not.
"""
EPILOG = """\
examples:
  fai-fast quantize fai-mf-m-coco-ins --images val2017
  fai-fast quantize fai-mf-m-coco-ins --images val2017 --coco instances_val2017.json -o coco.openvino
  fai-fast quantize bisenetformer-m-ade --images ADEChallengeData2016/images/training --im-size 384x640 -o ade.openvino
  fai-fast predict ade.openvino street.jpg
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name that `fai-fast models` lists, a folder or file with FocoosAI's model_info.json, or an .onnx file "
        "that `fai-fast export` wrote",
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="a folder of pictures")
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write, ending with .openvino")
    parser.add_argument(
        "--subset", type=count, default=300, metavar="N", help="pictures that are used; default: %(default)s"
    )
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--coco", metavar="FILE", help="annotations of the pictures in --images: AP decides")
    labels.add_argument("--ade", metavar="DIR", help="a folder in ADE20K's layout: mIoU decides")
    labels.add_argument(
        "--panoptic",
        metavar="FILE",
        help="COCO's panoptic JSON of the pictures in --images, its PNGs in the folder beside it: PQ decides",
    )
    parser.add_argument(
        "--tolerance",
        type=number,
        default=0.005,
        metavar="T",
        help="of 1, that AP, mIoU or PQ may fall by; default: %(default)s",
    )
    parser.add_argument(
        "--weights", metavar="W", help="a file (.pth, .safetensors), an http(s) address, or `random`"
    )
    add_spec(parser)
    add_size_options(parser)
    parser.add_argument(
        "--batch", type=count, default=1, metavar="N", help="pictures at once; default: %(default)s"
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="default: see `fai-fast cache path`")
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON too; - for stdout, in place of text"
    )


def run(args: argparse.Namespace) -> int:
    import fai_fast

    if args.output is not None:
        output = Path(args.output)
        if output.suffix.lower() != SUFFIX:
            raise UsageError(f"--output: got {args.output!r}, expected a name that ends with {SUFFIX}")
        check_target("--output", args.output)
    check_target("--json", args.json)
    with usage():
        report = fai_fast.quantize(
            args.model,
            args.images,
            args.output,
            subset=args.subset,
            im_size=args.im_size,
            frame=args.frame,
            batch=args.batch,
            weights=args.weights,
            coco=args.coco,
            ade=args.ade,
            panoptic=args.panoptic,
            tolerance=args.tolerance,
            cache_dir=args.cache_dir,
            progress=False if args.quiet else None,
            spec=args.spec,
            task=args.task,
        )
    if args.json != STDOUT:
        write_line(f"wrote {report.path}, {report.file_size / 1e6:.1f} MB, in {report.seconds:.1f} s")
        for line in _lines(report):
            write_line(line)
    if args.json is not None:
        write_json(args.json, report.to_dict())
    return 0


def _lines(report: QuantizeReport) -> list[str]:
    height, width = report.size
    items = {
        "model": report.spec.name,
        "input": f"images ({report.batch}, 3, {height}, {width})",
        "ranges from": report.pictures,
        "in int8": f"all products but those of {report.kept}" if report.kept else "all products",
        "the rest": f"in {', '.join(report.rest)}: the first that the CPU has",
        "verified": report.verdict,
    }
    width = max(map(len, items))
    return [f"{name:<{width}}  {text}" for name, text in items.items()]
