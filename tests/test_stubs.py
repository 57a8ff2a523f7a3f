"""The package's types: what is shipped, and whether the compiled module's stub tells the truth."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
from pathlib import Path

import fai_fast
import pytest
from fai_fast import _core
from mypy import stubtest


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi"])
def test_types_are_shipped(name):
    assert importlib.resources.files(fai_fast).joinpath(name).is_file()


# In a process of its own: mypy keeps state, and what it prints is the message.
@pytest.mark.slow
def test_stub_matches_the_compiled_module():
    known = Path(__file__).with_name("stubtest.txt")
    command = [sys.executable, "-m", "mypy.stubtest", "fai_fast._core", "--allowlist", str(known)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_stubtest_sees_a_difference(monkeypatch):
    """The check above can fail: a function that only the stub has is reported."""
    monkeypatch.delattr(_core, "build_info")
    options = stubtest.parse_options(["fai_fast._core", "--concise"])
    assert stubtest.test_stubs(options, use_builtins_fixtures=False) == 1
