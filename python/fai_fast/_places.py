"""Where in the cache lies what was made of a model."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fai_fast import cache

__all__ = ["folder_of", "place"]


def folder_of(name: str, cache_dir: Any = None) -> Path:
    """The folder of a model of that name."""
    # A user's model may be called anything; its folder may not leave the cache.
    return (
        cache.cache_folder(cache_dir)
        / "models"
        / (re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".")[:80] or "model")
    )


def place(model: str, cache_dir: Any, name: str, depends: Mapping[str, Any]) -> Path:
    """Where a model's file lies: `name` with a digest of all that it depends on.

    So two files that depend on different things never take each other's place, neither when they are used in turns nor
    between the check of one and its use.
    """
    text = json.dumps(depends, sort_keys=True, ensure_ascii=False, allow_nan=False)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    stem, suffix = os.path.splitext(name)
    return folder_of(model, cache_dir) / f"{stem}-{digest}{suffix}"
