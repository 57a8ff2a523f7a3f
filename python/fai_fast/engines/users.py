"""Who shares an engine, which goes with the last of them."""

from __future__ import annotations

from fai_fast._locks import SignalSafeLock
from fai_fast.engines.base import Engine
from fai_fast.errors import FaiFastError

__all__ = ["Users"]


class Users:
    """Counts the models that share an engine; the last one to leave closes it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = SignalSafeLock()
        self._count = 1

    def enter(self) -> None:
        with self._lock:
            if self._count == 0:
                raise FaiFastError("the model is closed; load it again")
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count:
                return
        self._engine.close()
