"""What a CPU computes in."""

from __future__ import annotations

from fai_fast.engines import select

__all__ = ["candidates"]


def candidates(engine: str) -> tuple[str, ...]:
    """The precisions that "auto" tries in turn: those that the engine says are faster than fp32 here, fastest first.

    The last is always "fp32", which needs no verification.

    Raises:
        ValueError: there is no such engine.
        EngineError: the engine's package cannot be imported.
    """
    native: tuple[str, ...] = select.module(engine).native_precisions()
    return (*(native[: native.index("fp32")] if "fp32" in native else native), "fp32")
