"""One adapter a competitor. An adapter that cannot be imported is absent: the report says so and why."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

absent: dict[str, str] = {}


def load(name: str) -> ModuleType | None:
    """The adapter `name`, or None where what it needs is not installed; `absent` then holds the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third-party imports; pytest would make errors of them
            return importlib.import_module(f"bench.peers.{name}")
    except ImportError as error:
        if (error.name or "").startswith(("bench", "fai_fast")):
            raise
        absent[name] = str(error)
        return None
