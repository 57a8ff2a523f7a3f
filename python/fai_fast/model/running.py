"""What a model that is ready does, until it is closed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fai_fast import _again
from fai_fast._arguments import check_int
from fai_fast._crops import check_square, sees_crops
from fai_fast._forks import ProcessGuard
from fai_fast._locks import SignalSafeLock
from fai_fast._options import (
    BatchOptions,
    Color,
    InferOptions,
    ModelResize,
    StreamOptions,
    YuvMatrix,
    YuvRange,
    check_options,
)
from fai_fast._pipelines import (
    CpuPipeline,
    GpuPipeline,
    InferFuture,
    Pending,
    Pipeline,
    Request,
    preprocess_into,
)
from fai_fast._prepare import Prepared
from fai_fast._requests import (
    OF_STREAM_RESULTS,
    AspectNotice,
    decoded,
    frame_of,
    layout_of,
    resize_of,
    settings_of,
    stream_settings_of,
)
from fai_fast._rules import Combine, rules_of
from fai_fast.detections import Detections
from fai_fast.engines.base import Engine
from fai_fast.engines.users import Users
from fai_fast.errors import FaiFastError, WeightsError
from fai_fast.ops import frame_shape, raw_queries
from fai_fast.registry import ModelSpec
from fai_fast.weights import Weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fai_fast.stream import Stream

__all__ = ["Model"]

_log = logging.getLogger("fai_fast")

STAGES = ("decode", "preprocess", "engine", "postprocess", "total")


class Model:
    """A network ready to run, from :func:`load`. Safe to call from several threads.

    It pickles as how to load it again, with the same arguments: a child that ``multiprocessing`` spawns, or a worker of
    a DataLoader, gets a model of its own, from the cache where that is still there.

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
    _arguments: dict[str, Any] | None = None
    """Of :func:`load`, to load it again."""
    _look: AspectNotice | None = None
    """Looks at frames' sizes, of a model whose own size was kept without a word."""

    def __init__(self, prepared: Prepared, users: Users | None = None) -> None:
        self._prepared = prepared
        self._engine: Engine = prepared.engine
        self._guard = ProcessGuard(self._engine.name)
        self.spec = prepared.spec
        self.size = prepared.size
        self.batch_size = prepared.batch_size
        self._users = Users(self._engine) if users is None else users
        self._closed = False
        self._host: CpuPipeline | None = None
        self._host_lock = SignalSafeLock()
        in_crops = sees_crops(self.spec)
        if in_crops and prepared.gpu is not None:
            _log.info(
                "%s: only its engine runs on the GPU: crops of frames are cut and put together on the CPU",
                self.spec.name,
            )
        try:
            if in_crops:
                check_square(self.size)
            self._pipeline: Pipeline = (
                CpuPipeline(self.spec, self._engine, prepared.num_threads, on_gpu=prepared.gpu is not None)
                if prepared.gpu is None or in_crops
                else GpuPipeline(self.spec, prepared.gpu)
            )
        except BaseException:
            self._users.leave()
            raise

    # ------------------------------------------------------------------------------------------------ run

    def infer(
        self,
        image: Any,
        *,
        threshold: float | Mapping[str, float] | Mapping[int, float] | None = None,
        classes: Sequence[str | int] | None = None,
        top_k: int | None = None,
        mask_threshold: float | None = None,
        use_mask_score: bool | None = None,
        color: Color = "rgb",
        resize: ModelResize | None = None,
        yuv_matrix: YuvMatrix = "bt601",
        yuv_range: YuvRange = "limited",
        masks_device: bool = False,
        max_pixels: int | None = None,
    ) -> Detections:
        """Finds what is in a picture.

        Args:
            image: a path, encoded bytes (JPEG, PNG, ...) or a binary file object, which Pillow decodes, upright as
                its EXIF orientation says, of an animation the first frame; a Pillow image, as its pixels lie; or a
                frame in any form that :func:`fai_fast.preprocess` takes, RGB unless ``color`` says otherwise: OpenCV's
                frames are BGR and need ``color="bgr"``, without which red and blue change places in silence.
            threshold: rows whose score is not above it are left out; None for the model's own. A mapping from class
                names or ids gives some classes a threshold of their own, such as ``{"person": 0.7}``.
            classes: names or ids of the classes that are wanted; None for all. In a semantic result all classes go on
                competing for pixels; those that others win have no label (-1 in ``label_map``). So have in a panoptic
                result the segments of classes that are not wanted.
            top_k: objects at most, the best of those that are wanted; None for the model's own limit
                (``config.top_k``), which most do not have. Semantic and panoptic results are never cut.
            mask_threshold, use_mask_score: see :func:`fai_fast.postprocess`; None for the model's own.
            color, yuv_matrix, yuv_range: see :func:`fai_fast.preprocess`.
            resize: see there; None for the model's own (``config.resize``; "stretch" for those that have none).
                "crops" is only of models whose own it is.
            masks_device: leave boolean masks in the GPU's memory too, as ``Detections.masks_device``.
            max_pixels: of a picture in a file, up to 2**28; None for Pillow's limit against files that unpack to
                gigabytes. Raise it for pictures that you trust.

        A frame may lie in the memory of the model's GPU (DLPack or ``__cuda_array_interface__``: torch, CuPy, CV-CUDA,
        torchcodec); it is read there, after the work on it that its producer has put on its stream.

        Returns:
            Masks and boxes in the size of the picture, of an upright one where it is a file, with ``latency``.

        Raises:
            TypeError, ValueError: an argument is wrong, or the picture is damaged; the text says which.
            FileNotFoundError, OSError: the file cannot be read.
            EngineError, FaiFastError: the engine failed, or the model is closed.
        """
        options: InferOptions = {
            "threshold": threshold,
            "classes": classes,
            "top_k": top_k,
            "mask_threshold": mask_threshold,
            "use_mask_score": use_mask_score,
            "color": color,
            "resize": resize,
            "yuv_matrix": yuv_matrix,
            "yuv_range": yuv_range,
            "masks_device": masks_device,
            "max_pixels": max_pixels,
        }
        return self._pipeline.run(self._request([image], options))[0]

    __call__ = infer

    def submit(self, image: Any, **options: Unpack[InferOptions]) -> InferFuture:
        """:meth:`infer` that does not wait: several frames are on their way at once, and take less time together.

        On a GPU the upload of a frame overlaps with the engine of the one before; frames are taken in order. With as
        many on their way as there is room for, it waits for the first of them, whose result stays with its future.
        The frame's memory must keep its content until :meth:`InferFuture.result` returns.

        Args:
            image, options: as :meth:`infer`.

        Raises:
            Exception: what :meth:`infer` raises about its arguments, and about the engine where frames run uncaptured;
                whatever else goes wrong comes from :meth:`InferFuture.result`.

        Example:
            >>> futures = [model.submit(frame) for frame in frames]  # doctest: +SKIP
            >>> results = [future.result() for future in futures]  # doctest: +SKIP
        """
        check_options("submit", options, InferOptions)
        return InferFuture(self._pipeline.submit(self._request([image], options)))

    def frame_buffer(self, height: int, width: int, color: Color = "rgb") -> npt.NDArray[np.uint8]:
        """An array for a camera, a decoder or a program to write frames into, from which they reach the model fastest.

        On a GPU it lies in page-locked memory, from which a frame is sent as it is; from any other array it is copied
        into such memory first, and so it is from a view with gaps. On the CPU it is an ordinary array. Make a few and
        use them again: page-locked memory is scarce, and making it takes longer than a frame. The array lives as long
        as anybody holds it or a view of it, after the model too; it is of no use in a forked child.

        As with every frame, what was given to :meth:`submit` may be overwritten when its ticket has its result.

        Args:
            height, width: of the frames, in pixels; even where the format halves them.
            color: the frames' format, see :func:`fai_fast.preprocess`.

        Returns:
            Zeros, uint8: (H, W, 3) for "rgb" and "bgr", (H, W, 4) for "rgba" and "bgra", (H, W) for "gray",
            (3 * H / 2, W) for "nv12" and "i420", (H, W, 2) for "yuyv" and "uyvy".

        Raises:
            TypeError, ValueError: an argument is wrong; the text names it.
            CudaError: there is not so much page-locked memory.

        Example:
            >>> buffer = model.frame_buffer(1080, 1920)  # doctest: +SKIP
            >>> camera.read(buffer)  # doctest: +SKIP
            >>> detections = model.infer(buffer)  # doctest: +SKIP
        """
        if self._closed:
            raise FaiFastError("the model is closed; load it again")
        return self._pipeline.frame_buffer(frame_shape(height, width, color))

    async def infer_async(self, image: Any, **options: Unpack[InferOptions]) -> Detections:
        """:meth:`infer` for asyncio: the event loop goes on meanwhile, several may be awaited at once.

        Runs in the loop's default executor. A call that is cancelled while its frame runs lets it end unseen; the
        frame's memory is read until then.

        Args:
            image, options: as :meth:`infer`.

        Raises:
            Exception: what :meth:`infer` raises.

        Example:
            >>> found = await asyncio.gather(*map(model.infer_async, frames))  # doctest: +SKIP
        """
        import asyncio

        return await asyncio.to_thread(self.infer, image, **options)

    def stream(self, source: Any, **options: Unpack[StreamOptions]) -> Stream:
        """The frames of a video, a camera or pictures, each with what was found in it, in order.

        A video's frames go to the model as the decoder's own planes; nothing is converted or copied. Decoding and the
        stages of several frames overlap.

        Args:
            source: a video file, or its ``file:`` address, or a binary file object; "-" for standard input; an address
                (rtsp, http, ...); a camera, as its number or its device; a folder or pattern of pictures, which come in
                the order of their names; an animated picture; an iterable of frames or of (timestamp in seconds,
                frame), each as :meth:`infer` takes it or a PyAV frame; or a function that returns such an iterable,
                called again to reconnect. Videos need the extra ``video``. What exists is a file whatever it is called;
                of several videos in a file FFmpeg's choice is taken, never a cover. Frames come upright, and colors of
                high dynamic range (PQ, HLG) without tone mapping.
            policy: "latest" keeps a live source live: of frames that come faster than they can be used, the older ones
                are dropped and counted, and results that were overtaken too. "all" uses every frame and makes the
                source wait. None is "latest" for cameras, addresses without an end, and functions, else "all".
            depth: frames in the model at once; with 1 the results are the freshest, with more there are more of them.
            stride: use every n-th frame.
            threshold, classes, top_k, mask_threshold, use_mask_score, resize, masks_device: see :meth:`infer`.
            track: True numbers objects from frame to frame with ByteTrack, which needs the extra ``track``:
                ``tracker_id``, -1 for what was not seen often enough yet and for stuff. Or a tracker of your own, whose
                ``update(supervision.Detections)`` gives rows with ``tracker_id``. Rows keep their order and masks.
            on_error: what to do when a live source ends or fails: "raise" the error, or "reconnect": open it again.
            timeout: seconds without a frame after which the source counts as failed; None for 10 with cameras,
                addresses, functions and FIFOs, and no limit with others.
            backoff: seconds (first, longest) to wait before the source is opened again, doubled each time and shortened
                at random by up to a half.
            retries: how often in a row it is opened again before the error is raised; None for ever.
            color: of an iterable's frames, see :func:`fai_fast.preprocess`; iterables may not write to a frame's memory
                until its result is there.
            yuv_matrix, yuv_range: None for what the video says of itself, "bt601" and "limited" where it says nothing.
                RGB and gray have neither.
            frame_threads: decode several frames of a file at once: faster where there are cores to spare, but next to
                a damaged frame others can be lost.
            format, options: of FFmpeg, for sources that it does not guess, such as format="v4l2",
                options={"video_size": "1280x720", "input_format": "mjpeg"} for a camera. Certificates of https, rtsps
                and the like are not checked without options={"tls_verify": "1", "ca_file": "/etc/ssl/..."}.
            max_pixels: of a picture in a file, see :meth:`infer`, and of a frame of a video: a file of a few kilobytes
                can claim any size.

        Returns:
            An iterator of (:class:`fai_fast.stream.Frame`, :class:`fai_fast.Detections`) with ``dropped`` and
            ``stats()``, closed by ``with``, by its end, and when nobody holds it any more. A frame that fails raises in
            its place, with its number; those after it come when the stream is asked on.

        Raises:
            TypeError, ValueError: an argument is wrong; the text names it.
            FileNotFoundError: there is no such source.
            ImportError: PyAV is needed and missing.
            ValueError, OSError, TimeoutError: while it runs: the source is not a video, is damaged, too large or
                silent, or fails.

        Example:
            >>> with model.stream("rtsp://camera/1", on_error="reconnect") as stream:  # doctest: +SKIP
            ...     for frame, detections in stream:
            ...         print(frame.id, frame.pts, len(detections), stream.dropped)
        """
        from fai_fast.stream import Stream

        check_options("stream", options, StreamOptions)
        given: dict[str, Any] = {**options}
        if given.get("track") not in (None, False) and self.spec.config.predict_all_pixels:
            raise ValueError(
                "track: got one for a semantic model, expected False: its regions are no objects"
            )
        infer = self._stream_settings({name: given.pop(name) for name in OF_STREAM_RESULTS if name in given})
        return Stream(self, source, infer=infer, **given)

    def _serve(self, stream: Stream, **options: Any) -> None:
        """Runs on a stream that was made without a model; `options` of :meth:`stream` that the results depend on."""
        stream._serve(self, self._stream_settings(options))

    def _stream_settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return stream_settings_of(self.spec, options, on_gpu=self._results_on_gpu)

    def infer_batch(self, images: Sequence[Any], **options: Unpack[BatchOptions]) -> list[Detections]:
        """:meth:`infer` for each of several pictures, which may differ in size, ``batch_size`` at a time.

        Args:
            images: a list or tuple of pictures, each as :meth:`infer` takes it.
            options: as :meth:`infer`, without ``masks_device``; the same for all.

        Returns:
            One result per picture, in order. The latency of pictures that ran together is their batch's.

        Raises:
            Exception: what :meth:`infer` raises.
        """
        if not isinstance(images, (list, tuple)):
            raise TypeError(f"images: got {type(images).__name__}, expected a list or tuple of pictures")
        check_options("infer_batch", options, BatchOptions)
        results: list[Detections] = []
        for start in range(0, len(images), self.batch_size):
            results += self._pipeline.run(self._request(images[start : start + self.batch_size], options))
        return results

    def queries(
        self,
        image: Any,
        *,
        color: Color = "rgb",
        resize: ModelResize | None = None,
        max_pixels: int | None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int16]]:
        """What every query says of a picture, before any selection: the raw triple of FocoosAI's model cards.

        Defined in docs/postprocess.md, steps 1 to 3. Masks get the frame's size as in :meth:`infer`
        (``config.resampling``). Where single queries compete for the pixels of a semantic result, the masks are what
        they have won. Else they are the queries' own, and may overlap: so in instances, in panoptic results, whose
        segments are made from them, and where ``config.combine`` is "sum", in which no query has pixels of its own.

        Args:
            image, color, resize, max_pixels: see :meth:`infer`.

        Returns:
            class_ids int64 (Q,), scores float32 (Q,), the class probability, and masks int16 (Q, H, W): the class
            inside the mask, -1 outside. Q * H * W * 2 bytes: 415 MB for 100 queries at 1080p. The class is the
            likeliest one, also of a query that may be a row for each of several (``config.multi_label``).

        Raises:
            Exception: what :meth:`infer` raises.
        """
        self._check_open()
        resize = resize_of(self.spec, resize)
        if resize == "crops":
            raise ValueError(
                "resize: got 'crops', each of which has queries of its own, expected \"stretch\", of one picture"
            )
        frame = frame_of(image, max_pixels)
        with self._on_host().contexts.borrow() as context:
            letterbox = preprocess_into(self.spec, context, 0, frame, {"color": color, "resize": resize})
            context.run()
            mask_logits, class_logits = context.mask_logits[:1].copy(), context.class_logits[:1].copy()
        config, rules = self.spec.config, rules_of(self.spec.config)
        return raw_queries(
            mask_logits[0],
            class_logits[0],
            letterbox.frame,
            letterbox=letterbox if resize != "stretch" else None,
            mask_threshold=config.mask_threshold,
            predict_all_pixels=config.predict_all_pixels and rules.combine == "contest",
            class_activation="sigmoid" if config.cls_sigmoid else "softmax",
            resampling=rules.resampling,
            num_threads=self._prepared.num_threads,
        )

    def _request(self, images: Sequence[Any], options: Mapping[str, Any]) -> Request:
        """The pictures, decoded where they are files, and what is asked of them, checked."""
        settings = settings_of(self.spec, options, on_gpu=self._results_on_gpu)
        layout = layout_of(self.spec, options)
        self._check_open()
        frames, decode, sources = decoded(images, options.get("max_pixels"))
        return Request(frames, layout, decode=decode, sources=sources, look=self._look, **settings)

    @property
    def _results_on_gpu(self) -> bool:
        return isinstance(self._pipeline, GpuPipeline)

    def _check_open(self) -> None:
        """Before anything that waits for a thread or a lock, of which a forked child may not have the other end."""
        if self._closed:
            raise FaiFastError("the model is closed; load it again")
        self._guard.check()

    def _submit_combined(
        self, image: Any, combines: Sequence[Combine], **options: Unpack[InferOptions]
    ) -> Pending:
        """:meth:`submit` of a semantic model, with a result for each of these ways, all of one run of the network.

        They are made on the CPU, also where the engine is on a GPU.
        """
        self._check_combines(combines)
        request = self._request([image], options)
        return self._on_host().submit_combined(request, combines)

    def _check_combines(self, combines: Sequence[Combine]) -> None:
        if "contest" in combines and sees_crops(self.spec):
            raise ValueError(
                f"combine: got 'contest' for {self.spec.name}, which sees crops, expected 'sum': sums are what is put "
                "together"
            )

    def _on_host(self) -> CpuPipeline:
        """What runs the engine between arrays of the host. Raises FaiFastError where the model is closed."""
        if isinstance(self._pipeline, CpuPipeline):
            return self._pipeline
        with self._host_lock:
            if self._closed:
                raise FaiFastError("the model is closed; load it again")
            if self._host is None:
                self._host = CpuPipeline(self.spec, self._engine, self._prepared.num_threads)
            return self._host

    # ----------------------------------------------------------------------------------------- measure, tell

    def warmup(self, runs: int = 2) -> Model:
        """Runs the whole pipeline on a gray frame, so that the first real one is as quick as the others."""
        frame = np.full((*self.size, 3), 114, np.uint8)
        for _ in range(check_int("runs", runs)):
            self.infer(frame)
        return self

    def benchmark(
        self, image: Any = None, *, runs: int = 50, warmup: int = 5, max_pixels: int | None = None
    ) -> dict[str, dict[str, float]]:
        """Measures each stage of one frame after another.

        Args:
            image: what to run on, see :meth:`infer`; None for a frame of noise, 1080 x 1920.
            runs: measured frames.
            warmup: frames before them.
            max_pixels: see :meth:`infer`.

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
            self.infer(image, max_pixels=max_pixels)
        measured = []
        for _ in range(runs):
            latency = self.infer(image, max_pixels=max_pixels).latency
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
        ``engine`` (the engine's own account), ``precision`` and ``precision_reason``, ``precision_verdicts`` (of each
        low precision that was tried: the metric, its value and limit, and on what), ``engine_reasons``,
        ``verification`` of the exported graph, ``artefacts`` (files in the cache, and why each was built or not),
        ``execution`` (on a GPU: whether frames run as a captured graph, and why not), ``memory`` (on a GPU: bytes that
        the buffers of frames take)."""
        return {
            "name": self.spec.name,
            "family": self.spec.family,
            "task": self.spec.task,
            "classes": len(self.spec.classes),
            "im_size": self.size,
            "batch_size": self.batch_size,
            **self._prepared.provenance,
            "engine": self._engine.info(),
            "execution": self._pipeline.info(),
            **({"memory": self._pipeline.memory()} if isinstance(self._pipeline, GpuPipeline) else {}),
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

    def clone(self) -> Model:
        """Another model that shares this one's engine and weights, with buffers and, on a GPU, a stream of its own.

        Each is closed for itself; the engine goes with the last one.

        Raises:
            FaiFastError: the model is closed.
            EngineError: this is a forked child of the process that loaded the model.
        """
        return self._sharing(self._prepared)

    def _sharing(self, prepared: Prepared) -> Model:
        """Another model on this one's engine, of which something else was prepared."""
        self._guard.check()
        with self._host_lock:
            # Asked of this model, as other clones may keep the engine alive.
            if self._closed:
                raise FaiFastError("the model is closed; load it again")
            self._users.enter()
        other = Model(prepared, self._users)
        other._arguments, other._look = self._arguments, self._look
        return other

    def _tell_no_aspect(self) -> None:
        """Leaves the line about frames of another aspect out, where somebody tells more of it."""
        if self._look is not None:
            self._look.told()

    @property
    def _size_is_open(self) -> bool:
        """Whether the input has the model's own size only because nobody asked for another, which it could have."""
        return self._look is not None

    def _with_size(self, size: tuple[int, int]) -> Model:
        """The model once more, of the same files and options, with an input of (height, width)."""
        from fai_fast.model.loading import _loaded_again

        assert self._arguments is not None
        arguments = {**self._arguments, "im_size": size, "frame": None}
        return _loaded_again(arguments, self.spec.config.combine)

    def _combining(self, combine: Combine) -> Model:
        """A clone whose semantic results are combined so, as its ``spec`` says.

        Raises:
            TypeError, ValueError: there is no such way, or results of this model are not semantic.
        """
        self._check_combines([combine])
        config = dataclasses.replace(self.spec.config, combine=combine)
        spec = dataclasses.replace(self.spec, config=config)
        return self._sharing(dataclasses.replace(self._prepared, spec=spec))

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[dict[str, Any], Combine]]:
        """How to load it again. Raises FaiFastError where the model is closed, or was not made by :func:`load`."""
        if self._closed:
            raise FaiFastError("the model is closed; load it again")
        if self._arguments is None:
            raise FaiFastError("only models of fai_fast.load() can be pickled, and this one is not")
        from fai_fast.model.loading import _loaded_again

        arguments = _again.pickled(self._arguments, self._prepared.graph)
        return _loaded_again, (arguments, self.spec.config.combine)

    def close(self) -> None:
        """Gives engine and buffers back. Blocks until the frames on their way have ended. Idempotent.

        In a forked child, where all of it is its parent's, nothing is given back.
        """
        if self._guard.inherited:
            self._closed = True
            return
        with self._host_lock:
            if self._closed:
                return
            self._closed = True
        if self._host is not None:
            self._host.close()
        self._pipeline.close()
        self._users.leave()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
