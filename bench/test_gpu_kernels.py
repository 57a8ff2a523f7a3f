"""On a GPU: the kernels alone. Skipped where no GPU can be used."""

from __future__ import annotations

import fai_fast
import numpy as np
import pytest

from bench import gpu, scenes, streams
from bench.floor import touched

pytestmark = pytest.mark.usefixtures("card")
KEPT = 20


@pytest.mark.parametrize("color", ["rgb", "nv12"])
def test_preprocess(color, effort, frame_size, gpu_report) -> None:
    size = (640, 640)
    height, width = frame_size
    frame = scenes.frame(height, width) if color == "rgb" else scenes.nv12(height, width)
    # More frames than any cache holds.
    frames = gpu.on_device([np.roll(frame, shift, 1) for shift in range(gpu.runs_of(effort, 48))])
    rows = touched(height, size[0])
    read = rows * width * 3 if color == "rgb" else rows * width + touched(height // 2, size[0] // 2) * width
    written = 3 * size[0] * size[1] * 2
    batch = gpu.runs_of(effort, 16)
    for count in (1, batch):
        graph = gpu.captured(gpu.frame_graph(batch=count, size=size))
        found = gpu.stages(graph, frames, color, 0.5, gpu.runs_of(effort, 200), count)
        per_frame = {"raw": _median(found["preprocess"]) / count, "events": _median(found["empty"]) / count}
        gpu_report.kernels.append(
            gpu.Kernel(
                "preprocess",
                f"{height}x{width} {color} on the card to 640x640 fp16"
                + (f", of {count} at once" if count > 1 else ""),
                per_frame,
                memory=read + written,
                link=0,
                why="the frame's rows that have a weight, and the tensor, once",
                target=2.0,
                launches=1 / count,
            )
        )
        graph.close()


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_postprocess(task, effort, frame_size, gpu_report) -> None:
    semantic = task == "semantic"
    scene = (scenes.regions() if semantic else scenes.instances()).as_float16()
    height, width = frame_size
    frame = scenes.frame(height, width)
    options = {"predict_all_pixels": semantic, "use_mask_score": True}
    every = fai_fast.postprocess(scene.mask_logits, scene.class_logits, frame_size, threshold=0.0, **options)
    threshold = streams.threshold_of(every, KEPT)
    expected = fai_fast.postprocess(
        scene.mask_logits, scene.class_logits, frame_size, threshold=threshold, **options
    )
    graph = gpu.captured(gpu.frame_graph(logits=scene, semantic=semantic))
    frames = gpu.on_device([frame])
    graph.submit([(frames[0], "rgb", "stretch", "bt601", "limited")], threshold, 0.5, True)
    graph.wait(-1.0)
    [rows] = graph.results(100)
    assert sorted(rows["query"].tolist()) == sorted(expected.query.tolist())
    found = gpu.stages(graph, frames, "rgb", threshold, gpu.runs_of(effort, 200))
    probability = _class_scores(scene.class_logits)
    passing = int((probability > threshold).sum())
    one = scene.mask_logits[0].nbytes
    if semantic:
        memory, link = scene.mask_logits.nbytes + scene.class_logits.nbytes, height * width
        why = "all logits once; over the link one byte a pixel"
    else:
        memory, link = passing * one + scene.class_logits.nbytes, int(rows["bits"].nbytes)
        why = "the class logits, the masks whose class score passes, once; over the link a bit for each pixel of a box"
    gpu_report.kernels.append(
        gpu.Kernel(
            "postprocess",
            f"{len(expected)} {'regions' if semantic else 'instances'} of 100 at {height}x{width}",
            {
                "raw": _median(found["postprocess"]),
                "events": _median(found["empty"]),
                "host": _median(found["host"]),
            },
            memory=memory,
            link=link,
            why=why,
        )
    )
    graph.close()


def _class_scores(class_logits) -> np.ndarray:
    odds = np.exp(class_logits.astype(np.float64) - class_logits.max(-1, keepdims=True).astype(np.float64))
    return (odds / odds.sum(-1, keepdims=True))[:, :-1].max(-1)


def _median(values) -> float:
    return float(np.median(values))


def test_kernels_by_the_profiler(effort, frame_size, gpu_report) -> None:
    """The last, since a profiler that has been in a process may slow down what comes after it."""
    frames = gpu.on_device([scenes.frame(*frame_size)])
    for name, scene in (("instances", scenes.instances()), ("regions", scenes.regions())):
        graph = gpu.captured(gpu.frame_graph(logits=scene.as_float16(), semantic=name == "regions"))
        gpu_report.profiled[f"{frame_size[0]}x{frame_size[1]}, {name}"] = gpu.kernel_times(
            lambda graph=graph: gpu.stages(graph, frames, "rgb", 0.5, 1, warmup=0, masks_device=True),
            gpu.runs_of(effort, 20),
        )
        graph.close()
