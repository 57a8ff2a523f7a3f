"""Which engine runs on this machine, and why not the others."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fai_fast._arguments import check_choice
from fai_fast._extras import install
from fai_fast._options import ENGINES
from fai_fast.engines import gpu
from fai_fast.errors import CudaError, EngineError

__all__ = [
    "CPU_ENGINES",
    "DEVICES",
    "ENGINES",
    "GPU_ENGINES",
    "Choice",
    "candidates",
    "check_device",
    "choose",
    "device_name",
    "module",
]

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class _Candidate:
    """An engine: the package that it drives, what installs that, and the module of this package that does it.

    Attributes:
        packages: any of them will do.
        part: a pattern in the package's folder for what only a build with CUDA has, or "".
    """

    name: str
    device: str
    packages: tuple[str, ...]
    install: str
    module: str
    part: str = ""


# In the order of EngineName: the fastest first.
_CANDIDATES = (
    _Candidate("tensorrt", "cuda", ("tensorrt", "tensorrt_bindings"), install("tensorrt"), "tensorrt"),
    _Candidate(
        "tensorrt_rtx",
        "cuda",
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        install("tensorrt-rtx"),
        "tensorrt",
    ),
    _Candidate(
        "torch-cuda",
        "cuda",
        ("torch",),
        "install a build with CUDA, see https://pytorch.org/get-started",
        "torch_cuda",
        "lib/*torch_cuda*",
    ),
    _Candidate(
        "onnxruntime-cuda",
        "cuda",
        ("onnxruntime",),
        "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu'",
        "onnxruntime_cuda",
        "capi/*onnxruntime_providers_cuda*",
    ),
    _Candidate("openvino", "cpu", ("openvino",), "pip install 'openvino'", "openvino"),
    _Candidate("onnxruntime", "cpu", ("onnxruntime",), install("onnxruntime"), "onnxruntime"),
)
GPU_ENGINES = tuple(candidate.name for candidate in _CANDIDATES if candidate.device == "cuda")
CPU_ENGINES = tuple(candidate.name for candidate in _CANDIDATES if candidate.device == "cpu")
DEVICES = ("auto", "cpu", "cuda", "cuda:N")


@dataclass(frozen=True)
class Choice:
    """An engine to use, the device that it runs on, and for every engine why it is used or not.

    Attributes:
        device: "cpu" or "cuda".
        index: the CUDA device's; 0 on the CPU.
    """

    name: str
    device: str
    reasons: tuple[tuple[str, str], ...]
    index: int = 0

    def __str__(self) -> str:
        return f"{self.name} on {self.device}{f':{self.index}' if self.device == 'cuda' else ''}"


def choose(engine: str = "auto", device: str = "auto") -> Choice:
    """The engine that is asked for, or with "auto" the fastest that can be imported: the first of :func:`candidates`.

    Args and Raises as there.
    """
    return candidates(engine, device)[0]


def candidates(engine: str = "auto", device: str = "auto") -> list[Choice]:
    """The engines to try in turn, at least one: where the first cannot be built or loaded, "auto" goes on to the next.

    Imports the package of the first one and no other; where that one is installed but broken, "auto" passes it over
    with a line in the log. Without a GPU that can be used, no GPU engine's package is imported.

    Args:
        engine: "auto", or one of ENGINES.
        device: "auto", "cpu", "cuda" (the first GPU) or "cuda:1".

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        CudaError: a GPU is asked for, and there is none that can be used.
        EngineError: the engine, or with "auto" every engine, is not installed, cannot be imported, or does not run on
            the GPU.
    """
    check_choice("engine", engine, ENGINES)
    kind, index = check_device(device)
    asked = [candidate for candidate in _CANDIDATES if engine in ("auto", candidate.name)]
    if kind != "auto" and all(candidate.device != kind for candidate in asked):
        raise EngineError(f"{engine}: runs on {asked[0].device} only, but device {device!r} was asked for")
    found, problem = _gpu(asked, kind, index)
    if problem and (kind == "cuda" or engine in GPU_ENGINES):
        raise CudaError(f"{problem}{_elsewhere(engine)}") from problem

    why: dict[str, str] = {}
    usable: list[_Candidate] = []
    for candidate in _CANDIDATES:
        if candidate not in asked:
            why[candidate.name] = f"{engine} was asked for"
        elif kind not in ("auto", candidate.device):
            why[candidate.name] = f"device {device!r} was asked for"
        elif candidate.device == "cuda" and problem:
            why[candidate.name] = f"no NVIDIA GPU to use: {problem}"
        elif lacking := _lacking(candidate):
            why[candidate.name] = lacking
        elif candidate.device == "cuda" and (unsupported := gpu.unsupported(candidate.name, found)):
            why[candidate.name] = unsupported
        elif not usable and (broken := _broken(candidate)):
            why[candidate.name] = broken
            if engine == "auto":
                _log.warning("engine %s is passed over: %s", candidate.name, broken)
        else:
            usable.append(candidate)
    if not usable:
        text = "; ".join(f"{name}: {text}" for name, text in why.items() if engine in ("auto", name))
        raise EngineError(f"no engine: {text}" if engine == "auto" else text)
    return [
        Choice(
            name=chosen.name,
            device=chosen.device,
            reasons=_reasons(why, usable, chosen, engine),
            index=found if chosen.device == "cuda" else 0,
        )
        for chosen in usable
    ]


def check_device(device: object) -> tuple[str, int | None]:
    """("auto" | "cpu" | "cuda", the CUDA device's index or None). Raises TypeError, ValueError."""
    if isinstance(device, str) and (match := re.fullmatch(r"cuda:([0-9]{1,3})", device)):
        return "cuda", int(match[1])
    if device == DEVICES[-1]:  # N is not a number
        raise ValueError(f"device: got {device!r}, expected a number for N, such as 'cuda:1'")
    if isinstance(device, str) and device not in DEVICES and (meant := _meant(device)):
        raise ValueError(
            f"device: got {device!r:.60}, expected one of {', '.join(map(repr, DEVICES))}; did you mean {meant!r}?"
        )
    return check_choice("device", device, DEVICES), None


def device_name(device: str | int) -> str:
    """ "cuda:1" for 1, which frameworks call that GPU; anything else as it is."""
    # A bool is an int, and no GPU's number.
    return f"cuda:{device}" if type(device) is int and device >= 0 else cast(str, device)


def _meant(device: str) -> str:
    """What is called otherwise elsewhere, or ""."""
    match = re.fullmatch(r"(?:cuda|gpu|nvidia|)[ :._-]?([0-9]{0,3})", device.strip().lower())
    if match is not None and device.strip():
        return f"cuda:{int(match[1])}" if match[1] else "cuda"
    near = difflib.get_close_matches(device.lower(), DEVICES[:-1], n=1, cutoff=0.6)
    return near[0] if near else ""


def module(name: str) -> Any:
    """What drives an engine that :func:`choose` gave: ``version``, ``depends``, ``native_precisions``, and a loader.

    CPU engines have ``load``, and ``compile_to`` with ``load_blob`` where they keep what they compile. GPU engines have
    ``GRAPH_PRECISION`` too, which says what graph each precision runs, and one of ``load``, ``compile_to`` with
    ``load_blob``, and ``load_weights``.
    """
    check_choice("name", name, ENGINES[1:])
    candidate = next(candidate for candidate in _CANDIDATES if candidate.name == name)
    found = importlib.import_module(f"fai_fast.engines.{candidate.module}")
    # One adapter drives both packages of TensorRT.
    return found.flavour(name) if candidate.module == "tensorrt" else found


def _elsewhere(engine: str) -> str:
    """How to make an engine for a GPU that is not here, where one was asked for that can be made."""
    if not engine.startswith("tensorrt"):
        return ""
    return "; to build one for a GPU elsewhere, such as a Tesla T4: fai-fast export MODEL OUT.engine --target sm75"


def _gpu(asked: Sequence[_Candidate], kind: str, index: int | None) -> tuple[int, CudaError | None]:
    """The index of the GPU to use, and why none can be used; looks for one only where an engine could use it."""
    if kind == "cpu" or all(candidate.device == "cpu" for candidate in asked):
        return 0, None
    try:
        return (gpu.devices()[0] if index is None else gpu.device(index)).index, None
    except CudaError as error:
        return 0, error


def _reasons(
    why: dict[str, str], usable: Sequence[_Candidate], chosen: _Candidate, engine: str
) -> tuple[tuple[str, str], ...]:
    said = dict(why)
    for place, candidate in enumerate(usable):
        if candidate is not chosen:
            said[candidate.name] = (
                f"{chosen.name} is faster and works; installed"
                if place > usable.index(chosen)
                else "failed when it was loaded"
            )
        else:
            said[candidate.name] = "asked for" if engine != "auto" else "the fastest of those that work"
    return tuple((name, said[name]) for name in ENGINES[1:])


def _broken(candidate: _Candidate) -> str:
    """Why the engine's package cannot be imported, or ""."""
    try:
        module(candidate.name).version()
    except EngineError as error:
        return str(error).removeprefix(f"{candidate.name}: ")
    return ""


def _lacking(candidate: _Candidate) -> str:
    """What is not installed, and how to install it; or ""."""
    folder = next(filter(None, map(_installed, candidate.packages)), None)
    if folder is None:
        return f"not installed: {candidate.install}"
    if candidate.part and not any(folder.glob(candidate.part)):
        return f"{candidate.packages[0]} is installed without CUDA: {candidate.install}"
    return ""


def _installed(package: str) -> Path | None:
    """The folder of `package`, without importing it. A folder of that name without code is not a package."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # imported by unusual ways, without a specification
        return Path()
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
