"""Every instruction set gives the same bits, and an unknown one is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import _core
from helpers import frames, golden, scenes

ISAS = fai_fast.build_info()["isas_available"]


def digest(*arrays):
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(str((array.dtype, array.shape)).encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def digest_of(detections):
    arrays = [
        getattr(detections, name) for name in ("query", "class_id", "confidence", "xyxy", "area", "mask")
    ]
    if detections.label_map is not None:
        arrays.append(detections.label_map)
    return digest(*arrays)


def digests():
    """Name of each case and a digest of its result's bytes."""
    results = {}
    for path in golden.CASES:
        case = golden.load(path)
        for dtype in (np.float16, np.float32):
            results[f"golden {path.stem} {dtype.__name__}"] = digest_of(
                fai_fast.postprocess(
                    case["mask_logits"].astype(dtype),
                    case["class_logits"].astype(dtype),
                    case["size"],
                    **golden.settings_of(case),
                )
            )
    for kind in (scenes.blobs, scenes.noise):
        for grid, size in (
            ((40, 40), (160, 160)),
            ((33, 47), (97, 131)),
            ((9, 5), (7, 301)),
            ((50, 31), (20, 17)),
        ):
            for dtype in (np.float16, np.float32):
                mask_logits, class_logits = kind(13, queries=40, grid=grid, dtype=dtype)
                mask_logits[1, 0, 0], mask_logits[2] = np.nan, -np.inf
                for semantic in (False, True):
                    for activation in ("softmax", "sigmoid"):
                        name = f"{kind.__name__} {grid} {size} {dtype.__name__} {semantic} {activation}"
                        results[name] = digest_of(
                            fai_fast.postprocess(
                                mask_logits,
                                class_logits,
                                size,
                                threshold=0.1,
                                use_mask_score=True,
                                predict_all_pixels=semantic,
                                class_activation=activation,
                            )
                        )
                for weighted in (False, True):
                    for queries in (40, 300):
                        mask_logits, class_logits = kind(14, queries=queries, grid=grid, dtype=dtype)
                        rules = fai_fast.Panoptic(stuff=range(40), overlap_threshold=0.2, weighted=weighted)
                        name = f"panoptic {kind.__name__} {grid} {size} {dtype.__name__} {weighted} {queries}"
                        results[name] = digest_of(
                            fai_fast.postprocess(
                                mask_logits,
                                class_logits,
                                size,
                                threshold=0.1,
                                mask_threshold=0.3,
                                panoptic=rules,
                            )
                        )
    for kind in (scenes.blobs, scenes.noise):
        for grid, size in (((40, 33), (160, 97)), ((9, 5), (7, 301)), ((50, 31), (20, 17))):
            for dtype in (np.float16, np.float32):
                mask_logits, class_logits = kind(16, queries=40, grid=grid, dtype=dtype)
                mask_logits[1, 0, 0], mask_logits[2] = np.nan, -np.inf
                for activation in ("softmax", "sigmoid"):
                    results[f"sum {kind.__name__} {grid} {size} {dtype.__name__} {activation}"] = digest_of(
                        fai_fast.postprocess(
                            mask_logits,
                            class_logits,
                            size,
                            threshold=0.0,
                            predict_all_pixels=True,
                            combine="sum",
                            class_activation=activation,
                        )
                    )
    for color in frames.PACKED + frames.PLANAR:
        image = frames.frame(14, color, 134, 250)
        for size in ((77, 91), (134, 250), (160, 333), (3, 5)):
            for dtype in ("float16", "float32"):
                for resize in ("stretch", "letterbox"):
                    tensor = fai_fast.preprocess(
                        image,
                        size,
                        mean=frames.MEAN,
                        std=frames.STD,
                        color=color,
                        dtype=dtype,
                        resize=resize,
                    )
                    tensor = tensor[0] if resize == "letterbox" else tensor
                    results[f"preprocess {color} {size} {dtype} {resize}"] = digest(tensor)
    rng = np.random.default_rng(15)
    for size in ((5, 3), (40, 64), (33, 129), (70, 250)):
        masks = scenes_masks(rng, size)
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        colors = rng.integers(0, 256, (len(masks), 3), np.uint8)
        for alpha in (0, 77, 255):
            picture = image.copy()
            rows = np.arange(len(masks))
            _core.Masks.encode(masks).paint(picture, colors, rows, alpha=alpha, line=2)
            results[f"paint {size} {alpha}"] = digest(picture)
    return results


def scenes_masks(rng, size):
    """Noise, blocks and everything, bool (3, H, W)."""
    blocks = np.kron(rng.random((size[0] // 8 + 1, size[1] // 8 + 1)) < 0.5, np.ones((8, 8), bool))
    return np.stack([rng.random(size) < 0.5, blocks[: size[0], : size[1]] > 0, np.ones(size, bool)])


def python(code, isa):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, "FAI_FAST_FORCE_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def here():
    return digests()


@pytest.mark.parametrize("isa", ISAS)
def test_every_isa_gives_the_same_bits(isa, here):
    code = """
import json, fai_fast, test_isa
print(json.dumps([fai_fast.build_info()["isa"], test_isa.digests()]))
"""
    done = python(code, isa)
    assert done.returncode == 0, done.stderr
    used, results = json.loads(done.stdout)
    assert used == isa
    assert results.keys() == here.keys()
    different = [name for name in here if results[name] != here[name]]
    assert not different


def test_build_info():
    info = fai_fast.build_info()
    assert info["isa"] in ISAS
    assert set(ISAS) <= set(info["isas_compiled"])
    forced = os.environ.get("FAI_FAST_FORCE_ISA")
    assert info["isa"] == (forced or ISAS[-1])


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "avx2 ", "baseline,avx2"])
@pytest.mark.parametrize(
    "call",
    [
        "fai_fast.preprocess(np.zeros((4, 4, 3), np.uint8), (2, 2), mean=0, std=1)",
        "fai_fast.postprocess(np.zeros((1, 4, 4), np.float32), np.zeros((1, 3), np.float32), (2, 2))",
    ],
    ids=["preprocess", "postprocess"],
)
def test_unknown_isa_is_refused(isa, call):
    code = f"""
import numpy as np, fai_fast
for attempt in range(2):
    try:
        {call}
    except RuntimeError as error:
        print(error)
"""
    done = python(code, isa)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2, "the second call must be refused like the first"
    for line in lines:
        assert "FAI_FAST_FORCE_ISA" in line
        assert isa in line
        for name in ISAS:
            assert name in line


def test_unavailable_isa_is_refused():
    other = "avx2" if "neon" in ISAS else "neon"
    image = "np.zeros((4, 4, 3), np.uint8)"
    done = python(f"import numpy as np, fai_fast; fai_fast.preprocess({image}, (2, 2), mean=0, std=1)", other)
    assert done.returncode == 1
    assert f"RuntimeError: FAI_FAST_FORCE_ISA: got '{other}'" in done.stderr


def test_empty_is_not_forced():
    done = python("import fai_fast; print(fai_fast.build_info()['isa'])", "")
    assert done.stdout.strip() == ISAS[-1], done.stderr
