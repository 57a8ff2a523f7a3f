"""``fai-fast eval``: accuracy on labeled pictures, beside the published figures."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fai_fast._extras import install
from fai_fast.cli.interrupts import Interrupt
from fai_fast.cli.messages import STDOUT, UsageError, hint, write_json, write_line
from fai_fast.cli.options import (
    MODEL_HELP,
    add_max_pixels,
    add_model_options,
    add_old_model,
    check_target,
    count,
    load,
    number,
    spec_of,
    usage,
)
from fai_fast.errors import EngineError, FaiFastError

if TYPE_CHECKING:
    from fai_fast.evaluate import Report
    from fai_fast.model import Model

NAME = "eval"
HELP = "measure accuracy on labeled pictures: COCO's mask AP and panoptic quality, ADE20K's mIoU"
DESCRIPTION = f"""\
Runs a model on labeled pictures and prints its accuracy in percent, for each metric and class, beside the published
figures. Instance models: --images and --coco, mask AP by faster-coco-eval ({install("eval")}); categories
are matched with the model's classes by name. Semantic models: --ade, mIoU and pixel accuracy. Panoptic models:
--images and --panoptic, panoptic quality (PQ, SQ, RQ) of all classes, of things and of stuff, by panopticapi's rules.

--compare and --compare-engines measure several precisions and engines on the same pictures. The first one is what the
others are held against; those that this machine cannot run are listed with the reason. The exit code is 1 if AP, mIoU
or PQ falls by more than --tolerance.

Each picture gets an input of its shape: they are divided into at most --buckets parts, for each of which the model is
made ready once. Some are run in the model's own size too, and the report says what that would have given.

In place of MODEL there may be predictions, Parquet files that `fai-fast predict --ray --threshold 0` has written, which
are measured with --images and --coco without a model; or COCO's panoptic JSON beside the folder of its PNGs, as of
`fai-fast predict --format panoptic`, which --panoptic measures.

What is measured is what the model returns. FocoosAI's published figures let one mask count for several classes (AP)
and add up all queries at a pixel (mIoU; --combine sum does it too), so the two need not agree exactly.
"""
EPILOG = """\
the JSON: the figures of the table, engine, precision, input size and the published figures; where pictures had
  inputs of their shapes "sizes": [[[h, w], images], ...] and "size_effect": {"images": ..., "own_size": [h, w],
  "shaped": percent, "own": percent}; of panoptic models "quality": {class: {"pq": ..., "sq": ..., "rq": ...,
  "found": segments, "wrong": ..., "missed": ...}, ...}; with a comparison
  {"tolerance": ..., "runs": [{"engine": ..., "precision": ..., "problem": why it cannot run, or null,
                               "difference": from the first run, "fell": ..., "report": as above}, ...]}

examples:
  fai-fast eval fai-mf-m-coco-ins --images val2017 --coco instances_val2017.json
  fai-fast eval bisenetformer-m-ade --ade ADEChallengeData2016 --json measured.json
  fai-fast eval theirs.onnx --images val2017 --panoptic panoptic_val2017.json
  fai-fast eval predictions/panoptic.json --panoptic panoptic_val2017.json
  fai-fast eval found.parquet --images val2017 --coco instances_val2017.json --results found.json
  fai-fast eval mine --images photos --coco mine.json --limit 500 --compare fp32,bf16,fp16
  fai-fast eval fai-mf-s-coco-ins --images val2017 --coco instances_val2017.json \\
      --compare-engines openvino,onnxruntime
"""

_log = logging.getLogger("fai_fast")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s MODEL (--coco FILE --images DIR | --ade DIR | --panoptic FILE --images DIR) [options]"
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    add_old_model(parser)
    group = parser.add_argument_group("labeled pictures")
    truth = group.add_mutually_exclusive_group(required=True)
    truth.add_argument("--coco", metavar="FILE", help="COCO's instances JSON; needs --images")
    truth.add_argument(
        "--ade",
        metavar="DIR",
        help="a folder with images/validation and annotations/validation, or images and annotations; label images "
        "hold 0 for unlabeled, then the classes from 1 on",
    )
    truth.add_argument("--panoptic", metavar="FILE", help="COCO's panoptic JSON; needs --images")
    group.add_argument(
        "--images", metavar="DIR", help="the folder of the pictures that --coco or --panoptic names"
    )
    group.add_argument(
        "--segments",
        metavar="DIR",
        help="the folder of the PNGs that --panoptic names; default: the one beside it, called as it is without .json",
    )
    group.add_argument(
        "--combine",
        choices=("contest", "sum", "both"),
        help="with --ade: how each pixel's class comes about. contest: the class of the query with the largest score "
        "times mask probability. sum: the class with the largest sum of class probability times mask probability over "
        "all queries, as published mIoU is measured. both: one beside the other, of one run of the network; "
        "default: the model's own way",
    )
    group.add_argument("--limit", type=count, metavar="N", help="the first N pictures")
    group.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out pictures that are not there, in place of an error",
    )
    add_max_pixels(group)
    parser.add_argument(
        "--threshold",
        type=number,
        metavar="T",
        help="leave out what scores less; AP and mIoU count all that a model says, so the default is 0; with "
        "--panoptic it is the model's own",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures as JSON too; - for stdout, in place of the table"
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="of predictions in Parquet files: write them as COCO's results JSON too; - for stdout",
    )
    group = parser.add_argument_group("sizes of the network's input")
    group.add_argument(
        "--buckets",
        type=count,
        default=4,
        metavar="N",
        help="divide the pictures by their shape, each part with an input of its own shape, where neither --im-size "
        "nor --frame is given; 1 for the model's own size for all; default: %(default)s",
    )
    group.add_argument(
        "--compare-sizes",
        type=_zero_or_more,
        default=200,
        metavar="N",
        help="run N of the pictures in the model's own size too, to tell what the shapes change; 0 for none; default: "
        "%(default)s",
    )
    group = parser.add_argument_group("comparisons")
    group.add_argument("--compare", type=_names, metavar="P,P", help="precisions, such as fp32,bf16,fp16")
    group.add_argument(
        "--compare-engines", type=_names, metavar="E,E", help="engines, such as openvino,onnxruntime"
    )
    group.add_argument(
        "--tolerance",
        type=number,
        default=0.005,
        metavar="T",
        help="of 1, that AP, mIoU or PQ may fall by; default: %(default)s",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from fai_fast import evaluate

    args.model = _model(args)
    check_target("--json", args.json)
    configurations = _configurations(args)
    if _is_stored(args.model):
        return _run_stored(args, configurations)
    if args.panoptic is not None and Path(args.model).suffix.lower() == ".json":
        return _run_panoptic_files(args, configurations)
    if args.results is not None:
        raise UsageError("--results: belongs to predictions in Parquet files in place of MODEL")
    data: evaluate.CocoData | evaluate.AdeData | evaluate.PanopticData
    # Before the model, which may take minutes to make ready.
    for option, given in (("--coco", args.coco), ("--panoptic", args.panoptic)):
        if given is not None and args.images is None:
            raise UsageError(f"{option}: needs --images, the folder of the pictures")
    if args.segments is not None and args.panoptic is None:
        raise UsageError("--segments: belongs to --panoptic, whose PNGs it has")
    if args.combine is not None and args.ade is None:
        raise UsageError("--combine: belongs to --ade")
    # Each kind of truth has its own default.
    own: dict[str, Any] = {} if args.threshold is None else {"threshold": args.threshold}
    if args.combine is not None:
        own["combine"] = args.combine
    if args.panoptic is not None:
        data = evaluate.PanopticData.read(
            args.images, args.panoptic, args.segments, limit=args.limit, skip_missing=args.skip_missing
        )
    elif args.coco is not None:
        data = evaluate.CocoData.read(
            args.images, args.coco, limit=args.limit, skip_missing=args.skip_missing
        )
    else:
        if args.images is not None:
            raise UsageError(
                "--images: belongs to --coco and --panoptic; --ade names the pictures' folder too"
            )
        data = evaluate.AdeData.read(args.ade, limit=args.limit, skip_missing=args.skip_missing)

    with usage():
        data.check(spec_of(args.model, args.spec, args.task, args.cache_dir))  # before minutes of export
    interrupt: Interrupt = args.interrupt

    def measure(model: Model) -> Report:
        """The report of all pictures; where a signal comes, of those that were done, so that hours are not lost."""
        with interrupt.noted():
            return data.measure(
                model,
                **own,
                progress=False if args.quiet else None,
                max_pixels=args.max_pixels,
                stop=lambda: interrupt.came,
                buckets=args.buckets,
                # A comparison of engines says nothing of sizes.
                compare_sizes=0 if configurations else args.compare_sizes,
            )

    if not configurations:
        with load(args.model, args) as model:
            report = measure(model)
            interrupt.hold()
        _write(args.json, report.table(), report.to_dict(), interrupt)
        return interrupt.code if interrupt.came else 0

    asked_for = configurations[0]
    finished: list[evaluate.Run] = []

    def measure_next(model: Model) -> Report:
        report = measure(model)
        # Figures of fewer pictures than the first one's cannot be held against them.
        if not (interrupt.came and finished):
            finished.append(evaluate.Run(*asked_for, report))
        if interrupt.came:
            raise KeyboardInterrupt
        return report

    def make(engine: str, precision: str) -> Model:
        nonlocal asked_for
        asked_for = engine, precision
        _log.info("measuring %s %s", engine, precision)
        asked = argparse.Namespace(**{**vars(args), "engine": engine, "precision": precision})
        try:
            # Labels say more of a precision than what it is tried on before it is taken.
            return load(args.model, asked, verify_precision=precision == "auto")
        except (UsageError, FaiFastError) as error:
            if (engine, precision) == configurations[0]:
                raise
            finished.append(evaluate.Run(engine, precision, problem=" ".join(str(error).split())))
            if isinstance(error, FaiFastError):
                raise
            # Such as an engine that has no such precision: no reason to give up the others.
            raise EngineError(str(error)) from error

    try:
        comparison = evaluate.compare(make, measure_next, configurations, tolerance=100 * args.tolerance)
        interrupt.hold()
    except KeyboardInterrupt:
        interrupt.hold()
        if not (interrupt.came and finished):
            raise
        comparison = evaluate.Comparison(tuple(finished), 100 * args.tolerance)
    _write(args.json, comparison.table(), comparison.to_dict(), interrupt)
    return interrupt.code if interrupt.came else 1 if comparison.fallen else 0


def _is_stored(model: str) -> bool:
    """Whether it is predictions: a Parquet file, or a folder of such."""
    path = Path(model)
    return path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("part-*.parquet")))


def _run_stored(args: argparse.Namespace, configurations: list[tuple[str, str]]) -> int:
    from fai_fast import evaluate

    if args.coco is None or args.images is None:
        raise UsageError("MODEL: got predictions in Parquet files, which need --coco and --images")
    if configurations:
        raise UsageError(
            "--compare, --compare-engines: need a MODEL to run, and got predictions in Parquet files"
        )
    check_target("--results", args.results)
    report = evaluate.coco_stored(
        args.model,
        args.images,
        args.coco,
        threshold=args.threshold or 0.0,
        limit=args.limit,
        skip_missing=args.skip_missing,
    )
    if args.results is not None:
        write_json(args.results, evaluate.coco_results(args.model, args.coco))
    _write(args.json, report.table(), report.to_dict(), args.interrupt)
    return 0


def _run_panoptic_files(args: argparse.Namespace, configurations: list[tuple[str, str]]) -> int:
    from fai_fast import evaluate

    for option, given in (
        ("--compare, --compare-engines", configurations or None),
        ("--threshold", args.threshold),
        ("--images", args.images),
        ("--results", args.results),
    ):
        if given is not None:
            raise UsageError(f"{option}: belongs to a MODEL to run, and got predictions in {args.model}")
    data = evaluate.PanopticData.read(
        None, args.panoptic, args.segments, limit=args.limit, skip_missing=args.skip_missing
    )
    score = data.score(args.model, max_pixels=args.max_pixels)
    _write(args.json, score.table(), score.to_dict(), args.interrupt)
    return 0


def _model(args: argparse.Namespace) -> str:
    """MODEL, or what ``--model`` says, as the command was written before."""
    if args.model is None and args.old_model is None:
        raise UsageError("MODEL: missing, expected fai-fast eval MODEL; see fai-fast eval --help")
    if args.model is not None and args.old_model is not None:
        raise UsageError(
            f"--model: got {args.old_model!r}, and MODEL {args.model!r} too, expected MODEL only"
        )
    if args.model is None:
        hint(f"the model comes first: fai-fast eval {args.old_model} ...", quiet=args.quiet)
    return str(args.model or args.old_model)


def _configurations(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Engine and precision of each run of a comparison; none without one."""
    from fai_fast._options import ENGINES, PRECISIONS

    for option, given, single, value, known in (
        ("--compare", args.compare, "--precision", args.precision, PRECISIONS),
        ("--compare-engines", args.compare_engines, "--engine", args.engine, ENGINES),
    ):
        if given is not None and value != "auto":
            raise UsageError(f"{option}: got {single} {value} too, expected only one of these options")
        if unknown := [name for name in given or () if name not in known]:
            raise UsageError(f"{option}: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    if args.compare is None and args.compare_engines is None:
        return []
    return [
        (engine, precision)
        for engine in args.compare_engines or [args.engine]
        for precision in args.compare or [args.precision]
    ]


def _zero_or_more(text: str) -> int:
    return 0 if text == "0" else count(text)


def _names(text: str) -> list[str]:
    """Names between commas, none twice."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected names with commas between them, none twice")
    return names


def _write(target: str | None, table: str, document: dict[str, Any], interrupt: Interrupt) -> None:
    if interrupt.came:
        document = {"interrupted": True, **document}
        table += "\n\nInterrupted: what was measured until then."
    if target != STDOUT:
        write_line(table)
    if target is not None:
        write_json(target, document)
