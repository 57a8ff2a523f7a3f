"""The weights of a model of FocoosAI: what its ``weights_uri`` says, and what lies beside its ``model_info.json``."""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from fai_fast._redaction import redacted

__all__ = ["WEIGHTS_SUFFIXES", "find_weights", "is_url"]

WEIGHTS_NAMES = ("model_final.pth", "model_final.safetensors", "model_final.pt")
WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")
_GRAPH_SUFFIXES = (".onnx", ".engine")
_SHOWN = 5

_log = logging.getLogger("fai_fast")


def find_weights(folder: Path, uri: object, source: str) -> tuple[Path | None, str | None]:
    """The file that holds the weights, or why there is none.

    What lies in the folder comes first, by the name in `uri`, then by FocoosAI's usual ones, then where it is the only
    one: a folder that was copied brings its weights along, and its `uri` is of the machine that trained it. Without
    any, an absolute path in `uri` is followed where there is such a file. Others that leave the folder never are.

    Args:
        folder: where ``model_info.json`` is.
        uri: what it says.
        source: what the log calls it.

    Returns:
        The file and None, or None and the reason, to be told once weights are asked for; None and None where `uri` is
        an address and nothing lies in the folder.
    """
    named = uri if isinstance(uri, str) and uri.strip() and "://" not in uri and "\0" not in uri else None
    inside, outside = (None, None) if named is None else _paths(folder, named)
    kinds = (PurePosixPath, PureWindowsPath)
    own_name = None if named is None else min((kind(named).name for kind in kinds), key=len)
    graphs: list[str] = []
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if suffix not in (*WEIGHTS_SUFFIXES, *_GRAPH_SUFFIXES) or not path.is_file():
            continue
        if suffix in _GRAPH_SUFFIXES or (suffix == ".pt" and _is_torchscript(path)):
            graphs.append(path.name)
        else:
            found.append(path)
    beside = inside if inside is not None and os.path.isfile(inside) else _chosen(found, own_name)
    if beside is not None:
        _tell(beside, named, own_name, outside, source)
        return beside, None
    if outside is not None and os.path.isfile(outside):
        _log.info("%s: no weights beside it; taking weights_uri: %s", source, outside)
        return outside, None
    if found:
        shown = ", ".join(path.name for path in found[:_SHOWN])
        _log.warning("%s: several weights beside it (%s): pass one as weights=", source, shown)
        return None, f"several lie in {folder} ({shown}); pass one of them as weights="
    if is_url(uri):
        return None, None
    return None, _reason(folder, uri, graphs)


def is_url(uri: object) -> bool:
    return isinstance(uri, str) and uri.startswith(("http://", "https://"))


def _paths(folder: Path, uri: str) -> tuple[Path | None, Path | None]:
    """What `uri` may mean: a file in the folder, or one at an absolute path of this machine."""
    kinds: tuple[PurePath, ...] = (PurePosixPath(uri), PureWindowsPath(uri))
    if any(".." in path.parts for path in kinds):
        return None, None
    if any(path.is_absolute() or path.drive or path.root for path in kinds):
        return None, Path(uri) if Path(uri).is_absolute() else None
    return folder / uri, None


def _chosen(found: list[Path], own_name: str | None) -> Path | None:
    """Of the files in a folder the one whose weights are meant."""
    by_name = {path.name: path for path in found}
    for name in (own_name, *WEIGHTS_NAMES):
        if name in by_name:
            return by_name[name]
    return found[0] if len(found) == 1 else None


def _tell(beside: Path, named: str | None, own_name: str | None, outside: Path | None, source: str) -> None:
    """A line in the log where the file that is taken may not be the one that `uri` means."""
    if outside is not None and os.path.isfile(outside) and not os.path.samefile(outside, beside):
        _log.warning(
            "%s: taking %s, which lies beside it, not weights_uri, which is there, too: %s; pass that as weights= if "
            "it is meant",
            source,
            beside.name,
            outside,
        )
    elif named is not None and beside.name != own_name:
        _log.warning("%s: taking %s: there is no %s, its weights_uri", source, beside.name, redacted(named))


def _reason(folder: Path, uri: object, graphs: list[str]) -> str:
    said = "no weights_uri is given"
    if isinstance(uri, str) and uri:
        leaves = any(".." in kind(uri).parts for kind in (PurePosixPath, PureWindowsPath))
        problem = "leaves the folder and is not followed" if leaves else "is not a file here"
        said = f"weights_uri {redacted(uri)!r} {problem}"
    lies = "none lie"
    if graphs:
        shown = ", ".join(graphs[:_SHOWN])
        lies = f"what FocoosAI exported ({shown}) holds a graph, and no others lie"
    return f"{said}, and {lies} in {folder}; put the training's model_final.pth there, or pass its path as weights="


def _is_torchscript(path: Path) -> bool:
    """Whether it is an exported graph: an archive with code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):  # what it is instead is told when it is read
        return False
