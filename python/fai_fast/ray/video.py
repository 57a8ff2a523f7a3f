""":class:`VideoDetector`, what ``Dataset.map_batches`` runs on clips: a row in, rows of its frames out."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fai_fast._arguments import check_bool, check_int
from fai_fast._options import StreamOptions
from fai_fast._redaction import redacted
from fai_fast.detections import Detections
from fai_fast.detections.arrow import table
from fai_fast.ops import frame_shape
from fai_fast.ray.batches import Batch, joined
from fai_fast.ray.detector import PICTURE_ERRORS, column_names, divided, loaded, text_of

if TYPE_CHECKING:
    from fai_fast.ray.shipping import ShippedCache

__all__ = ["VideoDetector"]

# What FFmpeg opens a file by, which an iterable has not.
_OF_FILES = ("format", "options")


class VideoDetector:
    """Finds what is in the frames of clips: a class for Ray Data's ``map_batches`` with ``batch_size=1``.

    A clip is one task, whose frames come in order, so that tracks (``track=True``) go through it; the clips are what is
    divided among workers. Make the data set with a block for each clip (``override_num_blocks``), for Ray divides
    blocks, and gives out rows of a block one after the other. Everything about the model is as in
    :class:`fai_fast.ray.Detector`.

    Args:
        model, shipped: as of :class:`fai_fast.ray.Detector`.
        path, bytes: the column with the clips, at most one of them: files' names that the workers can read, or
            addresses; or the contents of files. By default ``bytes``, else ``path``.
        keep: leave a column of bytes in the rows, once a frame.
        frames_per_table: how many rows go on at a time.
        options: of :func:`fai_fast.load`, and of :meth:`fai_fast.Model.stream` (``threshold``, ``classes``, ``stride``,
            ``track``, ...).

    Rows out, one a frame, have the clip's other columns, ``frame`` (its number in the clip, from 0), ``timestamp``
    (seconds, as the clip counts them, or null), and the columns of :meth:`fai_fast.Detections.to_arrow`. What cannot be
    read of a clip is a row with its ``error``, in its place among the others; the frames behind a damage come where the
    decoder finds them.

    Raises:
        TypeError, ValueError: an argument or option is wrong.
        FaiFastError: the model cannot be loaded, or its engine fails.
        ImportError: Ray, or PyAV (extra ``video``), is not installed.

    Example:
        >>> clips = ray.data.from_items([{"path": clip} for clip in clips])  # doctest: +SKIP
        >>> frames = clips.map_batches(  # doctest: +SKIP
        ...     fai_fast.ray.VideoDetector,
        ...     fn_constructor_kwargs={"model": "fai-mf-s-coco-ins", "stride": 5},
        ...     batch_size=1,
        ...     compute=ray.data.ActorPoolStrategy(size=4),
        ... )
    """

    def __init__(
        self,
        model: Any,
        *,
        bytes: str | None = None,
        path: str | None = None,
        keep: bool = False,
        frames_per_table: int = 64,
        shipped: ShippedCache | None = None,
        **options: Any,
    ) -> None:
        self._columns = column_names(None, bytes, path)
        self._keep = check_bool("keep", keep)
        self._most = check_int("frames_per_table", frames_per_table)
        if self._most < 1:
            raise ValueError(f"frames_per_table: got {self._most}, expected 1 or more")
        of_load, self._options = divided(options, StreamOptions)
        from fai_fast.stream.containers import _pyav

        _pyav()  # where it is missing, that is told before the model is loaded
        self.model = loaded(model, of_load, shipped)
        # Now, rather than as errors of all clips.
        color = self._options.get("color", "rgb")
        blank = np.full(frame_shape(*self.model.size, color), 114, np.uint8)
        common = {name: value for name, value in self._options.items() if name not in _OF_FILES}
        with self.model.stream([blank], **common) as stream:
            for _ in stream:
                pass

    def __call__(self, batch: Any) -> Iterator[Any]:
        """The rows of the frames of a batch's clips, in order, as ``pyarrow.Table``.

        Raises:
            TypeError, ValueError: the batch has no column of clips, or one that is called as a column of the result.
            FaiFastError: the engine failed.
        """
        given = Batch(batch, self._columns, kinds=("bytes", "path"))
        others = given.others(self._keep)
        for row, item in enumerate(given.items()):
            other = None if others is None else others.slice(row, 1)
            frames: list[int | None] = []
            times: list[float | None] = []
            results: list[Detections | str] = []
            for frame, time, found in self._frames(given.kind, item):
                frames.append(frame)
                times.append(time)
                results.append(found)
                if len(results) == self._most:
                    yield self._rows(other, frames, times, results)
                    frames, times, results = [], [], []
            if results:
                yield self._rows(other, frames, times, results)

    def _frames(self, kind: str, item: Any) -> Iterator[tuple[int | None, float | None, Detections | str]]:
        """Number, time and result of each frame; None, None and the error of what could not be read."""
        count = 0
        try:
            stream = self.model.stream(_source(kind, item), **self._options)
        except PICTURE_ERRORS as error:
            yield None, None, text_of(error)
            return
        with stream:
            while True:
                try:
                    frame, found = next(stream)
                except StopIteration:
                    break
                except PICTURE_ERRORS as error:
                    count += 1
                    yield None, None, text_of(error)
                    continue
                count += 1
                yield frame.id, frame.pts, found
        if not count:
            # So that every clip has a row, by which it is known to be done.
            yield None, None, "source: it has no frames"

    def _rows(self, other: Any, frames: list[Any], times: list[Any], results: list[Detections | str]) -> Any:
        import pyarrow as pa

        found = table(results, self.model.spec.classes)
        found = found.add_column(0, pa.field("timestamp", pa.float64()), pa.array(times, pa.float64()))
        found = found.add_column(0, pa.field("frame", pa.int64()), pa.array(frames, pa.int64()))
        repeated = None if other is None else other.take([0] * len(results))
        return joined(repeated, found)


def _source(kind: str, item: Any) -> Any:
    """What Model.stream takes, of a clip only: no camera, folder or pattern."""
    if kind == "bytes" and isinstance(item, (bytes, bytearray)):
        return io.BytesIO(item)
    if kind == "bytes" or not isinstance(item, str):
        came = "null" if item is None else type(item).__name__
        raise TypeError(
            f"{kind}: got {came}, expected {'a path' if kind == 'path' else 'the bytes of a video'}"
        )
    if "://" not in item and not os.path.isfile(item):
        raise FileNotFoundError(f"source: no such file: {redacted(item)}")
    return item
