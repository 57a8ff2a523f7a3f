"""Mask AP of fai-mf-n-shapes with int8 convolutions as TensorRT takes them, beside fp32: docs/low_precision.md.

    python tools/qdq_shapes.py                  # on the 500 scenes of the published figures
    python tools/qdq_shapes.py --scenes 150

The graph is the one that ``fai-fast export --precision int8`` gives TensorRT, run as it is written in ONNX Runtime.
Ranges are taken from other scenes. Needs ``pip install 'fai-fast[eval,onnxruntime]'`` and opencv-python-headless.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fai_fast
import quantize_shapes
import shapes_dataset
from fai_fast._artefacts import Prepared
from fai_fast._pictures import Pictures
from fai_fast.engines.base import Array, BaseEngine, OpenContext, TensorSpec
from fai_fast.evaluate import CocoData
from fai_fast.exporter import qdq
from fai_fast.exporter.graph import build_graph
from fai_fast.model import Model
from fai_fast.weights import load_weights

NAME = quantize_shapes.NAME
CALIBRATION_SCENES = qdq.SUBSET


class Context(OpenContext):
    def __init__(self, engine: GraphEngine, arrays: Mapping[str, Array]) -> None:
        super().__init__(engine, arrays)
        self._graph = engine.run

    def _run(self) -> None:
        self.mask_logits[...], self.class_logits[...] = self._graph(self.images)

    def _release(self) -> None:
        pass


class GraphEngine(BaseEngine):
    """A graph that is run as it is written, without what ONNX Runtime's own engine makes of Q/DQ."""

    name = "onnxruntime"

    def __init__(self, model: Any) -> None:
        from onnx import helper

        ports = {}
        for item in (*model.graph.input, *model.graph.output):
            kind = item.type.tensor_type
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            ports[item.name] = TensorSpec(item.name, dtype, tuple(side.dim_value for side in kind.shape.dim))
        super().__init__(ports, {"device": "cpu", "precision": "as written"})
        self.run = qdq.runner(model)

    def _bind(self, arrays: Mapping[str, Array]) -> OpenContext:
        return Context(self, arrays)

    def _release(self) -> None:
        pass


def precision_of(scenes: int) -> Iterator[tuple[str, float]]:
    """In words what was measured, and its AP in percent: fp32, then int8."""
    weights = load_weights(NAME)
    size = weights.spec.input_size
    with tempfile.TemporaryDirectory() as folder:
        labels = shapes_dataset.write(Path(folder) / "val", scenes)
        data = CocoData.read(labels.parent / "images", labels)
        yield "fp32", _average_precision(build_graph(weights.spec, weights.state, size), weights.spec, data)
        others = shapes_dataset.write(
            Path(folder) / "ranges", CALIBRATION_SCENES, quantize_shapes.SIZES, quantize_shapes.FIRST_SEED
        )
        pictures = Pictures.given(others.parent / "images", CALIBRATION_SCENES)
        model, _ = qdq.make(weights, size, 1, pictures, verify=False)
        yield "int8 convolutions, the rest in fp16", _average_precision(model, weights.spec, data)


def _average_precision(graph: Any, spec: fai_fast.ModelSpec, data: CocoData) -> float:
    engine = GraphEngine(graph)
    prepared = Prepared(
        spec=spec,
        engine=engine,
        size=spec.input_size,
        batch_size=1,
        num_threads=None,
        provenance={"precision": "as written"},
        weights=None,
    )
    with Model(prepared) as model:
        report = data.measure(model, buckets=1, compare_sizes=0)
    assert report.headline is not None
    return report.headline


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=shapes_dataset.SCENES)
    scenes = parser.parse_args().scenes
    for what, figure in precision_of(scenes):
        print(f"AP {figure:.2f} on {scenes} scenes: {what}", flush=True)


if __name__ == "__main__":
    main()
