"""What a forked child may not do: wait for its parent's threads, and for locks that they held. It has neither.

Everything that waits for another thread asks a :class:`ProcessGuard` first; locks of modules, which anybody may need,
are :class:`ForkSafeLock`; what must not even be destroyed in a child goes to :func:`keep_in_children`.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from types import TracebackType

from fai_fast.errors import EngineError

__all__ = ["ForkSafeLock", "ProcessGuard", "check_process", "keep_for_ever", "keep_in_children"]


def check_process(owner: str, process: int, what: str = "the engine was loaded; load it") -> None:
    """EngineError in a child of `process`, which loaded the engine: its threads exist only in the parent.

    Does not block.
    """
    if os.getpid() != process:
        raise EngineError(
            f"{owner}: this process was forked after {what} in the child, or start children with "
            'multiprocessing\'s "spawn"'
        )


class ProcessGuard:
    """Remembers the process that made something. No method blocks.

    Args:
        owner: what errors are of, such as an engine's name.
        what: what was done before the fork, and what to do instead.
    """

    __slots__ = ("_owner", "_process", "_what")

    def __init__(self, owner: str, what: str = "the engine was loaded; load it") -> None:
        self._owner = owner
        self._what = what
        self._process = os.getpid()

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child of that process."""
        return os.getpid() != self._process

    def check(self) -> None:
        """EngineError in a forked child."""
        check_process(self._owner, self._process, self._what)


class ForkSafeLock:
    """A reentrant lock that is free in a forked child, whichever thread of the parent held it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        """Blocks until no other thread holds the lock."""
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Does not block."""
        self._lock = threading.RLock()


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_kept: weakref.WeakSet[object] = weakref.WeakSet()


def keep_in_children(thing: object) -> None:
    """A forked child never destroys `thing`, also not while its interpreter ends. Does not block.

    For what waits for threads, or calls a driver, that the child does not have.
    """
    _kept.add(thing)


def keep_for_ever(thing: object) -> None:
    """Never destroys `thing`. A list of a module's would not do: modules are cleared when the interpreter ends.

    Does not block.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _keep_inherited() -> None:
    for thing in _kept:
        keep_for_ever(thing)


def _renew_locks() -> None:
    for lock in _locks:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)
    os.register_at_fork(after_in_child=_renew_locks)
