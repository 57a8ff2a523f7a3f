"""The doctor's report: true, complete, and there whatever is broken."""

from __future__ import annotations

import enum
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fai_fast
import pytest
from fai_fast import _core, doctor
from fai_fast.engines import cpu, precision, select
from fai_fast.errors import CudaError, EngineError
from helpers.processes import complaints

NO_GPU = "no NVIDIA driver: install one"
SECTIONS = ["system", "fai_fast", "packages", "engine", "precision", "cache", "gpu", "environment"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_gpu(monkeypatch):
    def devices():
        raise CudaError(NO_GPU)

    monkeypatch.setattr(_core, "cuda_devices", devices)
    monkeypatch.setattr(_core, "cuda_versions", lambda: {"driver": None, "toolkit": "13.0"})


def test_every_section_is_found_out():
    report = doctor.report()
    assert list(report) == SECTIONS
    assert {name: section for name, section in report.items() if "error" in section} == {}
    json.dumps(report)


def test_facts():
    report = doctor.report()
    assert report["system"]["cores"] == cpu.usable_cores()
    assert sys.executable in report["system"]["python"]
    assert report["fai_fast"]["version"] == fai_fast.__version__
    assert report["fai_fast"]["isa"] == fai_fast.build_info()["isa"]
    assert report["fai_fast"]["cuda"] == fai_fast.build_info()["cuda"]
    assert report["packages"]["numpy"] == importlib.metadata.version("numpy")
    choice = select.choose()
    assert report["engine"] == {"auto": str(choice), **dict(choice.reasons)}
    if choice.device == "cpu":
        assert tuple(report["precision"]["native"]) == precision.candidates(choice.name)


@pytest.mark.parametrize(
    ("cuda", "words"),
    [
        (
            {
                "compiled": False,
                "reason": "/usr/bin/nvcc is version 11.8, 12.0 or later is needed",
                "driver": None,
            },
            "the CPU alone: /usr/bin/nvcc is version 11.8, 12.0 or later is needed",
        ),
        (
            {"compiled": True, "reason": None, "architectures": "75-real 75-virtual", "driver": "525"},
            "for 75-real 75-virtual; needs NVIDIA driver 525 or later",
        ),
        (
            {"compiled": True, "reason": None, "architectures": None, "driver": None},
            "emulated on the CPU, for tests",
        ),
    ],
)
def test_what_was_built_for_gpus(cuda, words, no_gpu, monkeypatch):
    whole = {**_core.build_info(), "cuda": {"toolkit": None, **cuda}}
    monkeypatch.setattr(_core, "build_info", lambda: whole)
    assert doctor.report()["gpu"]["cuda_build"] == words
    assert words in doctor.text()


@pytest.mark.usefixtures("no_gpu")
def test_what_precision_auto_does(host):
    said = doctor.report()["precision"]
    assert said["native"] == list(host.precisions)
    low = ", ".join(host.precisions[:-1])
    assert said["auto"].startswith(f"tries {low} and keeps it where" if low else "fp32, the only one")


def test_a_missing_package_says_what_for_and_how(monkeypatch):
    def version(name):
        if name in ("torch", "openvino", "opencv-python-headless", "opencv-contrib-python"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    packages = doctor.report()["packages"]
    assert packages["torch"].startswith('not installed: needed for weights in .pth files, weights="random"')
    assert packages["torch"].endswith("pip install 'fai-fast[torch]'")
    assert packages["openvino"] == "not installed: needed for the engine on CPUs; pip install 'openvino'"
    assert packages["opencv-python-headless"] == "1.2.3 (opencv-python)"
    assert packages["onnx"] == "1.2.3"


def test_extras_that_are_named_exist():
    declared = Path(__file__).resolve().parents[1].joinpath("pyproject.toml").read_text()
    extras = {install[9:-1] for _, install in doctor._PACKAGES.values() if install.startswith("fai-fast[")}
    assert {"video", "eval", "ros2", "torch"} <= extras
    assert [extra for extra in extras if f"\n{extra} = [" not in declared] == []


def test_methods_that_are_named_exist():
    named = [
        name
        for why, _ in doctor._PACKAGES.values()
        for name in re.findall(r"\b(?:Detections|Model)\.\w+", why)
    ]
    assert {"Detections.to_polygons", "Model.stream"} <= set(named)
    for name in named:
        kind, _, method = name.partition(".")
        assert hasattr(getattr(fai_fast, kind), method), name


def test_the_cache(cache_folder):
    assert doctor.report()["cache"] == {
        "folder": str(cache_folder),
        "files": 0,
        "size_mb": 0.0,
        "writable": True,
    }
    (cache_folder / "deep").mkdir(parents=True)
    (cache_folder / "deep" / "file").write_bytes(bytes(1_500_000))
    assert doctor.report()["cache"] == {
        "folder": str(cache_folder),
        "files": 1,
        "size_mb": 1.5,
        "writable": True,
    }


def test_a_cache_that_is_a_file(cache_folder):
    cache_folder.write_text("not a folder")
    assert doctor.report()["cache"]["writable"] is False


def test_the_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("FAI_FAST_") and name != "FAI_FAST_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FAI_FAST_FORCE_ISA", "baseline")
    environment = doctor.report()["environment"]
    assert environment == {"FAI_FAST_CACHE": os.environ["FAI_FAST_CACHE"], "FAI_FAST_FORCE_ISA": "baseline"}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA H200, 570.1, 143771 MiB'", {"card 0": "NVIDIA H200, 570.1, 143771 MiB"}),
        ("echo broken driver >&2; exit 9", {"nvidia": "nvidia-smi failed: broken driver"}),
    ],
)
def test_a_driver(tmp_path, monkeypatch, script, expected):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    section = doctor.report()["gpu"]
    assert {name: section[name] for name in expected} == expected


def test_no_driver(tmp_path, monkeypatch, no_gpu):
    monkeypatch.setenv("PATH", str(tmp_path))
    section = doctor.report()["gpu"]
    assert section["nvidia"] in ("no NVIDIA driver", "driver, no nvidia-smi")
    assert section["cuda"] == NO_GPU
    assert (section["cuda_driver"], section["cuda_toolkit"]) == (None, "13.0")


CARD = {
    "index": 0,
    "name": "NVIDIA H200",
    "compute_capability": (9, 0),
    "memory": 140 << 30,
    "multiprocessors": 132,
    "uuid": "GPU-1",
}


class CudaPython:
    """cuda.bindings.runtime of a machine with two GPUs, and which of them is current."""

    class cudaError_t(enum.IntEnum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2

    def __init__(self, answer):
        self.answer, self.current, self.asked = answer, 1, []

    def cudaGetDevice(self):
        return self.cudaError_t.cudaSuccess, self.current

    def cudaSetDevice(self, index):
        self.current = index
        return (self.cudaError_t.cudaSuccess,)

    def cudaMemGetInfo(self):
        self.asked.append(self.current)
        return self.cudaError_t(self.answer), 100 << 30, 140 << 30


@pytest.fixture
def runtime(monkeypatch):
    """Two GPUs, and what is to stand for cuda-python."""
    monkeypatch.setattr(_core, "cuda_devices", lambda: [CARD, {**CARD, "index": 1, "uuid": "GPU-2"}])
    monkeypatch.setattr(_core, "cuda_versions", lambda: {"driver": "13.1", "toolkit": "13.0"})
    monkeypatch.setenv("PATH", "")

    def use(module):
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", ModuleType("cuda.bindings"))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)

    return use


def test_gpus(runtime):
    cuda_python = CudaPython(0)
    runtime(cuda_python)
    section = doctor._gpu()
    assert (section["cuda_driver"], section["cuda_toolkit"]) == ("13.1", "13.0")
    assert section["cuda:0"] == {
        "name": "NVIDIA H200",
        "compute_capability": "9.0",
        "multiprocessors": 132,
        "memory_mb": 140 << 10,
        "free_mb": 100 << 10,
        "uuid": "GPU-1",
    }
    assert section["cuda:1"]["uuid"] == "GPU-2"
    assert cuda_python.asked == [0, 1]
    assert cuda_python.current == 1
    json.dumps(section)


def test_free_memory_is_left_out_without_cuda_python_and_explained_where_it_fails(runtime):
    runtime(None)
    assert "free_mb" not in doctor._gpu()["cuda:0"]
    runtime(CudaPython(2))
    assert doctor._gpu()["cuda:0"]["free_mb"] == "not known: cudaErrorMemoryAllocation"


def test_a_gpu_engine_and_its_precisions(runtime, monkeypatch):
    runtime(None)
    chosen = select.Choice("torch-cuda", "cuda", (("torch-cuda", "the fastest of those that work"),), index=1)
    monkeypatch.setattr(select, "choose", lambda: chosen)
    report = doctor.report()
    assert report["engine"] == {
        "auto": "torch-cuda on cuda:1",
        "torch-cuda": "the fastest of those that work",
    }
    assert report["precision"] == {
        "native": ["fp16", "fp32"],
        "auto": "tries fp16 and keeps it where it finds on pictures what fp32 finds",
        "int8": "by itself for CPUs alone (device='cpu'); for TensorRT as a file of fai-fast export --precision int8",
    }
    monkeypatch.setattr(select.module("torch-cuda"), "native_precisions", lambda device: ("fp32",))
    assert doctor.report()["precision"]["auto"] == "fp32, the only one that torch-cuda has on this GPU"


def test_a_broken_section_does_not_hide_the_others(monkeypatch):
    def broken(*_):
        raise EngineError("no engine: openvino: on strike")

    monkeypatch.setattr(select, "choose", broken)
    monkeypatch.setattr(fai_fast, "build_info", broken)
    report = doctor.report()
    assert list(report) == SECTIONS
    assert {name for name, section in report.items() if "error" in section} == {
        "fai_fast",
        "engine",
        "precision",
    }
    assert report["engine"]["error"] == "EngineError: no engine: openvino: on strike"
    text = doctor.text()
    assert "  error  EngineError: no engine: openvino: on strike\n" in text
    assert "packages\n  numpy" in text


def test_text_has_every_fact():
    text = doctor.text()
    headings = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert headings == SECTIONS
    choice = select.choose()
    for fact in (
        fai_fast.__version__,
        str(choice),
        importlib.metadata.version("numpy"),
        "FAI_FAST_CACHE",
    ):
        assert fact in text
    assert "{" not in text
    assert "[]" not in text


def test_torch_is_not_imported():
    script = "import sys; from fai_fast import doctor; doctor.text(); print('torch' in sys.modules)"
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=without_gpu
    )
    assert (done.stdout, complaints(done.stderr)) == ("False\n", [])
