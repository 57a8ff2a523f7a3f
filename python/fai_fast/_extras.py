"""How an optional package is installed, said the same way by every error, `fai-fast doctor` and the documents.

`pip install 'fai-fast[NAME]'` adds to a fai_fast that is installed, whether that came from a checkout, a wheel or an
index: pip takes the one that is there, and fetches only what the extra lists.
"""

from __future__ import annotations

__all__ = ["install", "requirement"]


def requirement(extra: str) -> str:
    """What pip is given: ``fai-fast[video]``."""
    return f"fai-fast[{extra}]"


def install(extra: str) -> str:
    """The command: ``pip install 'fai-fast[video]'``."""
    return f"pip install '{requirement(extra)}'"
