"""A lock that is given back whenever a signal handler raises.

`with threading.Lock():` was such a lock until CPython 3.14, which runs handlers between taking it and the block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["SignalSafeLock"]


class SignalSafeLock:
    """A reentrant lock to use with ``with``.

    Reentrant, so that a thread can tell whether it holds the lock, and a handler may use what its thread is using.
    """

    # C functions of an instance, for which Python runs no handler before they have done their work.
    __slots__ = ("__exit__", "_lock", "acquire", "release")
    __exit__: Callable[..., None]
    acquire: Callable[..., bool]
    release: Callable[[], None]

    def __init__(self) -> None:
        self._lock = lock = threading.RLock()
        self.acquire, self.release, self.__exit__ = lock.acquire, lock.release, lock.__exit__

    def condition(self) -> threading.Condition:
        """A condition variable of this lock, to wait and notify while it is held."""
        return threading.Condition(self._lock)

    def __enter__(self) -> None:
        """Blocks until no other thread holds the lock."""
        try:
            self.acquire()
        except BaseException:  # a handler's, that ran while it waited, or when it had the lock
            with suppress(RuntimeError):  # it never had it
                self.release()
            raise
