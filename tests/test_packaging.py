"""What is published, and how: the metadata, the source distribution, the wheels and the workflows that build them."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import fai_fast
import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
WHEELS = SETTINGS["tool"]["cibuildwheel"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHONS = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def steps(job):
    return [step.get("run", step.get("uses")) for step in job["steps"]]


# -------------------------------------------------------------------------------------------------- metadata


def test_no_field_is_left_empty():
    assert PROJECT["description"].endswith(".")
    assert PROJECT["authors"] == [{"name": "The fai_fast developers"}]
    assert PROJECT["authors"][0]["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert [name for name in PROJECT["license-files"] if not (ROOT / name).is_file()] == []
    assert (ROOT / PROJECT["readme"]).is_file()
    assert PROJECT["keywords"]


def test_what_pip_shows_of_an_installed_package():
    distribution = importlib.metadata.distribution("fai-fast")
    if Path(distribution.locate_file("fai_fast/__init__.py")) != Path(fai_fast.__file__):
        pytest.skip("fai_fast is imported from a checkout; what is installed is of another time")
    shown = distribution.metadata
    assert shown["Summary"] == PROJECT["description"]
    assert shown["Author"] == PROJECT["authors"][0]["name"]
    assert shown["License-Expression"] == PROJECT["license"]
    assert shown["Requires-Python"] == PROJECT["requires-python"]
    assert shown.get_all("Classifier") == PROJECT["classifiers"]
    assert shown["Version"] == fai_fast.__version__
    assert "UNKNOWN" not in shown.values()


def test_classifiers_tell_the_truth():
    classifiers = PROJECT["classifiers"]
    assert len(classifiers) == len(set(classifiers))
    # With an expression in `license` an index refuses the classifier.
    assert not [text for text in classifiers if text.startswith("License ::")]
    assert "Typing :: Typed" in classifiers
    assert (ROOT / "python" / "fai_fast" / "py.typed").is_file()
    assert "Environment :: Console" in classifiers
    assert PROJECT["scripts"]
    systems = [text for text in classifiers if text.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]


def test_the_pythons_are_those_that_pip_accepts():
    minors = [int(version.split(".")[1]) for version in PYTHONS]
    assert PROJECT["requires-python"] == f">=3.{minors[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_addresses_are_not_made_up():
    """Until there is a public home. Whoever adds one adds all of them, and the expectation here."""
    assert "urls" not in PROJECT


# ---------------------------------------------------------------------------------------------------- wheels


def test_a_wheel_for_every_python():
    assert shlex.split(WHEELS["build"]) == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]
    assert "*-musllinux_*" in WHEELS["skip"]
    assert WHEELS["manylinux-x86_64-image"] == WHEELS["manylinux-aarch64-image"] == "manylinux_2_28"


def test_wheels_have_the_kernels():
    environment = WHEELS["linux"]["environment"]
    assert environment["FAI_FAST_CUDA"] == "ON"
    script = (ROOT / "tools" / "manylinux_cuda.sh").read_text(encoding="utf-8")
    assert WHEELS["linux"]["before-all"] == "bash {project}/tools/manylinux_cuda.sh"
    # What the script installs is what the build is pointed to.
    toolkit = re.fullmatch(r"/usr/local/cuda-(\d+)\.(\d+)/bin/nvcc", environment["CUDACXX"])
    assert f"cuda-minimal-build-{toolkit[1]}-{toolkit[2]}" in script
    assert f"Environment :: GPU :: NVIDIA CUDA :: {toolkit[1]}" in PROJECT["classifiers"]
    toolset = re.fullmatch(r"/opt/rh/(gcc-toolset-\d+)/root/usr/bin/g\+\+", environment["CXX"])
    assert f"{toolset[1]}-gcc-c++" in script
    assert environment["CUDAHOSTCXX"] == environment["CXX"]
    assert environment["CC"] == environment["CXX"].replace("g++", "gcc")


def test_wheels_are_tried_before_they_leave():
    (arm,) = WHEELS["overrides"]
    assert arm["select"] == "*-manylinux_aarch64"
    for commands in (WHEELS["test-command"], arm["test-command"]):
        assert "build_info()['cuda']['compiled']" in commands[0]
        assert "{project}/tests/test_golden.py" in commands[1]
    assert WHEELS["test-command"][2] == "fai-fast demo"
    # The demo that the container of aarch64 cannot run.
    job = workflow("wheels.yml")["jobs"]["install"]
    assert "ubuntu-24.04-arm" in job["strategy"]["matrix"]["runner"]
    assert "fai-fast demo" in steps(job)


# -------------------------------------------------------------------------------------- source distribution


def sources():
    """Every file of the repository but those that Git ignores too."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    files = {path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()}
    return {
        path.as_posix()
        for path in files
        if path.parts[0] != ".git"
        and not any(
            fnmatch.fnmatch(part, name) for part in [*path.parts, path.as_posix()] for name in ignored
        )
    }


@pytest.mark.slow
def test_the_source_distribution_is_the_whole_repository(tmp_path):
    # In the gate, which installs scikit-build-core for its other builds; the tests' requirements do not have it.
    script = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as tar:
        names = {member.name.partition("/")[2] for member in tar if member.isfile()}
    assert names - {"PKG-INFO"} == sources() - {"PKG-INFO"}
    assert {"CMakeLists.txt", "constraints.txt", "tests/test_golden.py"} <= names
    assert len([name for name in names if name.startswith("tests/data/postprocess/")]) == 11


# -------------------------------------------------------------------------------------------------- workflows


def test_both_workflows_are_here():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "wheels.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_can_do_only_what_they_need(path):
    content = workflow(path.name)
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        assert job.get("permissions", {}) == ({"id-token": "write"} if name == "publish" else {})
        for step in job["steps"]:
            # A tag can be moved to other code; the commit behind it cannot.
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step.get("uses", f"none/none@{'0' * 40}"))
            # What comes from outside reaches a shell by its environment only.
            assert "${{" not in step.get("run", "")
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_scripts_in_workflows_parse(path):
    for job in workflow(path.name)["jobs"].values():
        for step in job["steps"]:
            subprocess.run(["bash", "-n"], input=step.get("run", ""), text=True, check=True)


def test_the_gate_runs_on_every_change():
    content = workflow("ci.yml")
    # YAML 1.1 reads the key `on` as a boolean.
    assert content[True] == {"push": {"branches": ["main"]}, "pull_request": None}
    assert steps(content["jobs"]["gate"])[-1] == "bash .ci/run"


def test_wheels_are_published_on_a_tag_when_all_else_has_passed():
    content = workflow("wheels.yml")
    jobs = content["jobs"]
    assert content[True]["push"] == {"tags": ["v*"]}
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
    assert jobs["publish"]["if"] == "github.event_name == 'push' && github.ref_type == 'tag'"
    assert jobs["publish"]["environment"]
    assert jobs["wheels"]["needs"] == "sdist"
    assert any("sdist/*.tar.gz" in step for step in steps(jobs["wheels"]))
    machines = jobs["wheels"]["strategy"]["matrix"]["include"]
    assert [machine["arch"] for machine in machines] == ["x86_64", "aarch64"]
    assert jobs["install"]["strategy"]["matrix"]["python"] == PYTHONS


def test_a_change_of_what_builds_wheels_builds_them():
    for pattern in workflow("wheels.yml")[True]["pull_request"]["paths"]:
        assert list(ROOT.glob(pattern)), f"{pattern}: nothing is there"


# ---------------------------------------------------------------------------------------------------- scripts


@pytest.mark.parametrize("name", ["debian_root.sh", "manylinux_cuda.sh", "other_system.sh", "wheel.sh"])
def test_scripts_parse(name):
    subprocess.run(["bash", "-n", str(ROOT / "tools" / name)], check=True)
    assert os.access(ROOT / "tools" / name, os.X_OK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wheel.sh", "--root", "x"], "unknown option --root"),
        (["wheel.sh", "--out"], "--out needs a value"),
        (["wheel.sh", "--python", "no-such-python"], "--python no-such-python: there is no such program"),
        (["other_system.sh", "--root"], "[--user] [--dry-run] [SUITE]"),
        (["other_system.sh", "trixie", "sid"], "[--user] [--dry-run] [SUITE]"),
        (["debian_root.sh"], "SUITE FOLDER"),
        (["debian_root.sh", "bookworm"], "SUITE FOLDER"),
        (["debian_root.sh", "--make", "bookworm", "x"], "SUITE FOLDER"),
        (["debian_root.sh", "--run", "x"], "SUITE FOLDER"),
        (["debian_root.sh", "--run", ".", "true"], "was not made by this script"),
        (["debian_root.sh", "bookworm", "."], "was not made by this script"),
        (["debian_root.sh", "make_root", "x", "bookworm", "x"], "for this script's own use"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_scripts_refuse_what_they_do_not_understand(arguments, message, tmp_path):
    if message == "was not made by this script" and os.geteuid() != 0:
        message = "needs root"
    command = ["bash", str(ROOT / "tools" / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_system_runs_what_the_readme_says(tmp_path):
    command = ["bash", str(ROOT / "tools" / "other_system.sh"), "--user", "--dry-run", "sid"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    where, *commands = done.stdout.splitlines()
    assert where == "# in sid, as tester"
    assert [line.rpartition(" && ")[2] for line in commands] == ["fai-fast demo", "pytest"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"```bash\n{line}\n```\n" in readme for line in commands)
