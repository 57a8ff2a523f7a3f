"""Which engine runs on this machine, and why not the others."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from types import ModuleType

from fai_fast.arguments import check_choice
from fai_fast.errors import EngineError

__all__ = ["DEVICES", "ENGINES", "Choice", "choose", "module"]

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class _Candidate:
    """An engine: its module in this package, the package that it drives, and what installs that."""

    name: str
    device: str
    package: str
    install: str


# The fastest first.
_CANDIDATES = (
    _Candidate("openvino", "cpu", "openvino", "openvino"),
    _Candidate("onnxruntime", "cpu", "onnxruntime", "fai-fast[onnxruntime]"),
)
ENGINES = ("auto", *(candidate.name for candidate in _CANDIDATES))
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Choice:
    """The engine to use, the device that it runs on, and for every engine why it is used or not."""

    name: str
    device: str
    reasons: tuple[tuple[str, str], ...]


def choose(engine: str = "auto", device: str = "auto") -> Choice:
    """The engine that is asked for, or with "auto" the fastest that can be imported.

    Imports the chosen engine's package and no other. One that is installed but broken is passed over by "auto",
    with a line in the log.

    Args:
        engine: "auto", "openvino" or "onnxruntime".
        device: "auto" or "cpu"; "cuda" is not part of this build yet.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        EngineError: the engine, or with "auto" every engine, is not installed or cannot be imported.
    """
    check_choice("engine", engine, ENGINES)
    check_choice("device", device, DEVICES)
    if device == "cuda":
        raise EngineError('device: got "cuda", but the GPU engines are not part of this build yet; use "cpu"')
    chosen: _Candidate | None = None
    reasons = []
    for candidate in _CANDIDATES:
        if engine not in ("auto", candidate.name):
            why = f"{engine} was asked for"
        elif chosen is not None:
            why = f"{chosen.name} is faster and works; {_installed_or_not(candidate)}"
        elif not _installed(candidate.package):
            why = _installed_or_not(candidate)
        elif broken := _broken(candidate):
            why = broken
            if engine == "auto":
                _log.warning("engine %s is passed over: %s", candidate.name, broken)
        else:
            chosen = candidate
            why = "asked for" if engine != "auto" else "the fastest of those that work"
        reasons.append((candidate.name, why))
    if chosen is None:
        text = "; ".join(f"{name}: {why}" for name, why in reasons if engine in ("auto", name))
        raise EngineError(f"no engine: {text}" if engine == "auto" else text)
    return Choice(chosen.name, chosen.device, tuple(reasons))


def module(name: str) -> ModuleType:
    """The module of an engine that :func:`choose` gave: ``load``, ``depends``, ``native_precisions``, ``version``."""
    return importlib.import_module(f"fai_fast.engines.{check_choice('name', name, ENGINES[1:])}")


def _broken(candidate: _Candidate) -> str:
    """Why the engine's package cannot be imported, or ""."""
    try:
        module(candidate.name).version()
    except EngineError as error:
        return str(error).removeprefix(f"{candidate.name}: ")
    return ""


def _installed_or_not(candidate: _Candidate) -> str:
    if _installed(candidate.package):
        return "installed"
    return f"not installed: pip install '{candidate.install}'"


def _installed(package: str) -> bool:
    """Whether `package` is there, without importing it. A folder of that name without code is no package."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # imported by unusual ways, without a specification
        return True
    return spec is not None and spec.origin is not None
