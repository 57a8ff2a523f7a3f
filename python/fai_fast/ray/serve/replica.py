""":class:`Replica`, the deployment that has the model: encoded pictures in, answers out. It never sees HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import numpy.typing as npt

import fai_fast
from fai_fast._options import EngineName, Precision
from fai_fast.detections import Detections
from fai_fast.errors import FaiFastError
from fai_fast.images import TooLargeError, read_image
from fai_fast.model import STAGES, load
from fai_fast.ray.resources import load_options
from fai_fast.ray.serve.http import Reply, error
from fai_fast.ray.serve.metrics import ReplicaMetrics
from fai_fast.ray.serve.query import Query
from fai_fast.ray.serve.settings import Settings
from fai_fast.ray.serve.writing import written

__all__ = ["Replica"]

_Frame = npt.NDArray[np.uint8]
_log = logging.getLogger("ray.serve")


class Replica:
    """Has a model, on the CPUs and the GPU that Ray gave it, and answers what it finds in pictures."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        options = load_options(
            {
                "weights": settings.weights,
                "engine": cast(EngineName, settings.engine),
                "precision": cast(Precision, settings.precision),
                "im_size": settings.im_size,
                "cache_dir": settings.cache_dir,
                "batch_size": settings.batch,
            }
        )
        self._model = load(settings.model, **options)
        self._blank = np.full((*self._model.size, 3), 114, np.uint8)
        # Now, rather than as errors of all requests; and the first of them is as quick as the others.
        self._defaults = Query(settings.threshold, settings.classes, settings.top_k)
        for _ in range(2):
            self._infer([self._blank] * settings.batch, self._options(self._defaults))
        self._pool = ThreadPoolExecutor(settings.ongoing, "fai_fast-serve")
        self._together = self._batches() if settings.batch > 1 else None
        self._metrics = ReplicaMetrics()
        self._ongoing = 0
        self._well = True
        self._busy = True

    async def predict(self, body: bytes, query: Query) -> Reply:
        """The answer to a picture.

        What is wrong with it, or with what is asked, is an answer too: only what is this replica's own fault raises.
        """
        self._ongoing += 1
        self._metrics.ongoing(self._ongoing)
        try:
            reply = await self._predict(body, query)
        finally:
            self._ongoing -= 1
            self._metrics.ongoing(self._ongoing)
        if reply.latency:
            self._metrics.looked(reply.latency)
        return reply

    async def _predict(self, body: bytes, query: Query) -> Reply:
        run = asyncio.get_running_loop().run_in_executor
        try:
            options = self._options(query)
            if self._together is None:
                reply = await run(self._pool, self._answer, body, query, options)
            else:
                frame, decode = await run(self._pool, self._decoded, body)
                found = await self._together((frame, options))
                if isinstance(found, Exception):
                    raise found
                reply = await run(self._pool, _reply, found, frame, decode, query)
        except TooLargeError:
            return error(413, f"image: it has too many pixels, expected at most {self._settings.max_pixels}")
        except FaiFastError:
            # Its text is about this machine: it belongs into the log.
            _log.exception("fai_fast: a picture could not be looked at")
            self._well = False
            return error(500, "the model failed; the log of its replica says why")
        except ImportError as missing:
            return error(501, str(missing))
        except (OSError, TypeError, ValueError) as wrong:
            return error(400, str(wrong))
        self._busy = True
        return reply

    def _answer(self, body: bytes, query: Query, options: dict[str, Any]) -> Reply:
        frame, decode = self._decoded(body)
        return _reply(self._infer([frame], options)[0], frame, decode, query)

    def _decoded(self, body: bytes) -> tuple[_Frame, float]:
        started = time.perf_counter()
        frame = read_image(body, max_pixels=self._settings.max_pixels)
        return frame, 1e3 * (time.perf_counter() - started)

    def _infer(self, frames: Sequence[_Frame], options: dict[str, Any]) -> list[Detections]:
        if self._model.batch_size == 1:
            return [self._model.infer(frame, **options) for frame in frames]
        return self._model.infer_batch(list(frames), **options)

    def _options(self, query: Query) -> dict[str, Any]:
        """Those of Model.infer."""
        return {"threshold": query.threshold, "classes": self._classes(query.classes), "top_k": query.top_k}

    def _classes(self, given: tuple[str, ...] | None) -> tuple[str | int, ...] | None:
        """Names and ids, which commas divide where they are not part of a name."""
        if given is None:
            return None
        names = set(self._model.spec.classes)
        words = [word.strip() for text in given for word in ([text] if text in names else text.split(","))]
        return tuple(int(word) if word.isdecimal() and len(word) < 10 else word for word in words)

    def _batches(self) -> Any:
        """What takes one frame and its options, and returns what was found in it, or what is wrong with it."""
        from ray import serve

        async def together(items: list[tuple[_Frame, dict[str, Any]]]) -> list[Detections | Exception]:
            run = asyncio.get_running_loop().run_in_executor
            found: list[Any] = await run(self._pool, self._batch, items)
            return found

        return serve.batch(
            max_batch_size=self._settings.batch, batch_wait_timeout_s=self._settings.batch_wait_ms / 1e3
        )(together)

    def _batch(self, items: list[tuple[_Frame, dict[str, Any]]]) -> list[Detections | Exception]:
        """Of all requests; those with the same options run at once."""
        results: list[Any] = [None] * len(items)
        waiting = list(range(len(items)))
        while waiting:
            options = items[waiting[0]][1]
            group = [i for i in waiting if items[i][1] == options]
            waiting = [i for i in waiting if items[i][1] != options]
            try:
                found: Sequence[Any] = self._infer([items[i][0] for i in group], options)
            except Exception as wrong:
                # What they share is at fault, for a frame that was decoded has nothing wrong with it: their options, or
                # the engine.
                found = [wrong] * len(group)
            for i, result in zip(group, found, strict=True):
                results[i] = result
        return results

    # ------------------------------------------------------------------------------------------- health, facts

    async def check_health(self) -> None:
        """Serve asks every few seconds, and replaces this replica where it raises.

        Pictures that were answered since are proof enough; otherwise, and after an error, a blank one is looked at.
        """
        if self._well and self._busy:
            self._busy = False
            return
        options = self._options(self._defaults)
        await asyncio.get_running_loop().run_in_executor(self._pool, self._infer, [self._blank], options)
        self._well = True

    async def ready(self) -> bool:
        """That there is a replica with a model."""
        return True

    async def info(self) -> dict[str, Any]:
        """What a client may know: of Model.info() nothing that is about this machine or where its files are."""
        info = self._model.info()
        spec = self._model.spec
        settings = self._settings
        threshold = spec.config.threshold if settings.threshold is None else settings.threshold
        return {
            "fai_fast": fai_fast.__version__,
            **{name: info[name] for name in ("name", "family", "task", "batch_size", "precision")},
            "im_size": list(info["im_size"]),
            "engine": info["engine"]["engine"],
            "device": info["engine"]["device"],
            "classes": list(spec.classes),
            "defaults": {"threshold": threshold, "classes": settings.classes, "top_k": settings.top_k},
            "limits": {
                name: getattr(settings, name) for name in ("max_body_bytes", "max_pixels", "timeout_s")
            },
        }

    def __del__(self) -> None:
        # Serve calls it when the replica has no more to do.
        if hasattr(self, "_pool"):
            self._pool.shutdown(wait=False)
            self._model.close()


def _reply(found: Detections, frame: _Frame, decode: float, query: Query) -> Reply:
    assert found.latency is not None
    latency = found.latency._replace(decode=decode)
    stages = {name: round(float(getattr(latency, name)), 3) for name in STAGES}
    started = time.perf_counter()
    content, media_type = written(found, frame, query, stages)
    stages["write"] = 1e3 * (time.perf_counter() - started)
    return Reply(200, content, media_type, latency=stages)
