"""What ``serve run fai_fast.ray.serve:app NAME=VALUE ...`` takes: every argument once, its type and its default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from fai_fast._options import ENGINES, PRECISIONS
from fai_fast.images import check_max_pixels
from fai_fast.ray.serve import words

__all__ = ["Settings"]

_AUTO = "auto"
# A batch of 8 in place of one picture after another: 1.6 times the pictures a second on an H100 (bench/results).
_BATCH_ON_GPU = 8
# Where the number of replicas is to follow the requests, and nobody says how far.
_MOST_REPLICAS = 4


def _replicas(name: str, value: Any) -> int | None:
    """A number, or None for "auto"."""
    return None if value == _AUTO else words.count(name, value)


def _pixels(name: str, value: Any) -> int:
    number = check_max_pixels(words.count(name, value))
    assert number is not None
    return number


def _of(read: Callable[[str, Any], Any], default: Any) -> Any:
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True, repr=False)
class Settings:
    """The arguments of :func:`fai_fast.ray.serve.app`, which explains them, checked and with their types."""

    model: str
    weights: str | None = _of(words.text, None)
    engine: str = _of(partial(words.choice, choices=ENGINES), "auto")
    precision: str = _of(partial(words.choice, choices=PRECISIONS), "auto")
    im_size: int | tuple[int, int] | None = _of(words.side_or_size, None)
    cache_dir: str | None = _of(words.text, None)
    threshold: float | None = _of(words.threshold, None)
    classes: tuple[str, ...] | None = _of(words.names, None)
    top_k: int | None = _of(words.count, None)
    num_replicas: int | None = _of(_replicas, 1)
    min_replicas: int | None = _of(partial(words.count, least=0), None)
    max_replicas: int | None = _of(words.count, None)
    target_ongoing_requests: float | None = _of(words.share, None)
    num_cpus: float = _of(words.share, 1.0)
    num_gpus: float = _of(words.share, 0.0)
    ingress_replicas: int = _of(words.count, 1)
    max_batch_size: int | None = _of(words.count, None)
    batch_wait_ms: float = _of(words.share, 5.0)
    max_ongoing_requests: int | None = _of(words.count, None)
    max_queued_requests: int = _of(words.count, 64)
    max_body_bytes: int = _of(words.count, 20_000_000)
    max_pixels: int = _of(_pixels, 50_000_000)
    timeout_s: float = _of(words.share, 60.0)
    retry_after_s: int = _of(words.count, 1)

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> Settings:
        """Settings of arguments by name, as texts or as values of their types.

        Raises:
            TypeError, ValueError: there is an argument that nobody knows, one is missing, or is not what it should be.
        """
        known = {each.name: each for each in fields(cls)}
        for name in arguments:
            if name not in known:
                raise TypeError(
                    f"{name}: fai_fast.ray.serve:app has no such argument, expected some of {', '.join(known)}"
                )
        if arguments.get("model") is None:
            raise TypeError(
                "model: got none, expected a name of fai-fast models or a path: model=fai-mf-n-shapes"
            )
        values = {
            name: known[name].metadata.get("read", words.text)(name, value)
            for name, value in arguments.items()
            if value is not None
        }
        settings = cls(**values)
        settings._check(values)
        return settings

    def _check(self, given: Mapping[str, Any]) -> None:
        if self.timeout_s == 0:
            raise ValueError("timeout_s: got 0, expected more: no request would ever be answered")
        if self.num_cpus == 0 and self.num_gpus == 0:
            raise ValueError(
                "num_cpus: got 0 without num_gpus, expected more: it is the threads of the model too"
            )
        if self.scaled:
            if given.get("num_replicas") is not None:
                raise ValueError(
                    f"num_replicas: got {self.num_replicas} beside min_replicas, max_replicas or "
                    "target_ongoing_requests, which scale it; expected auto, or none of those"
                )
            if self.least > self.most:
                raise ValueError(
                    f"max_replicas: got {self.most}, expected min_replicas, {self.least}, or more"
                )
            if self.target_ongoing_requests == 0:
                raise ValueError("target_ongoing_requests: got 0, expected more")
        if self.ongoing < self.batch:
            raise ValueError(
                f"max_ongoing_requests: got {self.ongoing}, expected max_batch_size, {self.batch}, or more: no batch "
                "would ever be full"
            )

    # --------------------------------------------------------------------------------- what follows from them

    @property
    def batch(self) -> int:
        """Pictures that the engine takes at once: on a GPU several take little longer than one, on a CPU they do."""
        if self.max_batch_size is not None:
            return self.max_batch_size
        return _BATCH_ON_GPU if self.num_gpus else 1

    @property
    def ongoing(self) -> int:
        """Requests that a replica has at once: a batch in the engine, and the next one decoded meanwhile."""
        return max(4, 2 * self.batch) if self.max_ongoing_requests is None else self.max_ongoing_requests

    @property
    def scaled(self) -> bool:
        """Whether the number of replicas follows the requests."""
        asked = (self.min_replicas, self.max_replicas, self.target_ongoing_requests)
        return self.num_replicas is None or asked != (None, None, None)

    @property
    def least(self) -> int:
        """Replicas at least, where they are scaled."""
        return 1 if self.min_replicas is None else self.min_replicas

    @property
    def most(self) -> int:
        """Replicas at most."""
        if not self.scaled:
            return self.num_replicas or 1
        return max(self.least, _MOST_REPLICAS) if self.max_replicas is None else self.max_replicas

    @property
    def inside(self) -> int:
        """Requests whose bodies one ingress holds: those that all replicas work on, and those that wait for one."""
        return self.ongoing * self.most + self.max_queued_requests

    @property
    def autoscaling(self) -> dict[str, Any] | None:
        """How the number of replicas follows the requests, in Serve's words; None where it does not."""
        if not self.scaled:
            return None
        target = self.target_ongoing_requests
        return {
            "min_replicas": self.least,
            "max_replicas": self.most,
            "target_ongoing_requests": self.ongoing / 2 if target is None else target,
        }
