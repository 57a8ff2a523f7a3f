"""What Prometheus reads from Ray's metrics endpoint, beside what Serve itself counts. docs/ray_serve.md lists it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["IngressMetrics", "ReplicaMetrics"]

# Of a picture on a GPU to a picture that waited for a minute.
_MILLISECONDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 60000]
_LATENCY = "fai_fast_latency_ms"


def _serve_metrics() -> Any:
    # Serve adds the names of the application, the deployment and the replica as tags.
    from ray.serve import metrics

    return metrics


def _latency() -> Any:
    return _serve_metrics().Histogram(
        _LATENCY,
        description="Milliseconds by stage: decode, preprocess, engine, postprocess, total of these, write, request.",
        boundaries=_MILLISECONDS,
        tag_keys=("stage",),
    )


class IngressMetrics:
    """Of requests as clients see them."""

    def __init__(self) -> None:
        metrics = _serve_metrics()
        self._requests = metrics.Counter(
            "fai_fast_requests",
            description="Requests that were answered, by HTTP status.",
            tag_keys=("status",),
        )
        self._retries = metrics.Counter(
            "fai_fast_retries", description="Pictures given to another replica as theirs died."
        )
        self._inside = metrics.Gauge(
            "fai_fast_requests_in_progress",
            description="Requests that were not answered yet, waiting ones included.",
        )
        self._latency = _latency()

    def inside(self, count: int) -> None:
        self._inside.set(count)

    def retried(self) -> None:
        self._retries.inc()

    def answered(self, status: int, milliseconds: float) -> None:
        """A request of any kind; its time is that from its first byte to its answer."""
        self._requests.inc(tags={"status": str(status)})
        if 200 <= status < 300:
            self._latency.observe(milliseconds, tags={"stage": "request"})


class ReplicaMetrics:
    """Of pictures as the model sees them."""

    def __init__(self) -> None:
        metrics = _serve_metrics()
        self._ongoing = metrics.Gauge(
            "fai_fast_pictures_in_progress", description="Pictures that this replica is working on."
        )
        self._latency = _latency()

    def ongoing(self, count: int) -> None:
        self._ongoing.set(count)

    def looked(self, latency: Mapping[str, float]) -> None:
        """A picture, with its milliseconds by stage."""
        for stage, milliseconds in latency.items():
            self._latency.observe(milliseconds, tags={"stage": stage})
