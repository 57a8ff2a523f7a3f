from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fai_fast import exporter, registry
from fai_fast.engines import onnxruntime, openvino

from bench import peers
from bench.floor import Floor, matrix_product, operations

full = pytest.mark.full
CASES = [
    pytest.param("bisenetformer-m-ade", (384, 640), 1, 2, id="bisenetformer-m-ade-384x640"),
    pytest.param("bisenetformer-m-ade", (640, 640), 1, 2, id="bisenetformer-m-ade", marks=full),
    pytest.param("bisenetformer-m-ade", (640, 640), 4, 2, id="bisenetformer-m-ade-batch4", marks=full),
    pytest.param("fai-mf-m-ade", (640, 640), 1, 2, id="fai-mf-m-ade", marks=full),
    pytest.param("fai-mf-m-coco-ins", (640, 640), 1, 2, id="fai-mf-m-coco-ins", marks=full),
    pytest.param("bisenetformer-m-ade", (640, 640), 1, 1, id="bisenetformer-m-ade-one-thread", marks=full),
]


@pytest.mark.parametrize(("name", "size", "batch", "threads"), CASES, indirect=["threads"])
def test_engines(name: str, size: tuple[int, int], batch: int, threads: int, compare, tmp_path: Path) -> None:
    """Random weights: no engine's speed depends on them."""
    plain_graph = peers.load("plain_graph")
    if plain_graph is None:
        pytest.skip(peers.absent["plain_graph"])
    import torch
    from fai_fast import reference

    torch.manual_seed(0)
    network = reference.build(name)
    exporter.export(network, tmp_path / "deployed.onnx", im_size=size, batch=batch, verify=False)
    plain_graph.export(network, tmp_path / "plain.onnx", size, batch)

    ours = openvino.load(tmp_path / "deployed.onnx", num_threads=threads).context()
    other = onnxruntime.load(tmp_path / "deployed.onnx", num_threads=threads).context()
    plain = plain_graph.load(tmp_path / "plain.onnx", threads)

    pictures = np.random.default_rng(0).uniform(0, 255, (batch, 3, *size)).astype(np.float32)
    config = registry.spec(name).config
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (config.pixel_mean, config.pixel_std))
    masks, classes = plain(pictures)
    for context in (ours, other):
        context.images[...] = (pictures - mean) / std
        context.run()
        found = plain_graph.resized(torch.from_numpy(context.mask_logits).sigmoid(), size).numpy()
        np.testing.assert_allclose(found, masks, atol=1e-4, rtol=0)
        found = torch.from_numpy(context.class_logits).softmax(-1)[..., :-1].numpy()
        np.testing.assert_allclose(found, classes, atol=1e-5, rtol=0)
    del masks, found

    needed = operations(tmp_path / "deployed.onnx")
    compare(
        "engine" if threads > 1 else "engine, one thread",
        f"{name} {size[0]}x{size[1]}" + (f" batch {batch}" if batch > 1 else ""),
        threads,
        Floor(
            (tmp_path / "deployed.onnx").stat().st_size + ours.images.nbytes,
            ours.mask_logits.nbytes + ours.class_logits.nbytes,
            "weights and images once, logits once; the products of the deployed graph",
            needed,
        ),
        ours.run,
        {
            "deployed graph, ONNX Runtime": other.run,
            "plain graph, ONNX Runtime": lambda: plain(pictures),
            "one matrix product of as many operations, torch": matrix_product(needed, threads),
        },
    )
