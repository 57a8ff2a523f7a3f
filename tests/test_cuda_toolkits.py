"""What cmake/cuda_toolkits.cmake makes of versions of nvcc that are not here, on processors that are not here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FUNCTIONS = Path(__file__).resolve().parents[1] / "cmake" / "cuda_toolkits.cmake"
CMAKE, NVCC = shutil.which("cmake"), shutil.which("nvcc")

pytestmark = [
    pytest.mark.skipif(CMAKE is None, reason="needs CMake"),
    pytest.mark.skipif(not FUNCTIONS.exists(), reason="needs the repository"),
]


def ask(call, folder):
    """What a function leaves in its last argument."""
    script = folder / "ask.cmake"
    script.write_text(f'include("{FUNCTIONS}")\n{call}\nmessage(STATUS "[${{answer}}]")\n')
    done = subprocess.run([CMAKE, "-P", script], capture_output=True, text=True, check=True)
    return re.search(r"\[(.*)\]", done.stdout)[1]


def architectures(version, processor, folder):
    return ask(f'fai_fast_cuda_architectures({version} "{processor}" answer)', folder).split(";")


@pytest.mark.parametrize(
    ("version", "processor", "expected"),
    [
        ("12.0", "x86_64", "75-real 80-real 90-real 75-virtual"),
        ("12.7", "x86_64", "75-real 80-real 90-real 75-virtual"),
        ("12.8", "x86_64", "75-real 80-real 90-real 100-real 120-real 75-virtual"),
        ("12.9", "AMD64", "75-real 80-real 90-real 100-real 120-real 75-virtual"),
        ("13.0", "x86_64", "75-real 80-real 90-real 100-real 120-real 75-virtual"),
        ("12.6", "aarch64", "75-real 80-real 87-real 90-real 75-virtual"),
        ("12.9", "aarch64", "75-real 80-real 87-real 90-real 100-real 101-real 120-real 75-virtual"),
        ("13.0", "aarch64", "75-real 80-real 87-real 90-real 100-real 110-real 120-real 75-virtual"),
        ("13.10", "arm64", "75-real 80-real 87-real 90-real 100-real 110-real 120-real 75-virtual"),
    ],
)
def test_architectures(version, processor, expected, tmp_path):
    assert architectures(version, processor, tmp_path) == expected.split()


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_the_nvcc_that_is_here_knows_all_that_is_asked_of_it(processor, tmp_path):
    def printed(option):
        return subprocess.run([NVCC, option], capture_output=True, text=True, check=True).stdout

    version = re.search(r"release (\d+\.\d+)", printed("--version"))[1]
    known = {line.removeprefix("sm_") + "-real" for line in printed("--list-gpu-code").split()}
    known |= {line.removeprefix("compute_") + "-virtual" for line in printed("--list-gpu-arch").split()}
    assert set(architectures(version, processor, tmp_path)) <= known


@pytest.mark.parametrize(
    ("version", "driver"), [("12.0", "525"), ("12.9", "525"), ("13.0", "580"), ("13.2", "580")]
)
def test_driver(version, driver, tmp_path):
    assert ask(f"fai_fast_cuda_driver({version} answer)", tmp_path) == driver


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("Cuda compilation tools, release 12.6, V12.6.68", "12.6"),
        ("Cuda compilation tools, release 13.10, V13.10.1", "13.10"),
        ("clang version 14.0.6", ""),
        ("", ""),
    ],
)
def test_version(printed, version, tmp_path):
    assert ask(f'fai_fast_nvcc_version("{printed}" answer)', tmp_path) == version


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("12.0", ""),
        ("12.6", ""),
        ("13.0", ""),
        ("11.8", "/opt/nvcc is version 11.8, 12.0 or later is needed"),
        ("9.2", "/opt/nvcc is version 9.2, 12.0 or later is needed"),
        ("", "/opt/nvcc does not say its version"),
    ],
)
def test_refused_with_a_reason(version, reason, tmp_path):
    assert ask(f'fai_fast_refuse_nvcc(/opt/nvcc "{version}" answer)', tmp_path) == reason
