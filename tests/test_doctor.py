"""The doctor's report: true, complete, and there whatever is broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import fai_fast
import pytest
from fai_fast import doctor
from fai_fast.engines import cpu, precision, select
from fai_fast.errors import EngineError

SECTIONS = ["system", "fai_fast", "packages", "engine", "precision", "cache", "gpu", "environment"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
    assert report["engine"] == {"auto": f"{choice.name} on cpu", **dict(choice.reasons)}
    assert tuple(report["precision"]["native"]) == precision.candidates(choice.name)


@pytest.mark.parametrize(
    ("native", "words"),
    [(("fp32",), "fp32, the only one"), (("bf16", "fp16", "fp32"), "tries bf16, fp16 and keeps it where")],
)
def test_what_precision_auto_does(monkeypatch, native, words):
    monkeypatch.setattr(select.module(select.choose().name), "native_precisions", lambda: native)
    assert doctor.report()["precision"]["native"] == list(native)
    assert doctor.report()["precision"]["auto"].startswith(words)


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
    assert [extra for extra in extras if f"\n{extra} = [" not in declared] == []


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
    assert doctor.report()["gpu"] == expected


def test_no_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.report()["gpu"]["nvidia"] in ("no NVIDIA driver", "driver, no nvidia-smi")


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
        f"{choice.name} on cpu",
        importlib.metadata.version("numpy"),
        "FAI_FAST_CACHE",
    ):
        assert fact in text
    assert "{" not in text
    assert "[]" not in text


def test_torch_is_not_imported():
    script = "import sys; from fai_fast import doctor; doctor.text(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")
