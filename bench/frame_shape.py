"""What the shape of the network's input does: accuracy and time by the frame's aspect, memory and starts by sizes.

    PYTHONPATH=tools python -m bench.frame_shape accuracy --json bench/results/FILE --page docs/frame_shape.md
    python -m bench.frame_shape memory --json bench/results/FILE --page docs/frame_shape.md

``accuracy`` draws scenes (tools/shapes.py, seeds that the demo model never saw) in four shapes, and measures the model
that comes with the package with several inputs: mask AP by faster-coco-eval, and the whole of ``infer`` in turns. The
rows are those of docs/frame_shape.md. ``memory`` loads one, two and four sizes of a model, each time in a process of
its own, with everything in the cache. Both take a few minutes on two cores. Precision is fp32, so that shapes alone
differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fai_fast
from fai_fast import evaluate
from fai_fast.images import read_image

from bench.report import interleave, machine, markdown

MODEL = "fai-mf-n-shapes"
# (height, width) of the scenes, with a shorter side of 256 as those of the published figures.
FRAMES = {"16:9": (256, 456), "4:3": (256, 344), "1:1": (256, 256), "9:16": (456, 256)}
# Of the first seeds, which are those of the published figures and held out from training.
SCENES = 100
THRESHOLD = 0.5  # of the timed calls; AP counts everything
# What one, two and four cameras ask for.
SIZES = ((1080, 1920), (1920, 1080), (1080, 1440), (1080, 1080))
ROOT = Path(__file__).parents[1]


class Letterboxed:
    """A model to be evaluated with frames that keep their aspect and are padded."""

    def __init__(self, model: fai_fast.Model) -> None:
        self._model = model
        self.spec, self.size, self.info = model.spec, model.size, model.info

    def submit(self, frame: Any, **options: Any) -> Any:
        return self._model.submit(frame, resize="letterbox", **options)


def inputs(frame: tuple[int, int], own: tuple[int, int]) -> dict[str, tuple[tuple[int, int], str]]:
    """Name, size of the input, and how frames are resized to it."""
    fitting = fai_fast.fit_size(frame, area=own[0] * own[1])
    # As FocoosAI's library validates: the shorter side at the resolution, the aspect kept.
    factor = min(own) / min(frame)
    short = tuple(max(32, 32 * round(side * factor / 32)) for side in frame)
    found = {"the model's own, stretched": (own, "stretch"), "the model's own, letterbox": (own, "letterbox")}
    if frame[0] == frame[1]:
        return {"the model's own": (own, "stretch")}
    found["of the frame's aspect, fit_size()"] = (fitting, "stretch")
    found["shorter side as the model's own, aspect kept"] = ((short[0], short[1]), "stretch")
    return found


def accuracy(scenes: int, seconds: float) -> dict[str, Any]:
    import shapes_dataset  # tools/

    own = fai_fast.spec(MODEL).input_size
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for shape, frame in FRAMES.items():
            place = Path(folder, shape.replace(":", "-"))
            data = evaluate.CocoData.read(place / "images", shapes_dataset.write(place, scenes, frame))
            picture = read_image(data.images[0][1])
            models: dict[tuple[int, int], fai_fast.Model] = {}
            calls: dict[str, Callable[[], object]] = {}
            found: dict[str, dict[str, Any]] = {}
            for name, (size, resize) in inputs(frame, own).items():
                if size not in models:
                    models[size] = fai_fast.load(MODEL, im_size=size, precision="fp32")
                model = models[size]
                report = data.measure(model if resize == "stretch" else Letterboxed(model))  # type: ignore[arg-type]
                calls[name] = _call(model, picture, resize)
                found[name] = {
                    "frame": shape,
                    "frame_size": frame,
                    "input": name,
                    "im_size": size,
                    "resize": resize,
                    "AP": report.metrics["segm/AP"],
                    "AP50": report.metrics["segm/AP50"],
                }
            times, _, others = interleave(calls, seconds, 10)
            for name, row in found.items():
                row["ms"] = 1e3 * times[name].median
                row["other_cores_busy"] = others
                rows.append(row)
            for model in models.values():
                model.close()
    return {"model": MODEL, "precision": "fp32", "scenes": scenes, "rows": rows}


def _call(model: fai_fast.Model, picture: Any, resize: Any) -> Callable[[], object]:
    return lambda: model.infer(picture, threshold=THRESHOLD, resize=resize)


def accuracy_table(found: dict[str, Any]) -> list[str]:
    # Of a busy machine's milliseconds only the ratio within a shape, measured in turns, means something.
    own = {row["frame"]: row["ms"] for row in reversed(found["rows"])}  # of each shape the first row's
    head = ("frame", "network input", "height x width", "AP", "time, the first = 1")
    rows = [
        (
            row["frame"],
            row["input"],
            "x".join(map(str, row["im_size"])),
            f"{row['AP']:.1f}",
            f"{row['ms'] / own[row['frame']]:.2f}",
        )
        for row in found["rows"]
    ]
    return markdown(head, rows)


# A process of its own loads some sizes and says what it holds then; `kept` are private pages and those of files.
_LOADED = """
import json, sys, time
import numpy as np
name, sizes, cache, engine, weights = json.loads(sys.argv[1])
import fai_fast
import fai_fast.model
def held():
    fields = {}
    for line in open("/proc/self/smaps_rollup"):
        key, _, rest = line.partition(":")
        if rest.endswith("kB\\n"):
            fields[key] = fields.get(key, 0) + 1024 * int(rest.split()[0])
    return fields
before = held()
models, seconds = [], []
for size in sizes:
    began = time.perf_counter()
    models.append(fai_fast.load(name, weights=weights, im_size=size, cache_dir=cache, engine=engine, precision="fp32"))
    models[-1].infer(np.zeros((*size, 3), np.uint8))
    seconds.append(time.perf_counter() - began)
after = held()
private = lambda fields: fields["Private_Clean"] + fields["Private_Dirty"]
print(json.dumps({"seconds": seconds, "resident": after["Rss"] - before["Rss"], "anonymous": after["Anonymous"] -
                  before["Anonymous"], "private": private(after) - private(before)}))
"""


def memory(names: list[str], engines: list[str], starts: int, area: int | None) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            own = fai_fast.spec(name).input_size
            weights = None if fai_fast.spec(name).bundled_weights else _weights(name, Path(cache))
            sizes = [fai_fast.fit_size(frame, area=area or own[0] * own[1]) for frame in SIZES]
            for engine in engines:
                for count in (0, 1, 2, 4):
                    # The first one fills the cache for the sizes that the others load.
                    warm = count == 0
                    chosen = sizes if warm else sizes[:count]
                    runs = [
                        _loaded(name, chosen, cache, engine, weights) for _ in range(1 if warm else starts)
                    ]
                    if warm:
                        rows.append(
                            {"model": name, "engine": engine, "sizes": 0, "first": runs[0]["seconds"]}
                        )
                        continue
                    middle = sorted(runs, key=lambda run: sum(run["seconds"]))[len(runs) // 2]
                    rows.append(
                        {"model": name, "engine": engine, "sizes": count, "im_sizes": chosen, **middle}
                    )
        files = {
            name: sum(path.stat().st_size for path in Path(cache, "models", name).glob("*")) for name in names
        }
    return {"precision": "fp32", "rows": rows, "cached_bytes": files}


def _weights(name: str, folder: Path) -> str:
    from safetensors.numpy import save_file

    from bench.weights import lively

    path = folder / f"{name}.safetensors"
    save_file(lively(name), path)
    return str(path)


def _loaded(name: str, sizes: Any, cache: str, engine: str, weights: str | None) -> dict[str, Any]:
    given = json.dumps([name, sizes, cache, engine, weights])
    ended = subprocess.run(
        [sys.executable, "-c", _LOADED, given], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def memory_table(found: dict[str, Any]) -> list[str]:
    head = ("model", "engine", "sizes", "MB private", "MB resident", "s, each from the cache")
    rows = [
        (
            row["model"],
            row["engine"],
            str(row["sizes"]),
            f"{row['private'] / 1e6:.0f}",
            f"{row['resident'] / 1e6:.0f}",
            ", ".join(f"{seconds:.2f}" for seconds in row["seconds"]),
        )
        for row in found["rows"]
        if row["sizes"]
    ]
    return markdown(head, rows)


def with_table(text: str, name: str, lines: list[str]) -> str:
    """A document with the table in its place; ValueError where it has none."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(
            f"page: got one without a place for the table {name}, expected {begin.strip()} ... {end}"
        )
    before, rest = text.split(begin)
    return before + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.split(end)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    first = what.add_parser("accuracy")
    first.add_argument("--scenes", type=int, default=SCENES, help="of each shape; default: %(default)s")
    first.add_argument("--seconds", type=float, default=8.0, help="of timing, for each shape")
    second = what.add_parser("memory")
    second.add_argument("--models", nargs="+", default=[MODEL, "bisenetformer-m-ade"])
    second.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"])
    second.add_argument("--starts", type=int, default=3)
    second.add_argument(
        "--area", type=int, help="pixels of the inputs; default: the model's own, which takes long to verify"
    )
    for command in (first, second):
        command.add_argument("--page", type=Path, metavar="PATH", help="write the table into this document")
        command.add_argument("--json", type=Path, metavar="PATH", help="write figures and machine to PATH")
    args = parser.parse_args()
    began = time.perf_counter()
    if args.what == "accuracy":
        found = accuracy(args.scenes, args.seconds)
        lines = accuracy_table(found)
    else:
        found = memory(args.models, args.engines, args.starts, args.area)
        lines = memory_table(found)
    print("\n".join(lines))
    if args.page is not None:
        args.page.write_text(with_table(args.page.read_text("utf-8"), args.what, lines), "utf-8")
    if args.json is not None:
        command = " ".join(["python -m bench.frame_shape", *sys.argv[1:]])
        content = {
            "command": command,
            "seconds": time.perf_counter() - began,
            "machine": machine(),
            **found,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
