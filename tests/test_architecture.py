"""The layers of the code: which folder may include or import what."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A folder may include itself and these; nothing else of the project.
MAY_INCLUDE = {
    "csrc/core": set(),
    "csrc/math": {"csrc/core"},
    "csrc/cpu": {"csrc/math", "csrc/core"},
    "csrc/ops": {"csrc/cpu", "csrc/math", "csrc/core", "cuda/api.h"},
    "csrc/bindings": {"csrc/ops", "csrc/core"},
    "cuda/api.h": {"csrc/core"},
    "cuda": {"cuda/api.h", "csrc/math", "csrc/core"},
}
# build_info() tells what the lower layers were compiled with, which is no operation on arrays.
PYTHON_HEADER = re.compile(r"Python\.h$|pybind11/|structmember\.h$|numpy/")
CUDA_HEADER = re.compile(r"cuda|cub/|thrust/|nv/|cooperative_groups")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)

# What each part of the Python package, a file or a folder, may import, anywhere in its files.
BASE = {
    "_core",
    "_forks",
    "_options",
    "_arguments",
    "errors",
    "_foreign",
    "_locks",
    "_redaction",
    "_coco",
    "_ade20k",
    "_sizes",
    "_rules",
    "_extras",
    "_progress",
}
MAY_IMPORT = {
    "_forks": {"errors"},
    "_options": set(),
    "_coco": set(),
    "_ade20k": set(),
    "_extras": set(),
    "_progress": set(),
    "_arguments": {"_foreign"},
    "_foreign": set(),
    "_sizes": {"_arguments"},
    "_rules": {"_arguments"},
    "_locks": set(),
    "errors": set(),
    "_files": BASE,
    "_redaction": set(),
    "images": BASE,
    "letterbox": BASE,
    "detections": BASE | {"_files", "images"},
    "ops": BASE | {"detections", "letterbox"},
    "registry": BASE,
    "cache": BASE,
    "download": BASE | {"cache"},
    # Its pretrained() starts from weights; those that are random are drawn by it, and imported when asked for.
    "reference": BASE | {"registry", "weights"},
    "_torch_archive": set(),
    "checkpoint": BASE | {"_torch_archive"},
    "weights": BASE | {"cache", "checkpoint", "download", "registry", "reference"},
    "losses": BASE | {"registry", "reference"},
    "engines": BASE | {"cache", "reference", "weights"},
    "_scenes": set(),
    "_pictures": BASE | {"_scenes", "images"},
    "_crops": BASE | {"detections", "engines", "ops", "registry"},
    "_gate": BASE | {"_crops", "_pictures", "detections", "engines", "ops", "registry"},
    "_places": {"cache"},
    "networks": BASE | {"_places", "cache", "engines", "registry"},
    "exporter": BASE
    | {
        "_files",
        "_gate",
        "_pictures",
        "_scenes",
        "cache",
        "engines",
        "networks",
        "ops",
        "reference",
        "registry",
        "weights",
    },
    "quantizer": BASE | {"_gate", "_pictures", "cache", "engines", "exporter", "ops", "registry"},
    "_artefacts": BASE
    | {"_gate", "_places", "_pictures", "cache", "engines", "exporter", "registry", "weights"},
    "_int8": BASE | {"_artefacts", "_pictures", "cache", "engines", "quantizer"},
    "_sources": BASE | {"_artefacts", "cache", "engines", "exporter", "networks", "registry", "weights"},
    "_prepare": BASE
    | {
        "_artefacts",
        "_gate",
        "_int8",
        "_pictures",
        "_sources",
        "cache",
        "engines",
        "exporter",
        "quantizer",
        "registry",
        "weights",
    },
    "quantization": BASE
    | {
        "_artefacts",
        "_files",
        "_int8",
        "_pictures",
        "_sources",
        "engines",
        "evaluate",
        "exporter",
        "model",
        "networks",
        "quantizer",
        "registry",
        "weights",
    },
    "_again": BASE | {"networks", "registry"},
    "_requests": BASE | {"detections", "images", "registry"},
    "_pipelines": BASE | {"_crops", "detections", "engines", "letterbox", "ops", "registry"},
    "model": BASE
    | {
        "detections",
        "engines",
        "ops",
        "_again",
        "_crops",
        "_pictures",
        "_pipelines",
        "_prepare",
        "_requests",
        "quantizer",
        "registry",
        "stream",
        "weights",
    },
    "stream": BASE | {"detections", "images", "ops", "_pipelines"},
    "ray": BASE
    | {
        "_artefacts",
        "_files",
        "cache",
        "detections",
        "images",
        "model",
        "ops",
        "registry",
        "render",
        "stream",
    },
    "ros2": BASE | {"detections", "images", "model", "ops", "render"},
    "evaluate": BASE | {"detections", "_files", "images", "model", "registry"},
    "render": {"detections"},
    "doctor": BASE | {"_gate", "cache", "engines", "ops"},
    "samples": BASE,
}

# What `import fai_fast` loads must be the standard library, NumPy and itself.
ALLOWED_AT_IMPORT = {*sys.stdlib_module_names, "numpy", "fai_fast"}
# These are PyTorch through and through, and are themselves imported only when asked for.
IN_TORCH = {"reference", "losses"}

SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("csrc", "cuda")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".h", ".cpp", ".inl", ".cu", ".cuh"}
)
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "python").rglob("*.py"))
# Everything that runs or is built; the development machines' shared folder exists nowhere else.
RUNNING = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *(
            path
            for folder in ("csrc", "cuda", "cmake", "python", "tests", "bench", "tools", ".ci")
            for path in (ROOT / folder).rglob("*")
            if path.suffix in {"", ".py", ".pyi", ".sh", ".h", ".cpp", ".inl", ".cu", ".cmake"}
        ),
        ROOT / "CMakeLists.txt",
        ROOT / "pyproject.toml",
    ]
    if path.is_file() and not any(part.endswith("_cache") for part in path.parts)
)


def layer(path: str) -> str:
    """The key of MAY_INCLUDE that a project file belongs to."""
    if path in MAY_INCLUDE:
        return path
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "csrc" else parts[0]


def include_violations(path: str, text: str) -> list[str]:
    here = layer(path)
    wrong = []
    for bracket, header in INCLUDE.findall(text):
        if bracket == '"':
            there = layer(header)
            if there not in {here, *MAY_INCLUDE[here]}:
                wrong.append(f"{path}: {here} may not include {header}")
        elif PYTHON_HEADER.search(header) and here != "csrc/bindings":
            wrong.append(f"{path}: only csrc/bindings may include <{header}>")
        elif CUDA_HEADER.match(header) and (here != "cuda" or not path.endswith((".cu", ".cuh"))):
            wrong.append(f"{path}: only cuda/*.cu may include <{header}>")
    return wrong


def loaded_statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements that run when the module is imported: not those in functions or for type checkers."""
    found = []
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            found += loaded_statements(statement.orelse)
            continue
        found.append(statement)
        for field in ("body", "orelse", "finalbody"):
            found += loaded_statements(getattr(statement, field, []))
        for handler in getattr(statement, "handlers", []):
            found += loaded_statements(handler.body)
    return found


def import_violations(path: str, text: str) -> list[str]:
    wrong = []
    allowed = ALLOWED_AT_IMPORT | ({"torch"} if part(path) in IN_TORCH else set())
    for statement in loaded_statements(ast.parse(text).body):
        names = []
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.level == 0:
            names = [statement.module or ""]
        wrong += [
            f"{path}:{statement.lineno}: {name} imported with the package"
            for name in names
            if name.split(".")[0] not in allowed
        ]
    return wrong


def part(path: str) -> str:
    """The key of MAY_IMPORT that a module of the package belongs to."""
    return path.removeprefix("python/fai_fast/").split("/")[0].removesuffix(".py")


def arrow_violations(path: str, text: str) -> list[str]:
    here = part(path)
    if here not in MAY_IMPORT:
        return []
    wrong = []
    for node in ast.walk(ast.parse(text)):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "fai_fast":
            targets = [f"fai_fast.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [node.module or ""]
        for target in targets:
            names = target.split(".")
            if (
                names[0] != "fai_fast"
                or len(names) < 2
                or names[1] in {here, *MAY_IMPORT[here], "__version__"}
            ):
                continue
            wrong.append(f"{path}:{node.lineno}: {here} may not import {names[1]}")
    return wrong


def mentions_shared(text: str) -> bool:
    return re.search(r"(\.\.|/work)/" + "shared", text) is not None


@pytest.mark.parametrize("path", SOURCES)
def test_includes_follow_the_layers(path):
    assert include_violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", MODULES)
def test_importing_the_package_loads_nothing_heavy(path):
    assert import_violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", MODULES)
def test_modules_import_only_what_lies_below_them(path):
    assert arrow_violations(path, (ROOT / path).read_text()) == []


def test_every_module_has_its_place():
    above = {"__init__", "__main__", "cli"}
    assert {part(path) for path in MODULES} - above == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("path", "code", "wrong"),
    [
        ("engines/select.py", "from fai_fast.detections import Detections", 1),
        ("engines/openvino.py", "def f():\n    from fai_fast import detections", 1),
        ("reference/fpn.py", "import fai_fast.engines.base", 1),
        ("reference/fpn.py", "from fai_fast.registry import ModelSpec", 0),
        ("model.py", "from fai_fast.reference import build", 1),
        ("cli.py", "import fai_fast.model", 0),
    ],
)
def test_a_forbidden_arrow_is_found(path, code, wrong):
    assert len(arrow_violations(f"python/fai_fast/{path}", code)) == wrong


@pytest.mark.parametrize("path", RUNNING)
def test_nothing_reads_the_shared_folder(path):
    assert not mentions_shared((ROOT / path).read_text())


def test_the_sources_were_found():
    assert {layer(path) for path in SOURCES} >= {
        "csrc/core",
        "csrc/math",
        "csrc/cpu",
        "csrc/ops",
        "csrc/bindings",
    }
    assert "python/fai_fast/__init__.py" in MODULES
    assert {"CMakeLists.txt", "tests/test_architecture.py"} <= set(RUNNING)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("csrc/core/a.h", '#include "csrc/math/hd.h"'),
        ("csrc/math/a.h", '#include "csrc/cpu/simd.h"'),
        ("csrc/cpu/a.inl", '#  include "csrc/ops/masks.h"'),
        ("csrc/cpu/a.cpp", '#include "cuda/api.h"'),
        ("csrc/ops/a.cpp", '#include "csrc/bindings/arrays.h"'),
        ("csrc/ops/a.cpp", '#include "cuda/check.cuh"'),
        ("csrc/ops/a.cpp", "#include <pybind11/pybind11.h>"),
        ("csrc/ops/a.cpp", "#include <Python.h>"),
        ("csrc/ops/a.cpp", "#include <cuda_runtime.h>"),
        ("csrc/bindings/a.cpp", '#include "csrc/cpu/kernels.h"'),
        ("csrc/bindings/a.cpp", "#include <cuda_runtime_api.h>"),
        ("cuda/api.h", '#include "csrc/math/hd.h"'),
        ("cuda/api.h", "#include <cuda_runtime_api.h>"),
        ("cuda/stub.cpp", "#include <cuda.h>"),
        ("cuda/a.cu", '#include "csrc/cpu/kernels.h"'),
    ],
)
def test_a_forbidden_include_is_found(path, line):
    assert len(include_violations(path, f"// a file\n{line}\n")) == 1


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("import torch", 1),
        ("from cv2 import resize", 1),
        ("try:\n    import PIL.Image\nexcept ImportError:\n    import supervision", 2),
        ("class A:\n    import openvino", 1),
        ("if True:\n    import tensorrt\nelse:\n    import transformers", 2),
        ("def f():\n    import torch", 0),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", 0),
        ("import json, numpy.typing\nfrom fai_fast import _core\nfrom . import ops", 0),
    ],
)
def test_heavy_imports_are_found(code, wrong):
    assert len(import_violations("a.py", code)) == wrong


def test_a_mention_of_the_shared_folder_is_found():
    assert mentions_shared('open("../' + 'shared/golden/x.npz")')
    assert mentions_shared("/work/" + "shared/spec")
    assert not mentions_shared("a shared pointer, ../share/x")


def _imports_of_other_tests(name: str, text: str, modules: set[str]) -> list[str]:
    """Lines that import a test module other than `name`, also in scripts that a test starts."""
    lines = re.findall(
        r"^\s*(?:from\s+\w+\s+import|import)\b.*|(?<=[\"'])(?:from|import)\s+\w+.*", text, re.MULTILINE
    )
    return [line for line in lines if set(re.findall(r"\btest_\w+", line)) & (modules - {name})]


def test_no_test_module_imports_another():
    tests = {path.stem: path for path in (ROOT / "tests").glob("test_*.py")}
    assert len(tests) > 50
    found = {
        name: lines
        for name, path in tests.items()
        if (lines := _imports_of_other_tests(name, path.read_text(), set(tests)))
    }
    assert found == {}, "what several need belongs into tests/helpers"


@pytest.mark.parametrize(
    "line",
    [
        "from test_b import x",
        "    import numpy, test_b",
        'run("from test_b import x; x()")',
        "import test_b as b",
    ],
)
def test_the_import_of_another_test_is_found(line):
    assert _imports_of_other_tests("test_a", f"import os\n{line}\n", {"test_a", "test_b"})
    assert not _imports_of_other_tests("test_b", f"import os\n{line}\n", {"test_a", "test_b"})
