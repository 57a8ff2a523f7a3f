"""csrc/core by a program of its own, for what of it Python cannot reach; and that texts of errors know no locale."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fai_fast
import pytest
from fai_fast import _core

ROOT = Path(__file__).resolve().parents[1]
COMPILER, LOCALEDEF, NM = (shutil.which(name) for name in ("g++", "localedef", "nm"))
# A sanitizer that was loaded before Python belongs neither into the compiler nor into a program without it.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}

# Errors whose texts hold numbers, of many digits and with fractions, written by the compiled module.
ERRORS = """
import json, locale, sys
import numpy as np
from fai_fast import _core
locale.setlocale(locale.LC_ALL, "")
image = np.zeros((8, 8, 3), np.uint8)
def preprocess(size=(4, 4), mean=(0, 0, 0), std=(1, 1, 1), image=image):
    return _core.preprocess(image, size, mean, std, "rgb", "stretch", "float32", None, "bt601", "limited")
texts = []
for options in (
    {"size": (1234567, 8)},
    {"size": (-1234567, 8)},
    {"mean": (0, float("inf"), 0)},
    {"std": (1, 1, 1.5e-39)},
    {"std": (-1.25e-40, 1, 1)},
    {"image": np.broadcast_to(np.zeros(1, np.uint8), (1234567, 2, 5))},
):
    try:
        preprocess(**options)
    except ValueError as error:
        texts.append(str(error))
print(json.dumps([locale.localeconv()["decimal_point"], texts]))
"""


@pytest.fixture(scope="session")
def german(tmp_path_factory):
    """The environment of a process in a locale that writes 1.234.567,5."""
    folder = tmp_path_factory.mktemp("locale")
    if LOCALEDEF is None:
        pytest.skip("needs localedef, to make a locale with a decimal comma")
    done = subprocess.run(
        [LOCALEDEF, "-i", "de_DE", "-f", "UTF-8", folder / "de_DE.UTF-8"],
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("needs the sources of locales (Debian: the package locales)")
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.UTF-8"}


@pytest.fixture(scope="session")
def selftest(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("needs g++")
    program = tmp_path_factory.mktemp("core") / "selftest"
    sources = [
        ROOT / "tests/core/selftest.cpp",
        *(ROOT / f"csrc/core/{name}.cpp" for name in ("cpus", "recycler")),
    ]
    subprocess.run(
        [COMPILER, "-std=c++20", "-O0", "-g0", f"-I{ROOT}", *sources, "-o", program, "-pthread"],
        env=ENVIRONMENT,
        check=True,
    )
    return program


def test_selftest(selftest):
    done = subprocess.run([selftest], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_selftest_where_the_process_has_a_hostile_locale(selftest, german):
    done = subprocess.run(
        [selftest, german["LC_ALL"]], env=ENVIRONMENT | german, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_texts_of_errors_do_not_follow_the_locale(german):
    def texts(**environment):
        done = subprocess.run(
            [sys.executable, "-c", ERRORS],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    plain, foreign = texts(LC_ALL="C"), texts(**german)
    assert (plain[0], foreign[0]) == (".", ",")
    assert foreign[1] == plain[1]
    wanted = [
        "1234567 x 8",
        "-1234567 x 8",
        "mean: got inf",
        "std: got 1.5e-39",
        "std: got -1.25e-40",
        "(1234567, 2, 5)",
    ]
    assert len(plain[1]) == len(wanted)
    for text, part in zip(plain[1], wanted, strict=True):
        assert part in text


@pytest.mark.skipif(NM is None, reason="needs binutils")
def test_the_module_has_no_iostreams_and_no_locale():
    """Where libstdc++ is linked statically, its copy of these may meet another's in the same process."""
    needed = subprocess.run(
        [NM, "-DC", "--undefined-only", _core.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert "PyErr_" in needed
    streams = re.compile(
        r"std::(__cxx11::)?(\w*(stream|streambuf|ios)|ios_base|locale|\w+_(put|get)|numpunct)\b"
    )
    assert [line for line in needed.splitlines() if streams.search(line)] == []


@pytest.mark.skipif(NM is None, reason="needs binutils")
def test_the_module_exports_its_entry_alone():
    """What else it exported would take part in how other libraries' symbols are resolved, and the other way round."""
    exported = subprocess.run(
        [NM, "-D", "--defined-only", _core.__file__], capture_output=True, text=True, check=True
    ).stdout
    entry = {"PyInit__core"}
    cuda = fai_fast.build_info()["cuda"]
    if cuda["compiled"] and cuda["architectures"] is None:  # emulated, and switched by tests
        entry |= {"cuda_emulator_set", "cuda_emulator_get"}
    assert {line.split()[-1] for line in exported.splitlines()} == entry
