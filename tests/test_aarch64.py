"""The kernels on 64-bit ARM give the bits that they give here: cross-compiled, and run by qemu-user.

Python and NumPy stay here: tests/cross/kernels.cpp gets the cases as raw bytes, and returns the results so.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fai_fast import _core
from helpers import golden, scenes

ROOT = Path(__file__).resolve().parents[1]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
SOURCES = (
    "csrc/core/cpus.cpp",
    "csrc/core/parallel.cpp",
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/isa_baseline.cpp",
    "csrc/ops/class_pairs.cpp",
    "csrc/ops/exclusive.cpp",
    "csrc/ops/frame_view.cpp",
    "csrc/ops/instances.cpp",
    "csrc/ops/masks.cpp",
    "csrc/ops/pixel_axis.cpp",
    "csrc/ops/panoptic.cpp",
    "csrc/ops/postprocess.cpp",
    "csrc/ops/preprocess.cpp",
    "csrc/ops/queries.cpp",
    "csrc/ops/resample.cpp",
    "csrc/ops/semantic.cpp",
    "csrc/ops/semantic_sum.cpp",
    "tests/cross/kernels.cpp",
)
# What CMakeLists.txt asks for. Linked statically, it needs no libraries of the other processor at run time.
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}"]
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "FAI_FAST_FORCE_ISA")
}

COLORS = ("rgb", "bgr", "rgba", "bgra", "gray", "nv12", "i420", "yuyv", "uyvy")
CHANNELS = {"rgb": (3,), "bgr": (3,), "rgba": (4,), "bgra": (4,), "gray": (), "yuyv": (2,), "uyvy": (2,)}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
ROWS = ("confidence", "class_id", "query", "area", "boxes")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMPILER is None, reason="needs aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)"
    ),
    pytest.mark.skipif(EMULATOR is None, reason="needs qemu-aarch64 (Debian: qemu-user)"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aarch64")

    def compile_one(source):
        target = folder / (source.replace("/", "_") + ".o")
        subprocess.run([COMPILER, *FLAGS, "-c", ROOT / source, "-o", target], env=ENVIRONMENT, check=True)
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    target = folder / "kernels"
    subprocess.run([COMPILER, "-static", *objects, "-o", target, "-pthread"], env=ENVIRONMENT, check=True)
    return target


@pytest.fixture
def run(program, tmp_path):
    """Sends cases to the other processor; returns all byte strings that it answers, in their order."""

    def send(cases):
        (tmp_path / "cases").write_bytes(struct.pack("<q", len(cases)) + b"".join(cases))
        command = [EMULATOR, program, tmp_path / "cases", tmp_path / "results"]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answer, at, found = (tmp_path / "results").read_bytes(), 0, []
        while at < len(answer):
            (length,) = struct.unpack_from("<q", answer, at)
            found.append(answer[at + 8 : at + 8 + length])
            at += 8 + length
        return found

    return send


def preprocess_case(image, size, color, resize, dtype):
    return b"".join(
        (
            struct.pack("<4q", 0, COLORS.index(color), resize == "letterbox", dtype == "float16"),
            struct.pack("<2q6f", *size, *MEAN, *STD),
            struct.pack(f"<{1 + image.ndim}q", image.ndim, *image.shape),
            image.tobytes(),
        )
    )


def preprocess_here(image, size, color, resize, dtype):
    tensor, _, content, offset = _core.preprocess(
        image, size, MEAN, STD, color, resize, dtype, None, "bt601", "limited"
    )
    return [tensor.tobytes(), struct.pack("<4q", *content, *offset)]


def postprocess_case(mask_logits, class_logits, size, options):
    return b"".join(
        (
            struct.pack("<4q", 1, mask_logits.dtype == np.float16, *size),
            struct.pack("<2q", options["use_mask_score"], options["predict_all_pixels"]),
            struct.pack("<q2d", options["softmax"], options["threshold"], options["mask_threshold"]),
            struct.pack("<5q", *mask_logits.shape, *class_logits.shape),
            mask_logits.tobytes(),
            class_logits.tobytes(),
        )
    )


def postprocess_here(mask_logits, class_logits, size, options):
    (found,) = _core.postprocess(
        mask_logits,
        class_logits,
        False,
        [size],
        options["threshold"],
        options["mask_threshold"],
        options["use_mask_score"],
        options["predict_all_pixels"],
        options["softmax"],
        -1,
        [None],
        1,
    )
    names = [*ROWS, "segments"] if options["predict_all_pixels"] else [*ROWS, "bits", "offsets"]
    return [found[name].tobytes() for name in names]


def assert_same(names, expected, found):
    assert len(expected) == len(found)
    different = [name for name, here, there in zip(names, expected, found, strict=True) if here != there]
    assert different == []


def test_golden_cases(run):
    names, cases, expected = [], [], []
    for path in golden.CASES:
        case = golden.load(path)
        options = {**golden.settings_of(case), "softmax": True}
        for dtype in (np.float16, np.float32):
            arguments = (
                case["mask_logits"].astype(dtype),
                case["class_logits"].astype(dtype),
                tuple(case["size"].tolist()),
                options,
            )
            cases.append(postprocess_case(*arguments))
            results = postprocess_here(*arguments)
            expected += results
            names += [f"{path.stem} {dtype.__name__} {i}" for i in range(len(results))]
    assert len(cases) == 22
    assert_same(names, expected, run(cases))


def test_noise(run):
    """Every pixel near a decision, with values that are none."""
    names, cases, expected = [], [], []
    for grid, size in (((33, 47), (97, 131)), ((9, 5), (7, 301)), ((50, 31), (20, 17))):
        for dtype in (np.float16, np.float32):
            mask_logits, class_logits = scenes.noise(13, queries=40, grid=grid, dtype=dtype)
            mask_logits[1, 0, 0], mask_logits[2] = np.nan, -np.inf
            for semantic in (False, True):
                for softmax in (False, True):
                    options = {
                        "threshold": 0.1,
                        "mask_threshold": 0.5,
                        "use_mask_score": True,
                        "predict_all_pixels": semantic,
                        "softmax": softmax,
                    }
                    cases.append(postprocess_case(mask_logits, class_logits, size, options))
                    results = postprocess_here(mask_logits, class_logits, size, options)
                    expected += results
                    names += [
                        f"{grid} {dtype.__name__} {semantic} {softmax} {i}" for i in range(len(results))
                    ]
    assert_same(names, expected, run(cases))


def test_preprocess(run):
    names, cases, expected = [], [], []
    for color in COLORS:
        shape = (201, 250) if color in ("nv12", "i420") else (134, 250, *CHANNELS[color])
        image = scenes.image(14, shape)
        for size in ((77, 91), (134, 250), (160, 333), (3, 5)):
            for dtype in ("float16", "float32"):
                for resize in ("stretch", "letterbox"):
                    arguments = (image, size, color, resize, dtype)
                    cases.append(preprocess_case(*arguments))
                    expected += preprocess_here(*arguments)
                    names += [
                        f"{color} {size} {dtype} {resize}",
                        f"{color} {size} {dtype} {resize}, its place",
                    ]
    assert_same(names, expected, run(cases))


def test_half_floats(run):
    """Every half, and floats on both sides of every boundary between two of them."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    exact = np.unique(halves[np.isfinite(halves)].astype(np.float32))
    middle = (exact[:-1].astype(np.float64) + exact[1:]).astype(np.float32) / 2
    near = [np.nextafter(middle, np.float32(sign * np.inf)) for sign in (-1, 1)]
    beyond = np.float32([65519.996, 65520, 1e9, -1e9, np.inf, -np.inf, 1e-40, -1e-40, -0.0, np.nan])
    floats = np.concatenate([exact, middle, *near, beyond])
    wide, narrow = run([struct.pack("<2q", 2, len(floats)) + floats.tobytes()])
    with np.errstate(over="ignore"):
        narrow_here = floats.astype(np.float16)
    for here, there in (
        (halves.astype(np.float32), np.frombuffer(wide, np.float32)),
        (narrow_here, np.frombuffer(narrow, np.float16)),
    ):
        # Which NaN a NaN becomes is each processor's own.
        np.testing.assert_array_equal(np.isnan(here), np.isnan(there))
        numbers = ~np.isnan(here)
        assert here[numbers].tobytes() == there[numbers].tobytes()
