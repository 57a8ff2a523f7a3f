"""Quantized forms that are there already: those of the cache, and those that come with the package."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fai_fast import cache, exporter
from fai_fast._foreign import explained
from fai_fast.engines import openvino_deformable
from fai_fast.engines.openvino_file import SUFFIX
from fai_fast.errors import EngineError, FaiFastError
from fai_fast.quantizer import VERSION, QuantizedInfo, Subject, read_info
from fai_fast.registry import bundled_path

__all__ = ["Form", "depends_on", "find", "info_of", "stem"]

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class Form:
    """A quantized file that is there.

    Attributes:
        path, sha256: of the file.
        info: what it says of itself.
        origin: where it is from, in words.
    """

    path: Path
    sha256: str
    info: QuantizedInfo
    origin: str


def stem(subject: Subject) -> str:
    """What the names of all forms of a graph begin with."""
    height, width = subject.size
    return f"{height}x{width}-b{subject.batch}-int8"


def depends_on(subject: Subject, required: bool = True) -> dict[str, Any]:
    """What every form of a graph depends on, besides the pictures.

    `required` is whether it had to be good enough: nobody gets one that was made to be measured without asking.
    """
    return {
        "weights": subject.weights_sha256,
        "configuration": subject.spec.to_dict(),
        "size": list(subject.size),
        "batch": subject.batch,
        "exporter": exporter.VERSION,
        "quantizer": VERSION,
        "rewriting": openvino_deformable.VERSION,
        "required": required,
    }


def info_of(info: QuantizedInfo) -> dict[str, Any]:
    """What the cache's record keeps, so that the file need not be read to know it."""
    return {
        "graph_sha256": info.graph_sha256,
        "kept": info.kept,
        "rest": list(info.rest),
        "verification": info.verification,
        "pictures": info.pictures,
        "versions": info.versions,
        "verdict": info.verdict,
    }


def find(subject: Subject, folder: Path, pictures: str | None = None, required: bool = True) -> Form | None:
    """The newest form of a graph in the cache, or the one that comes with the package; None where there is none.

    Args:
        folder: where the cache keeps what was made of the model.
        pictures: the digest of those that it must have been made from; None for any.
        required: see :func:`depends_on`.
    """
    wanted = _as_json(
        {**depends_on(subject, required), **({} if pictures is None else {"pictures": pictures})}
    )
    found = [(record.created, path, record) for path, record in _records(subject, folder, wanted)]
    for _, path, record in sorted(found, key=lambda item: item[0] or "", reverse=True):
        try:
            kept = cache.artefact(path, record.depends, _never)
            info = _info(subject, kept.info)
        except (FaiFastError, KeyError, TypeError, ValueError) as error:
            _log.info("%s is not taken: %s", path, error)
            continue
        return Form(kept.path, kept.sha256, info, f"{kept.path} (from the cache)")
    return _bundled(subject) if pictures is None else None


def _records(
    subject: Subject, folder: Path, wanted: Mapping[str, Any]
) -> Iterator[tuple[Path, cache.Record]]:
    for path in folder.glob(f"{glob.escape(stem(subject))}-*{SUFFIX}"):
        try:
            record = cache.Record.read(cache.record_path(path))
        except (OSError, ValueError) as error:
            if not explained(error, "json"):
                raise
            continue
        if all(record.depends.get(name) == value for name, value in wanted.items()):
            yield path, record


def _bundled(subject: Subject) -> Form | None:
    if subject.spec.bundled_weights is None:
        return None
    path = bundled_path(subject.spec.bundled_weights).with_suffix(SUFFIX)
    if not path.is_file():
        return None
    try:
        info = read_info(path)
    except EngineError as error:
        _log.info("%s is not taken: %s", path, error)
        return None
    same = (info.weights_sha256, info.size, info.batch, info.spec.config) == (
        subject.weights_sha256,
        subject.size,
        subject.batch,
        subject.spec.config,
    )
    if not same:
        return None
    return Form(path, cache.sha256_of(path), info, f"{path} (comes with the package)")


def _info(subject: Subject, said: Mapping[str, Any]) -> QuantizedInfo:
    return QuantizedInfo(
        spec=subject.spec,
        size=subject.size,
        batch=subject.batch,
        weights_sha256=subject.weights_sha256,
        graph_sha256=said["graph_sha256"],
        kept=said["kept"],
        rest=tuple(said["rest"]),
        verification=said["verification"],
        pictures=said["pictures"],
        versions=said["versions"],
    )


def _as_json(items: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(items))
    return plain


def _never(path: Path) -> NoReturn:
    raise FaiFastError("it is damaged")
