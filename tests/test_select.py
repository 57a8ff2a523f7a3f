"""Which engine is used, and what is said of the others."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fai_fast import _core
from fai_fast.engines import openvino, select
from fai_fast.errors import CudaError, EngineError
from helpers.processes import complaints

NO_GPU = "no NVIDIA driver: install one"
PACKAGES = (
    "tensorrt",
    "tensorrt_bindings",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "torch",
    "onnxruntime",
    "openvino",
)
FASTEST = "the fastest of those that work"


def card(index, name="NVIDIA L4", capability=(8, 9)):
    return {
        "index": index,
        "name": name,
        "compute_capability": capability,
        "memory": 141 << 30,
        "multiprocessors": 132,
        "uuid": f"GPU-{index}",
    }


class Package:
    """An engine's module, and what became of it."""

    def __init__(self, name, broken, imported):
        self.name, self.broken, self.imported = name, broken, imported

    def version(self):
        self.imported.append(self.name)
        if self.broken:
            raise EngineError(f"{self.name}: {self.broken}")
        return "1.0"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with these GPUs and packages; gives the list of the engines whose packages are imported."""

    def make(gpus=1, installed=PACKAGES, without_cuda=(), broken=None, capability=(8, 9)):
        imported, asked = [], []

        def devices():
            asked.append("devices")
            if not gpus:
                raise CudaError(NO_GPU)
            return [card(index, capability=capability) for index in range(gpus)]

        def folder(package):
            place = tmp_path / package
            if package not in installed:
                return None
            for part in ("lib/libtorch_cuda.so", "capi/libonnxruntime_providers_cuda.so"):
                (place / part).parent.mkdir(parents=True, exist_ok=True)
                (place / part).unlink(missing_ok=True)
                if package not in without_cuda:
                    (place / part).touch()
            return place

        monkeypatch.setattr(_core, "cuda_devices", devices)
        monkeypatch.setattr(select, "_installed", folder)
        monkeypatch.setattr(
            select, "module", lambda name: Package(name, (broken or {}).get(name, ""), imported)
        )
        make.asked = asked
        return imported

    return make


def names(choices):
    return [choice.name for choice in choices]


# With a GPU


def test_auto_tries_the_fastest_first_and_imports_only_that(machine):
    imported = machine()
    choices = select.candidates()
    assert names(choices) == list(select.ENGINES[1:])
    assert imported == ["tensorrt"]
    assert select.choose() == choices[0]
    assert [(choice.device, choice.index) for choice in choices] == [("cuda", 0)] * 4 + [("cpu", 0)] * 2
    assert [str(choices[0]), str(choices[-1])] == ["tensorrt on cuda:0", "onnxruntime on cpu"]
    assert [name for name, _ in choices[2].reasons] == list(select.ENGINES[1:])
    assert dict(choices[2].reasons) == {
        "tensorrt": "failed when it was loaded",
        "tensorrt_rtx": "failed when it was loaded",
        "torch-cuda": FASTEST,
        "onnxruntime-cuda": "torch-cuda is faster and works; installed",
        "openvino": "torch-cuda is faster and works; installed",
        "onnxruntime": "torch-cuda is faster and works; installed",
    }


def test_what_is_not_installed_is_said_with_what_installs_it(machine):
    machine(installed=("onnxruntime", "torch"), without_cuda=("torch", "onnxruntime"))
    choices = select.candidates()
    assert names(choices) == ["onnxruntime"]
    assert dict(choices[0].reasons) == {
        "tensorrt": "not installed: pip install 'fai-fast[tensorrt]'",
        "tensorrt_rtx": "not installed: pip install 'fai-fast[tensorrt-rtx]'",
        "torch-cuda": "torch is installed without CUDA: install a build with CUDA, see "
        "https://pytorch.org/get-started",
        "onnxruntime-cuda": "onnxruntime is installed without CUDA: pip uninstall onnxruntime, then pip install "
        "'onnxruntime-gpu'",
        "openvino": "not installed: pip install 'openvino'",
        "onnxruntime": FASTEST,
    }


def test_either_of_two_packages_will_do(machine):
    machine(installed=("tensorrt_rtx_bindings", "openvino"))
    assert names(select.candidates()) == ["tensorrt_rtx", "openvino"]


def test_broken_packages_are_passed_over_with_a_line_each(machine, caplog):
    imported = machine(broken={"tensorrt": "cannot be imported (libnvinfer)", "tensorrt_rtx": "too old"})
    choice = select.choose()
    assert choice.name == "torch-cuda"
    assert imported == ["tensorrt", "tensorrt_rtx", "torch-cuda"]
    assert dict(choice.reasons)["tensorrt"] == "cannot be imported (libnvinfer)"
    assert [record.getMessage() for record in caplog.records] == [
        "engine tensorrt is passed over: cannot be imported (libnvinfer)",
        "engine tensorrt_rtx is passed over: too old",
    ]
    with pytest.raises(EngineError, match=r"^tensorrt: cannot be imported \(libnvinfer\)$"):
        select.choose("tensorrt")


@pytest.mark.parametrize(
    ("device", "expected"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:2", 2)]
)
def test_the_gpu_that_is_asked_for(machine, device, expected):
    machine(gpus=3)
    assert {choice.index for choice in select.candidates("auto", device) if choice.device == "cuda"} == {
        expected
    }
    assert select.choose("torch-cuda", device).index == expected


def test_cuda_leaves_the_cpu_out_and_cpu_the_gpu(machine):
    imported = machine()
    assert names(select.candidates(device="cuda")) == list(select.GPU_ENGINES)
    assert dict(select.choose(device="cuda:0").reasons)["openvino"] == "device 'cuda:0' was asked for"
    imported.clear()
    machine.asked.clear()
    choices = select.candidates(device="cpu")
    assert names(choices) == list(select.CPU_ENGINES)
    assert dict(choices[0].reasons)["torch-cuda"] == "device 'cpu' was asked for"
    assert machine.asked == []


def test_a_gpu_that_is_not_there(machine):
    machine(gpus=2)
    with pytest.raises(
        CudaError, match=r"^device: got cuda:7, expected one of cuda:0 \(NVIDIA L4\), cuda:1 "
    ):
        select.choose(device="cuda:7")


@pytest.mark.parametrize("engine", select.ENGINES[1:])
def test_an_engine_that_is_asked_for(machine, engine):
    imported = machine()
    choices = select.candidates(engine)
    assert names(choices) == [engine]
    assert imported == [engine]
    for name, why in choices[0].reasons:
        assert why == ("asked for" if name == engine else f"{engine} was asked for")
    wrong = "cpu" if engine in select.GPU_ENGINES else "cuda"
    with pytest.raises(EngineError, match=f"^{engine}: runs on .* only, but device '{wrong}' was asked for"):
        select.choose(engine, wrong)


# Without one


def test_without_a_gpu_the_cpu_is_used_and_nothing_else_imported(machine):
    imported = machine(gpus=0)
    choices = select.candidates()
    assert names(choices) == ["openvino", "onnxruntime"]
    assert imported == ["openvino"]
    assert {dict(choices[0].reasons)[name] for name in select.GPU_ENGINES} == {
        f"no NVIDIA GPU to use: {NO_GPU}"
    }


@pytest.mark.parametrize(("engine", "device"), [("auto", "cuda"), ("auto", "cuda:1"), ("tensorrt", "auto")])
def test_a_gpu_that_is_asked_for_and_not_there(machine, engine, device):
    imported = machine(gpus=0)
    # What TensorRT builds can be built for another machine's.
    more = "; to build one for a GPU elsewhere, .*" if engine == "tensorrt" else ""
    with pytest.raises(CudaError, match=f"^{NO_GPU}{more}$"):
        select.choose(engine, device)
    assert imported == []


def test_a_cpu_engine_looks_for_no_gpu(machine):
    machine(gpus=0)
    select.choose("openvino")
    assert machine.asked == []


def test_a_start_without_a_gpu_imports_no_gpu_package():
    script = """
        import sys
        from fai_fast import _core
        from fai_fast.engines import select
        from fai_fast.errors import CudaError

        def devices():
            raise CudaError("no device")

        _core.cuda_devices = devices
        select.candidates("auto", "cpu"), select.candidates()
        print(sorted({"torch", "tensorrt", "tensorrt_rtx", "cuda"} & set(sys.modules)))
        """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, complaints(done.stderr)) == ("[]\n", [])


# As this machine is


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="openvino is not installed")
def test_openvino_is_the_fastest_on_a_cpu():
    choice = select.choose(device="cpu")
    assert (choice.name, choice.device) == ("openvino", "cpu")
    assert dict(choice.reasons)["openvino"] == FASTEST
    assert dict(choice.reasons)["onnxruntime"].startswith(
        ("openvino is faster and works; ", "not installed: ")
    )
    assert select.module("openvino") is openvino


def test_no_engine_at_all(monkeypatch):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError) as raised:
        select.choose()
    for words in ("no engine: ", "pip install 'openvino'", "pip install 'fai-fast[onnxruntime]'"):
        assert words in str(raised.value)
    with pytest.raises(
        EngineError, match=r"^onnxruntime: not installed: pip install 'fai-fast\[onnxruntime\]'$"
    ):
        select.choose("onnxruntime")


def test_packages_are_found_without_being_imported(tmp_path, monkeypatch):
    """A folder without code, such as one that an uninstall left behind, is no package."""
    (tmp_path / "leftover").mkdir()
    (tmp_path / "package" / "lib").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec("leftover") is not None
    assert select._installed("leftover") is None
    assert select._installed("not_installed_at_all") is None
    assert select._installed("package") == tmp_path / "package"
    assert select._installed("json") == Path(os.__file__).parent / "json"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            ("abacus",),
            ValueError,
            "engine: got 'abacus', expected one of 'auto', 'tensorrt', 'tensorrt_rtx', ",
        ),
        ((None,), TypeError, "engine: got None"),
        (("auto", "tpu"), ValueError, "device: got 'tpu', expected one of 'auto', 'cpu', 'cuda', 'cuda:N'"),
        (("auto", "cuda:"), ValueError, "device: got 'cuda:'"),
        (("auto", "cuda:-1"), ValueError, "device: got 'cuda:-1'"),
        (("auto", "cuda:N"), ValueError, "device: got 'cuda:N'"),
        (("auto", 0), TypeError, "device: got 0"),
    ],
)
def test_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        select.choose(*arguments)


@pytest.mark.parametrize("name", select.ENGINES[1:])
def test_every_engine_has_a_module(name):
    found = select.module(name)
    for attribute in ("version", "depends", "native_precisions"):
        assert callable(getattr(found, attribute))
    on_gpu = name in select.GPU_ENGINES
    assert hasattr(found, "GRAPH_PRECISION") == on_gpu
    loaders = [loader for loader in ("load", "load_blob", "load_weights") if hasattr(found, loader)]
    assert loaders
    assert hasattr(found, "compile_to") == ("load_blob" in loaders)
    if on_gpu:
        assert (found.GRAPH_PRECISION is None) == (loaders == ["load_weights"])
    with pytest.raises(ValueError, match="name: got 'abacus'"):
        select.module("abacus")


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_tensorrt_rtx_does_not_run_on_every_gpu(machine, capability):
    imported = machine(
        installed=("tensorrt_rtx", "tensorrt_rtx_bindings", "torch", "openvino"), capability=capability
    )
    why = f"compute capability {capability[0]}.{capability[1]}, on which TensorRT-RTX does not run"
    [first, *_] = select.candidates()
    assert first.name == "torch-cuda"
    assert why in dict(first.reasons)["tensorrt_rtx"]
    assert imported == ["torch-cuda"]
    with pytest.raises(EngineError, match=rf"^tensorrt_rtx: NVIDIA L4 has {why}; use the engine tensorrt"):
        select.choose("tensorrt_rtx")


@pytest.mark.parametrize("capability", [(7, 5), (8, 9), (12, 0)])
def test_tensorrt_rtx_runs_on_the_others(machine, capability):
    machine(installed=("tensorrt_rtx", "tensorrt_rtx_bindings", "openvino"), capability=capability)
    assert select.choose().name == "tensorrt_rtx"
