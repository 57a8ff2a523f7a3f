"""Which exceptions fai_fast may put into its own words, and which are nobody's but the program's that runs it.

A Python signal handler runs between any two bytecodes, in fai_fast's code and in that of the libraries below. What it
raises (a time limit, Celery's SoftTimeLimitExceeded) must arrive as it is. So must what another thread injects, and a
MemoryError. It is told by its type, and where that is one that libraries raise too, by the handler in its traceback.
"""

from __future__ import annotations

import signal
from types import CodeType
from typing import Any

__all__ = ["explained", "from_signal_handler"]

# Exactly these, whose subclasses may be anybody's. Not TimeoutError: no library here has one, and time limits raise it.
_BUILT_IN = frozenset(
    {
        ArithmeticError,
        AssertionError,
        AttributeError,
        BufferError,
        EOFError,
        FileExistsError,
        FileNotFoundError,
        FloatingPointError,
        ImportError,
        IndexError,
        IsADirectoryError,
        KeyError,
        LookupError,
        ModuleNotFoundError,
        NameError,
        NotADirectoryError,
        NotImplementedError,
        OSError,
        OverflowError,
        PermissionError,
        RecursionError,
        RuntimeError,
        SyntaxError,
        SystemError,
        TypeError,
        UnicodeDecodeError,
        UnicodeEncodeError,
        UnicodeError,
        ValueError,
        ZeroDivisionError,
    }
)


def explained(error: BaseException, *packages: str) -> bool:
    """Whether an exception may become one of fai_fast's; otherwise raise it again as it is.

    Args:
        error: what was caught.
        packages: those whose own exceptions are expected where it was caught: of "torch", or a module of it, all that
            torch defines.
    """
    kind = type(error)
    roots = {name.partition(".")[0] for name in (*packages, "fai_fast")}
    known = kind in _BUILT_IN or kind.__module__.partition(".")[0] in roots
    return known and from_signal_handler(error) is None


def from_signal_handler(error: BaseException) -> BaseException | None:
    """The exception of a signal handler that `error` is, or that a library has wrapped into it; None without one."""
    codes = {code for number in signal.valid_signals() for code in _codes(_handler(number))}
    if not codes:
        return None
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        current = waiting.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        trace = current.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in codes:
                return current
            trace = trace.tb_next
        # Not the context: the program may be in the middle of handling another one.
        waiting += [current.__cause__, getattr(current, "reason", None)]
    return None


def _handler(number: int) -> Any:
    try:
        return signal.getsignal(number)
    except ValueError:  # one that this platform names and does not have
        return None


def _codes(handler: Any) -> set[CodeType]:
    """The code of a handler: a function, a method, a partial, or an object that can be called."""
    codes = set()
    for _ in range(10):
        if code := getattr(handler, "__code__", None):
            codes.add(code)
        inner = (
            getattr(handler, "__func__", None)
            or getattr(handler, "func", None)
            or getattr(handler, "__wrapped__", None)
        )
        if inner is None and not codes and callable(handler):
            inner = type(handler).__call__
        if inner is None or inner is handler:
            break
        handler = inner
    return {code for code in codes if isinstance(code, CodeType)}
