"""The developer's loop: the gate's stages, and CMake's presets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GATE = ROOT / ".ci" / "run"
STAGES = re.search(r"^all_stages=\((.*)\)$", GATE.read_text(encoding="utf-8"), re.M)[1].split()
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
def test_the_gate_parses_and_refuses_a_stage_that_there_is_not():
    subprocess.run(["bash", "-n", GATE], check=True)
    ran = subprocess.run(["bash", GATE, "style", "tset"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"no such stage: tset, expected some of: {' '.join(STAGES)}\n"


STUB = """#!/bin/sh
echo "$(basename "$0") $*" >>"$STUB_LOG"
# Who writes to xargs may not find it gone.
case "$0" in */xargs) cat >/dev/null ;; esac
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && : >"$3/bin/activate"; fi
case "$*" in *"$STUB_FAILS"*) exit 3 ;; esac
"""


def gate(tmp_path, *stages, fails="nothing"):
    """Exit status of the gate with commands that only say that they were called, and what they were."""
    for name in ("python", "pip", "ruff", "clang-format", "xargs", "apt-get"):
        (tmp_path / name).write_text(STUB, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    log.write_text("")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "STUB_LOG": str(log),
        "STUB_FAILS": fails,
        "FAI_FAST_CI_WORK": str(tmp_path / "kept"),
    }
    ran = subprocess.run(["bash", GATE, *stages], env=environment, capture_output=True, text=True, timeout=60)
    return ran.returncode, log.read_text().splitlines()


@needs_bash
def test_stages_run_alone_and_in_the_order_asked_for(tmp_path):
    code, calls = gate(tmp_path, "bench", "style")
    assert code == 0
    assert [call for call in calls if call.startswith("ruff")] == [
        "ruff check --no-cache",
        "ruff format --check --no-cache",
    ]
    [benchmarks] = [place for place, call in enumerate(calls) if call.endswith("bench --bench-quick")]
    assert benchmarks < calls.index("ruff check --no-cache")
    assert not any("-m slow" in call or "tests" in call or "apt-get" in call for call in calls)
    assert (tmp_path / "kept" / "venv").is_dir()


@needs_bash
def test_a_stage_that_fails_ends_the_gate(tmp_path):
    code, calls = gate(tmp_path, "style", "bench", fails="format --check")
    assert code == 3
    assert calls[-1] == "ruff format --check --no-cache"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_there_and_told_of(stage):
    text = GATE.read_text(encoding="utf-8")
    assert text.count(f"\n{stage}() {{\n") == 1
    assert stage in re.findall(r"\w+", re.search(r"^# Without a stage all of them: (.*?)\.", text, re.M)[1])
    assert f"`{stage}`" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    # Where none is named, all of them run: some beside the others.
    every = text[text.index("\nbeside() {\n") :]
    assert re.search(rf"\b{stage}\b", every)


def test_the_files_that_contributors_are_sent_to_are_there():
    named = re.findall(
        r"`([\w./-]+/?[\w.-]+\.(?:py|cpp|h|inl|cu|sh))`", (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    )
    assert {"model/running.py", "_pipelines.py", "csrc/ops/preprocess.cpp"} <= set(named)
    places = (ROOT, ROOT / "python" / "fai_fast")
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


def test_presets_are_whole():
    presets = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))
    configured = {preset["name"]: preset for preset in presets["configurePresets"]}
    assert {"release", "debug", "asan", "emulated", "tidy"} == set(configured) - {"base"}
    assert {preset["configurePreset"] for preset in presets["buildPresets"]} == set(configured) - {"base"}
    assert configured["base"]["cacheVariables"]["CMAKE_EXPORT_COMPILE_COMMANDS"] == "ON"
    declared = set(re.findall(r"^set\((FAI_FAST_\w+)", (ROOT / "CMakeLists.txt").read_text(), re.M))
    used = {name for preset in configured.values() for name in preset["cacheVariables"]}
    assert {name for name in used if name.startswith("FAI_FAST_")} <= declared


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake")
def test_cmake_reads_the_presets():
    listed = subprocess.run(["cmake", "--list-presets"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r'"(\w+)"', listed.stdout) == ["release", "debug", "asan", "emulated", "tidy"]
