"""What ``fai-fast predict --ray`` runs on workers: a Detector whose own failure is told once, and not as Ray does it.

An exception of a worker reaches the driver as pages of tracebacks, several times over, with what is wrong at their end.
"""

from __future__ import annotations

import logging
from typing import Any

from fai_fast.cli.messages import sentence
from fai_fast.ray.detector import Detector, text_of

__all__ = ["Worker", "failure_in"]

_log = logging.getLogger("fai_fast")


class Worker:
    """A :class:`fai_fast.ray.Detector`, or why there is none.

    Args:
        options: the Detector's.
    """

    def __init__(self, **options: Any) -> None:
        self._detector: Detector | None = None
        try:
            self._detector = Detector(**options)
        except Exception as error:
            self._why = _told(error)

    def __call__(self, batch: Any) -> Any:
        """The rows of a batch; or one row without a path, whose error is what is wrong with this worker."""
        if self._detector is not None:
            try:
                return self._detector(batch)
            except Exception as error:
                self._why = _told(error)
        return _row_of(batch, self._why)


def failure_in(rows: Any) -> str | None:
    """Why a worker could not look at its pictures, where its rows say that."""
    for path, why in zip(rows["path"].to_pylist(), rows["error"].to_pylist(), strict=True):
        if path is None:
            return str(why)
    return None


def _told(error: Exception) -> str:
    _log.error("a worker failed", exc_info=error)  # in Ray's log of it
    return sentence(error)


def _row_of(batch: Any, why: str) -> Any:
    import pyarrow as pa

    from fai_fast.detections import arrow

    found = arrow.table([text_of(ValueError(why))])
    return found.append_column(batch.schema.field("path"), pa.nulls(1, batch.schema.field("path").type))
