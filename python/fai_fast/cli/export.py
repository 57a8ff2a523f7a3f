"""``fai-fast export``: a model as one ONNX file that needs nothing else, or as a TensorRT engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fai_fast.cli.messages import UsageError, write_line
from fai_fast.cli.options import add_size_options, add_spec, check_target, count, usage

if TYPE_CHECKING:
    from fai_fast.exporter import ExportReport

SUFFIXES = {"onnx": ".onnx", "tensorrt": ".engine"}
# As fai_fast.exporter.tensorrt has them, which takes longer to import than a usage text may take.
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121", "current")

HELP = "write a model as one ONNX file, or as a TensorRT engine"
DESCRIPTION = """\
Writes the deployed graph: equal to the reference network, but cheaper to compute, with a fixed input size and the
weights in it. It is compared with the reference network before it counts as written, and the largest differences are
printed. The file brings its name and classes with it, so that `fai-fast predict OUT.onnx picture.jpg` works. Its input
`images` is normalized RGB (B, 3, h, w), its outputs are `mask_logits` and `class_logits`.

With --format tensorrt that graph is built for the GPUs of --target, which need not be here (TensorRT-RTX must be
installed). It runs there with the same version of TensorRT; keep OUT.engine.json, its record, beside it. In int8 it is
held against fp32 by what both find on the pictures.
"""
EPILOG = """\
examples:
  fai-fast export fai-mf-n-shapes shapes.onnx
  fai-fast export bisenetformer-m-ade camera.onnx --frame 1920x1080 --precision fp16
  fai-fast export my_model_folder mine.onnx --weights best.pth --batch 4
  fai-fast export theirs.onnx ours.onnx --spec spec.json --im-size 384x640 --precision fp16
  fai-fast export fai-mf-n-shapes shapes.engine --format tensorrt --target sm75
  fai-fast export fai-mf-n-shapes shapes.engine --target sm75 --precision int8 --pictures scenes/
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name that `fai-fast models` lists, or a folder or file with "
                        "FocoosAI's model_info.json; with --spec, an .onnx file of somebody else")  # fmt: skip
    parser.add_argument("output", metavar="OUT", help="the file to write, ending with .onnx or .engine")
    parser.add_argument("--format", choices=tuple(SUFFIXES), help="default: as OUT ends")
    parser.add_argument(
        "--target",
        metavar="SM[,SM...]",
        help=f"what a TensorRT engine is for: {', '.join(TARGETS)}; default: current, the GPU that is here",
    )
    parser.add_argument(
        "--weights", metavar="W", help="a file (.pth, .safetensors), an http(s) address, or `random`"
    )
    add_spec(parser)
    add_size_options(parser)
    parser.add_argument(
        "--batch", type=count, default=1, metavar="N", help="pictures at once; default: %(default)s"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        help="of weights and arithmetic; default: fp32 in ONNX, fp16 in TensorRT; int8 for TensorRT, with --pictures",
    )
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        help="for int8: a hundred pictures of what the model is for, without labels",
    )
    parser.add_argument("--no-verify", action="store_true", help="do not compare with the reference network")
    parser.add_argument("--cache-dir", metavar="DIR", help="default: see `fai-fast cache path`")


def run(args: argparse.Namespace) -> int:
    import fai_fast

    output = Path(args.output)
    kind = args.format or next((name for name, end in SUFFIXES.items() if output.suffix == end), "onnx")
    if output.suffix != SUFFIXES[kind]:
        expected = SUFFIXES[kind] if args.format else " or ".join(SUFFIXES.values())
        raise UsageError(
            f"OUT{SUFFIXES[kind]}: got {args.output!r}, expected a name that ends with {expected}"
        )
    check_target(f"OUT{SUFFIXES[kind]}", args.output)
    if args.target and kind != "tensorrt":
        raise UsageError("--target: only with --format tensorrt")
    if args.precision == "int8" and kind != "tensorrt":
        raise UsageError("--precision int8: only with --format tensorrt; for CPUs: fai-fast quantize")
    if (args.precision == "int8") != (args.pictures is not None):
        raise UsageError("--pictures: with --precision int8, and only there")
    with usage():
        report = fai_fast.export(
            args.model,
            output,
            im_size=args.im_size,
            frame=args.frame,
            batch=args.batch,
            precision=args.precision,
            weights=args.weights,
            verify=not args.no_verify,
            cache_dir=args.cache_dir,
            format=kind,
            target=args.target.split(",") if args.target else None,
            pictures=args.pictures,
            spec=args.spec,
            task=args.task,
        )
    write_line(f"wrote {output}, {output.stat().st_size / 1e6:.1f} MB, in {report.seconds:.1f} s")
    for line in _lines(report):
        write_line(line)
    return 0


def _lines(report: ExportReport) -> list[str]:
    height, width = report.size
    verification = report.verification or {"against": "nothing: not verified"}
    items = {
        "model": report.spec.name,
        "weights": report.weights,
        "input": f"images ({report.batch}, 3, {height}, {width}), "
        + ("fp16" if report.precision == "int8" else report.precision),
        **({"int8": report.int8} if report.int8 else {}),
        **({"target": ", ".join(report.targets), "built by": report.version} if report.targets else {}),
        **{
            ("verified " if name == "against" else "  ") + name.replace("_", " "): _shown(name, v)
            for name, v in verification.items()
        },
    }
    width = max(map(len, items))
    return [f"{name:<{width}}  {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in items.items()]


def _shown(name: str, value: Any) -> Any:
    """What was measured, to read."""
    if name == "agreement":
        from fai_fast._gate import Verdict

        return str(Verdict.from_dict(value))
    if name == "fp32":
        if value is None:
            return "not verified"
        largest = max(value["mask_difference"], value["class_difference"])
        return f"within {largest:.1g} of {value['against']}"
    return value
