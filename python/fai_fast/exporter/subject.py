"""What is exported: weights of one of FocoosAI's networks, or a network of somebody else; and in which size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fai_fast._arguments import check_size
from fai_fast._sizes import LARGEST_SIDE, STRIDE, fit_size, step_of
from fai_fast.networks import Network, foreign, pretrained
from fai_fast.registry import ModelSpec, load_spec, models, stride_of
from fai_fast.weights import Weights, load_weights

__all__ = ["check_im_size", "input_size", "is_own", "network_of", "weights_of"]


def check_im_size(im_size: object, stride: int = STRIDE) -> tuple[int, int]:
    """An int for a square or (height, width), as (height, width).

    Raises:
        TypeError, ValueError: it is neither, or a side is not a multiple of `stride`, or beyond 8192.
    """
    sides = check_size("im_size", (im_size, im_size) if not isinstance(im_size, Sequence) else im_size)
    if any(side % stride or side > LARGEST_SIDE for side in sides):
        multiples = f"multiples of {stride}, " if stride > 1 else ""
        raise ValueError(
            f"im_size: got {sides}, expected {multiples}at most {LARGEST_SIDE}, for (height, width)"
        )
    return sides


def input_size(
    own: tuple[int, int], im_size: object, frame: Sequence[int] | None, stride: int = STRIDE
) -> tuple[int, int]:
    """(height, width) of a network's input: what is asked for, what fits the frame, or else the model's own.

    Args:
        own: the model's own size.
        im_size, frame: as :func:`export` takes them.
        stride: what the sides must be multiples of.

    Raises:
        TypeError, ValueError: ``im_size`` or ``frame`` is not as :func:`export` takes it, or both are given.
    """
    if frame is None:
        return check_im_size(own if im_size is None else im_size, stride)
    if im_size is not None:
        raise ValueError(
            f"frame: got {frame!r:.40} and im_size {im_size!r:.40}, expected only one of the two"
        )
    return fit_size(frame, area=min(own[0] * own[1], LARGEST_SIDE * LARGEST_SIDE), multiple=step_of(stride))


def network_of(
    model: Any,
    weights: Any,
    spec: Any,
    im_size: int | Sequence[int] | None,
    frame: Sequence[int] | None,
    batch: int,
    named: str = "batch",
    *,
    processor: Any = None,
    task: str | None = None,
    memory: Path | None = None,
) -> tuple[Network, tuple[int, int], int] | None:
    """Somebody else's network, and (height, width) and batch of its graph: what is asked for, where it takes that.

    None where the model is none: a network of FocoosAI's. `named` is what the caller calls the batch, and `memory` the
    cache that may remember what transformers said of its own.

    Raises:
        TypeError, ValueError: an argument is not as :func:`export` takes it, or the network is fixed to another.
        FileNotFoundError, OSError: a file is not there, or cannot be read.
        ExportError: a module cannot be traced.
        WeightsError: transformers cannot read its own network.
    """
    said = None if spec is None else foreign.spec_from(spec)
    known = pretrained.find(model, processor, task, said, memory=memory)
    if known is None:
        for name, value in (("processor", processor), ("task", task)):
            if value is not None:
                raise ValueError(
                    f"{name}: got {value!r:.60}, expected None: only networks of transformers are told it"
                )
    if known is None and said is None:
        return None
    if weights is not None:
        raise ValueError("weights: got some with spec=, expected None: the network brings its own")
    if known is not None:
        said = known.spec
    assert said is not None
    asked = input_size(said.input_size, im_size, frame, stride_of(said.config))
    network = foreign.network_of(model, said, asked, batch) if known is None else known.network()
    fixed = network.fixed_size
    if any(side not in (None, wanted) for side, wanted in zip(fixed, asked, strict=True)):
        only = " x ".join("any" if side is None else str(side) for side in fixed)
        name, got = ("frame", frame) if frame is not None else ("im_size", im_size)
        if got is None:
            name, got = "spec.im_size", network.spec.im_size
        raise ValueError(
            f"{name}: got {got!r:.40}, expected the size that the input of {network.source} is fixed to, {only} "
            "(height x width); export it with open sides for others"
        )
    if network.fixed_batch is not None and batch not in (1, network.fixed_batch):
        raise ValueError(
            f"{named}: got {batch}, expected {network.fixed_batch}, which the input of {network.source} is fixed to"
        )
    return network, asked, network.fixed_batch or batch


def is_own(model: Any, spec: Any) -> bool:
    """Whether it is surely a network of FocoosAI's, whose input has sides that are multiples of 32."""
    if isinstance(model, (str, os.PathLike)):
        return spec is None and os.fsdecode(model) in models()
    return spec is None and not pretrained.is_pretrained(model)


def weights_of(model: Any, weights: Any, cache_dir: Any) -> Weights:
    """The weights of whatever `model` is."""
    held = getattr(model, "weights", None)
    own = model if isinstance(model, Weights) else held if isinstance(held, Weights) else None
    if own is None and callable(getattr(model, "state_dict", None)):
        network = _network_in(model)
        own = load_weights(network.spec, network.state_dict())
    if own is None:
        return load_weights(load_spec(model), weights, cache_dir=cache_dir)
    if weights is not None:
        raise ValueError(f"weights: got some with a {type(model).__name__}, expected None: it brings its own")
    return own


def _network_in(module: Any) -> Any:
    """The network with a spec that `module` is, or wraps: DataParallel, torch.compile, AveragedModel, Lightning, ..."""
    modules = list(module.modules()) if callable(getattr(module, "modules", None)) else [module]
    # Asked of what each holds itself, as torch.compile's wrapper passes on what it does not have.
    found = [item for item in modules if isinstance(vars(item).get("spec"), ModelSpec)]
    if len(found) > 1:
        raise TypeError(
            f"model: got a {type(module).__name__} with {len(found)} networks in it, expected one: pass that one"
        )
    if not found:
        raise TypeError(
            f"model: got a {type(module).__name__} without a spec, expected a network of fai_fast.reference.build, or "
            "a wrapper of one; with spec= any module that gives mask and class logits is taken"
        )
    return found[0]
