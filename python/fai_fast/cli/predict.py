"""``fai-fast predict``: pictures from files and folders to JSON and drawn pictures."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fai_fast._core import __version__
from fai_fast.cli.interrupts import Interrupt
from fai_fast.cli.messages import STDOUT, UsageError, complain, counted, sentence, write_json, write_line
from fai_fast.cli.options import MODEL_HELP, add_max_pixels, add_model_options, load, number
from fai_fast.cli.paths import find_pictures, identity, output_names
from fai_fast.images import SUFFIXES

if TYPE_CHECKING:
    from fai_fast import Detections, Model

HELP = "find objects in pictures: JSON and drawn pictures"
DESCRIPTION = f"""\
Runs a model on pictures and writes, into the folder DIR, each picture with what was found drawn on it, and
predictions.json. An INPUT is a file, a folder or a pattern; of folders and patterns, the files with these suffixes are
taken: {" ".join(sorted(SUFFIXES))}
A damaged picture is reported and the others go on; the exit code then is 1. Inputs are never overwritten.
"""
EPILOG = """\
the JSON:
  {"fai_fast": version, "model": name, "task": "instance" or "semantic", "classes": [...], "im_size": [h, w],
   "engine": ..., "precision": ..., "images": [...]}
  of each picture, in order:
  {"file": as given, "size": [H, W], "picture": the drawn one or null, "latency_ms": {"decode": ..., ..., "total": ...},
   "detections": [{"xyxy": [x1, y1, x2, y2], "confidence": ..., "class_id": ..., "class_name": ..., "query": ...,
                   "tracker_id": null, "area": pixels, "mask": {"size": [H, W], "counts": COCO's compressed RLE}}, ...]}
  or, of one that could not be read: {"file": as given, "error": why}
  A command that was ended before it was done (Ctrl-C, SIGTERM, an error) writes what it has, and "interrupted": true.
  A mask becomes an array with pycocotools.mask.decode(mask).

examples:
  fai-fast predict bisenetformer-m-ade street.jpg
  fai-fast predict fai-mf-m-coco-ins photos --recursive --output found --threshold 0.7
  fai-fast predict fai-mf-s-coco-ins 'photos/2026-*.png' --im-size 384x640 --no-images --json found.json
  fai-fast predict my_model_folder frame.png --json - --no-images | jq '.images[].detections[].class_name'
"""

DOCUMENT = "predictions.json"

_log = logging.getLogger("fai_fast")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="a picture, a folder, or a pattern such as 'a/*.jpg'"
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="folders with all folders in them")
    parser.add_argument(
        "--threshold", type=number, metavar="T", help="leave out what scores less; default: the model's own"
    )
    add_max_pixels(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        default="predictions",
        metavar="DIR",
        help="folder to write to; default: %(default)s",
    )
    group.add_argument(
        "--json", metavar="FILE", help=f"default: DIR/{DOCUMENT}; - for stdout, with nothing else there"
    )
    group.add_argument("--no-images", action="store_true", help="write the JSON only")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    folder = Path(args.output)
    document = str(folder / DOCUMENT) if args.json is None else args.json
    pictures, problems = find_pictures(args.inputs, recursive=args.recursive, leave_out=folder)
    for problem in problems:
        complain(problem)
    if not pictures:
        return 1
    drawn = {} if args.no_images else {path: folder / name for path, name in output_names(pictures).items()}
    _protect(pictures, [*drawn.values(), *([] if document == STDOUT else [Path(document)])])
    for target in {
        *(path.parent for path in drawn.values()),
        *(() if document == STDOUT else (Path(document).parent,)),
    }:
        target.mkdir(parents=True, exist_ok=True)

    interrupt: Interrupt = args.interrupt
    entries: list[dict[str, Any]] = []
    with load(args.model, args) as model:
        try:
            with interrupt.noted():
                for path in _progress(pictures, args.quiet):
                    if interrupt.came:
                        break
                    entries.append(
                        _attempt(
                            model,
                            path,
                            drawn.get(path),
                            args.threshold,
                            args.max_pixels,
                            lines=document != STDOUT,
                        )
                    )
        finally:
            # Whatever has ended it, what was found until then is not lost.
            with interrupt.noted():
                if entries:
                    ended = {} if len(entries) == len(pictures) else {"interrupted": True}
                    write_json(document, {**_account(model), **ended, "images": entries})
    if not entries:
        raise KeyboardInterrupt
    failed = len(problems) + sum("error" in entry for entry in entries)
    found = sum(len(entry.get("detections", ())) for entry in entries)
    written = [*([f"pictures in {folder}"] if drawn else []), *([document] if document != STDOUT else [])]
    _log.info(
        "%s, %s%s%s",
        counted(len(entries), "picture"),
        counted(found, "object"),
        f", {failed} failed" if failed else "",
        f"; wrote {' and '.join(written)}" if written else "",
    )
    return interrupt.code if interrupt.came else 1 if failed else 0


def _attempt(
    model: Model,
    path: Path,
    target: Path | None,
    threshold: float | None,
    max_pixels: int | None,
    *,
    lines: bool,
) -> dict[str, Any]:
    """What the JSON says of one picture."""
    from fai_fast.images import read_image

    started = time.perf_counter()
    try:
        frame = read_image(path, max_pixels=max_pixels)
        decode = 1e3 * (time.perf_counter() - started)
        # As a frame in memory: drawing needs it too, and decoding it again would take longer than the network.
        detections = model.infer(frame, threshold=threshold)
    except (OSError, ValueError) as error:
        why = sentence(error).removeprefix("image: ")
        complain(why if str(path) in why else f"{path}: {why}")
        return {"file": str(path), "error": why}
    if target is not None:
        from fai_fast import render

        render.save(target, render.draw(frame, detections))
    latency = detections.latency
    if lines:
        write_line(f"{path}  {_summary(detections)}{'' if latency is None else f'  {latency.total:.1f} ms'}")
    content = detections.to_dict()
    return {
        "file": str(path),
        "size": content["size"],
        "picture": None if target is None else str(target),
        "latency_ms": None
        if latency is None
        else {**latency._replace(decode=decode)._asdict(), "total": decode + latency.total},
        "detections": content["detections"],
    }


def _summary(detections: Detections) -> str:
    counts = Counter(detections.class_name.tolist()).most_common()
    shown = [f"{count} {name}" for name, count in counts[:6]]
    return (
        ", ".join(shown + ([f"{len(counts) - 6} more classes"] if len(counts) > 6 else [])) or "nothing found"
    )


def _account(model: Model) -> dict[str, Any]:
    info = model.info()
    return {
        "fai_fast": __version__,
        "model": model.spec.name,
        "task": model.spec.task,
        "classes": list(model.spec.classes),
        "im_size": list(model.size),
        "engine": info["engine"]["engine"],
        "precision": info["precision"],
    }


def _progress(pictures: list[Path], quiet: bool) -> Any:
    from tqdm import tqdm  # type: ignore[import-untyped]

    # None: only where standard error is a terminal.
    return tqdm(pictures, unit="picture", file=sys.stderr, leave=False, disable=True if quiet else None)


def _protect(pictures: list[Path], targets: list[Path]) -> None:
    """UsageError where a target is one of the inputs, under whatever name."""
    inputs = {identity(path): path for path in pictures}
    for target in targets:
        if target.exists() and (path := inputs.get(identity(target))) is not None:
            raise UsageError(f"--output: {target} would overwrite the input {path}, give another folder")
        if target.is_dir():
            raise UsageError(
                f"--output: {target} is a folder, expected a place for a file; give another folder"
            )
    for parent in {parent for target in targets for parent in target.parents}:
        if parent.exists() and not parent.is_dir():
            raise UsageError(f"--output: {os.fspath(parent)} is a file, expected a folder")
