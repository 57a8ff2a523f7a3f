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
from fai_fast.engines import cpu
from fai_fast.errors import CudaError

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
    assert list(INFO["cuda"]) == ["compiled", "reason", "toolkit", "architectures", "driver"]


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
    assert INFO["threads"] == min(len(os.sched_getaffinity(0)), cpu.quota() or 1 << 30)


def test_cuda():
    cuda = INFO["cuda"]
    assert isinstance(cuda["compiled"], bool)
    if cuda["compiled"]:
        assert re.fullmatch(r"\d+\.\d+", cuda["toolkit"])
        assert cuda["reason"] is None
        # The emulator is compiled for no card.
        if cuda["architectures"] is not None:
            assert all(re.fullmatch(r"\d+(-real|-virtual)?", item) for item in cuda["architectures"].split())
            assert cuda["driver"] == ("525" if int(cuda["toolkit"].partition(".")[0]) < 13 else "580")
    else:
        assert (cuda["toolkit"], cuda["architectures"], cuda["driver"]) == (None, None, None)
        # Why, in the words of the build.
        assert re.search(r"FAI_FAST_CUDA was OFF|nvcc", cuda["reason"])
        with pytest.raises(CudaError, match=re.escape(f"(why it was not: {cuda['reason']})")):
            _core.cuda_devices()


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
