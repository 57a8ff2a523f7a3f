"""What transformers said of a network in a folder, or in its own cache, kept so that the next start need not ask again.

To import transformers and PyTorch takes seconds, and to read all weights longer. What a graph in the cache is found by
follows from the folder's files, whose hashes the cache remembers, and from the versions of both packages.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fai_fast import _places, cache
from fai_fast._foreign import explained
from fai_fast.errors import FaiFastError

__all__ = ["Facts", "Memory", "snapshot_of"]

VERSION = 2
"""Counts changes of what is kept."""
# What transformers reads of a folder: settings, words of tokenizers, weights. Training leaves more there.
_SETTINGS = (".json", ".txt", ".model")
_WEIGHTS = (".safetensors", ".bin")
_LARGEST_INDEX = 1 << 26
# Of a configuration, and of the two inside it, the fields that a record is made of.
_FIELDS = ("model_type", "id2label", "num_queries", "image_size", "patch_size")
_PARTS = ("backbone_config", "decoder_config")
_FIELDS_OF_PARTS = ("num_queries", "image_size", "patch_size", "num_windows")

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class Facts:
    """What has to be known of a network before its graph is looked for.

    Attributes:
        config: the fields of its configuration that :func:`fai_fast.networks.families.describe` reads.
        processor: what is said of its image processor; None where nothing is.
        sha256: of all that its graphs depend on.
    """

    config: Any
    processor: dict[str, Any] | None
    sha256: str


class Memory:
    """The facts of one network.

    Args:
        folder: the cache.
        place: the network's folder, or its name on the hub.
        name: of its record.
        local: whether it is a folder.
        asked: what the facts depend on besides the files, JSON types.
    """

    def __init__(self, folder: Path, place: str, name: str, *, local: bool, asked: Mapping[str, Any]) -> None:
        self._folder, self._place, self._name, self._local = folder, place, name, local
        self._asked = dict(asked)
        self._depends: dict[str, Any] | None = None

    def recall(self) -> Facts | None:
        """The facts; None where they are not known, or something has changed since they were kept."""
        self._depends = self._now()
        if self._depends is None:
            return None
        # One that cannot be read is no loss: transformers is asked again.
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = cache.Record.read(cache.record_path(self._path(self._depends)))
            if record.depends == self._depends:
                said = record.info
                return Facts(_configuration(said["config"]), said["processor"], str(said["sha256"]))
        return None

    def keep(self, config: Any, processor: Mapping[str, Any] | None, sha256: str) -> None:
        """Keeps what transformers has just said; without it the next start takes longer, and that is all."""
        now = self._now()
        if now is None or self._depends not in (None, now):
            return  # what was read is not what is there
        plain = {key: value for key, value in (processor or {}).items() if key != "tokenizer"}
        if not plain and not self._local:
            return  # maybe it could not be fetched just now
        said = {
            "config": _fields_of(config),
            "processor": None if processor is None else plain,
            "sha256": sha256,
        }

        def write(path: Path) -> dict[str, Any]:
            path.write_text(json.dumps(said, indent=1, default=str), "utf-8")
            return said

        try:
            cache.artefact(self._path(now), now, write)
        except (FaiFastError, TypeError, ValueError, OSError) as error:
            if not explained(error):
                raise
            _log.debug("%s: what transformers says of it is not kept: %s", self._name, error)

    def _path(self, depends: Mapping[str, Any]) -> Path:
        return _places.place(self._name, self._folder, "transformers.facts", depends)

    def _now(self) -> dict[str, Any] | None:
        """What the facts depend on, as it is now; None where that cannot be told."""
        try:
            versions = {package: importlib.metadata.version(package) for package in ("transformers", "torch")}
            folder = Path(self._place) if self._local else snapshot_of(self._place)
            files = None if folder is None else _hashes(folder, self._folder)
        except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
            return None
        if files is None:
            return None
        return {"facts": VERSION, "name": self._name, "files": files, **versions, **self._asked}


def snapshot_of(name: str) -> Path | None:
    """The folder in transformers' cache where the files of a name on its hub are; None where they are not."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json")
    except Exception as error:
        if not explained(error, "huggingface_hub"):
            raise
        return None
    return Path(found).parent if isinstance(found, str) else None


def _hashes(folder: Path, memory: Path) -> dict[str, str] | None:
    """The SHA-256 of each file that transformers may read, by its name; None where no weights are among them."""
    names = {item.name for item in folder.iterdir() if item.suffix in (*_SETTINGS, *_WEIGHTS)}
    for index in sorted(name for name in names if name.endswith(".index.json")):
        if (folder / index).stat().st_size <= _LARGEST_INDEX:
            said = json.loads((folder / index).read_text("utf-8"))
            names |= (
                set(said["weight_map"].values()) if isinstance(said, dict) and "weight_map" in said else set()
            )
    files = sorted(name for name in names if (folder / name).is_file())
    if not any(name.endswith(_WEIGHTS) for name in files):
        return None
    return {name: cache.remembered_sha256(folder / name, memory) for name in files}


def _fields_of(config: Any) -> dict[str, Any]:
    """The fields of a configuration that are there, as JSON."""

    def found(holder: Any, names: tuple[str, ...]) -> dict[str, Any]:
        values = {name: getattr(holder, name, None) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    parts = {name: found(inner, _FIELDS_OF_PARTS) for name, inner in found(config, _PARTS).items()}
    return {**found(config, _FIELDS), **parts}


def _configuration(fields: Mapping[str, Any]) -> Any:
    """What has these fields as a configuration has them."""
    parts = {name: SimpleNamespace(**fields[name]) for name in _PARTS if name in fields}
    return SimpleNamespace(**{**fields, **parts})
