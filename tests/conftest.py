"""What every test run shares. `FAI_FAST_FORCE_ISA=avx2 pytest` runs the suite on another instruction set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import fai_fast
import hypothesis
import pytest
from helpers.hosts import HOSTS, Host, pretend

# Derandomized, so that a red run can be had again. No deadline: sanitizers and busy machines are slow.
hypothesis.settings.register_profile(
    "fai_fast",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("fai_fast")

# PyTorch on one thread: its sums do not hang on how many cores there are, and where others keep those busy its threads
# wait for each other twenty times as long as they work. It reads this when a test first imports it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A name that could be one of transformers' hub is asked for there, again and again for half a minute where there is no
# way to it; with one, a test would hang on what it holds today. It is read when that is imported, too.
os.environ["HF_HUB_OFFLINE"] = "1"

# What users set for themselves changes what is printed, and where addresses of this machine lead.
_FOREIGN = ("all_proxy", "http_proxy", "https_proxy", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")
_FOREIGN += ("COLUMNS", "FORCE_COLOR", "LINES", "PYTHON_COLORS", "FAI_FAST_TRACEBACK")


@pytest.fixture(scope="session", autouse=True)
def _environment_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the home folder by those who name no cache, here and in the processes that are started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAI_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in _FOREIGN:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Every kind of machine in turn, in place of this one: without low precision, with bf16, with fp16 and AMX."""
    pretend(monkeypatch, HOSTS[request.param])
    return HOSTS[request.param]


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX without TensorRT, which is tested elsewhere: its engine is the graph itself."""
    from fai_fast.exporter import tensorrt

    flavour = tensorrt.FLAVOURS["tensorrt_rtx"]
    monkeypatch.setattr(flavour, "version", lambda: "1")
    monkeypatch.setattr(flavour, "build", lambda path, **_: path.read_bytes())


@pytest.fixture
def put_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Host]:
    """Puts this process on the host of that name, as often as it is called."""

    def put(name: str) -> Host:
        pretend(monkeypatch, HOSTS[name])
        return HOSTS[name]

    return put


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a GPU where there is none. With FAI_FAST_REQUIRE_GPU=1 it runs, and fails of what is missing."""
    if item.get_closest_marker("gpu") and os.environ.get("FAI_FAST_REQUIRE_GPU") != "1":
        from helpers import gpu

        if gpu.MISSING:
            pytest.skip(gpu.MISSING)


def pytest_report_header() -> str:
    info = fai_fast.build_info()
    return (
        f"fai_fast {info['version']}: ISA {info['isa']} of {', '.join(info['isas_available'])}; "
        f"{info['threads']} threads; sanitizers: {info['sanitizers'] or 'none'}"
    )
