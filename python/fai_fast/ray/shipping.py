"""The driver's cache for nodes that lack it: weights, graphs and compiled engines by way of Ray's object store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fai_fast import cache
from fai_fast.model import Model, load
from fai_fast.ray.resources import ray_module

__all__ = ["ShippedCache", "ship_cache"]


@dataclass(frozen=True)
class _File:
    """A file of the cache.

    Attributes:
        place: below the cache's folder.
        depends, info: what its record says.
        content: refers to its bytes in the object store, uint8.
    """

    place: str
    depends: dict[str, Any]
    info: dict[str, Any]
    content: Any = field(repr=False)


@dataclass(frozen=True)
class ShippedCache:
    """Files of a cache in Ray's object store, from :func:`ship_cache`, for as long as somebody holds this.

    Attributes:
        size: bytes of all files.
    """

    size: int
    _files: tuple[_File, ...] = field(repr=False)

    def unpack(self, cache_dir: Any = None) -> int:
        """Puts what is missing into this node's cache; of several workers of a node one does, and the others wait.

        Args:
            cache_dir: as of :func:`fai_fast.load`.

        Returns:
            How many files this call has written.

        Raises:
            FaiFastError: the folder cannot be written to, or the disk is full.
        """
        ray = ray_module()
        root = cache.cache_folder(cache_dir)
        written = 0
        for file in self._files:

            def build(place: Path, file: _File = file) -> dict[str, Any]:
                with place.open("wb") as sink:
                    sink.write(memoryview(ray.get(file.content)))
                return file.info

            written += cache.artefact(root / file.place, file.depends, build).built
        return written


def ship_cache(model: Any, **options: Any) -> ShippedCache:
    """Makes a model ready here, once, and puts what the cache then has of it into Ray's object store.

    A worker that gets it (``Detector``'s argument ``shipped``) writes what its node lacks into that node's cache, so
    that a node neither fetches weights nor exports a graph. A compiled engine depends on the CPU, the GPU and the
    number of threads: it is taken where these are the driver's, and compiled anew elsewhere.

    Args:
        model: as of :class:`fai_fast.ray.Detector`.
        options: of :func:`fai_fast.load`, as the workers get them; ``num_threads`` is the CPUs of a worker.

    Returns:
        What to pass on; it stays in the object store while it is held.

    Raises:
        TypeError, ValueError, FaiFastError: as of :func:`fai_fast.load`.
        ImportError: Ray is not installed.

    Example:
        >>> shipped = fai_fast.ray.ship_cache("fai-mf-s-coco-ins", num_threads=1)  # doctest: +SKIP
        >>> found = pictures.map_batches(  # doctest: +SKIP
        ...     fai_fast.ray.Detector,
        ...     fn_constructor_kwargs={"model": "fai-mf-s-coco-ins", "shipped": shipped},
        ...     compute=ray.data.ActorPoolStrategy(size=8),
        ... )
    """
    ray = ray_module()
    with load(model, **options) as ready:
        paths = _files_of(ready, options.get("cache_dir"))
    root = cache.cache_folder(options.get("cache_dir"))
    files = []
    for path in paths:
        record = cache.Record.read(cache.record_path(path))
        content = np.fromfile(path, np.uint8)
        files.append(_File(path.relative_to(root).as_posix(), record.depends, record.info, ray.put(content)))
    return ShippedCache(sum(path.stat().st_size for path in paths), tuple(files))


def _files_of(model: Model, cache_dir: Any) -> list[Path]:
    """What the cache has of a model in this size, and its weights where they were fetched."""
    from fai_fast._artefacts import model_folder

    info = model.info()
    folder = model_folder(model.spec, cache_dir)
    stem = f"{model.size[0]}x{model.size[1]}-b{model.batch_size}-"
    found = []
    for kept in cache.list_artefacts(cache_dir):
        if not kept.complete:
            continue
        if kept.path.parent == folder:
            if kept.path.name.startswith(stem):
                found.append(kept.path)
        elif cache.Record.read(cache.record_path(kept.path)).sha256 == info.get("weights_sha256"):
            found.append(kept.path)
    return found
