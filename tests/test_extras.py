"""How extras are installed: one form of the command, which works wherever fai_fast is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fai_fast import _extras

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*")),
    *sorted((ROOT / "tools").glob("*")),
    *sorted((ROOT / "python").rglob("*.py")),
]
# From a checkout, in one go with the package itself.
FROM_CHECKOUT = {"test", "dev,bench"}


def texts():
    for path in DOCUMENTS:
        if path.is_file():
            yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")


def test_every_extra_that_is_named_exists():
    named = {
        (where, extra)
        for where, text in texts()
        for extras in re.findall(r"fai-fast\[([\w,-]+)\]|'\.\[([\w,-]+)\]'", text)
        for extra in "".join(extras).split(",")
    }
    assert len(named) > 10
    assert {(where, extra) for where, extra in named if extra not in {*EXTRAS, "NAME"}} == set()
    # What the code says goes through one place.
    asked = {
        (where, extra)
        for where, text in texts()
        for extra in re.findall(r"\b(?:install|requirement)\(['\"]([\w-]+)['\"]\)", text)
    }
    assert {"torch", "video", "eval", "tensorrt", "tensorrt-rtx", "onnxruntime"} <= {
        extra for _, extra in asked
    }
    assert {(where, extra) for where, extra in asked if extra not in EXTRAS} == set()


def test_there_is_one_form_of_the_command():
    other = {
        (where, found)
        for where, text in texts()
        for found in re.findall(r"""pip install[^\n`]*?(\.\[[\w,-]+\]|"fai-fast\[[^\n`]*)""", text)
        if found[2:-1] not in FROM_CHECKOUT
    }
    assert other == set()
    spelled = [
        where
        for where, text in texts()
        if where.startswith("python/") and where != "python/fai_fast/_extras.py" and "'fai-fast[" in text
    ]
    assert spelled == []


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip")
def test_pip_adds_to_the_package_that_is_installed(tmp_path):
    """With an installed fai-fast of no index's, and no index to ask."""
    info = tmp_path / "fai_fast-999.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fai-fast\nVersion: 999\n"
        "Provides-Extra: plot\nRequires-Dist: pillow>=1; extra == 'plot'\n"
        "Provides-Extra: video\nRequires-Dist: fai-fast-lacks-this; extra == 'video'\n"
    )
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text("")

    def pip(command):
        _, *arguments = command.replace("'", "").split()
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                *arguments,
                "--dry-run",
                "--no-index",
                "--disable-pip-version-check",
            ],
            env={**os.environ, "PYTHONPATH": str(tmp_path), "PIP_NO_INDEX": "1"},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    done = pip(_extras.install("plot"))
    assert done.returncode == 0, done.stderr
    assert "Requirement already satisfied: fai-fast[plot]" in done.stdout
    # It is the extra's packages that are looked for.
    assert "fai-fast-lacks-this" in pip(_extras.install("video")).stderr
