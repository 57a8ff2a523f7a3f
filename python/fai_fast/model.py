"""From a picture to Detections: :func:`load` makes a :class:`Model` ready, ``model.infer(image)`` runs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast.arguments import check_bool, check_int, check_number
from fai_fast.detections import Detections, Latency
from fai_fast.engines.base import Context, Engine
from fai_fast.errors import FaiFastError, WeightsError
from fai_fast.images import is_encoded, read_image
from fai_fast.letterbox import Letterbox
from fai_fast.ops import postprocess_batch, preprocess_frame
from fai_fast.prepare import Prepared, prepare
from fai_fast.registry import ModelSpec
from fai_fast.weights import Weights

__all__ = ["Model", "load"]

# More contexts than this would only wait for each other's cores.
MAX_CONTEXTS = 4
STAGES = ("decode", "preprocess", "engine", "postprocess", "total")


def load(
    name_or_path: Any,
    *,
    weights: Any = None,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    im_size: int | Sequence[int] | None = None,
    num_threads: int | None = None,
    cache_dir: Any = None,
    batch_size: int = 1,
) -> Model:
    """Makes a model ready to run.

    The first time, weights are fetched, the deployed graph is exported, verified against the reference network, and
    compiled for the engine; all of it is kept in the cache, so that the next start takes a moment.

    Args:
        name_or_path: a name of :func:`fai_fast.models`; a folder or file with FocoosAI's ``model_info.json``; a
            :class:`fai_fast.ModelSpec`; or an ``.onnx`` file that :func:`fai_fast.export` wrote.
        weights: a path (.pth, .safetensors), an http(s) address, a state dict, "random" (to measure speed), or None
            for those that belong to the model.
        engine: "auto", or one that ``fai-fast doctor`` lists, such as "openvino" and "onnxruntime".
        device: "auto" or "cpu".
        precision: "fp32", "fp16", "bf16", or "auto": the fastest that the device computes natively and whose masks
            agree with fp32's.
        im_size: the network's input, an int for a square or (height, width), multiples of 32; None for the size that
            the model was trained at.
        num_threads: of the engine and of postprocessing; None for all cores that this process may use.
        cache_dir: where weights, graphs and compiled engines are kept; None for ``FAI_FAST_CACHE`` in the environment,
            else the platform's usual place.
        batch_size: frames that the engine takes at once, for :meth:`Model.infer_batch`.

    Raises:
        TypeError, ValueError: an argument is wrong; the text names it.
        WeightsError, ExportError, EngineError: weights, export or engine failed; the text says what to do.

    Example:
        >>> with fai_fast.load("fai-mf-n-shapes") as model:  # doctest: +SKIP
        ...     print(model.infer("shapes.jpg"))
    """
    return Model(
        prepare(
            name_or_path,
            weights=weights,
            engine=engine,
            device=device,
            precision=precision,
            im_size=im_size,
            num_threads=num_threads,
            cache_dir=cache_dir,
            batch_size=batch_size,
        )
    )


class Model:
    """A network ready to run, from :func:`load`. Safe to call from several threads.

    Attributes:
        spec: the :class:`fai_fast.ModelSpec`, its depth as in the weights.
        size: (h, w) of the network's input, pixels.
        batch_size: frames that the engine takes at once.

    Example:
        >>> model = fai_fast.load("fai-mf-n-shapes")  # doctest: +SKIP
        >>> detections = model(frame)  # doctest: +SKIP
        >>> detections.latency.engine  # doctest: +SKIP
        7.9
    """

    spec: ModelSpec
    size: tuple[int, int]
    batch_size: int

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._engine: Engine = prepared.engine
        self.spec = prepared.spec
        self.size = prepared.size
        self.batch_size = prepared.batch_size
        self._pool = _Pool(self._engine.context, MAX_CONTEXTS)

    # ------------------------------------------------------------------------------------------------ run

    def infer(
        self,
        image: Any,
        *,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        use_mask_score: bool | None = None,
        color: str = "rgb",
        resize: str = "stretch",
        yuv_matrix: str = "bt601",
        yuv_range: str = "limited",
    ) -> Detections:
        """Finds what is in a picture.

        Args:
            image: a path, encoded bytes (JPEG, PNG, ...) or a binary file object, which Pillow decodes; a Pillow
                image; or a frame in any form that :func:`fai_fast.preprocess` takes, RGB unless ``color`` says
                otherwise.
            threshold: rows whose score is not above it are left out; None for the model's own.
            mask_threshold, use_mask_score: see :func:`fai_fast.postprocess`; None for the model's own.
            color, resize, yuv_matrix, yuv_range: see :func:`fai_fast.preprocess`.

        Returns:
            Masks and boxes in the picture's own size, with ``latency``.

        Raises:
            TypeError, ValueError: an argument is wrong, or the picture is damaged; the text says which.
            FileNotFoundError, OSError: the file cannot be read.
            EngineError, FaiFastError: the engine failed, or the model is closed.
        """
        return self.infer_batch(
            [image],
            threshold=threshold,
            mask_threshold=mask_threshold,
            use_mask_score=use_mask_score,
            color=color,
            resize=resize,
            yuv_matrix=yuv_matrix,
            yuv_range=yuv_range,
        )[0]

    __call__ = infer

    def infer_batch(
        self,
        images: Sequence[Any],
        *,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        use_mask_score: bool | None = None,
        color: str = "rgb",
        resize: str = "stretch",
        yuv_matrix: str = "bt601",
        yuv_range: str = "limited",
    ) -> list[Detections]:
        """:meth:`infer` for each of several pictures, which may differ in size, ``batch_size`` at a time.

        Args:
            images: a list or tuple of pictures.

        Returns:
            One result a picture, in order. The latency of pictures that ran together is their batch's.
        """
        if not isinstance(images, (list, tuple)):
            raise TypeError(f"images: got {type(images).__name__}, expected a list or tuple of pictures")
        options = self._postprocessing(threshold, mask_threshold, use_mask_score)
        frames = {"color": color, "resize": resize, "yuv_matrix": yuv_matrix, "yuv_range": yuv_range}
        results: list[Detections] = []
        for start in range(0, len(images), self.batch_size):
            results += self._run(images[start : start + self.batch_size], frames, options)
        return results

    def queries(
        self, image: Any, *, color: str = "rgb", resize: str = "stretch"
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int16]]:
        """What every query says of a picture, before any selection: the raw triple of FocoosAI's model cards.

        Defined in docs/postprocess.md, steps 1 to 3.

        Args:
            image, color, resize: see :meth:`infer`.

        Returns:
            class_ids int64 (Q,), scores float32 (Q,), the class probability, and masks int16 (Q, H, W): the class
            inside the mask, -1 outside. Q * H * W * 2 bytes: 415 MB for 100 queries at 1080p.
        """
        frame = read_image(image) if is_encoded(image) else image
        with self._pool.borrow() as context:
            letterbox = self._fill(context, 0, frame, {"color": color, "resize": resize})
            context.run()
            mask_logits, class_logits = context.mask_logits[:1].copy(), context.class_logits[:1].copy()
        # No score is below zero: every query that has pixels is returned.
        options = {**self._postprocessing(-1.0, None, False), "class_names": None}
        boxed = letterbox if resize == "letterbox" else None
        [found] = postprocess_batch(mask_logits, class_logits, letterbox.frame, letterbox=boxed, **options)
        class_ids, scores = _best_classes(class_logits[0])
        masks = np.full((len(class_ids), *letterbox.frame), -1, np.int16)
        for query, (x1, y1, x2, y2), mask in zip(
            found.query, found.xyxy.astype(np.int64), found.crops(), strict=True
        ):
            masks[query, y1:y2, x1:x2][mask] = class_ids[query]
        for query, y, x in _lone_pixels(found, mask_logits[0], letterbox, options["mask_threshold"]):
            masks[query, y, x] = class_ids[query]
        return class_ids, scores, masks

    def _run(
        self, images: Sequence[Any], frames: Mapping[str, Any], options: Mapping[str, Any]
    ) -> list[Detections]:
        started = time.perf_counter()
        decoded = [read_image(image) if is_encoded(image) else image for image in images]
        in_memory = all(frame is image for frame, image in zip(decoded, images, strict=True))
        decode_end = started if in_memory else time.perf_counter()
        with self._pool.borrow() as context:
            borrowed = time.perf_counter() if in_memory else decode_end
            letterboxes = [self._fill(context, index, frame, frames) for index, frame in enumerate(decoded)]
            preprocessed = time.perf_counter()
            context.run()
            ran = time.perf_counter()
            results = postprocess_batch(
                context.mask_logits[: len(images)],
                context.class_logits[: len(images)],
                [letterbox.frame for letterbox in letterboxes],
                letterbox=letterboxes if frames.get("resize") == "letterbox" else None,
                **options,
            )
        top = self.spec.config.top_k
        results = [result if len(result) <= top else result[:top] for result in results]
        ended = time.perf_counter()
        latency = Latency(
            1e3 * (decode_end - started),
            1e3 * (preprocessed - borrowed),
            1e3 * (ran - preprocessed),
            1e3 * (ended - ran),
        )
        return [result._with_latency(latency) for result in results]

    def _fill(self, context: Context, index: int, frame: Any, options: Mapping[str, Any]) -> Letterbox:
        config = self.spec.config
        _, letterbox = preprocess_frame(
            frame,
            self.size,
            mean=config.pixel_mean,
            std=config.pixel_std,
            dtype=None,
            out=context.images[index : index + 1],
            **options,
        )
        return letterbox

    def _postprocessing(
        self, threshold: float | None, mask_threshold: float | None, use_mask_score: bool | None
    ) -> dict[str, Any]:
        config = self.spec.config
        return {
            "threshold": config.threshold if threshold is None else check_number("threshold", threshold),
            "mask_threshold": (
                config.mask_threshold
                if mask_threshold is None
                else check_number("mask_threshold", mask_threshold)
            ),
            "use_mask_score": (
                config.use_mask_score
                if use_mask_score is None
                else check_bool("use_mask_score", use_mask_score)
            ),
            "predict_all_pixels": config.predict_all_pixels,
            "class_names": self.spec.classes,
            "num_threads": self._prepared.num_threads,
        }

    # ----------------------------------------------------------------------------------------- measure, tell

    def warmup(self, runs: int = 2) -> Model:
        """Runs the whole pipeline on a gray frame, so that the first real one is as quick as the others."""
        frame = np.full((*self.size, 3), 114, np.uint8)
        for _ in range(check_int("runs", runs)):
            self.infer(frame)
        return self

    def benchmark(self, image: Any = None, *, runs: int = 50, warmup: int = 5) -> dict[str, dict[str, float]]:
        """Measures each stage of one frame after another.

        Args:
            image: what to run on, see :meth:`infer`; None for a frame of noise, 1080 x 1920.
            runs: measured frames.
            warmup: frames before them.

        Returns:
            For "decode", "preprocess", "engine", "postprocess" and "total" the milliseconds "mean", "p50", "p90",
            "p99".
        """
        runs, warmup = check_int("runs", runs), check_int("warmup", warmup)
        if runs < 1 or warmup < 0:
            raise ValueError(f"runs: got {runs} after {warmup} of warmup, expected 1 or more after 0 or more")
        if image is None:
            image = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
        for _ in range(warmup):
            self.infer(image)
        measured = []
        for _ in range(runs):
            latency = self.infer(image).latency
            assert latency is not None
            measured.append([*latency, latency.total])
        table = np.array(measured).T
        return {
            stage: {
                "mean": float(times.mean()),
                **{f"p{p}": float(np.percentile(times, p)) for p in (50, 90, 99)},
            }
            for stage, times in zip(STAGES, table, strict=True)
        }

    def info(self) -> dict[str, Any]:
        """What runs and why: ``name``, ``task``, ``classes`` (their number), ``im_size``, ``batch_size``, ``weights``,
        ``engine`` (the engine's own account), ``precision`` and ``precision_reason``, ``engine_reasons``,
        ``verification`` of the exported graph, ``artefacts`` (files in the cache, and why each was built or not)."""
        return {
            "name": self.spec.name,
            "family": self.spec.family,
            "task": self.spec.task,
            "classes": len(self.spec.classes),
            "im_size": self.size,
            "batch_size": self.batch_size,
            **self._prepared.account,
            "engine": self._engine.info(),
        }

    @property
    def weights(self) -> Weights:
        """The network's parameters, read again from where they are.

        Raises:
            WeightsError: the model was loaded from an ``.onnx`` file, or its weights are no longer there.
        """
        if self._prepared.weights is None:
            raise WeightsError(
                f"weights: {self.spec.name} was loaded from a graph, which does not hold them as such"
            )
        return self._prepared.weights()

    def __repr__(self) -> str:
        info = self._engine.info()
        height, width = self.size
        return f"<fai_fast.Model {self.spec.name} {height}x{width} {info['engine']} {info['precision']}>"

    # --------------------------------------------------------------------------------------------- life cycle

    def close(self) -> None:
        """Gives engine and buffers back, after frames in other threads have ended. Does nothing twice."""
        self._pool.close()
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _best_classes(class_logits: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The class of each row (Q,) and its probability, 'no object' left out."""
    logits = class_logits.astype(np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    probability = (odds / odds.sum(-1, keepdims=True))[:, :-1]
    return probability.argmax(-1), probability.max(-1).astype(np.float32)


def _lone_pixels(
    found: Detections, mask_logits: npt.NDArray[Any], letterbox: Letterbox, mask_threshold: float
) -> Iterator[tuple[int, int, int]]:
    """(query, y, x) of masks of a single pixel, which postprocessing drops as noise (step 4)."""
    dropped = sorted(set(range(len(mask_logits))) - set(found.query.tolist()))
    if found._source is not None:
        for query in dropped:
            for y, x in np.argwhere(found._source.segments == query):
                yield query, int(y), int(x)
        return
    for query in dropped:
        probability = 0.5 + 0.5 * np.tanh(0.5 * mask_logits[query].astype(np.float64))
        if not probability.max() >= mask_threshold:
            continue
        rows = _taps(letterbox, 0, probability.shape[0])
        columns = _taps(letterbox, 1, probability.shape[1])
        inside = rows @ probability @ columns.T >= mask_threshold
        for y, x in np.argwhere(inside):
            yield query, int(y), int(x)


def _taps(letterbox: Letterbox, axis: int, cells: int) -> npt.NDArray[np.float64]:
    """The weights (pixels, cells) with which a frame's pixels see a mask's cells along an axis."""
    pixels = letterbox.frame[axis]
    scale = letterbox.content[axis] / pixels
    at = ((np.arange(pixels) + 0.5) * scale + letterbox.offset[axis]) * cells / letterbox.input[axis] - 0.5
    low = np.clip(at, 0, cells - 1)
    first = low.astype(np.int64)
    weights = np.zeros((pixels, cells))
    weights[np.arange(pixels), first] += 1 - (low - first)
    weights[np.arange(pixels), np.minimum(first + 1, cells - 1)] += low - first
    return weights


class _Pool:
    """Contexts made when first needed, each lent to one thread at a time."""

    def __init__(self, make: Callable[[], Context], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._made = 0
        self._free: list[Context] = []
        self._changed = threading.Condition()
        self._closed = False

    @contextmanager
    def borrow(self) -> Iterator[Context]:
        context = self._take()
        try:
            yield context
        finally:
            with self._changed:
                self._free.append(context)
                self._changed.notify()

    def _take(self) -> Context:
        with self._changed:
            while True:
                if self._closed:
                    raise FaiFastError("the model is closed; load it again")
                if self._free:
                    return self._free.pop()
                if self._made < self._limit:
                    self._made += 1
                    break
                self._changed.wait()
        try:
            return self._make()
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
