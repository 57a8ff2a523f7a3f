"""Machines to pretend to be: what depends on the CPU at hand is tested for each of these on any."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from fai_fast.engines import cpu


@dataclass(frozen=True)
class Host:
    """What `fai_fast.engines.cpu` says there. It goes on computing as this machine does."""

    name: str
    features: tuple[str, ...]
    precisions: tuple[str, ...]


_AVX2 = ("avx", "avx2", "f16c", "fma")
_BF16 = (*_AVX2, "avx512_bf16", "avx512f")
_AMX = (*_BF16, "amx_bf16", "amx_fp16", "amx_int8", "amx_tile", "avx512_fp16")
_VNNI = (*_AVX2, "avx512_vnni", "avx512f")
HOSTS = {
    "fp32": Host("A CPU without low precision", tuple(sorted(_AVX2)), ("fp32",)),
    "vnni": Host("A CPU with int8 as its only low precision", tuple(sorted(_VNNI)), ("fp32",)),
    "bf16": Host("A CPU with bf16", tuple(sorted(_BF16)), ("bf16", "fp32")),
    "amx": Host("A CPU with fp16 and AMX", tuple(sorted(_AMX)), ("bf16", "fp16", "fp32")),
}


def pretend(patch: pytest.MonkeyPatch, host: Host) -> None:
    """Makes this process see `host` for as long as `patch` holds."""
    patch.setattr(cpu, "name", lambda: host.name)
    patch.setattr(cpu, "features", lambda: host.features)
    patch.setattr(cpu, "precisions", lambda found: host.precisions)
