""":class:`Ingress`, the deployment that speaks HTTP: it reads requests, and has no model.

It is apart from the model so that it outlives a replica of it: it holds the body of a request until there is an answer,
and gives it to another replica where one died. And what is no picture never comes to where the GPUs are.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from typing import Any

from fai_fast.ray.serve.body import read_picture
from fai_fast.ray.serve.http import Refusal, Reply, error
from fai_fast.ray.serve.metrics import IngressMetrics
from fai_fast.ray.serve.query import Query
from fai_fast.ray.serve.settings import Settings

__all__ = ["Ingress"]

# How often a picture is given to another replica: one that kills every replica it comes to must not get at all of them.
_RETRIES = 2
_HEALTH_S = 5.0
_METHODS = {
    "/": ("POST",),
    "/predict": ("POST",),
    "/info": ("GET", "HEAD"),
    "/healthz": ("GET", "HEAD"),
}
# nginx's word for a client that did not wait.
_GONE = 499
_WELL = Reply(200, b'{"status": "ok"}')

_log = logging.getLogger("ray.serve")


class Ingress:
    """Answers HTTP, by a handle of :class:`fai_fast.ray.serve.replica.Replica`."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        self._replicas = replicas
        self._settings = settings
        self._defaults = Query(settings.threshold, settings.classes, settings.top_k)
        self._metrics = IngressMetrics()
        self._inside = 0
        self._info: bytes | None = None
        # When a replica answered last.
        self._answered = -math.inf

    async def __call__(self, request: Any) -> Any:
        """The response to a Starlette request."""
        started = time.perf_counter()
        status = _GONE
        try:
            reply = await self._reply(request)
            status = reply.status
            return reply.response()
        finally:
            self._metrics.answered(status, 1e3 * (time.perf_counter() - started))

    async def _reply(self, request: Any) -> Reply:
        from starlette.requests import ClientDisconnect

        path = _path(request.scope)
        methods = _METHODS.get(path)
        if methods is None:
            return error(404, f"no such path, expected one of {', '.join(_METHODS)}")
        if request.method not in methods:
            allowed = ", ".join(methods)
            return error(405, f"{path}: got {request.method}, expected {allowed}", Allow=allowed)
        try:
            if path == "/info":
                return await self._tell()
            if path == "/healthz":
                return await self._health()
            return await self._admitted(request)
        except Refusal as refusal:
            return refusal.reply
        except ClientDisconnect:
            return error(_GONE, "the client went away")
        except Exception:
            # Whatever it is, it is not for strangers.
            _log.exception("fai_fast: a request could not be answered")
            return error(500, "something failed here; the log of the ingress says what")

    async def _admitted(self, request: Any) -> Reply:
        """A picture's answer, where there is room for its body."""
        if self._inside >= self._settings.inside:
            raise self._full()
        self._inside += 1
        self._metrics.inside(self._inside)
        try:
            return await self._look(request)
        finally:
            self._inside -= 1
            self._metrics.inside(self._inside)

    async def _look(self, request: Any) -> Reply:
        from ray.exceptions import TaskCancelledError
        from starlette.requests import ClientDisconnect

        query = self._defaults.asked(request.query_params.multi_items(), request.headers.get("accept"))
        ends = time.monotonic() + self._settings.timeout_s
        reading = read_picture(request.headers, request.stream(), self._settings.max_body_bytes)
        try:
            body = await asyncio.wait_for(reading, self._settings.timeout_s)
        except ImportError as missing:
            raise Refusal(501, str(missing)) from None
        except TaskCancelledError:
            # Serve's way of saying it where the client went while the proxy was asked for more.
            raise ClientDisconnect from None
        except asyncio.TimeoutError:
            raise Refusal(408, f"body: it was not here after {self._settings.timeout_s:g} s") from None
        return await self._predicted(body, query, ends)

    async def _predicted(self, body: bytes, query: Query, ends: float) -> Reply:
        """What a replica says; where it dies over it, what another one says."""
        from ray.exceptions import ObjectLostError, RayActorError

        for _ in range(1 + _RETRIES):
            try:
                reply: Reply = await self._asked(self._replicas.predict.remote(body, query), ends)
                if reply.status < 500:
                    self._answered = time.monotonic()
                return reply
            except (RayActorError, ObjectLostError) as died:
                _log.warning(
                    "fai_fast: a replica is gone, its picture goes to another: %s", type(died).__name__
                )
                self._metrics.retried()
        raise self._busy(f"{1 + _RETRIES} replicas died one after the other")

    async def _asked(self, response: Any, ends: float) -> Any:
        """What a call of a handle returns; Refusal where nobody takes it, or it takes too long."""
        from ray.serve import exceptions
        from starlette.requests import ClientDisconnect

        try:
            return await asyncio.wait_for(response, max(0.0, ends - time.monotonic()))
        except exceptions.BackPressureError:
            raise self._full() from None
        except asyncio.TimeoutError:
            response.cancel()
            raise Refusal(504, f"there was no answer within {self._settings.timeout_s:g} s") from None
        except exceptions.RequestCancelledError:
            raise ClientDisconnect from None
        except exceptions.RayServeException as failed:
            # Of a deployment that could not be started, or is being taken away.
            _log.warning("fai_fast: there is no replica: %s", failed)
            raise self._busy("there is no replica at the moment") from None

    def _full(self) -> Refusal:
        return self._busy(f"more than {self._settings.max_queued_requests} requests are waiting already")

    def _busy(self, text: str) -> Refusal:
        return Refusal(503, f"{text}; try again", Retry_After=str(self._settings.retry_after_s))

    # ------------------------------------------------------------------------------------------ health, facts

    async def _health(self) -> Reply:
        """Whether a replica answers, be it that there are too many requests."""
        from ray.exceptions import RayActorError

        if time.monotonic() - self._answered < _HEALTH_S:
            # Where there is much to do, this question would wait behind the pictures, and take that for illness.
            return _WELL
        try:
            await self._asked(self._replicas.ready.remote(), time.monotonic() + _HEALTH_S)
        except RayActorError:
            return error(503, "a replica is gone", Retry_After=str(self._settings.retry_after_s))
        except Refusal as refusal:
            if refusal.reply.status == 504:
                return error(
                    503,
                    f"no replica answered within {_HEALTH_S:g} s",
                    Retry_After=str(self._settings.retry_after_s),
                )
            return refusal.reply
        return _WELL

    async def _tell(self) -> Reply:
        if self._info is None:
            info = await self._asked(
                self._replicas.info.remote(), time.monotonic() + self._settings.timeout_s
            )
            self._info = json.dumps(info).encode()
        return Reply(200, self._info)


def _path(scope: Any) -> str:
    """A request's path below that of the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"
