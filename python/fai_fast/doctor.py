"""What is installed, what is used, and why not the rest: for a bug report, or for whoever wonders what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fai_fast._extras import requirement
from fai_fast._foreign import from_signal_handler
from fai_fast.errors import CudaError

__all__ = ["report", "text"]

# Package: what needs it, and what installs it.
_PACKAGES = {
    "numpy": ("everything", "numpy"),
    "onnx": ("exporting deployed graphs", "onnx"),
    "openvino": ("the engine on CPUs", "openvino"),
    "safetensors": ("weights in .safetensors files", "safetensors"),
    "pillow": ("reading and drawing pictures", "pillow"),
    "filelock": ("the cache", "filelock"),
    "platformdirs": ("the cache", "platformdirs"),
    "tqdm": ("progress bars", "tqdm"),
    "torch": (
        'weights in .pth files, weights="random", fai_fast.reference, losses, checking an export, torch-cuda',
        requirement("torch"),
    ),
    "nncf": ("making the int8 form of a model for CPUs", requirement("quantize")),
    "onnxruntime": ("the alternative engine on CPUs", requirement("onnxruntime")),
    "onnxruntime-gpu": ("an engine on NVIDIA GPUs, in place of onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("the fastest engine on NVIDIA GPUs", requirement("tensorrt")),
    "tensorrt-rtx-cu13-libs": (
        "the engine tensorrt_rtx on NVIDIA GPUs, and exporting for them without one",
        requirement("tensorrt-rtx"),
    ),
    "tensorrt-rtx-cu13-bindings": ("the same from Python", requirement("tensorrt-rtx")),
    "cuda-python": ("the free memory of a GPU in this report", requirement("cuda")),
    "supervision": ("Detections.to_supervision()", requirement("plot")),
    "opencv-python-headless": ("Detections.to_polygons()", requirement("polygons")),
    "av": ("video files, cameras and addresses in Model.stream", requirement("video")),
    "faster-coco-eval": ("COCO's mask AP in fai_fast.evaluate", requirement("eval")),
    "ros-rclpy": ("the ROS 2 node, unless a ROS 2 of the system is sourced", requirement("ros2")),
}
# Distributions that bring the same module as the one above under another name.
_ALSO = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino"),
    "pillow": ("pillow-simd",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx-cu13-libs": ("tensorrt-rtx", "tensorrt-rtx-cu12-libs"),
    "tensorrt-rtx-cu13-bindings": ("tensorrt-rtx", "tensorrt-rtx-cu12-bindings"),
    "cuda-python": ("cuda-bindings",),
    # A ROS 2 of the system brings it under this name.
    "ros-rclpy": ("rclpy",),
}


def report() -> dict[str, Any]:
    """Everything that decides how fai_fast runs here, as JSON values; never raises.

    Returns:
        ``system``, ``fai_fast``, ``packages``, ``engine``, ``precision``, ``cache``, ``gpu`` and ``environment``. A
        section that could not be found out is ``{"error": why}``.
    """
    sections: dict[str, Callable[[], Any]] = {
        "system": _system,
        "fai_fast": _fai_fast,
        "packages": _packages,
        "engine": _engine,
        "precision": _precision,
        "cache": _cache,
        "gpu": _gpu,
        "environment": _environment,
    }
    return {name: _guarded(section) for name, section in sections.items()}


def text() -> str:
    """The report for people: a heading for each section, one fact on a line; never raises."""
    lines: list[str] = []
    for title, section in report().items():
        lines += ["", title] if lines else [title]
        lines += _lines(section) if section else ["  none"]
    return "\n".join(lines)


def _guarded(section: Callable[[], Any]) -> Any:
    try:
        return section()
    except Exception as error:  # the report must come whatever is broken here
        if from_signal_handler(error) is not None:
            raise
        return {"error": f"{type(error).__name__}: {error}"}


def _lines(section: Mapping[str, Any]) -> Iterable[str]:
    width = max(len(name) for name in section)
    for name, value in section.items():
        yield f"  {name:{width}}  {_plain(value)}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _system() -> dict[str, Any]:
    from fai_fast.engines import cpu

    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpu": cpu.name(),
        "features": list(cpu.features()),
        "cores": cpu.usable_cores(),
        "logical_cpus": os.cpu_count(),
    }


def _fai_fast() -> dict[str, Any]:
    import fai_fast

    return {"folder": str(Path(fai_fast.__file__).parent), **fai_fast.build_info()}


def _packages() -> dict[str, str]:
    return {name: _version(name) or _lacking(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    for distribution in (name, *_ALSO.get(name, ())):
        try:
            found = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        return found if distribution == name else f"{found} ({distribution})"
    return None


def _lacking(name: str) -> str:
    purpose, install = _PACKAGES[name]
    return f"not installed: needed for {purpose}; pip install '{install}'"


def _engine() -> dict[str, Any]:
    from fai_fast.engines import select

    choice = select.choose()
    return {"auto": str(choice), **dict(choice.reasons)}


def _precision() -> dict[str, Any]:
    from fai_fast.engines import precision, select

    choice = select.choose()
    on_gpu = choice.device == "cuda"
    tried: tuple[str, ...] = (
        select.module(choice.name).native_precisions(choice.index)
        if on_gpu
        else precision.candidates(choice.name)
    )
    return {
        "native": list(tried),
        "auto": f"tries {', '.join(tried[:-1])} and keeps it where it finds on pictures what fp32 finds"
        if len(tried) > 1
        else f"{tried[0]}, the only one that {choice.name} has on this {'GPU' if on_gpu else 'CPU'}",
        "int8": _int8(on_gpu),
        **_verdicts(),
    }


def _int8(on_gpu: bool) -> str:
    """Whether a quantized graph is fast here, and what is missing where it is not."""
    from fai_fast.engines import cpu

    if on_gpu:
        return "by itself for CPUs alone (device='cpu'); for TensorRT as a file of fai-fast export --precision int8"
    if found := cpu.int8_instructions():
        return (
            f"fast on this CPU ({', '.join(found)}); auto takes the form that fai-fast quantize made, or that a model "
            "brings"
        )
    lacking = "none of avx512_vnni, avx_vnni and amx_int8, the instructions that it is fast with"
    if not cpu.features():
        return (
            f"it is not known whether this CPU has {lacking.removeprefix('none of ')}; taken where asked for"
        )
    return f"works on this CPU, but hardly faster than fp32: it has {lacking}; taken where asked for"


def _verdicts() -> dict[str, str]:
    """What low precisions found when they were tried, of each the latest that the cache has."""
    from fai_fast import _gate, cache

    found: dict[str, str] = {}
    for kept in sorted(cache.list_artefacts(), key=lambda kept: kept.created or ""):
        if kept.depends.get("gate") != _gate.VERSION:
            continue
        about = kept.info
        with suppress(KeyError, TypeError, ValueError):  # another version's
            height, width = about["im_size"]
            name = f"{about['model']} {height}x{width}, {about['engine']} {about['precision']}"
            found[name] = f"{'taken' if about['verdict']['holds'] else 'not taken'}: {about['text']}"
    return found


def _cache() -> dict[str, Any]:
    from fai_fast import cache

    folder = Path(cache.cache_folder())
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "folder": str(folder),
        "files": len(files),
        "size_mb": round(sum(files) / 1e6, 1),
        "writable": existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
    }


def _gpu() -> dict[str, Any]:
    from fai_fast import _core
    from fai_fast.engines import gpu

    section: dict[str, Any] = {f"cuda_{name}": version for name, version in _core.cuda_versions().items()}
    section["cuda_build"] = _cuda_build(_core.build_info()["cuda"])
    try:
        for device in gpu.devices():
            section[f"cuda:{device.index}"] = {
                "name": device.name,
                "compute_capability": ".".join(map(str, device.compute_capability)),
                "multiprocessors": device.multiprocessors,
                "memory_mb": device.memory >> 20,
                **_free_memory(device.index),
                "uuid": device.uuid,
            }
    except CudaError as error:
        section["cuda"] = str(error)
    return {**section, **_nvidia_smi()}


def _cuda_build(cuda: Mapping[str, Any]) -> str:
    """What `build_info()` says of CUDA, as a sentence."""
    if not cuda["compiled"]:
        return f"the CPU alone: {cuda['reason']}"
    if cuda["driver"] is None:
        return "emulated on the CPU, for tests"
    return f"for {cuda['architectures']}; needs NVIDIA driver {cuda['driver']} or later"


def _free_memory(index: int) -> dict[str, Any]:
    """The memory that no process holds: MiB, or why it is not known; nothing without cuda-python."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return {}

    def checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
        if result[0] != runtime.cudaError_t.cudaSuccess:
            raise CudaError(result[0].name)
        return result[1:]

    try:
        (before,) = checked(runtime.cudaGetDevice())
        checked(runtime.cudaSetDevice(index))
        try:
            free, _ = checked(runtime.cudaMemGetInfo())
        finally:
            checked(runtime.cudaSetDevice(before))
    except (CudaError, RuntimeError) as error:  # RuntimeError where the driver lacks a function
        return {"free_mb": f"not known: {error}"}
    return {"free_mb": int(free) >> 20}


def _nvidia_smi() -> dict[str, Any]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {
            "nvidia": "no NVIDIA driver"
            if not Path("/proc/driver/nvidia").exists()
            else "driver, no nvidia-smi"
        }
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        return {"nvidia": f"nvidia-smi failed: {(done.stdout + done.stderr).strip()[:200]}"}
    return {f"card {i}": line.strip() for i, line in enumerate(done.stdout.splitlines()) if line.strip()}


def _environment() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("FAI_FAST_")}


if __name__ == "__main__":
    print(text())
