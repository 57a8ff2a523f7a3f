"""How a stream keeps up."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Results that the statistics look back on.
_WINDOW = 256


class StreamStats(NamedTuple):
    """How a stream keeps up; the rates are those of the last results.

    Attributes:
        frames: results handed out.
        decoded: frames that came from the source.
        dropped: frames that newer ones took the place of.
        skipped: frames left out by ``stride``.
        damaged: frames that a live source sent damaged, and that were left out or repaired by the decoder.
        reconnects: how often the source was opened again.
        fps: results per second.
        p50, p90, p99: milliseconds from capture to result that half, 90 % and 99 % of the results stay below. Where
            every frame is used that is mostly back pressure: a file is faster than any model, and frames wait.
        queue_age: milliseconds that half of the frames waited at most until the model took them.
        model_p50: milliseconds that the model itself took for half of the results at most
            (:attr:`fai_fast.Latency.total`): the latency without any waiting.
    """

    frames: int
    decoded: int
    dropped: int
    skipped: int
    damaged: int
    reconnects: int
    fps: float
    p50: float
    p90: float
    p99: float
    queue_age: float
    model_p50: float = 0.0

    @property
    def waiting(self) -> float:
        """Milliseconds of ``p50`` that are not the model's: a frame waits for its turn, its result for the loop."""
        return max(0.0, self.p50 - self.model_p50)


class _StatisticsRecorder:
    """Counts of a stream's frames, and the times of the last ones.

    No method blocks, and none takes a lock: whoever calls one holds the stream's. What :meth:`copied` gives belongs to
    the caller.
    """

    def __init__(self) -> None:
        self.frames = self.decoded = self.skipped = self.damaged = self.reconnects = 0
        # When each of the last results was handed out, and its milliseconds from capture to result.
        self._handed: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._ages: deque[float] = deque(maxlen=_WINDOW)
        self._model: deque[float] = deque(maxlen=_WINDOW)

    def submitted(self, now: float, captured: float) -> None:
        """Notes a frame that the model takes."""
        self._ages.append(1e3 * (now - captured))

    def handed_out(self, now: float, captured: float, model: float | None) -> None:
        """Notes a result that the loop gets, and the milliseconds that the model took for it, where it says so."""
        self.frames += 1
        if model is not None:
            self._model.append(model)
        self._handed.append((now, 1e3 * (now - captured)))

    def copied(self, dropped: int) -> _Recorded:
        """What was noted until now, to be summarized without the lock."""
        counts = (self.frames, self.decoded, dropped, self.skipped, self.damaged, self.reconnects)
        return _Recorded(counts, np.array(self._handed), np.array(self._ages), np.array(self._model))


class _Recorded(NamedTuple):
    """The first six fields of :class:`StreamStats`, and the times that the others are made of."""

    counts: tuple[int, int, int, int, int, int]
    handed: npt.NDArray[Any]
    ages: npt.NDArray[Any]
    model: npt.NDArray[Any]

    def summary(self) -> StreamStats:
        """Does not block."""
        if len(self.handed) == 0:
            return StreamStats(*self.counts, 0.0, 0.0, 0.0, 0.0, 0.0)
        span = float(self.handed[-1, 0] - self.handed[0, 0])
        p50, p90, p99 = np.percentile(self.handed[:, 1], (50, 90, 99)).tolist()
        fps = (len(self.handed) - 1) / span if span > 0 else 0.0
        model = float(np.median(self.model)) if len(self.model) else 0.0
        return StreamStats(*self.counts, fps, p50, p90, p99, float(np.median(self.ages)), model)
