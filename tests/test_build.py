"""build_info() says what was compiled in and what is in use."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import fai_fast
import pytest
from fai_fast import _core

INFO = fai_fast.build_info()
ORDER = ["baseline", "neon", "avx2", "avx512"]


def printed(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_keys():
    assert list(INFO) == [
        "version",
        "compiler",
        "isa",
        "isas_compiled",
        "isas_available",
        "cuda",
        "threads",
        "sanitizers",
    ]
    assert list(INFO["cuda"]) == ["compiled", "toolkit"]


def test_version_is_the_distribution_s():
    assert INFO["version"] == fai_fast.__version__ == importlib.metadata.version("fai-fast")


def test_instruction_sets():
    compiled, available = INFO["isas_compiled"], INFO["isas_available"]
    if platform.machine() == "x86_64":
        assert compiled == ["baseline", "avx2", "avx512"]
    assert compiled == [isa for isa in ORDER if isa in compiled]
    assert available == [isa for isa in compiled if isa in available]
    assert INFO["isa"] in available
    assert INFO["isa"] == os.environ.get("FAI_FAST_FORCE_ISA", available[-1])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 flags")
def test_available_is_what_the_kernel_reports():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    assert ("avx2" in INFO["isas_available"]) == ({"avx2", "f16c", "bmi1", "bmi2"} <= flags)
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
    assert ("avx512" in INFO["isas_available"]) == (avx512 <= flags)


def test_threads():
    assert INFO["threads"] == len(os.sched_getaffinity(0))


def test_cuda():
    cuda = INFO["cuda"]
    assert isinstance(cuda["compiled"], bool)
    if cuda["compiled"]:
        assert re.fullmatch(r"\d+\.\d+", cuda["toolkit"])
    else:
        assert cuda["toolkit"] is None


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
def test_the_binary_agrees():
    """What build_info() claims about sanitizers can be seen in the file."""
    symbols = printed("nm", "-D", _core.__file__)
    assert ("__asan_" in symbols) == ("address" in INFO["sanitizers"])
    assert ("__ubsan_" in symbols) == ("undefined" in INFO["sanitizers"])


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")
def test_the_binary_needs_no_cuda_library():
    dynamic = printed("readelf", "-d", _core.__file__)
    assert "libc.so" in dynamic
    assert "libcuda" not in dynamic
