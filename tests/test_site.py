"""The documentation builds without a warning, without a network and without the compiled module.

Needs what `pip install 'fai-fast[docs]'` brings; `.ci/run docs` has it, and makes its absence an error.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = os.environ.get("FAI_FAST_REQUIRE_DOCS") == "1"
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python")

# In the process that builds: whoever connects, or imports the compiled module, fails.
FORBID = """
import socket, sys

def refuse(*_):
    raise AssertionError("the build opened a connection")

socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["fai_fast._core"] = None
"""


def lacking():
    def there(name):
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    return [name for name in NEEDED if not there(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if missing := lacking():
        assert not REQUIRED, missing
        pytest.skip(f"needs {', '.join(missing)}")
    place = tmp_path_factory.mktemp("site")
    (place / "sitecustomize.py").write_text(FORBID)
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", place / "site"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(place), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return place / "site"


def test_every_page_is_there_and_brings_nothing_from_elsewhere(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert [page for page in sorted(pages) if not (site / page).is_file()] == []
    for page in pages:
        text = (site / page).read_text("utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?([^\" >]+)", text)
        assert [address for address in fetched if re.match(r"(?:https?:)?//", address)] == []


def test_the_reference_has_the_docstrings(site):
    text = (site / "api" / "model.html").read_text("utf-8")
    for name in ("fai_fast.load", "fai_fast.Model.infer", "fai_fast.Model.stream", "fai_fast.samples.path"):
        assert f'id="{name}"' in text
    # Of the docstring of load, and no role of another markup.
    assert "num_threads" in text
    for page in (site / "api").glob("*.html"):
        assert not re.search(r":(?:func|meth|class|mod|attr):", page.read_text("utf-8"))


def test_every_public_name_has_a_place(site):
    import fai_fast

    text = "".join(page.read_text("utf-8") for page in (site / "api").glob("*.html"))
    undocumented = {"Ticket", "__version__"}
    lost = [name for name in fai_fast.__all__ if f'id="fai_fast.{name}"' not in text]
    errors = {"CudaError", "EngineError", "ExportError", "FaiFastError", "WeightsError"}
    assert [name for name in lost if name not in undocumented | errors] == []
    assert [name for name in sorted(errors) if f'id="fai_fast.errors.{name}"' not in text] == []
