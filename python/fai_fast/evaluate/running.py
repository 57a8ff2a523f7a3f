"""What every evaluation does: the model run on pictures, arguments checked, files missed."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from fai_fast._arguments import check_int
from fai_fast.detections import Detections
from fai_fast.evaluate.report import _some
from fai_fast.images import read_image
from fai_fast.model import Model

# The model's own threads overlap so many pictures; each holds a decoded one.
IN_FLIGHT = 3


class MeasureOptions(TypedDict, total=False):
    """Keyword arguments of every ``measure``; what is left out is as of the function beside it, such as ``coco``.

    ``stop`` is asked before every picture but the first; where it says True, the report is of those before.
    """

    threshold: float | None
    progress: bool | None
    max_pixels: int | None
    stop: Callable[[], bool] | None
    buckets: int
    compare_sizes: int


Found = TypeVar("Found")
Submit = Callable[[Model, Any], Callable[[], Found]]
"""Starts a model on a frame; what it returns waits for what was found."""


def _submitting(threshold: float) -> Submit[Detections]:
    """The model's own results."""
    return lambda model, frame: model.submit(frame, threshold=threshold).result


def _infer(
    model: Model,
    paths: Sequence[Path],
    submit: Submit[Found],
    bar: Any,
    max_pixels: int | None,
    stop: Callable[[], bool] | None,
) -> Iterator[Found]:
    """The pictures' results in order, a few of them on their way at a time; `bar` is tqdm's."""
    waiting: deque[Callable[[], Found]] = deque()
    for index, path in enumerate(paths):
        if index and stop is not None and stop():
            break
        frame = read_image(path, max_pixels=max_pixels)
        waiting.append(submit(model, frame))
        if len(waiting) == IN_FLIGHT:
            yield waiting.popleft()()
            bar.update()
    while waiting:
        yield waiting.popleft()()
        bar.update()


def _bar(total: int, progress: bool | None) -> Any:
    """A bar on stderr; None for one if that is a terminal."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    disable = None if progress is None else not progress
    return tqdm(total=total, unit="picture", file=sys.stderr, leave=False, disable=disable)


def _account(model: Model, threshold: float) -> dict[str, Any]:
    info, spec = model.info(), model.spec
    return {
        "model": spec.name,
        "engine": info["engine"]["engine"],
        "precision": info["precision"],
        "im_size": model.size,
        "threshold": threshold,
        "published": dict(spec.metrics),
        "published_per_class": dict(spec.per_class),
        "published_im_size": spec.metrics_im_size or spec.im_size,
    }


def _check_limit(limit: int | None) -> int | None:
    if limit is not None and (limit := check_int("limit", limit)) < 1:
        raise ValueError(f"limit: got {limit}, expected a positive integer or None")
    return limit


def _check_missing(name: str, absent: Sequence[str], where: str, skip_missing: bool, total: int) -> None:
    if absent and (not skip_missing or len(absent) == total):
        raise FileNotFoundError(
            f"{name}: {len(absent)} of {total} files are missing, {where}: {_some(absent)}"
            + ("" if skip_missing else "; skip_missing leaves them out")
        )
