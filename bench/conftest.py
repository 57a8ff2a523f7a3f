from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fai_fast.errors import CudaError

from bench import gpu, peers, plot, report, streams
from bench.floor import Floor

_RESULTS = pytest.StashKey[list[report.Result]]()
_GPU = pytest.StashKey[gpu.Report]()
_STREAMS = pytest.StashKey[streams.Report]()
_END = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fai_fast benchmarks")
    group.addoption("--bench-quick", action="store_true", help="fewer cases and rounds, for CI")
    group.addoption("--bench-json", type=Path, metavar="PATH", help="write results and machine to PATH")
    group.addoption("--bench-budget", type=float, metavar="SECONDS", help="begin no GPU case later than this")
    group.addoption("--all-models", action="store_true", help="every model of the registry, on a GPU")
    group.addoption("--plot", type=_figure, metavar="PATH", help="draw accuracy over speed (.png or .svg)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RESULTS] = []
    config.stash[_GPU] = gpu.Report()
    config.stash[_STREAMS] = streams.Report()
    config.stash[_END] = time.monotonic() + (config.getoption("--bench-budget") or float("inf"))
    config.addinivalue_line("markers", "full: left out by --bench-quick")
    # A case that fails its check or is skipped before the clock starts says so by itself.
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--bench-quick"):
        full = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if item not in full]


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads of the contenders' own pools while the case runs; the test's parameter."""
    count: int = request.param
    with _cv2_threads(count), _torch_threads(count):
        yield count


@contextmanager
def _cv2_threads(count: int) -> Iterator[None]:
    if peers.load("opencv") is None:
        yield
        return
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    yield
    cv2.setNumThreads(before)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    if peers.load("torch_steps") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


Compare = Callable[..., None]


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark) -> Compare:
    """Times ours alone for pytest-benchmark's own table and JSON, then against the peers in turns."""
    quick = request.config.getoption("--bench-quick")

    def run(
        kernel: str,
        case: str,
        threads: int,
        floor: Floor,
        ours: Callable[[], object],
        rivals: dict[str, Callable[[], object]],
        agreement: dict[str, float] | None = None,
        stages: dict[str, float] | None = None,
    ) -> None:
        benchmark.group = kernel
        report.settle()
        benchmark.pedantic(ours, rounds=10 if quick else 50, warmup_rounds=3)
        times, rounds, others = report.interleave(
            {report.OURS: ours, **rivals}, budget=0.3 if quick else 4.0, min_rounds=2 if quick else 9
        )
        request.config.stash[_RESULTS].append(
            report.Result(kernel, case, threads, floor, times, rounds, agreement or {}, stages or {}, others)
        )
        # After every case: a run may be cut short.
        _write(request.config)

    return run


@pytest.fixture
def gpu_report(request: pytest.FixtureRequest) -> Iterator[gpu.Report]:
    """Where a GPU case puts its figures, which are written down after every case, as those of `compare` are."""
    config = request.config
    if time.monotonic() > config.stash[_END]:
        found = config.stash[_GPU]
        found.notes.append(f"not measured, no time was left: {request.node.name}")
        pytest.skip("--bench-budget is used up")
    yield config.stash[_GPU]
    _write(config)


@pytest.fixture(scope="session")
def card():
    """The first GPU; what asks for it is skipped where there is none."""
    try:
        return gpu.card()
    except CudaError as error:
        if gpu.required():
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str | Path:
    return os.environ.get("FAI_FAST_CACHE") or tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def effort(request: pytest.FixtureRequest) -> float:
    """How much is measured: 1, or far less for --bench-quick."""
    return 0.02 if request.config.getoption("--bench-quick") else 1.0


@pytest.fixture(scope="session")
def frame_size(effort: float) -> tuple[int, int]:
    return (72, 128) if gpu.is_trial(effort) else (1080, 1920)


@pytest.fixture
def stream_report(request: pytest.FixtureRequest) -> Iterator[streams.Report]:
    """Where a case of streams or starts puts its figures, which are written down after every case."""
    yield request.config.stash[_STREAMS]
    _write(request.config)


def _write(config: pytest.Config) -> Path | None:
    path: Path | None = config.getoption("--bench-json")
    if path is None or not (config.stash[_RESULTS] or config.stash[_GPU] or config.stash[_STREAMS]):
        return None
    written = json.loads(report.to_json(config.stash[_RESULTS], peers.absent))
    written.update(config.stash[_STREAMS].as_dict())
    if found := config.stash[_GPU]:
        written["gpu"] = found.as_dict()
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(written, indent=1) + "\n")
    part.replace(path)
    return path


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if results := config.stash[_RESULTS]:
        terminalreporter.section("fai_fast against its peers: medians of interleaved rounds, in ms")
        for line in report.table(results, peers.absent):
            terminalreporter.write_line(line)
    if videos := config.stash[_STREAMS]:
        terminalreporter.section("fai_fast from a video, and from its start: medians of passes in turns")
        # Else they stand under the table of the kernels.
        absent = {} if config.stash[_RESULTS] else peers.absent
        for line in [*videos.table(), *(f"absent: {name} ({reason})" for name, reason in absent.items())]:
            terminalreporter.write_line(line)
    if found := config.stash[_GPU]:
        terminalreporter.section("fai_fast on a GPU")
        for line in found.table():
            terminalreporter.write_line(line)
    if path := _write(config):
        terminalreporter.write_line(f"written to {path}")
    if path := config.getoption("--plot"):
        terminalreporter.write_line(_drawn(found, path))


def _figure(text: str) -> Path:
    path = Path(text)
    plot.check_suffix(path)
    return path


def _drawn(found: gpu.Report, path: Path) -> str:
    """Draws what was measured, and says so; or why there is nothing to draw."""
    if not found.models:
        return f"not drawn: {path}: no model was measured on a GPU"
    try:
        plot.draw(found.as_dict(), path)
    except (ImportError, ValueError) as error:
        return f"not drawn: {path}: {error}"
    return f"drawn: {path}"
