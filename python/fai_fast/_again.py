"""The arguments of :func:`fai_fast.load`, with which another process loads the same model again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fai_fast.errors import FaiFastError
from fai_fast.networks.foreign import is_module
from fai_fast.registry import models

__all__ = ["kept", "pickled"]

# Those that may be files.
_FILES = ("name_or_path", "weights", "cache_dir", "spec")


def kept(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same, with absolute paths: whoever loads it again may be in another folder."""
    return {**arguments, **{name: _absolute(arguments[name]) for name in _FILES}}


def _absolute(file: Any) -> Any:
    """The absolute path of a file that is there; else what came."""
    if not isinstance(file, (str, os.PathLike)) or (isinstance(file, str) and file in ("random", *models())):
        return file
    path = os.fsdecode(file)
    return os.path.abspath(path) if os.path.exists(path) else file


def pickled(arguments: dict[str, Any], graph: Path | None) -> dict[str, Any]:
    """Those that another process can load it with.

    A module is code and gigabytes; what was made of it is in the cache, and says what it is.

    Args:
        arguments: as :func:`kept` gives them.
        graph: the deployed graph's file, where there is one.

    Raises:
        FaiFastError: it is of a module, and there is no such file.
    """
    if not is_module(arguments["name_or_path"]):
        return arguments
    if graph is None:
        raise FaiFastError("a model of a module cannot be pickled; fai_fast.export() the module first")
    fixed = {"spec": None, "processor": None, "task": None, "im_size": None, "frame": None}
    return {**arguments, **fixed, "name_or_path": str(graph)}
