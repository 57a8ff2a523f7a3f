"""tools/gpu_check.sh and the GPU part of bench/ without a GPU: what they count, and what they write."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fai_fast.engines.gpu import Device

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tools")]
import gpu_check  # noqa: E402

from bench import gpu, plot, upload  # noqa: E402

CARD = {"name": "A card", "compute_cap": "9.0", "driver_version": "580", "memory.total": "1 MiB"}


def outcome(name, status, code):
    return gpu_check.Outcome(name, status, code)


def stage(name, script, **changes):
    """A stage that runs a few lines of Python."""
    options = {"limit": 60.0, "code": gpu_check.TESTS, **changes}
    return gpu_check.Stage(name, [sys.executable, "-c", script], **options)


# ------------------------------------------------------------------------------------------------ gpu_check


def test_the_exit_code_says_what_failed():
    passed = outcome("build", "passed", gpu_check.BUILD)
    cut = outcome("racecheck", "cut", gpu_check.SANITIZERS)
    failed = outcome("benchmarks", "failed", gpu_check.BENCHMARKS)
    skipped = outcome("frames", "skipped", gpu_check.GROWTH)
    assert gpu_check.exit_code([passed]) == 0
    assert gpu_check.exit_code([passed, cut]) == 4
    assert gpu_check.exit_code([passed, cut, failed, skipped]) == 4 + 16 + 8


def test_no_exit_code_means_something_else():
    codes = [gpu_check.BUILD, gpu_check.TESTS, gpu_check.SANITIZERS, gpu_check.GROWTH, gpu_check.BENCHMARKS]
    every = gpu_check.exit_code([outcome("x", "failed", code) for code in codes])
    # 124 and 137 are those of a command that ran out of time.
    assert every == sum(codes) < gpu_check.MACHINE < 64


def test_a_stage_gets_what_is_left():
    reserve = gpu_check._RESERVE_S
    assert gpu_check.allowed(60, 0, 500) == 60
    assert gpu_check.allowed(60, 460, 500) == 40 - reserve
    assert gpu_check.allowed(60, 500 - reserve, 500) <= 0


@pytest.mark.parametrize(
    ("capability", "name"), [("7.5", "75-real"), ("9.0", "90-real"), ("12.0", "120-real")]
)
def test_architectures(capability, name):
    assert gpu_check.architecture(capability) == name


def test_a_capability_must_be_one():
    with pytest.raises(ValueError, match=r"capability: got '\[N/A\]'"):
        gpu_check.architecture("[N/A]")


def test_missing_packages(tmp_path):
    folder = tmp_path / "Some_Package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: Some.Package\nVersion: 1.0\n")
    names = ["numpy", "some-package", "fai-fast-is-not-called-so"]
    assert gpu_check.missing(names, [str(tmp_path)]) == ["fai-fast-is-not-called-so"]


def test_tests_are_counted(tmp_path):
    source = tmp_path / "test_a.py"
    source.write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "@pytest.mark.parametrize('i', range(3))\n"
        "def test_left_out(i): pytest.skip('no GPU')\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('broken')\n"
        "def test_error(broken): pass\n"
    )
    junit = tmp_path / "out.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={junit}",
        str(source),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1
    found = gpu_check.counts(junit)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 3)
    assert found["reasons_of_skipped"] == {"no GPU": 3}
    assert {item["test"] for item in found["failures"]} == {"test_a.test_wrong", "test_a.test_error"}
    assert any("assert 1 == 2" in item["message"] for item in found["failures"])
    assert gpu_check.counts(tmp_path / "none.xml") is None


def test_a_stage_passes_or_fails(tmp_path):
    log = tmp_path / "log.txt"
    environment = {"GREETING": "good morning"}
    passed = gpu_check.run(
        stage("a", "import os; print(os.environ['GREETING'])", environment=environment), 60, log
    )
    failed = gpu_check.run(stage("b", "print('bad'); raise SystemExit(3)"), 60, log)
    assert (passed.status, passed.tail) == ("passed", "good morning\n")
    assert (failed.status, failed.why, failed.tail) == ("failed", "exit code 3", "bad\n")
    assert "=== a" in log.read_text()
    assert "=== b" in log.read_text()


@pytest.fixture(params=["foreground", "background"])
def job(request):
    """This process as a shell starts it: a job in the background ignores SIGINT, and hands that down."""
    kind = signal.default_int_handler if request.param == "foreground" else signal.SIG_IGN
    before = signal.signal(signal.SIGINT, kind)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def out_of_time(tmp_path, monkeypatch):
    """Runs a stage whose time is over as soon as it has written "working", however slow this machine is."""
    log = tmp_path / "log.txt"

    class Impatient(subprocess.Popen):
        waited = False

        def wait(self, timeout=None):
            if not self.waited:
                self.waited = True
                while b"\nworking\n" not in log.read_bytes():
                    assert self.poll() is None, log.read_text()
                    time.sleep(0.01)
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait(timeout)

    monkeypatch.setattr(gpu_check.subprocess, "Popen", Impatient)
    return lambda script: gpu_check.run(stage("slow", script), 60.0, log)


@pytest.mark.usefixtures("job")
def test_a_stage_out_of_time_may_still_write(out_of_time):
    found = out_of_time(
        "import time\n"
        "try:\n"
        "    print('working', flush=True)\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    print('written')\n"
    )
    assert found.status == "cut"
    assert found.tail == "working\nwritten\n"


def test_a_stage_that_will_not_stop_is_killed(out_of_time, monkeypatch):
    monkeypatch.setattr(gpu_check, "_GRACE_S", 0.2)
    script = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("working", flush=True)
time.sleep(600)
"""
    assert out_of_time(script).status == "cut"


def shell(*arguments, **environment):
    return subprocess.run(
        ["bash", str(ROOT / "tools/gpu_check.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable, "FAI_FAST_CUDA": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dry_run_says_what_would_run(tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'A card, 8.9, 580.1, 24576 MiB, 00000000:01:00.0'\n")
    tool.chmod(0o755)
    done = shell(str(tmp_path / "out"), "--dry-run", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    names = [line[2:].split(":")[0] for line in done.stdout.splitlines() if ": at most" in line]
    assert names == [
        *("build", "import"),
        *(f"tests/{name}" for name in gpu_check.TEST_FILES),
        *(f"bench/{name}" for name in gpu_check.BENCH_FILES),
        *("frames", "memcheck", "racecheck"),
    ]
    commands = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert any("cmake.define.CMAKE_CUDA_ARCHITECTURES=89-real" in command for command in commands)
    assert not (tmp_path / "out").exists()


def test_a_trial_on_the_emulator_measures_little():
    done = shell("--dry-run", FAI_FAST_CUDA="EMULATED")
    assert done.returncode == 0, done.stderr
    assert "--bench-quick" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "bild"], "--only: got bild, expected some of build"),
        (["--budget", "1"], "--budget: got 1"),
    ],
)
def test_wrong_arguments(arguments, words):
    done = shell("--dry-run", *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_machine_without_a_gpu(tmp_path, monkeypatch, capsys):
    def none():
        raise ValueError("nvidia-smi: no devices were found")

    monkeypatch.setattr(gpu_check, "gpu", none)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path / "root")
    assert gpu_check.main([str(tmp_path)]) == gpu_check.MACHINE
    assert "no devices were found" in capsys.readouterr().err
    assert "no devices were found" in json.loads((tmp_path / "gpu_check.json").read_text())["notes"][0]
    assert "no devices were found" in (tmp_path / "gpu_check.md").read_text()


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Runs these stages instead of the real ones; the exit code, the JSON and the table."""

    def run(plan, *arguments):
        out = tmp_path / "out"
        monkeypatch.setattr(gpu_check, "gpu", lambda: CARD)
        monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
        monkeypatch.setattr(gpu_check, "prepare", lambda work, log: (work, [str(work)]))
        monkeypatch.setattr(gpu_check, "stages", lambda *_: plan(out))
        code = gpu_check.main([str(out), *arguments])
        return code, json.loads((out / "gpu_check.json").read_text()), (out / "gpu_check.md").read_text()

    return run


def write_json(path, content):
    """Lines of Python that write a file."""
    return f"open({str(path)!r}, 'w').write({json.dumps(content)!r})"


def test_everything_is_written_down(checked):
    def plan(out):
        bench = write_json(out / "bench-test_gpu.json", {"gpu": {"table": ["| a figure |"]}})
        return [
            stage("build", "pass", code=gpu_check.BUILD),
            stage("benchmarks", bench, code=gpu_check.BENCHMARKS, after=["build"]),
            stage("memcheck", "pass", code=gpu_check.SANITIZERS, absent="there is no compute-sanitizer"),
            stage("tests", "print('why'); raise SystemExit(1)", code=gpu_check.TESTS, after=["build"]),
            stage("frames", "pass", code=gpu_check.GROWTH, after=["tests"]),
        ]

    code, result, table = checked(plan)
    assert code == result["exit_code"] == gpu_check.SANITIZERS | gpu_check.TESTS | gpu_check.GROWTH
    status = {item["name"]: (item["status"], item["why"]) for item in result["stages"]}
    assert status == {
        "build": ("passed", ""),
        "benchmarks": ("passed", ""),
        "memcheck": ("skipped", "there is no compute-sanitizer"),
        "tests": ("failed", "exit code 1"),
        "frames": ("skipped", "tests did not pass"),
    }
    assert result["benchmarks"]["gpu"]["table"] == ["| a figure |"]
    assert "| a figure |" in table
    assert "why" in table
    assert "A card" in table


def test_the_budget_cuts_later_stages_and_loses_nothing(checked):
    def plan(out):
        return [
            stage("build", "print('built')", code=gpu_check.BUILD),
            stage("benchmarks", "import time; time.sleep(600)", code=gpu_check.BENCHMARKS),
            stage("memcheck", "pass", code=gpu_check.SANITIZERS),
        ]

    code, result, _ = checked(plan, "--budget", str(gpu_check._RESERVE_S + 4))
    assert [item["status"] for item in result["stages"]] == ["passed", "cut", "cut"]
    assert result["stages"][2]["why"] == "no time was left"
    assert code == gpu_check.BENCHMARKS | gpu_check.SANITIZERS


def test_a_crash_loses_one_stage(checked):
    first = {
        "date": "today",
        "command": "a",
        "gpu": {"kernels": [], "table": ["| kernels |"], "notes": ["n"]},
    }
    second = {"gpu": {"table": ["| models |"], "notes": ["m"]}}
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"

    def plan(out):
        return [
            stage("tests/a", crash),
            stage("tests/b", "pass"),
            stage("bench/a", write_json(out / "bench-test_gpu_kernels.json", first)),
            stage(
                "bench/b",
                write_json(out / "bench-test_gpu.json", second) + f"; {crash}",
                code=gpu_check.BENCHMARKS,
            ),
        ]

    code, result, table = checked(plan)
    assert code == gpu_check.TESTS | gpu_check.BENCHMARKS
    assert [(item["status"], item["why"]) for item in result["stages"]] == [
        ("failed", "ended by SIGSEGV"),
        ("passed", ""),
        ("passed", ""),
        ("failed", "ended by SIGSEGV"),
    ]
    # What the second one had written before it crashed is kept beside what the first one wrote.
    assert result["benchmarks"]["gpu"]["table"] == ["| kernels |", "", "| models |"]
    assert result["benchmarks"]["gpu"]["notes"] == ["n", "m"]
    assert result["benchmarks"]["date"] == "today"
    assert "| kernels |" in table
    assert "| models |" in table


def test_stages_of_a_kind_are_named_together(checked):
    def plan(_):
        return [stage(name, "pass") for name in ("build", "tests/a", "tests/b", "bench/a", "frames")]

    for only, expected in {
        "tests": ["build", "tests/a", "tests/b"],
        "tests/b,frames": ["build", "tests/b", "frames"],
    }.items():
        _, result, _ = checked(plan, "--only", only)
        assert [item["name"] for item in result["stages"]] == expected


def test_the_figures_of_an_earlier_run_are_gone(checked, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/bench-test_gpu.json").write_text('{"gpu": {"table": ["| old |"]}}')
    _, result, table = checked(lambda _: [stage("build", "pass")])
    assert result["benchmarks"] is None
    assert "| old |" not in table


def measured(ms, met):
    return {
        "gpu": {
            "kernels": [{"name": "pack", "case": "a case", "ms": ms}],
            "upload_us": {"a frame": {"a": {"warm": 300.0}, "b": {"warm": 250.0}}},
            "profiled_us": {"a case": {"pack": 1e3 * ms}, "another": "not installed"},
            "models": [
                {
                    "name": "m",
                    "engine": "torch-cuda",
                    "precision": "fp16",
                    "engine_ms": 1.0,
                    "latency": {"host": {"p50": 2.0}},
                    "stages": {"upload": 0.1},
                    "throughput": {"pipelined": 100.0},
                }
            ],
            "targets": [{"what": "fast enough", "met": met}],
            "table": ["| a figure |"],
        }
    }


def test_a_run_stands_beside_an_earlier_one(checked, tmp_path):
    def plan(ms, met):
        return lambda out: [
            stage("build", "pass"),
            stage("bench/test_gpu", write_json(out / "bench-test_gpu.json", measured(ms, met))),
        ]

    _, before, table = checked(plan(0.05, False))
    assert "Compared" not in table
    earlier = tmp_path / "earlier.json"
    before["machine"]["gpu"]["name"] = "Another card"
    before["benchmarks"]["gpu"]["profiled_us"]["a case"]["finish"] = 3.0
    earlier.write_text(json.dumps(before))
    _, result, table = checked(plan(0.025, True), "--compare", str(earlier))
    assert result["comparison"][0] == f"## Compared with {before['date']}, Another card"
    for line in (
        "Another card: this one is A card.",
        "| pack, a case | 0.05 ms | 0.025 ms | 0.50 |",
        "| profiler, a case: finish | 3 us | - |  |",
        "| m, torch-cuda fp16: host, p50 | 2 ms | 2 ms | 1.00 |",
        "| a frame to the card, the best way | 250 us | 250 us | 1.00 |",
        "| m, torch-cuda fp16: pipelined | 100 frames/s | 100 frames/s | 1.00 |",
        "- fast enough: met, before NOT MET",
    ):
        assert line in table.splitlines()
    assert any(line.startswith("| stage build |") for line in table.splitlines())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"date": "x", "machine": {}}', None])
def test_what_is_no_earlier_result_is_refused(tmp_path, capsys, content):
    file = tmp_path / "gpu_check.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit):
        gpu_check.main([str(tmp_path / "out"), "--compare", str(file)])
    said = capsys.readouterr().err
    assert f"--compare: got {file}, expected the gpu_check.json of an earlier run" in said
    assert not (tmp_path / "out").exists()


def test_the_first_results_of_a_gpu_are_compared_with():
    found = json.loads((ROOT / "bench/results/nvidia-h200-2026-11-26-check.json").read_text())
    lines = gpu_check.comparison(found, {**found, "benchmarks": None})
    assert "| bisenetformer-m-ade, torch-cuda fp16: engine alone | 1.093 ms | - |  |" in lines


# ---------------------------------------------------------------------------------------------------- bench


def test_percentiles():
    found = gpu.Percentiles.of(list(range(101)))
    assert (found.p50, found.p90, found.p99, found.calls) == (50, 90, 99, 101)


def test_targets():
    assert gpu.Target("x", 2.0, 2.0).met
    assert not gpu.Target("x", 2.1, 2.0).met
    assert gpu.Target("x", 10.0, 10.0, at_most=False).met
    assert str(gpu.Target("x", 9.0, 10.0, at_most=False)) == "x: 9 >= 10: NOT MET"


def kernel(**changes):
    options = {"times": {"raw": 0.032, "events": 0.002}, "memory": 3_200_000, "link": 0, "target": 2.0}
    return gpu.Kernel("preprocess", "a case", why="", **{**options, **changes})


def model_run(**changes):
    latency = gpu.Percentiles(1.0, 1.1, 1.2, 10)
    options = {
        "name": "bisenetformer-m-ade",
        "size": (640, 640),
        "frame": (1080, 1920),
        "engine": "torch-cuda",
        "precision": "fp16",
        "execution": "one captured CUDA graph",
        "latency": {
            "fai_fast, host": latency,
            "plain torch, fp32 eager": gpu.Percentiles(12.0, 13.0, 14.0, 10),
        },
        "engine_ms": 0.5,
        "engine_how": "",
        "engine_waited": latency,
        "stages": {"engine": 0.5},
        "throughput": {"pipelined, host": 1000.0},
        "agreement": {"fai_fast, host": 20.0, "plain torch, fp32 eager": 20.0},
        "published": [{"engine": "x", "device": "Tesla T4", "im_size": 640, "mean_ms": 5.388, "fps": 185}],
    }
    return gpu.ModelRun(**{**options, **changes})


@pytest.fixture
def on_a(monkeypatch):
    """Makes a card of that name the first GPU, whose memory moves 640 GB/s."""

    def put(name):
        monkeypatch.setattr(gpu, "card", lambda: Device(0, name, (9, 0), 1 << 30, 132, "GPU-0"))
        known = gpu.Ceilings(memory=640e9, memory_from="a test", copy=None, upload=24e9, launch=0.008)
        monkeypatch.setattr(gpu, "ceilings", lambda: known)

    return put


def test_a_kernel_against_its_floor(on_a):
    on_a("A card")
    item = kernel(link=240_000).as_dict(gpu.ceilings())
    assert item["ms"] == pytest.approx(0.03)
    assert item["floor_ms"] == pytest.approx(0.005 + 0.01)
    assert item["over_floor"] == pytest.approx(2.0)
    assert item["floor_t4_ms"] == pytest.approx(0.01 + 0.02)


def test_a_kernel_is_judged_by_a_launch_and_its_floor(on_a):
    on_a("A card")
    target = gpu.Target("postprocess", 0.09, 0.08)
    report = gpu.Report([kernel(), kernel(launches=0.5), kernel(target=None)], [model_run(targets=[target])])
    one, half, last = report.targets()
    assert one.value == half.value == pytest.approx(0.03)
    assert one.limit == pytest.approx(0.008 + 2 * 0.005)
    assert half.limit == pytest.approx(0.004 + 2 * 0.005)
    assert last is target


def test_a_report_is_json_and_a_table(on_a):
    on_a("A card")
    report = gpu.Report([kernel()], [model_run()])
    written = json.loads(json.dumps(report.as_dict()))
    assert written["emulated"] is False
    assert written["models"][0]["latency"]["fai_fast, host"]["p99"] == 1.2
    text = "\n".join(report.table())
    assert "12.0x" in text
    assert "NOT MET" in text
    assert "FocoosAI" not in text


def test_a_t4_is_shown_beside_what_was_published(on_a):
    on_a("Tesla T4")
    assert "FocoosAI, x" in "\n".join(gpu.Report([], [model_run()]).table())


def test_the_emulator_is_judged_by_nothing(on_a, tmp_path):
    on_a(f"{gpu.EMULATED} on the CPU")
    report = gpu.Report([kernel()], [model_run(targets=[gpu.Target("x", 1.0, 2.0)])])
    found = report.as_dict()
    assert found["emulated"] is True
    assert found["targets"] == []
    assert "EMULATED" in "\n".join(found["table"])
    with pytest.raises(ValueError, match="expected times of a GPU"):
        plot.draw(found, tmp_path / "figure.svg")


class FakeRuntime:
    """What cuda-python's functions return, and the order in which they were called."""

    cudaError_t = SimpleNamespace(cudaSuccess=SimpleNamespace(name="cudaSuccess"))
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeRelaxed=2)
    cudaGraph_t = int

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        returned = {
            "cudaStreamEndCapture": (77,),
            "cudaGraphInstantiate": ("executable",),
            "cudaEventCreate": ("event",),
            "cudaEventElapsedTime": (5.0,),
        }

        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == "cudaFree":
                return (SimpleNamespace(name="cudaErrorInvalidValue"),)
            return (self.cudaError_t.cudaSuccess, *returned.get(name, ()))

        return call


@pytest.fixture
def runtime():
    made = gpu.Cuda.__new__(gpu.Cuda)
    made._runtime = FakeRuntime()
    return made


def test_errors_of_cuda_are_raised(runtime):
    assert runtime.cudaEventCreate() == "event"
    assert runtime.cudaStreamSynchronize(3) is None
    assert runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed == 2
    with pytest.raises(RuntimeError, match="cudaFree: cudaErrorInvalidValue"):
        runtime.cudaFree(1)


@pytest.mark.parametrize("kind", ["captured", "adopted", "uncaptured"])
def test_the_engine_alone(runtime, kind):
    enqueued = []

    class Context:
        def capture(self, frame_graph):
            if kind == "captured":
                return frame_graph.capture(enqueued.append)
            if kind == "uncaptured":
                return frame_graph.run_uncaptured(enqueued.append, "it waits")
            frame_graph.enqueue_preprocess()
            frame_graph.enqueue_postprocess()
            frame_graph.adopt(88, self)
            return None

    alone = gpu.EngineGraph(runtime, Context(), 9)
    milliseconds, waited = alone.times(10)
    assert milliseconds == 5.0 / 2  # a row is a fifth of the runs
    assert waited.calls == 10
    names = [call[0] for call in runtime._runtime.calls]
    graph = {"captured": 77, "adopted": 88}.get(kind)
    if graph is None:
        assert alone.uncaptured == "it waits"
        assert "cudaGraphLaunch" not in names
        assert enqueued == [9] * 30
    else:
        assert ("cudaGraphInstantiate", graph, 0) in runtime._runtime.calls
        assert names.count("cudaGraphLaunch") == 30
        alone.close()
        assert runtime._runtime.calls[-1] == ("cudaGraphExecDestroy", "executable")
        assert set(enqueued) == ({9} if kind == "captured" else set())


@pytest.fixture
def on_the_emulator(monkeypatch):
    monkeypatch.setattr(
        gpu, "card", lambda: Device(0, f"{gpu.EMULATED} on the CPU", (7, 5), 1 << 30, 1, "GPU-0")
    )
    upload.measure.cache_clear()
    yield
    upload.measure.cache_clear()


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_every_way_to_the_card_brings_the_frame(on_the_emulator):
    # The program compares what has arrived with what was sent, and says so where it differs.
    ways = upload.measure(27_649, trial=True)
    assert isinstance(ways, upload.Ways), ways
    assert "the driver's pageable copy" in ways.warm
    assert {name.split(" of ")[0] for name in ways.warm} >= {"rounds", "prefixes"}
    assert ways.best in ways.cold
    found = gpu.Report(uploads={"1080x1920 rgb": ways.as_dict()}).table()
    assert sum(line.startswith("- ") for line in found) in (3, 4)


def test_ways_to_the_card_that_cannot_be_measured(on_the_emulator, monkeypatch):
    monkeypatch.setattr(upload, "compiler", lambda _: [sys.executable, "-c", "raise SystemExit('no')"])
    assert "no" in upload.measure(100)
    upload.measure.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "card", lambda: Device(0, "A card", (9, 0), 1 << 30, 1, "GPU-0"))
    monkeypatch.setenv("PATH", "")
    assert upload.measure(100) == "there is no nvcc on the PATH"


def test_contenders_take_turns():
    order = []
    found = gpu.interleave({name: lambda name=name: order.append(name) for name in "abc"}, 0, 3, per_round=2)
    assert {name: len(times) for name, times in found.items()} == {"a": 6, "b": 6, "c": 6}
    assert "".join(order) == "aaabbbccc" + "bbbcccaaa" + "cccaaabbb"


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_a_figure(on_a, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    on_a("A card")
    path = tmp_path / f"figure{suffix}"
    plot.draw(gpu.Report([], [model_run()]).as_dict(), path)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_a_figure_shows_ours_beside_what_was_published(on_a):
    on_a("A card")
    found = plot.series(gpu.Report([], [model_run()]).as_dict(), "ade")
    whole, alone, focoos, others = found.values()
    assert [(p.name, p.fps, p.accuracy) for p in whole] == [("bisenetformer-m-ade", 1000.0, 43.43)]
    assert alone[0].fps == 2000.0
    assert ("fai-mf-l-ade", 73, 48.14) in [(p.name, p.fps, p.accuracy) for p in focoos]
    assert len(others) == 7
    assert all("A card" in name for name in list(found)[:2])


def test_figures_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"--plot: got figure.txt, expected a name that ends in .png or .svg"
    ):
        plot.check_suffix(tmp_path / "figure.txt")


def test_pinned_and_device_arrays_are_described():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    view = np.asarray(gpu.Array("array", array.ctypes.data, (2, 3)))
    assert np.shares_memory(view, array)
    assert gpu.Array("cuda_array", 256, (2, 3)).__cuda_array_interface__["data"] == (256, False)
