from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import peers, report
from bench.floor import Floor

_RESULTS = pytest.StashKey[list[report.Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fai_fast benchmarks")
    group.addoption("--bench-quick", action="store_true", help="fewer cases and rounds, for CI")
    group.addoption("--bench-json", type=Path, metavar="PATH", help="write results and machine to PATH")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RESULTS] = []
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
        benchmark.pedantic(ours, rounds=10 if quick else 50, warmup_rounds=3)
        times, rounds = report.interleave(
            {report.OURS: ours, **rivals}, budget=0.3 if quick else 4.0, min_rounds=2 if quick else 5
        )
        request.config.stash[_RESULTS].append(
            report.Result(kernel, case, threads, floor, times, rounds, agreement or {}, stages or {})
        )

    return run


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[_RESULTS]
    if not results:
        return
    terminalreporter.section("fai_fast against its peers: medians of interleaved rounds, in ms")
    for line in report.table(results, peers.absent):
        terminalreporter.write_line(line)
    if path := config.getoption("--bench-json"):
        path.write_text(report.to_json(results, peers.absent) + "\n")
        terminalreporter.write_line(f"written to {path}")
