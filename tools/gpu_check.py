"""What tools/gpu_check.sh runs: builds, tests, sanitizers and benchmarks on a CUDA machine, within a time limit.

    tools/gpu_check.sh [OUT_DIR] [--budget SECONDS] [--only STAGE,...] [--compare FILE] [--dry-run]

Needs no network: Python 3.10 or later with PyTorch, the build tools and nvcc. Wheels in .whl/ (which
tools/gpu_check_prepare.sh puts there) are installed for the run, and TensorRT-RTX from .gpu/ where that folder is.

Writes into OUT_DIR (default: $OUT, else build/gpu_check/out): gpu_check.json and gpu_check.md with everything, log.txt
with all output, and what pytest bench/ writes. Every file of tests or benchmarks is a stage in a process of its own:
one that crashes loses its own results alone. `--compare FILE`, an earlier gpu_check.json, puts both runs' figures side
by side. The exit code is the sum of what did not pass: 1 build, 2 tests, 4 sanitizers, 8 growing memory, 16 benchmarks;
32: this machine cannot run it at all. A stage that ran out of time has not passed.

FAI_FAST_CUDA=EMULATED tries the script itself on a machine without a GPU, with a build for tests: few runs, no figures.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD, TESTS, SANITIZERS, GROWTH, BENCHMARKS, MACHINE = 1, 2, 4, 8, 16, 32
# Files of tests and benchmarks, and the seconds that each may take: about twice what it took on an H200.
TEST_FILES = {
    "test_gpu_kernels": 30.0,
    "test_gpu_sum": 20.0,
    "test_frame_graph": 40.0,
    "test_gpu_model": 30.0,
    "test_gpu_engines": 45.0,
}
BENCH_FILES = {"test_gpu_kernels": 40.0, "test_gpu": 100.0}
BUDGET_S = 240.0  # so that a check before a change and one after it fit into ten minutes
_RESERVE_S = 8.0  # of the whole budget, for writing results
_GRACE_S = 5.0  # a stage that is told to stop may still write down what it has
_NO_TESTS = 5  # pytest's exit code where nothing was selected
_TAIL = 3000
_TOOLKIT = "/usr/local/cuda/bin"  # often there and not on the PATH

# Packages: what each stage cannot do without, by the names that pip knows.
NEEDS = {
    "build": ("pip", "scikit-build-core", "pybind11", "cmake", "ninja"),
    "run": ("numpy", "onnx", "safetensors", "pillow", "filelock", "platformdirs", "tqdm"),
    "tests": ("pytest", "hypothesis"),
    "bench": ("pytest", "pytest-benchmark", "torch"),
}
USEFUL = {
    "cuda-bindings": "the engine alone and the memory's speed",
    "matplotlib": "the figure",
    "openvino": "the CPU engine that some tests compare with",
    "onnxruntime": "the CPU engine that verifies exported graphs",
    "scipy": "some tests",
}


@dataclass(frozen=True)
class Stage:
    """A command, and how long it may take.

    Attributes:
        code: of the exit code, where it does not pass.
        after: stages that must have passed.
        absent: why it cannot run here, or "".
        junit: where pytest counts its tests.
    """

    name: str
    command: Sequence[str]
    limit: float
    code: int
    environment: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[str] = ()
    absent: str = ""
    junit: Path | None = None


@dataclass
class Outcome:
    """What became of a stage: "passed", "failed", "cut" (out of time), "skipped"."""

    name: str
    status: str
    code: int
    seconds: float = 0.0
    limit: float = 0.0
    why: str = ""
    command: str = ""
    tests: dict[str, Any] | None = None
    tail: str = ""


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """The sum of the codes of all stages that did not pass; a skipped stage counts unless its code is 0."""
    code = 0
    for outcome in outcomes:
        if outcome.status != "passed":
            code |= outcome.code
    return code


def allowed(limit: float, elapsed: float, budget: float) -> float:
    """Seconds for a stage of `limit` when `elapsed` of `budget` have passed; not positive where nothing is left."""
    return min(limit, budget - _RESERVE_S - elapsed)


def architecture(capability: str) -> str:
    """CMake's name for machine code of a compute capability: "7.5" -> "75-real"."""
    if not re.fullmatch(r"[0-9]+\.[0-9]", capability):
        raise ValueError(f"capability: got {capability!r}, expected such as '7.5'")
    return f"{capability.replace('.', '')}-real"


def missing(names: Iterable[str], path: Sequence[str] | None = None) -> list[str]:
    """Those of the packages that are not installed, on `path` or on this Python's own."""
    places = sys.path if path is None else [*path, *sys.path]
    found = {
        re.sub(r"[-_.]+", "-", item.metadata["Name"] or "").lower()
        for item in importlib.metadata.distributions(path=list(places))
    }
    return [name for name in names if name not in found]


def counts(junit: Path) -> dict[str, Any] | None:
    """How many tests passed, failed and were skipped, and what the failing ones said; None without a file."""
    try:
        suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return None
    total, failed, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "skipped")
    )
    errors = sum(int(suite.get("errors", 0)) for suite in suites)
    wrong, left = [], {}
    for suite in suites:
        for case in suite.iter("testcase"):
            name = f"{case.get('classname')}.{case.get('name')}"
            for kind in ("failure", "error"):
                wrong += [
                    {"test": name, "message": (problem.get("message") or "")[:600]}
                    for problem in case.iter(kind)
                ]
            for reason in case.iter("skipped"):
                text = (reason.get("message") or "")[:200]
                left[text] = left.get(text, 0) + 1
    return {
        "passed": total - failed - errors - skipped,
        "failed": failed + errors,
        "skipped": skipped,
        "failures": wrong[:20],
        "reasons_of_skipped": left,
    }


def run(stage: Stage, limit: float, log: Path) -> Outcome:
    """Runs a stage's command with its output in `log`; told to stop after `limit` seconds, then killed."""
    outcome = Outcome(stage.name, "passed", stage.code, limit=limit, command=shlex.join(stage.command))
    started = time.monotonic()
    with log.open("ab") as out:
        out.write(f"\n=== {stage.name} (at most {limit:.0f} s): {outcome.command}\n".encode())
        out.flush()
        begin = out.tell()
        process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env={**os.environ, **stage.environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_hear_interrupts,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            outcome.status, outcome.why = "cut", f"longer than {limit:.0f} s"
            code = _stop(process)
        except BaseException:
            _stop(process)
            raise
    outcome.seconds = time.monotonic() - started
    with log.open("rb") as written:
        written.seek(begin)
        outcome.tail = written.read().decode(errors="replace")[-_TAIL:]
    if stage.junit is not None:
        outcome.tests = counts(stage.junit)
    if outcome.status == "passed" and code == _NO_TESTS and stage.junit is not None:
        outcome.status, outcome.why = "skipped", "no such test"
    elif outcome.status == "passed" and code != 0:
        outcome.status, outcome.why = "failed", f"exit code {code}" if code > 0 else _signal_name(-code)
    return outcome


def _hear_interrupts() -> None:
    """In a stage's process: whoever starts this script in the background of a shell hands down an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(number).name}"
    return f"ended by signal {number}"


def _stop(process: subprocess.Popen[bytes]) -> int:
    for order, grace in ((signal.SIGINT, _GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, order)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(grace)
    raise AssertionError("a killed process ends")


# ------------------------------------------------------------------------------------------------- this machine


def emulated() -> bool:
    return os.environ.get("FAI_FAST_CUDA") == "EMULATED"


def gpu() -> dict[str, str]:
    """The first GPU, as nvidia-smi has it; raises OSError or ValueError with the reason where there is none."""
    if emulated():
        return {"name": "CUDA emulated", "compute_cap": "7.5"}
    fields = ("name", "compute_cap", "driver_version", "memory.total", "pci.bus_id")
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise ValueError(f"nvidia-smi: {(done.stderr or done.stdout).strip() or 'no output'}")
    values = [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")]
    return dict(zip(fields, values, strict=True))


def machine(card: Mapping[str, str], site: Path) -> dict[str, Any]:
    packages = [*dict.fromkeys(name for names in NEEDS.values() for name in names), *USEFUL]
    versions = {}
    for name in packages:
        found = list(importlib.metadata.distributions(name=name, path=[str(site), *sys.path]))
        versions[name] = found[0].version if found else None
    nvcc = shutil.which("nvcc")
    text = "" if nvcc is None else subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release ([0-9.]+)", text)
    return {
        "gpu": dict(card),
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "nvcc": release[1] if release else None,
        "packages": versions,
    }


# ------------------------------------------------------------------------------------------------------- stages


def stages(out: Path, work: Path, capability: str, site: Path, path: Sequence[str]) -> list[Stage]:
    """Everything that is run, in order; figures come before what a later run can do as well.

    Args:
        out: where results go.
        work: for files that nobody keeps but the next call on this machine.
        capability: of the GPU, such as "9.0".
        site: where packages are installed.
        path: folders with packages, `site` among them.
    """
    python = sys.executable
    environment = {
        "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "FAI_FAST_CACHE": str(work / "cache"),
        "FAI_FAST_REQUIRE_GPU": "0" if emulated() else "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(work / "hypothesis"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    # Warnings of packages that are newer here than where the tests were written are no errors of ours.
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    sanitizer = shutil.which("compute-sanitizer")

    def lacking(*kinds: str) -> str:
        names = missing((name for kind in kinds for name in NEEDS[kind]), path)
        return f"not installed: {', '.join(names)}" if names else ""

    def sanitized(tool: str) -> Stage:
        return Stage(
            tool,
            [
                sanitizer or "compute-sanitizer",
                "--tool",
                tool,
                "--error-exitcode",
                "9",
                "--print-limit",
                "20",
                python,
                "-m",
                "bench.gpu",
                "kernels",
            ],
            limit=30,
            code=SANITIZERS,
            environment=environment,
            after=["build"],
            absent="" if sanitizer else "there is no compute-sanitizer",
        )

    build = Stage(
        "build",
        [
            *(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"),
            *("--upgrade", "--target", str(site), "-C", f"build-dir={work / 'build'}"),
            *("-C", f"cmake.define.CMAKE_CUDA_ARCHITECTURES={architecture(capability)}", str(ROOT)),
        ],
        limit=120,
        code=BUILD,
        environment={**environment, "FAI_FAST_CUDA": "EMULATED" if emulated() else "ON"},
        absent=lacking("build")
        or ("" if emulated() or shutil.which("nvcc") else "there is no nvcc on the PATH"),
    )
    started = Stage(
        "import",
        [python, "-c", "import fai_fast; print(fai_fast.build_info()); fai_fast._core.cuda_devices()"],
        limit=20,
        code=BUILD,
        environment=environment,
        after=["build"],
        absent=lacking("run"),
    )

    def tested(name: str, limit: float) -> Stage:
        file = f"tests/{name}.py"
        junit = work / f"tests-{name}.xml"
        return Stage(
            f"tests/{name}",
            [*pytest, f"--junitxml={junit}", file],
            limit=limit,
            code=TESTS,
            environment={**environment, "FAI_FAST_LONG": "1"},
            after=["import"],
            absent=lacking("run", "tests") or ("" if (ROOT / file).is_file() else f"there is no {file}"),
            junit=junit,
        )

    def benched(name: str, limit: float) -> Stage:
        junit = work / f"bench-{name}.xml"
        figure = ["--plot", str(out / "figure.png")] if name == "test_gpu" else []
        return Stage(
            f"bench/{name}",
            [
                *(*pytest, f"bench/{name}.py", "--bench-budget", f"{0.8 * limit:.0f}"),
                *("--bench-json", str(out / f"bench-{name}.json"), *figure),
                f"--junitxml={junit}",
                *(["--bench-quick"] if emulated() else []),
            ],
            limit=limit,
            code=BENCHMARKS,
            environment=environment,
            after=["import"],
            absent=lacking("run", "bench"),
            junit=junit,
        )

    growth = Stage(
        "frames",
        [python, "-m", "bench.gpu", "frames", "12" if emulated() else "2000"],
        limit=30,
        code=GROWTH,
        environment=environment,
        after=["import"],
        absent=lacking("run"),
    )
    return [
        *(build, started),
        *(tested(name, limit) for name, limit in TEST_FILES.items()),
        *(benched(name, limit) for name, limit in BENCH_FILES.items()),
        *(growth, sanitized("memcheck"), sanitized("racecheck")),
    ]


def prepare(work: Path, log: Path) -> tuple[Path, list[str]]:
    """Installs the wheels that were brought along; the folder for packages, and all folders with packages."""
    site = work / "site"
    site.mkdir(parents=True, exist_ok=True)
    path = [str(site)]
    commands = []
    if wheels := sorted(map(str, (ROOT / ".whl").glob("*.whl"))):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        commands.append([*pip, "--upgrade", "--target", str(site), *wheels])
    if (ROOT / ".gpu/unpack.sh").is_file():
        path.append(str(work / "tensorrt_rtx"))
        if not (work / "tensorrt_rtx/tensorrt_rtx.py").is_file():
            commands.append(["bash", str(ROOT / ".gpu/unpack.sh"), path[-1]])
    with log.open("ab") as out:
        for command in commands:
            subprocess.run(command, check=True, stdout=out, stderr=out, timeout=120)
    return site, path


# ------------------------------------------------------------------------------------------------------- results


def markdown(result: Mapping[str, Any]) -> str:
    """The table of the stages, what failed, and the benchmarks' tables."""
    card = result["machine"]["gpu"]
    lines = [
        f"# GPU check of {card.get('name', 'no GPU')}, {result['date']}",
        "",
        f"Driver {card.get('driver_version')}, compute capability {card.get('compute_cap')}, "
        f"nvcc {result['machine'].get('nvcc')}, Python {result['machine'].get('python')}; "
        f"{result['seconds']:.0f} s of {result['budget']:.0f} s; exit code {result['exit_code']}.",
        "",
        "| stage | result | s | of | tests | why |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for stage in result["stages"]:
        tests = stage["tests"]
        said = (
            f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped" if tests else ""
        )
        lines.append(
            f"| {stage['name']} | {stage['status']} | {stage['seconds']:.0f} | {stage['limit']:.0f} | {said} "
            f"| {stage['why']} |"
        )
    for note in result["notes"]:
        lines += ["", note]
    for stage in result["stages"]:
        for failure in (stage["tests"] or {}).get("failures", []):
            lines += ["", f"**{failure['test']}**", "", "```", failure["message"], "```"]
        if stage["status"] in ("failed", "cut") and not (stage["tests"] or {}).get("failures"):
            lines += ["", f"**{stage['name']}** ended with:", "", "```", stage["tail"].strip()[-1500:], "```"]
    if result["benchmarks"] and (table := (result["benchmarks"].get("gpu") or {}).get("table")):
        lines += ["", *table]
    if result["comparison"]:
        lines += ["", *result["comparison"]]
    return "\n".join(lines) + "\n"


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One benchmark's result of those that were measured in processes of their own: lists follow each other."""
    if not parts:
        return None
    whole: dict[str, Any] = {**parts[0], "command": "; ".join(str(part.get("command")) for part in parts)}
    figures: dict[str, Any] = {}
    for part in parts:
        for key, value in (part.get("gpu") or {}).items():
            before = figures.get(key)
            if isinstance(value, list) and before is not None:
                figures[key] = [*before, *([""] if key == "table" else []), *value]
            elif isinstance(value, dict) and before is not None:
                figures[key] = {**before, **value}
            else:
                figures[key] = value
    return {**whole, "gpu": figures}


def figures(result: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """What a result measured, by what it is: the value and its unit."""
    found: dict[str, tuple[float, str]] = {}
    measured = (result.get("benchmarks") or {}).get("gpu") or {}
    for kernel in measured.get("kernels", []):
        found[f"{kernel['name']}, {kernel['case']}"] = (kernel["ms"], "ms")
    for case, kernels in measured.get("profiled_us", {}).items():
        if isinstance(kernels, dict):
            found.update({f"profiler, {case}: {name}": (us, "us") for name, us in kernels.items()})
    for frame, ways in measured.get("upload_us", {}).items():
        if ways:
            found[f"{frame} to the card, the best way"] = (min(way["warm"] for way in ways.values()), "us")
    for run in measured.get("models", []):
        name = f"{run['name']}, {run['engine']} {run['precision']}"
        found[f"{name}: engine alone"] = (run["engine_ms"], "ms")
        found.update({f"{name}: {who}, p50": (took["p50"], "ms") for who, took in run["latency"].items()})
        found.update({f"{name}: stage {stage}": (ms, "ms") for stage, ms in run["stages"].items()})
        found.update({f"{name}: {way}": (rate, "frames/s") for way, rate in run["throughput"].items()})
    for stage in result.get("stages", []):
        if stage["status"] == "passed":
            found[f"stage {stage['name']}"] = (stage["seconds"], "s")
    return found


def comparison(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Both results' figures side by side, and the targets that one of them meets and the other does not."""
    card, before = (result["machine"]["gpu"].get("name", "no GPU") for result in (now, earlier))
    lines = [f"## Compared with {earlier['date']}, {before}", ""]
    if card != before:
        lines += [f"Another card: this one is {card}.", ""]
    lines += ["| figure | earlier | now | now / earlier |", "| --- | --- | --- | --- |"]
    old, new = figures(earlier), figures(now)
    for name in [*new, *(name for name in old if name not in new)]:
        then, this = old.get(name), new.get(name)
        ratio = f"{this[0] / then[0]:.2f}" if then and this and then[0] > 0 else ""
        lines.append(f"| {name} | {_figure(then)} | {_figure(this)} | {ratio} |")

    def judged(result: Mapping[str, Any]) -> dict[str, bool]:
        measured = (result.get("benchmarks") or {}).get("gpu") or {}
        return {target["what"]: target["met"] for target in measured.get("targets", [])}

    met, was = judged(now), judged(earlier)
    changed = [
        f"- {what}: {'met' if met[what] else 'NOT MET'}, before {'met' if was[what] else 'NOT MET'}"
        for what in met
        if was.get(what, met[what]) != met[what]
    ]
    return [*lines, *(["", "Targets that changed", "", *changed] if changed else [])]


def _figure(found: tuple[float, str] | None) -> str:
    return "-" if found is None else f"{found[0]:.4g} {found[1]}"


def earlier_result(text: str) -> dict[str, Any]:
    """An earlier gpu_check.json, for argparse."""
    try:
        result = json.loads(Path(text).read_text())
        figures(result)
        comparison(result, result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise argparse.ArgumentTypeError(
            f"got {text}, expected the gpu_check.json of an earlier run ({type(error).__name__}: {error})"
        ) from None
    return dict(result)


def write(out: Path, result: dict[str, Any], earlier: Mapping[str, Any] | None = None) -> None:
    """Into files that are whole at every moment."""
    parts = []
    for name in BENCH_FILES:
        with contextlib.suppress(OSError, ValueError):
            parts.append(json.loads((out / f"bench-{name}.json").read_text()))
    result["benchmarks"] = merged(parts)
    result["comparison"] = comparison(earlier, result) if earlier else []
    for name, text in {
        "gpu_check.json": json.dumps(result, indent=1),
        "gpu_check.md": markdown(result),
    }.items():
        part = out / f"{name}.part"
        part.write_text(text)
        part.replace(out / name)


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="tools/gpu_check.sh", description=__doc__.splitlines()[0])
    default = os.environ.get("OUT") or ROOT / "build/gpu_check/out"
    parser.add_argument("out", nargs="?", type=Path, default=default, help="folder for results")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, help=f"seconds for everything ({BUDGET_S:g})"
    )
    parser.add_argument(
        "--only", default="", help="stages by name, or by what stands before its slash, separated by commas"
    )
    parser.add_argument("--compare", type=earlier_result, metavar="FILE", help="an earlier gpu_check.json")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and end")
    options = parser.parse_args(arguments)
    if not options.budget > _RESERVE_S:
        parser.error(f"--budget: got {options.budget:g}, expected more than {_RESERVE_S:g} seconds")
    only = set(filter(None, options.only.split(",")))
    out, work = options.out.resolve(), ROOT / "build/gpu_check"
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), _TOOLKIT])

    if options.dry_run:
        try:
            card = gpu()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"# no GPU here ({error}): compute capability 7.5 is assumed")
            card = {"compute_cap": "7.5"}
        site = work / "site"
        plan = stages(out, work, card["compute_cap"], site, [str(site)])
        _check_names(parser, only, plan)
        for stage in plan:
            if only and not _named(stage, only):
                continue
            absent = f"; would be skipped here: {stage.absent}" if stage.absent else ""
            print(f"# {stage.name}: at most {stage.limit:.0f} s{absent}\n{shlex.join(stage.command)}")
        print(
            f"# at most {sum(stage.limit for stage in plan):.0f} s, cut to {options.budget:.0f} s; results in {out}"
        )
        return 0

    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    log.write_bytes(b"")
    for name in BENCH_FILES:
        (out / f"bench-{name}.json").unlink(missing_ok=True)  # an earlier run's
    result: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "budget": options.budget,
        "seconds": 0.0,
        "exit_code": MACHINE,
        "machine": {"gpu": {}},
        "notes": [],
        "stages": [],
        "benchmarks": None,
        "comparison": [],
    }
    try:
        card = gpu()
        site, path = prepare(work, log)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        result["notes"].append(f"This machine cannot run the check: {error}")
        write(out, result)
        print(result["notes"][-1], file=sys.stderr)
        return MACHINE
    result["machine"] = machine(card, site)
    result["notes"] += [f"not installed: {name} ({USEFUL[name]})" for name in missing(USEFUL, path)]
    plan = stages(out, work, card["compute_cap"], site, path)
    _check_names(parser, only, plan)
    outcomes: list[Outcome] = []
    for stage in plan:
        if only and not _named(stage, only) and stage.name not in ("build", "import"):
            continue
        elapsed = time.monotonic() - started
        outcome = _attempt(stage, outcomes, allowed(stage.limit, elapsed, options.budget), log)
        outcomes.append(outcome)
        print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s {outcome.why}", flush=True)
        result["seconds"] = time.monotonic() - started
        result["stages"] = [asdict(item) for item in outcomes]
        result["exit_code"] = exit_code(outcomes)
        write(out, result, options.compare)
    print((out / "gpu_check.md").read_text())
    return int(result["exit_code"])


def _attempt(stage: Stage, outcomes: Sequence[Outcome], limit: float, log: Path) -> Outcome:
    passed = {outcome.name for outcome in outcomes if outcome.status == "passed"}
    if before := [name for name in stage.after if name not in passed]:
        return Outcome(stage.name, "skipped", stage.code, why=f"{', '.join(before)} did not pass")
    if stage.absent:
        return Outcome(stage.name, "skipped", stage.code, why=stage.absent)
    if limit <= 0:
        return Outcome(stage.name, "cut", stage.code, why="no time was left")
    if stage.junit is not None:
        stage.junit.unlink(missing_ok=True)
    return run(stage, limit, log)


def _named(stage: Stage, names: set[str]) -> bool:
    return stage.name in names or stage.name.split("/")[0] in names


def _check_names(parser: argparse.ArgumentParser, only: set[str], plan: Sequence[Stage]) -> None:
    known = {name: None for stage in plan for name in (stage.name.split("/")[0], stage.name)}
    if unknown := only - set(known):
        parser.error(f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(known)}")


if __name__ == "__main__":
    sys.exit(main())
