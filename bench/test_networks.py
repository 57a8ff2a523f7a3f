"""From a frame in memory to instances: networks of transformers here, against transformers' own processor and model.

Mask2Former on Swin-T and EoMT on ViT-S in their published shapes, with random weights, as the published ones cannot be
had where this is developed: a network's time does not depend on them. EoMT's masks inside of attention are off, as in
its published weights, where training has annealed them away. The threshold is set so that about 20 queries are kept.
transformers' side is what its documentation does: the image processor, the model, ``post_process_*`` to the frame's
size.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np
import pytest

from bench import report, scenes
from bench.floor import Floor, operations

transformers = pytest.importorskip(
    "transformers", reason="transformers is the peer: pip install transformers"
)
torch = pytest.importorskip("torch")

SIZE = (640, 640)
KEPT = 20
PICTURES = 8
COARSE = 8
full = pytest.mark.full
CASES = [
    # Of no use but to see that all of it runs.
    pytest.param("eomt-tiny", (640, 640), 2, id="eomt-tiny"),
    pytest.param("mask2former-swin-t", (640, 640), 2, id="mask2former-swin-t", marks=full),
    pytest.param("mask2former-swin-t", (1080, 1920), 2, id="mask2former-swin-t-1080p", marks=full),
    pytest.param("eomt-s", (640, 640), 2, id="eomt-s", marks=full),
    pytest.param("eomt-s", (1080, 1920), 2, id="eomt-s-1080p", marks=full),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def network(name: str) -> tuple[Any, Any]:
    """The model and its image processor."""
    labels = dict(enumerate(fai_fast.spec("fai-mf-m-coco-ins").classes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name.startswith("eomt"):
            shape = (384, 12, 6, 200) if name == "eomt-s" else (48, 2, 2, 20)
            names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_queries")
            config = transformers.EomtConfig(
                **dict(zip(names, shape, strict=True)), num_blocks=min(3, shape[1] - 1), id2label=labels
            )
            model = transformers.EomtForUniversalSegmentation(config)
            model.attn_mask_probs.zero_()
            processor = transformers.EomtImageProcessorPil(do_pad=True)
        else:
            backbone = transformers.SwinConfig(
                embed_dim=96,
                depths=[2, 2, 6, 2],
                num_heads=[3, 6, 12, 24],
                window_size=7,
                out_features=["stage1", "stage2", "stage3", "stage4"],
            )
            config = transformers.Mask2FormerConfig(backbone_config=backbone, id2label=labels)
            model = transformers.Mask2FormerForUniversalSegmentation(config)
            processor = transformers.Mask2FormerImageProcessorPil(size={"height": SIZE[0], "width": SIZE[1]})
        # Flat classes keep nothing, or all.
        model.class_predictor.weight.data *= 8
    return model.eval(), processor


def frame_of(size: tuple[int, int]) -> Any:
    """A frame; one that is made smaller has nothing in it that antialiasing, which is not done here, would take out."""
    if size == SIZE:
        return scenes.frame(*size)
    return scenes.frame(size[0] // COARSE, size[1] // COARSE).repeat(COARSE, 0).repeat(COARSE, 1)


def plain(model: Any, processor: Any, frame: Any, threshold: float) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            inputs = processor(images=frame, return_tensors="pt")
            outputs = model(pixel_values=inputs["pixel_values"])
            if hasattr(outputs, "patch_offsets"):
                outputs.patch_offsets = None
            [found] = processor.post_process_instance_segmentation(
                outputs, threshold=threshold, target_sizes=[frame.shape[:2]]
            )
        return found

    return run


@pytest.mark.parametrize(("name", "frame_size", "threads"), CASES, indirect=["threads"])
def test_from_a_frame_to_instances(name, frame_size, threads, compare, cache) -> None:
    frame = frame_of(frame_size)
    model, processor = network(name)
    options: dict[str, Any] = {
        "processor": processor,
        "task": "instance",
        "engine": "openvino",
        "im_size": SIZE,
        "num_threads": threads,
        "cache_dir": cache,
    }
    # int8's ranges: the time does not depend on them.
    pictures = [np.roll(scenes.frame(*SIZE), 40 * index, index % 2) for index in range(PICTURES)]
    with ExitStack() as stack:
        exact = stack.enter_context(fai_fast.load(model, precision="fp32", **options))
        # Of random weights nobody can say what they should find.
        low = stack.enter_context(
            fai_fast.load(model, precision="int8", pictures=pictures, verify_precision=False, **options)
        )
        scores = exact.infer(frame, threshold=0.0).confidence
        threshold = float(scores[min(KEPT, len(scores) - 1)])
        peer = plain(model, processor, frame, threshold)
        rows, expected = exact.infer(frame, threshold=threshold), peer()
        assert abs(len(rows) - len(expected["segments_info"])) <= max(4, KEPT // 2)
        graph = Path(re.sub(r" \(.*\)$", "", exact.info()["artefacts"]["graph"]))

        def infer(one: fai_fast.Model) -> Callable[[], fai_fast.Detections]:
            return lambda: one.infer(frame, threshold=threshold)

        report.settle()
        latencies = np.median([infer(low)().latency for _ in range(3)], axis=0)
        stages = dict(zip(("decode", "preprocess", "engine", "postprocess"), latencies.tolist(), strict=True))
        # An instruction of VNNI takes four products of int8 where one of AVX-512 takes one of float32.
        floor = Floor(
            frame.nbytes,
            rows.packed.bits.nbytes,
            "the frame and the result; the deployed graph's products in int8",
            operations(graph) // 4,
        )
        compare(
            "networks of transformers, end to end",
            f"{name} 640x640, frame {frame_size[0]}x{frame_size[1]}, {threads} thread(s), int8",
            threads,
            floor,
            infer(low),
            {"fai_fast fp32": infer(exact), "transformers": peer},
            stages=stages,
        )
