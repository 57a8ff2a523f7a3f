"""The models: one JSON file an entry, and records of the user's own.

:func:`models` lists names, :func:`spec` gives the record of one, :func:`load_spec` also reads folders with FocoosAI's
``model_info.json``.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fai_fast._redaction import redacted
from fai_fast.registry.spec import (
    BackboneConfig,
    ModelConfig,
    ModelSpec,
    NetworkConfig,
    PublishedLatency,
    own_config,
    stride_of,
)

__all__ = [
    "BackboneConfig",
    "ModelConfig",
    "ModelSpec",
    "NetworkConfig",
    "PublishedLatency",
    "bundled_path",
    "load_spec",
    "models",
    "own_config",
    "spec",
    "stride_of",
]

FOLDER = Path(__file__).parent
# FocoosAI's ten in the order of its registry, then what the package brings.
_ORDER = (
    "fai-m2f-m-coco-ins",
    "fai-bf-m-ade",
    "fai-mf-s-coco-ins",
    "fai-mf-m-coco-ins",
    "fai-mf-l-coco-ins",
    "fai-mf-m-ade",
    "fai-mf-l-ade",
    "bisenetformer-s-ade",
    "bisenetformer-m-ade",
    "bisenetformer-l-ade",
)


def models() -> list[str]:
    """The names of all models that come with the package.

    Example:
        >>> fai_fast.models()[3]
        'fai-mf-m-coco-ins'
    """
    return list(_names())


def spec(name: str) -> ModelSpec:
    """The record of one model.

    Raises:
        TypeError: `name` is not a str.
        ValueError: no model is called that; the text names similar ones.

    Example:
        >>> fai_fast.spec("fai-mf-m-coco-ins").metrics["segm/AP"]
        43.4
    """
    if not isinstance(name, str):
        raise TypeError(f"name: got {type(name).__name__}, expected one of {', '.join(models())}")
    if name not in _names():
        raise ValueError(f"name: got {redacted(name)!r}, {_similar(name)}")
    return _read_entry(name)


def load_spec(model: str | os.PathLike[str] | Mapping[str, Any] | ModelSpec) -> ModelSpec:
    """The record of a model, wherever it is.

    Args:
        model: a name of :func:`models` (names come first: write ``./name`` for a folder of that name); a folder or
            file with FocoosAI's ``model_info.json`` or with what ``ModelSpec.to_dict`` gives; such a dict; or a
            ModelSpec, which is given back as it is.

    Raises:
        TypeError: `model` is none of these.
        ValueError: there is no such model, or its file is not as it must be; the text names the field.
    """
    from fai_fast.registry import model_info

    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, Mapping):
        return model_info.read_record(model, "model", None)
    if isinstance(model, str) and model in _names():
        return _read_entry(model)
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a name, a folder or file with model_info.json, a dict or a "
            "ModelSpec"
        )
    path = Path(os.fsdecode(model))
    if "\0" in str(path) or not path.exists():
        raise ValueError(
            f"model: got {redacted(os.fsdecode(model))!r}, no such file or folder; as a name, {_similar(str(model))}"
        )
    return model_info.read(path)


def bundled_path(name: str) -> Path:
    """Where the package keeps the weights file ``name`` of an entry's ``bundled_weights``."""
    return FOLDER / "weights" / name


@cache
def _names() -> tuple[str, ...]:
    found = {path.stem for path in FOLDER.glob("*.json")}
    return (*(name for name in _ORDER if name in found), *sorted(found.difference(_ORDER)))


@cache
def _read_entry(name: str) -> ModelSpec:
    return ModelSpec.from_dict(json.loads((FOLDER / f"{name}.json").read_text("utf-8")))


def _similar(name: str) -> str:
    close = difflib.get_close_matches(name, _names(), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(_names())}"
