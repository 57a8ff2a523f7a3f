"""Engines, one file each behind the protocol of :mod:`fai_fast.engines.base`; ``select`` says which and why."""
