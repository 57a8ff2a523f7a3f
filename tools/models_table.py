"""Writes the table of all models into README.md and docs/models.md, from the registry and one file of measurements.

    python tools/models_table.py                      # the table again; python tools/docs.py does that too
    python tools/models_table.py --measure FILE.json  # operations and milliseconds of every model on this CPU

Accuracy and T4 milliseconds are what FocoosAI published, as the registry has them. Parameters are counted from the
configuration; the download's size is that of the checkpoint's tensors in float32. Operations are those of the deployed
graph's convolutions and matrix products at 640 x 640, a multiply-add being two; milliseconds are the CPU time of one
thread for `Model.infer` of a 1080p frame in memory, with random weights: published ones cannot be had where this is
developed, and a network's time does not depend on them. Measuring needs PyTorch, and takes a few minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np
from fai_fast._files import replacing
from fai_fast.registry import ModelSpec
from fai_fast.registry.shapes import count_parameters, state_shapes

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "bench" / "results" / "models-table.json"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "models.md")
BEGIN = "<!-- models: written by tools/models_table.py -->"
END = "<!-- end of models -->"
SIZE = 640
RUNS = 5
HEADLINES = {"segm/AP": "AP", "sem_seg/mIoU": "mIoU"}
HEADER = (
    "model",
    "finds",
    "classes",
    "accuracy",
    "parameters",
    "GFLOP",
    "download",
    "one CPU core",
    "T4, published",
)


def row(spec: ModelSpec, measured: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    metric = next(f"{HEADLINES[key]} {spec.metrics[key]:.1f}" for key in HEADLINES if key in spec.metrics)
    tensors = 4 * sum(math.prod(shape) for shape in state_shapes(spec).values())
    t4 = [item.mean_ms for item in spec.published_latency if "T4" in item.device and "ensorrt" in item.engine]
    return (
        f"`{spec.name}`",
        {"instance": "objects", "semantic": "areas"}[spec.task],
        str(len(spec.classes)),
        metric,
        f"{count_parameters(spec) / 1e6:.1f} M",
        f"{measured['operations'] / 1e9:.1f}",
        "comes with the package" if spec.bundled_weights else f"{tensors / 1e6:.0f} MB",
        "" if measured["milliseconds"] is None else f"{measured['milliseconds']:.0f} ms",
        f"{min(t4):.1f} ms" if t4 else "",
    )


def table(measured: dict[str, Any]) -> str:
    """The table, smallest network first within each task."""
    specs = [fai_fast.spec(name) for name in fai_fast.models()]
    bundled = [spec for spec in specs if spec.bundled_weights]
    rest = sorted(
        (spec for spec in specs if not spec.bundled_weights),
        key=lambda spec: (spec.task, measured["models"][spec.name]["operations"], spec.name),
    )
    rows = [row(spec, measured["models"][spec.name]) for spec in (*bundled, *rest)]
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_table(text: str, new: str) -> str:
    """A document with its table replaced. Raises ValueError where it has no place for one."""
    found = re.findall(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", text, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"got {len(found)} places for the table, expected one from {BEGIN} to {END}")
    return text.replace(found[0], f"{BEGIN}\n\n{new}\n\n{END}")


def measure(target: Path, folder: Path) -> None:
    """Writes what this machine takes for each model; graphs that lie in the folder are not made again."""
    from fai_fast import exporter
    from fai_fast.engines import cpu
    from fai_fast.weights import load_weights

    from bench.floor import operations

    graphs = {name: folder / f"{name}.onnx" for name in fai_fast.models()}
    for name, graph in graphs.items():
        if not graph.exists():
            found = load_weights(name, None if fai_fast.spec(name).bundled_weights else "random")
            # That it computes the same is for other programs to show.
            with replacing(graph) as place:
                exporter.write(found, place, size=(SIZE, SIZE), precision="fp32", verify=False)
    models: dict[str, Any] = {}
    frame = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    for name, graph in graphs.items():
        options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "num_threads": 1}
        with fai_fast.load(graph, cache_dir=folder, **options) as model:
            model.infer(frame)
            times = []
            for _ in range(RUNS):
                # CPU time: what else the machine does is not the model's.
                begin = time.process_time()
                model.infer(frame)
                times.append(1e3 * (time.process_time() - begin))
        models[name] = {"operations": operations(graph), "milliseconds": round(statistics.median(times), 1)}
        print(name, models[name], file=sys.stderr, flush=True)
    document = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": "python tools/models_table.py --measure FILE",
        "machine": {"cpu": cpu.name(), "cores": cpu.usable_cores(), "system": platform.platform()},
        "input": f"{SIZE}x{SIZE}, float32, frames of 1080x1920, CPU time of one thread, median of {RUNS}",
        "models": models,
    }
    target.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def refresh(*, check: bool) -> int:
    """Writes the table where a document holds another one; with `check` only says so, and returns 1."""
    new = table(json.loads(MEASURED.read_text("utf-8")))
    code = 0
    for path in DOCUMENTS:
        before = path.read_text("utf-8")
        after = with_table(before, new)
        if after == before:
            continue
        if check:
            print(
                f"{path.relative_to(ROOT)}: another table of models; run python tools/docs.py",
                file=sys.stderr,
            )
            code = 1
        else:
            path.write_text(after, "utf-8")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", metavar="FILE", type=Path, help="write figures of this machine")
    parser.add_argument(
        "--graphs", metavar="DIR", type=Path, help="where graphs are kept between measurements"
    )
    args = parser.parse_args()
    if args.measure is None:
        return refresh(check=False)
    with tempfile.TemporaryDirectory() as folder:
        measure(args.measure, args.graphs or Path(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
