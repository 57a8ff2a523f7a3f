""":class:`Detector`, what ``Dataset.map_batches`` runs on a worker: pictures in, rows of what was found out."""

from __future__ import annotations

import inspect
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from fai_fast._arguments import check_bool
from fai_fast._options import BatchOptions
from fai_fast.detections import Detections, Latency
from fai_fast.detections.arrow import table
from fai_fast.images import check_max_pixels, read_image
from fai_fast.model import Model, load
from fai_fast.ops import frame_shape
from fai_fast.ray.batches import KINDS, Batch, joined, rgb
from fai_fast.ray.resources import given, load_options, ray_module

if TYPE_CHECKING:
    from fai_fast.ray.shipping import ShippedCache

__all__ = ["Detector"]

_LOAD = frozenset(inspect.signature(load).parameters) - {"name_or_path"}
# A picture's own fault: what fai_fast raises about the engine is none of these.
PICTURE_ERRORS = (OSError, TypeError, ValueError)
# As fai_fast.evaluate has it: so many pictures overlap, each of which is held decoded.
_IN_FLIGHT = 3
_Decoded = tuple[Any, float] | Exception


class Detector:
    """Finds what is in pictures, batch by batch: a class for Ray Data's ``map_batches``.

    Ray makes one in each of its actors, which loads the model once. Its ``num_threads`` are the CPUs that Ray gave the
    actor, its ``device`` is the GPU that Ray gave it, else the CPU, unless they are set. Weights, graphs and compiled
    engines are made once on each node, whose workers wait for the one that makes them, in the cache; or they come from
    the driver by :func:`ship_cache`.

    Args:
        model: as ``name_or_path`` of :func:`fai_fast.load`; a file or folder has to be one of each node.
        image, bytes, path: the name of the column with the pictures, at most one of them: as arrays, RGB (H, W, 3),
            gray or RGBA, of any sizes, or in another form that ``color`` names; as the contents of files; or as files'
            names that the workers can read. By default the first of ``image``, ``bytes`` and ``path`` that there is.
        keep: leave a column of pixels or bytes in the rows, which are many times as large as what is found in them.
            Other columns, paths too, always stay.
        shipped: what :func:`ship_cache` gave, so that nodes neither fetch nor build what the driver has.
        options: of :func:`fai_fast.load` (``weights``, ``engine``, ``precision``, ``im_size``, ``batch_size``, ...) and
            of :meth:`fai_fast.Model.infer` (``threshold``, ``classes``, ``top_k``, ``color``, ``max_pixels``, ...).

    Rows out have the columns of :meth:`fai_fast.Detections.to_arrow`, from which
    :meth:`fai_fast.Detections.from_arrow` makes Detections equal to those of ``infer``. A picture that cannot be read
    is a row with its ``error``, and null elsewhere.

    Raises:
        TypeError, ValueError: an argument or option is wrong.
        FaiFastError: the model cannot be loaded, or its engine fails. Ray ends the data set's execution with it.
        ImportError: Ray is not installed.

    Example:
        >>> import ray  # doctest: +SKIP
        >>> pictures = ray.data.read_binary_files("photos", include_paths=True)  # doctest: +SKIP
        >>> found = pictures.map_batches(  # doctest: +SKIP
        ...     fai_fast.ray.Detector,
        ...     fn_constructor_kwargs={"model": "fai-mf-s-coco-ins", "threshold": 0.5},
        ...     batch_size=16,
        ...     compute=ray.data.ActorPoolStrategy(size=2),
        ... )
        >>> found.write_parquet("found")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        *,
        image: str | None = None,
        bytes: str | None = None,
        path: str | None = None,
        keep: bool = False,
        shipped: ShippedCache | None = None,
        **options: Any,
    ) -> None:
        self._columns = column_names(image, bytes, path)
        self._keep = check_bool("keep", keep)
        of_load, self._options = divided(options, BatchOptions)
        self._as_is = "color" in self._options
        self._max_pixels = check_max_pixels(self._options.get("max_pixels"))
        self.model = loaded(model, of_load, shipped)
        # Now, rather than as errors of all pictures, and so that the first one is as quick as the others.
        blank = np.full(frame_shape(*self.model.size, self._options.get("color", "rgb")), 114, np.uint8)
        self.model.infer(blank, **self._options)
        share = given()
        cpus = (os.cpu_count() or 1) if share is None else share.cpus
        # On one core decoding takes its turn with the rest, unless the rest is on a GPU.
        self._in_flight = _IN_FLIGHT if cpus > 1 or (share is not None and share.gpus) else 0
        self._decoders = ThreadPoolExecutor(min(cpus, 16), "fai_fast-decode") if cpus > 1 else None
        self._ahead = min(cpus, 16) + _IN_FLIGHT

    def __call__(self, batch: Any) -> Any:
        """The rows of a batch, in order.

        Args:
            batch: arrays by name (``batch_format="numpy"``), a DataFrame ("pandas") or a table ("pyarrow").

        Returns:
            A ``pyarrow.Table``: the other columns as they came, then what was found.

        Raises:
            TypeError, ValueError: the batch has no column of pictures, or one that is called as a column of the result.
            FaiFastError: the engine failed.
        """
        given_rows = Batch(batch, self._columns)
        results = list(self._results(given_rows))
        return joined(given_rows.others(self._keep), table(results, self.model.spec.classes))

    def _results(self, batch: Batch) -> Iterator[Detections | str]:
        decoded = self._decoded(batch)
        if self.model.batch_size > 1:
            return self._together(decoded)
        return self._overlapping(decoded)

    def _decoded(self, batch: Batch) -> Iterator[_Decoded]:
        """Each row's pixels and the milliseconds that decoding took, or what is wrong with it."""
        items = batch.items()
        if batch.kind == "image":
            return (self._pixels(item) for item in items)
        if self._decoders is None:
            return (self._read(batch.kind, item) for item in items)
        return _ahead(self._decoders, lambda item: self._read(batch.kind, item), items, self._ahead)

    def _pixels(self, item: Any) -> _Decoded:
        if item is None:
            return ValueError("image: got null, expected pixels")
        try:
            return (np.asarray(item) if self._as_is else rgb(item)), 0.0
        except (
            TypeError,
            ValueError,
        ) as error:  # lists of several lengths, and other things that are no array
            return ValueError(f"image: got {type(item).__name__}, expected pixels: {error}")

    def _read(self, kind: str, item: Any) -> _Decoded:
        started = time.perf_counter()
        if not isinstance(item, (str, os.PathLike) if kind == "path" else (bytes, bytearray)):
            came = "null" if item is None else type(item).__name__
            return TypeError(
                f"{kind}: got {came}, expected {'a path' if kind == 'path' else 'the bytes of a picture'}"
            )
        try:
            return read_image(item, max_pixels=self._max_pixels), 1e3 * (time.perf_counter() - started)
        except PICTURE_ERRORS as error:
            return error

    def _overlapping(self, decoded: Iterator[_Decoded]) -> Iterator[Detections | str]:
        """Picture by picture, a few of them on their way at a time where there are cores for that."""
        waiting: deque[Any] = deque()
        for item in decoded:
            waiting.append(item if isinstance(item, Exception) else (self._submitted(item[0]), item[1]))
            if len(waiting) > self._in_flight:
                yield _finished(waiting.popleft())
        while waiting:
            yield _finished(waiting.popleft())

    def _submitted(self, frame: Any) -> Any:
        try:
            return self.model.submit(frame, **self._options)
        except PICTURE_ERRORS as error:
            return error

    def _together(self, decoded: Iterator[_Decoded]) -> Iterator[Detections | str]:
        """As many pictures at once as the engine takes."""
        group: list[_Decoded] = []
        for item in decoded:
            group.append(item)
            if sum(not isinstance(each, Exception) for each in group) == self.model.batch_size:
                yield from self._group(group)
                group = []
        yield from self._group(group)

    def _group(self, group: list[_Decoded]) -> Iterator[Detections | str]:
        frames = [item[0] for item in group if not isinstance(item, Exception)]
        found: Iterator[Any]
        try:
            found = iter(self.model.infer_batch(frames, **self._options))
        except PICTURE_ERRORS:  # of one of them, which is found by taking each alone
            found = iter([self._alone(frame) for frame in frames])
        for item in group:
            if isinstance(item, Exception):
                yield text_of(item)
            else:
                result = next(found)
                yield text_of(result) if isinstance(result, Exception) else _with_decode(result, item[1])

    def _alone(self, frame: Any) -> Detections | Exception:
        try:
            return self.model.infer(frame, **self._options)
        except PICTURE_ERRORS as error:
            return error


def column_names(image: str | None, content: str | None, path: str | None) -> dict[str, str]:
    """The name of the column under its kind, where the caller has said one; TypeError, ValueError for more."""
    columns = {}
    for kind, name in zip(KINDS, (image, content, path), strict=True):
        if name is None:
            continue
        if not isinstance(name, str):
            raise TypeError(f"{kind}: got {type(name).__name__}, expected the name of a column")
        columns[kind] = name
    if len(columns) > 1:
        raise ValueError(f"{', '.join(columns)}: got more than one column of pictures, expected at most one")
    return columns


def divided(options: Mapping[str, Any], of_results: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of load(), and those that `of_results`, a class of _options, lists. TypeError for others."""
    known = of_results.__optional_keys__ - {"masks_device"}
    for name in options:
        if name not in _LOAD | known:
            raise TypeError(
                f"{name}: there is no such option, expected some of {', '.join(sorted(_LOAD | known))}"
            )
    return (
        {name: value for name, value in options.items() if name in _LOAD},
        {name: value for name, value in options.items() if name in known},
    )


def loaded(model: Any, options: dict[str, Any], shipped: ShippedCache | None) -> Model:
    """The model, on what Ray gave this worker, from the cache that was shipped if one was."""
    ray_module()
    if shipped is not None:
        shipped.unpack(options.get("cache_dir"))
    if isinstance(model, Model):
        # It would have been loaded on the driver, and again where it arrives, as if there were no other workers.
        raise TypeError("model: got a Model, expected what fai_fast.load() takes: each worker loads its own")
    return load(model, **load_options(options))


def _ahead(pool: ThreadPoolExecutor, work: Any, items: Iterable[Any], most: int) -> Iterator[Any]:
    """`work` of each item in order, of at most so many before they are asked for."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _finished(item: Any) -> Detections | str:
    """What came of a picture: an error of reading it, of its frame, or what was found."""
    if isinstance(item, Exception):
        return text_of(item)
    pending, decode = item
    if isinstance(pending, Exception):
        return text_of(pending)
    try:
        return _with_decode(pending.result(), decode)
    except PICTURE_ERRORS as error:
        return text_of(error)


def _with_decode(found: Detections, decode: float) -> Detections:
    latency: Latency | None = found.latency
    return found if latency is None or not decode else found._with_latency(latency._replace(decode=decode))


def text_of(error: Exception) -> str:
    """An error as the text of a row, which is never empty, and which Arrow holds: names of files may be no text."""
    text = str(error).encode("utf-8", "backslashreplace").decode()
    return " ".join(text.split()) or type(error).__name__
