"""Accuracy over speed, as the benchmark figure of FocoosAI's model cards has it.

python -m bench.plot RESULTS.json FIGURE.svg      # results of pytest bench/ --bench-json, measured on a GPU
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fai_fast

SUFFIXES = (".png", ".svg")
# Read off the figures of FocoosAI's model cards: frames per second on an NVIDIA T4 with TensorRT at 640 x 640, and
# mIoU on ADE20K. What their own models do stands in the registry.
OTHERS = {
    "ade": (
        ("SegFormer-B5", 27, 49.6),
        ("Mask2Former R50", 21.5, 47.2),
        ("DeepLabV3+ R50", 30, 45.7),
        ("MaskFormer R50", 68, 44.3),
        ("BiSeNetV2-B", 145, 39.2),
        ("SegFormer-B0", 119, 37.4),
        ("MobileNetV2+DeepLab", 106, 34.0),
    ),
    "coco": (),
}
PANELS = {
    "ade": ("ADE20K, semantic", "sem_seg/mIoU", "mIoU, %"),
    "coco": ("COCO, instances", "segm/AP", "mask AP, %"),
}


@dataclass(frozen=True)
class Point:
    """A network: frames per second, and accuracy in percent."""

    name: str
    fps: float
    accuracy: float


def series(results: Mapping[str, Any], panel: str) -> dict[str, list[Point]]:
    """What is drawn in a panel ("ade", "coco"), by label: ours measured, FocoosAI's and others' published.

    Raises:
        ValueError: the times are the emulator's.
    """
    if results["emulated"]:
        raise ValueError(f"results: got those of {results['device']['name']}, expected times of a GPU")
    found: dict[str, list[Point]] = {}
    card = results["device"]["name"]
    for run in results["models"]:
        accuracy = _accuracy(run["name"], panel)
        if accuracy is None:
            continue
        how = f"fai_fast, {run['engine']} {run['precision']}, {card}"
        latency = run["latency"]["fai_fast, host"]["p50"]
        found.setdefault(f"{how}, frame to masks", []).append(Point(run["name"], 1e3 / latency, accuracy))
        found.setdefault(f"{how}, engine alone", []).append(
            Point(run["name"], 1e3 / run["engine_ms"], accuracy)
        )
    for name in fai_fast.models():
        for item in fai_fast.spec(name).published_latency:
            if "Tensorrt" in item.engine and (accuracy := _accuracy(name, panel)) is not None:
                found.setdefault("FocoosAI, TensorRT, T4, engine alone (published)", []).append(
                    Point(name, item.fps, accuracy)
                )
    if OTHERS[panel]:
        found["others, TensorRT, T4, engine alone (published)"] = [Point(*point) for point in OTHERS[panel]]
    return found


def _accuracy(name: str, panel: str) -> float | None:
    spec = fai_fast.spec(name)
    if not (spec.dataset or "").startswith(panel):
        return None
    return spec.metrics.get(PANELS[panel][1])


def check_suffix(path: Path) -> None:
    """Raises ValueError unless :func:`draw` can write such a file."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--plot: got {path.name}, expected a name that ends in {' or '.join(SUFFIXES)}")


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Writes the figure.

    Args:
        results: of a GPU, as `gpu` in the JSON of `pytest bench/ --bench-json`.
        path: ends in .png or .svg.

    Raises:
        ValueError: another ending, or the times are the emulator's.
    """
    from matplotlib.figure import Figure

    check_suffix(path)
    panels = {panel: series(results, panel) for panel in PANELS}
    figure = Figure(figsize=(13, 6), layout="constrained")
    for axes, (panel, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        title, _, label = PANELS[panel]
        for number, (name, points) in enumerate(lines.items()):
            ours = name.startswith("fai_fast")
            axes.plot(
                [point.fps for point in points],
                [point.accuracy for point in points],
                "o" if ours else "s",
                color=f"C{number}",
                fillstyle="none" if "engine alone" in name and ours else "full",
                label=name,
            )
            # Ours stand in one row, alone and with everything: one name is enough.
            for point in points if not (ours and "engine alone" in name) else ():
                axes.annotate(
                    point.name,
                    (point.fps, point.accuracy),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color=f"C{number}",
                )
        axes.set(title=title, xlabel="frames a second, one at a time", ylabel=label, xscale="log")
        axes.margins(x=0.2)
        low, high = axes.get_xlim()
        ticks = [base * 10**power for power in range(-1, 5) for base in (1, 2, 5)]
        axes.set_xticks([tick for tick in ticks if low <= tick <= high], minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.suptitle(
        "Speed at 640 x 640 and published accuracy (COCO's was measured at the size of training, 1024)"
    )
    figure.savefig(path)


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2:
        sys.exit(__doc__)
    results, figure = map(Path, arguments)
    measured = json.loads(results.read_text()).get("gpu")
    if not measured or not measured["models"]:
        sys.exit(f"{results}: no model was measured on a GPU")
    draw(measured, figure)


if __name__ == "__main__":
    main(sys.argv[1:])
