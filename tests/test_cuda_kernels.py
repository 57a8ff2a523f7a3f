"""What nvcc says of the kernels: no spilled registers, no local memory, on the oldest card and on two recent ones.

FAI_FAST_NVCC_REPORT names what a build with `-Xptxas=-v` printed, as .ci/run has it. Without it they are compiled
here, which takes two minutes of a processor.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NVCC = shutil.which("nvcc")
BUILT = os.environ.get("FAI_FAST_NVCC_REPORT")
ARCHITECTURES = ("75", "80", "90")
# As cmake/cuda.cmake compiles them.
FLAGS = ["-std=c++20", "-O3", "--fmad=false", f"-I{ROOT}"]
REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads",
    re.DOTALL,
)

pytestmark = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")


def report(name: str, tmp_path: Path) -> list[re.Match[str]]:
    """What is said of each kernel of a source, for each architecture."""
    if BUILT:
        # The file is part of the names of what is in its unnamed namespace, with its length before it.
        place = f"_{len(name) + 3}_{name}_cu_"
        found = REPORT.finditer(Path(BUILT).read_text("utf-8", "replace"))
        return [
            match for match in found if place in match["kernel"] and match["architecture"] in ARCHITECTURES
        ]
    source = ROOT / "cuda" / f"{name}.cu"
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [str(NVCC), *FLAGS, *targets, "-Xptxas=-v", "-c", str(source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(REPORT.finditer(done.stdout + done.stderr))


KERNELS = {
    "exclusive": {"choose_rows", "exclusive_argmax"},
    "instances": {"find_nodes", "draw_instances"},
    "panoptic": {"count_own", "panoptic_argmax", "send_segments"},
    "postprocess": {"score_queries"},
    "preprocess": {"preprocess"},
    "resample": {"resample"},
    "rows": {"pack", "pack_labels", "expand"},
    "semantic": {"semantic_argmax"},
    "semantic_sum": {"class_probabilities", "sum_argmax"},
}


@pytest.mark.parametrize(("source", "kernels"), KERNELS.items())
def test_nothing_spills_and_nothing_is_in_local_memory(source, kernels, tmp_path):
    found = report(source, tmp_path)
    for architecture in ARCHITECTURES:
        # Names are mangled: each holds the kernel's behind its length.
        names = [match["kernel"] for match in found if match["architecture"] == architecture]
        assert {k for k in kernels if any(f"{len(k)}{k}" in name for name in names)} == kernels
    wasteful = [
        f"{match['kernel']} on sm_{match['architecture']}: {match['stack']} bytes of stack, "
        f"{match['stores']} + {match['loads']} bytes spilled"
        for match in found
        if any(int(match[what]) for what in ("stack", "stores", "loads"))
    ]
    assert wasteful == []


def test_every_kernel_is_in_these_files():
    kernels = [path.stem for path in sorted((ROOT / "cuda").glob("*.cu")) if "__global__" in path.read_text()]
    assert kernels == sorted([*KERNELS, "math_headers"])


RANGES = ("upload", "prepare", "preprocess", "engine", "postprocess", "launch", "wait", "results")


@pytest.mark.parametrize("named", [True, False])
def test_a_frames_stages_are_named_for_profilers_where_asked(named, tmp_path):
    files = [str(ROOT / f"cuda/{name}.cu") for name in ("device_graph", "frame_upload", "frame_results")]
    command = [str(NVCC), *FLAGS, "-arch=sm_90", *(["-DFAI_FAST_NVTX=1"] if named else [])]
    done = subprocess.run([*command, "-c", *files], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = b"".join(path.read_bytes() for path in tmp_path.glob("*.o"))
    for name in RANGES:
        assert (f"fai_fast {name}\0".encode() in code) == named
