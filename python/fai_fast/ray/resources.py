"""What Ray gave to the worker that this runs in: CPUs as threads, GPUs as the device."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from fai_fast._extras import install

__all__ = ["Given", "given", "ray_module"]


class Given(NamedTuple):
    """What this worker may use.

    Attributes:
        cpus: cores, as many as its share has whole ones, at least one.
        gpus: cards, of which CUDA shows no others; a share of one counts.
    """

    cpus: int
    gpus: int


def ray_module() -> Any:
    """The module ray. ImportError that says how to install it."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"fai_fast.ray needs Ray: {install('ray')}") from error
    return ray


def given() -> Given | None:
    """What Ray gave to the task or actor that runs; None outside of one, where nothing is shared out."""
    ray = ray_module()
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    # A driver has a task's id of its own, but no resources.
    if context.worker.mode != ray.WORKER_MODE:
        return None
    cpus = int(context.get_assigned_resources().get("CPU", 0))
    gpus = len(context.get_accelerator_ids().get("GPU", ()))
    return Given(max(1, cpus), gpus)


def load_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of :func:`fai_fast.load` with ``num_threads`` and ``device`` as Ray has them, where they are open.

    Raises:
        ValueError: a GPU is asked for in a worker to which Ray gave none.
    """
    share = given()
    if share is None:
        return options
    device = options.get("device", "auto")
    if device == "auto":
        # CUDA counts the cards that the worker sees, and Ray lets it see its own.
        device = "cuda:0" if share.gpus else "cpu"
    elif not share.gpus and (isinstance(device, int) or str(device).startswith("cuda")):
        raise ValueError(
            f"device: got {device!r} in a worker to which Ray gave no GPU; pass num_gpus=1 to map_batches"
        )
    threads = options.get("num_threads")
    if threads is None:
        threads = share.cpus
        # What starts threads of its own later on, such as PyTorch; Ray sets it too, unless it is set already.
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    return {**options, "device": device, "num_threads": threads}
