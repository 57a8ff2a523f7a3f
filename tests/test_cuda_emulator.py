"""The emulator that runs the CUDA sources on the CPU does what CUDA does, and reports what CUDA would not forgive."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent / "cuda_emulator"
COMPILER, NVCC = shutil.which("g++"), shutil.which("nvcc")
# The sanitizers of a surrounding run belong neither into the compiler nor into a program without them.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("FAI_FAST_EMULATOR_")}
ENVIRONMENT.pop("LD_PRELOAD", None)
# Leaks are looked for with ptrace, which containers forbid.
ENVIRONMENT["ASAN_OPTIONS"] = "detect_leaks=0"

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the emulator's self test")

BUILDS = {
    "plain": [],
    # What other processors than x86-64 use.
    "ucontext": ["-DCUDA_EMULATOR_UCONTEXT"],
    "sanitized": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


@pytest.fixture(
    scope="module",
    params=["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ucontext", "sanitized"))],
)
def selftest(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    flags = ["-std=c++20", "-O0", "-g0", *BUILDS[request.param]]
    objects = {
        FOLDER / name: folder / f"{name}.o" for name in ("selftest.cu", "runtime.cpp", "execution.cpp")
    }
    compilers = [
        subprocess.Popen(
            [
                COMPILER,
                *flags,
                f"-I{FOLDER}",
                "-include",
                "cuda_runtime.h",
                "-x",
                "c++",
                "-c",
                source,
                "-o",
                target,
            ],
            env=ENVIRONMENT,
        )
        for source, target in objects.items()
    ]
    assert [compiler.wait() for compiler in compilers] == [0, 0, 0]
    program = folder / "selftest"
    subprocess.run([COMPILER, *flags, *objects.values(), "-ldl", "-o", program], env=ENVIRONMENT, check=True)

    def run(name, **options):
        return subprocess.run([program, name], env=ENVIRONMENT, capture_output=True, check=False, **options)

    run.sanitized = request.param == "sanitized"
    return run


@pytest.mark.parametrize(
    "name",
    [
        "indices",
        "barriers",
        "order",
        "warps",
        "atomics",
        "arithmetic",
        "lazy",
        "events",
        "graph",
        "capture_errors",
        "memory",
        "guards",
        "faults",
    ],
)
def test_on_the_device(selftest, name):
    if selftest.sanitized and name == "guards":
        pytest.skip("the sanitizer ends the process at the first byte outside: see test_overflow_is_caught")
    done = selftest(name)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr.decode()
    assert done.stderr.decode().endswith(f"{name}: ok\n")


def test_halves_are_numpy_s(selftest):
    rng = np.random.default_rng(0)
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    # Each half, the float half way to the next, those on either side of that, and floats of all magnitudes.
    finite = np.sort(every[np.isfinite(every)].astype(np.float32))
    middle = (finite[:-1] + finite[1:]) / 2
    floats = np.concatenate(
        [
            finite,
            middle,
            np.nextafter(middle, np.float32(np.inf)),
            np.nextafter(middle, np.float32(-np.inf)),
            rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32),
            np.float32(
                [65519.99, 65520, 65536, -65520, np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45, 2**-25]
            ),
        ]
    ).astype(np.float32)
    done = selftest("halves", input=floats.tobytes())
    assert done.returncode == 0, done.stdout[-200:]
    widened = np.frombuffer(done.stdout[: 4 * 65536], np.float32)
    np.testing.assert_array_equal(widened, every.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(widened), np.signbit(every))
    rounded = np.frombuffer(done.stdout[4 * 65536 :], np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = floats.astype(np.float16)
    number = ~np.isnan(floats)
    np.testing.assert_array_equal(rounded[number], expected.view(np.uint16)[number])
    np.testing.assert_array_equal(rounded[~number], 0x7FFF)  # the hardware's only NaN


def test_overflow_is_caught(selftest):
    done = selftest("overflow")
    if selftest.sanitized:
        assert b"ERROR: AddressSanitizer: use-after-poison" in done.stderr
    else:
        assert done.returncode == 3
        assert b"something wrote after the 1000 bytes of device memory" in done.stderr


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "some_threads_only",
            [
                "5 at __syncthreads; the first is thread (0, 0, 0)",
                "27 at __syncwarp with mask 0xffffffff, of which lanes 0xffffffe0 are there",
                "deadlock: 32 of 40 threads have not returned\n  in block (0, 0, 0) of the kernel",
            ],
        ),
        (
            "lane_elsewhere",
            [
                "31 at __ballot_sync with mask 0xffffffff, of which lanes 0xfffffff7 are there",
                "1 at __syncthreads; the first is thread (3, 0, 0)",
            ],
        ),
        ("mask_without_self", ["is at __ballot_sync with mask 0x1, which does not name it"]),
        ("two_operations", ["at __any_sync", "at __all_sync", "both with mask 0xffffffff"]),
    ],
)
def test_what_hangs_a_gpu_aborts_with_a_reason(selftest, name, texts):
    done = selftest(name)
    assert done.returncode != 0
    assert b": ok" not in done.stderr
    for text in texts:
        assert text in done.stderr.decode()


def test_settings_from_the_environment(selftest, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "FAI_FAST_EMULATOR_DRIVER", "without_device")
    monkeypatch.setitem(ENVIRONMENT, "FAI_FAST_EMULATOR_DEVICE_MEMORY", "4096")
    assert selftest("environment").stdout == b"cudaErrorNoDevice, then 4096 bytes\n"
    monkeypatch.setitem(ENVIRONMENT, "FAI_FAST_EMULATOR_DRIVER", "rusty")
    done = selftest("environment")
    assert done.returncode != 0
    assert b"FAI_FAST_EMULATOR_DRIVER is 'rusty', which is no value for it" in done.stderr


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
def test_names_and_signatures_are_cuda_s(tmp_path):
    done = subprocess.run(
        [NVCC, "-std=c++20", "-arch=sm_80", "--cuda", "-o", tmp_path / "out.ii", FOLDER / "selftest.cu"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
