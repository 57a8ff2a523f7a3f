"""How frames go through a model: stage after stage on the CPU, as one captured graph on a GPU."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast import _core
from fai_fast._arguments import check_wait
from fai_fast._crops import infer_crops
from fai_fast._foreign import explained, from_signal_handler
from fai_fast._forks import ProcessGuard
from fai_fast._locks import SignalSafeLock
from fai_fast._rules import Combine, arguments_of, rules_of
from fai_fast.detections import Detections, Latency, Source
from fai_fast.detections.selection import Selection
from fai_fast.engines.base import Context, Engine
from fai_fast.engines.gpu import GpuContext, GpuEngine, buffers_of
from fai_fast.errors import FaiFastError
from fai_fast.letterbox import Letterbox
from fai_fast.ops import frame_arguments, postprocess_batch, preprocess_frame
from fai_fast.registry import ModelSpec

__all__ = ["CpuPipeline", "GpuPipeline", "InferFuture", "Pending", "Pipeline", "Request", "Ticket"]

# More contexts than this would only wait for each other's cores.
MAX_CONTEXTS = 4
# Threads of submitted frames: two, so that the stages around one frame's engine overlap with the other's.
_WORKERS = 2
# Frames that overlap when they are submitted: one is uploaded, one runs, one comes back.
DEPTH = 3
# More rows than any result has.
_ALL_ROWS = 2**31
# Results, the frames' sizes (H, W), and seconds of preprocessing, the engine and postprocessing.
Ran = tuple[list[Detections], list[tuple[int, int]], tuple[float, float, float]]
# Seconds between two looks for contexts that an exception of a signal handler lost.
_LOST = 1.0

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class Request:
    """Frames that go through the engine together, and what is asked of them.

    Attributes:
        frames: at most the engine's batch; arrays as :func:`fai_fast.preprocess` takes them.
        layout: ``color``, ``resize``, ``yuv_matrix``, ``yuv_range`` of all of them.
        threshold: of postprocessing; where ``selection`` has one for each class, the lowest of those that are wanted.
        selection: which of the rows above the threshold are wanted.
        decode: milliseconds that opening them took.
        sources: where each frame is; None where that is not known of any.
        look: called with the size (H, W) of each frame whose result is there, where somebody wants to know.
    """

    frames: Sequence[Any]
    layout: Mapping[str, str]
    threshold: float
    mask_threshold: float
    use_mask_score: bool
    selection: Selection
    masks_device: bool = False
    decode: float = 0.0
    sources: Sequence[Source | None] | None = None
    look: Callable[[tuple[int, int]], None] | None = None


class Pending(ABC):
    """Frames on their way."""

    @abstractmethod
    def results(self, timeout: float | None = None) -> list[Detections]:
        """One for each frame, the same every time. Raises TimeoutError after `timeout` seconds, and what failed."""

    @abstractmethod
    def done(self) -> bool:
        """Whether :meth:`results` would not wait."""


class Pipeline(ABC):
    """Runs requests; safe to call from several threads."""

    @abstractmethod
    def run(self, request: Request) -> list[Detections]: ...

    @abstractmethod
    def submit(self, request: Request) -> Pending: ...

    @abstractmethod
    def frame_buffer(self, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Zeros, in the memory from which frames are taken fastest. They outlive the pipeline."""

    @abstractmethod
    def info(self) -> str:
        """How frames run, in words."""

    @abstractmethod
    def close(self) -> None:
        """Waits for the frames on their way, whose results stay, and lets go of everything. Idempotent."""


class InferFuture:
    """A frame that :meth:`fai_fast.Model.submit` took; :meth:`result` waits for what was found in it."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending

    def result(self, timeout: float | None = None) -> Detections:
        """What :meth:`fai_fast.Model.infer` would have returned, the same object every time. Blocks until then.

        Args:
            timeout: seconds to wait at most; None for as long as it takes.

        Raises:
            TypeError, ValueError: `timeout` is not a finite number.
            TimeoutError: it took longer; the frame is still on its way.
            EngineError: the frame failed; or it was on its way when this process was forked.
        """
        if timeout is not None:
            timeout = check_wait("timeout", timeout)
        return self._pending.results(timeout)[0]

    def done(self) -> bool:
        """Whether :meth:`result` would not wait. Does not block."""
        return self._pending.done()


# Its name until it was given one that others know.
Ticket = InferFuture


# ------------------------------------------------------------------------------------------------------- CPU


class CpuPipeline(Pipeline):
    """Preprocessing, an engine and postprocessing on the CPU, one thread per request.

    An engine of a GPU (`on_gpu`) runs between them where its frames are crops, of which no graph is captured.
    """

    def __init__(
        self, spec: ModelSpec, engine: Engine, num_threads: int | None, *, on_gpu: bool = False
    ) -> None:
        self._spec = spec
        self._num_threads = num_threads
        self._on_gpu = on_gpu
        self._rules = arguments_of(spec.config)
        # Each takes some of a GPU's memory.
        self.contexts = ContextPool(engine.context, _WORKERS if on_gpu else MAX_CONTEXTS)
        self._guard = ProcessGuard(engine.name)
        self._lock = SignalSafeLock()
        self._workers: ThreadPoolExecutor | None = None

    def frame_buffer(self, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
        return np.zeros(shape, np.uint8)

    def info(self) -> str:
        crops = "; crops are cut and put together on the CPU" if self._on_gpu else ""
        return f"one stage after the other{crops}"

    def run(self, request: Request) -> list[Detections]:
        return self._run(request, [{}])

    def _run(self, request: Request, ways: Sequence[Mapping[str, Any]]) -> list[Detections]:
        """The frames' results by the model's rules with each of these changes: all by the first, then by the next."""
        if request.layout.get("resize") == "crops":
            results, sizes, seconds = self._run_crops(request)
        else:
            results, sizes, seconds = self._run_whole(request, ways)
        if request.look is not None:
            for size in sizes:
                request.look(size)
        latency = Latency(request.decode, *(1e3 * stage for stage in seconds))
        sources = [*(request.sources or [None] * len(sizes))] * len(ways)
        return [
            request.selection.apply(result)._with_latency(latency)._with_source(source)
            for result, source in zip(results, sources, strict=True)
        ]

    def _run_crops(self, request: Request) -> Ran:
        if request.use_mask_score:
            raise ValueError(
                "use_mask_score: got True with combine='sum', expected False: a class's confidence is its mean sum"
            )
        with self.contexts.borrow() as context:
            results, seconds = infer_crops(
                context,
                self._spec,
                request.frames,
                request.layout,
                threshold=request.threshold,
                num_threads=self._num_threads,
            )
        return results, [result.size for result in results], seconds

    def _run_whole(self, request: Request, ways: Sequence[Mapping[str, Any]]) -> Ran:
        asked = {"mask_threshold": request.mask_threshold, "use_mask_score": request.use_mask_score}
        letterboxed = request.layout.get("resize", "stretch") != "stretch"
        with self.contexts.borrow() as context:
            started = time.perf_counter()
            letterboxes = [
                preprocess_into(self._spec, context, index, frame, request.layout)
                for index, frame in enumerate(request.frames)
            ]
            preprocessed = time.perf_counter()
            context.run()
            ran = time.perf_counter()
            results = [
                result
                for way in ways
                for result in postprocess_batch(
                    context.mask_logits[: len(request.frames)],
                    context.class_logits[: len(request.frames)],
                    [letterbox.frame for letterbox in letterboxes],
                    letterbox=letterboxes if letterboxed else None,
                    threshold=request.threshold,
                    **{**self._rules, **asked, **way},
                    class_names=self._spec.classes,
                    num_threads=self._num_threads,
                )
            ]
        seconds = (preprocessed - started, ran - preprocessed, time.perf_counter() - ran)
        return results, [letterbox.frame for letterbox in letterboxes], seconds

    def submit(self, request: Request) -> Pending:
        return self._submit(lambda: self.run(request))

    def submit_combined(self, request: Request, combines: Sequence[Combine]) -> Pending:
        """:meth:`submit` of frames whose semantic results are wanted in several ways, of one run of the engine."""
        ways = [{"combine": combine} for combine in combines]
        return self._submit(lambda: self._run(request, ways))

    def _submit(self, run: Callable[[], list[Detections]]) -> Pending:
        with self._lock:
            self.contexts.check_open()
            if self._workers is None:
                self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="fai_fast")
            ended: list[list[Detections]] = []
            future = self._workers.submit(lambda: ended.append(run()))
            return _CpuPending(future, ended, self._guard)

    def close(self) -> None:
        with self._lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown()
        self.contexts.close()


class _CpuPending(Pending):
    def __init__(self, future: Future[None], ended: list[list[Detections]], guard: ProcessGuard) -> None:
        self._future = future
        self._ended = ended
        self._guard = guard

    def results(self, timeout: float | None = None) -> list[Detections]:
        # A child has no thread that would end the frame, or release the future's lock.
        if not self._ended or not self._guard.inherited:
            self._guard.check()
            self._wait(timeout)
        return self._ended[0]

    def _wait(self, timeout: float | None) -> None:
        from concurrent.futures import TimeoutError as Late

        try:
            self._future.result(timeout)
        except Late as error:
            # A time limit of the program's own is a TimeoutError too.
            if timeout is None or self._future.done() or from_signal_handler(error) is not None:
                raise
            raise _late(timeout) from error

    def done(self) -> bool:
        return self._guard.inherited or self._future.done()


def preprocess_into(
    spec: ModelSpec, context: Context, index: int, frame: Any, layout: Mapping[str, Any]
) -> Letterbox:
    """Writes a frame into a context's input, as image `index` of its batch."""
    _, _, height, width = context.images.shape
    _, letterbox = preprocess_frame(
        frame,
        (height, width),
        mean=spec.config.pixel_mean,
        std=spec.config.pixel_std,
        dtype=None,
        out=context.images[index : index + 1],
        **layout,
    )
    return letterbox


class _Room:
    """Room for a context that is being made."""


class ContextPool:
    """Contexts made when first needed, each lent to one thread at a time.

    A signal handler may raise between any two steps of a thread that has just taken one. Nobody then gives it back, so
    that contexts are counted by whether they are still held, and one that is not makes room for another.
    """

    def __init__(self, make: Callable[[], Context], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._held: weakref.WeakSet[Any] = weakref.WeakSet()
        self._free: list[Context] = []
        # Taken itself, not through the condition: that is Python code, where a handler may raise with the lock held.
        self._lock = SignalSafeLock()
        self._changed = self._lock.condition()
        self._closed = False

    @contextmanager
    def borrow(self) -> Iterator[Context]:
        context = self._take()
        try:
            yield context
        finally:
            with self._lock:
                self._free.append(context)
                self._changed.notify()

    def check_open(self) -> None:
        if self._closed:
            raise FaiFastError("the model is closed; load it again")

    def _take(self) -> Context:
        with self._lock:
            while True:
                self.check_open()
                if self._free:
                    return self._free.pop()
                if len(self._held) < self._limit:
                    room = _Room()
                    self._held.add(room)
                    break
                # Nobody tells of one that was lost.
                self._changed.wait(_LOST)
        try:
            context = self._make()
            self._held.add(context)
            return context
        finally:
            del room
            with self._lock:
                self._changed.notify()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._changed.notify_all()


# ------------------------------------------------------------------------------------------------------- GPU


class GpuPipeline(Pipeline):
    """Frames as CUDA graphs, up to DEPTH at a time, which overlap as far as the GPU has room for them."""

    def __init__(self, spec: ModelSpec, engine: GpuEngine) -> None:
        self._spec = spec
        self._engine = engine
        self._lock = SignalSafeLock()  # held while a frame is submitted, so that all go in one order
        self._closed = False
        self._guard = ProcessGuard(engine.name)
        # Whether a frame waits for the engine of the one before. Slots share nothing, so that none has to, and small
        # layers of one frame leave room for those of another: 1.7 times as many frames per second on an H100, by
        # bench/staging.py, which compares the two.
        self._in_order = False
        self._last: _core.FrameGraph | None = None
        # All of them now: an engine that cannot run is better known before the first frame, and a capture in the
        # middle of a stream would hold up its frames, and whoever else uses the GPU.
        self._slots: list[_Slot] = []
        try:
            for _ in range(DEPTH):
                self._slots.append(_Slot(spec, engine))
        except BaseException:
            for slot in self._slots:
                slot.close()
            raise
        if reason := self._slots[0].uncaptured:
            _log.info("%s: frames run without a captured graph: %s", spec.name, reason)

    def frame_buffer(self, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
        self._guard.check()
        return _core.pinned_array(shape, self._engine.device)

    def info(self) -> str:
        reason = self._slots[0].uncaptured if self._slots else None
        return f"uncaptured: {reason}" if reason else "one captured CUDA graph"

    def memory(self) -> dict[str, int]:
        """Bytes that the frames' buffers take: "device", "pinned". Blocks while a frame is submitted."""
        self._guard.check()
        with self._lock:
            held = [slot.graph.memory() for slot in self._slots]
        return {place: sum(item[place] for item in held) for place in ("device", "pinned")}

    def run(self, request: Request) -> list[Detections]:
        return self.submit(request).results()

    def submit(self, request: Request) -> Pending:
        frames = [frame_arguments(frame, **request.layout) for frame in request.frames]
        # Before the lock, which a thread that a forked child does not have may hold.
        self._guard.check()
        with self._lock:
            if self._closed:
                raise FaiFastError("the model is closed; load it again")
            slot = self._take()
            with slot.lock:
                slot.graph.submit(
                    frames,
                    request.threshold,
                    request.mask_threshold,
                    request.use_mask_score,
                    self._last if self._in_order else None,
                )
                self._last = slot.graph
                return slot.lend(self._spec, request)

    def _take(self) -> _Slot:
        """A slot without a frame; where there is none, the one whose frame was submitted first, which is waited for."""
        # The one used last, whose buffers already fit and may still be in a cache.
        slot = next((slot for slot in reversed(self._slots) if slot.idle), None)
        if slot is None:
            slot = self._slots[0]
            slot.settle()  # the result stays with its future
        # In the order of their frames.
        self._slots.remove(slot)
        self._slots.append(slot)
        return slot

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._last = None
            slots, self._slots = self._slots, []
            for slot in slots:
                slot.settle()
                slot.close()


class _Slot:
    """A frame graph, the engine's context in it, and the frame that it is working on."""

    def __init__(self, spec: ModelSpec, engine: GpuEngine) -> None:
        rules = rules_of(spec.config)
        self.lock = SignalSafeLock()
        self.guard = ProcessGuard(engine.name)
        self.graph = _core.FrameGraph(
            device=engine.device,
            **buffers_of(*engine.inputs, *engine.outputs),
            mean=spec.config.pixel_mean,
            std=spec.config.pixel_std,
            # A panoptic result is a label map, as semantic ones are.
            predict_all_pixels=spec.config.predict_all_pixels or rules.panoptic is not None,
            softmax=not spec.config.cls_sigmoid,
            rules=rules.plain(),
        )
        try:
            self._context: GpuContext = engine.bind(
                self.graph.images, self.graph.mask_logits, self.graph.class_logits, self.graph.stream
            )
            reason = self._context.capture(self.graph)
            # What a Python engine raised comes with the lines of its traceback.
            self.uncaptured = reason and reason.splitlines()[0]
        except BaseException:
            self.graph.close()
            raise
        self._pending: weakref.ref[_GpuPending] | None = None

    @property
    def idle(self) -> bool:
        return self._pending is None

    def lend(self, spec: ModelSpec, request: Request) -> _GpuPending:
        pending = _GpuPending(self, spec, request)
        self._pending = weakref.ref(pending)
        return pending

    def release(self) -> None:
        self._pending = None

    def settle(self) -> None:
        """Ends the frame, whose results its owner gets, if there is still one."""
        with self.lock:
            if self._pending is None:
                return
            pending = self._pending()
            if pending is not None:
                pending.finish(None)
                return
            try:
                self.graph.wait(-1.0)
            finally:
                self.release()

    def close(self) -> None:
        with self.lock:
            self.graph.close()
            self._context.close()


class _GpuPending(Pending):
    def __init__(self, slot: _Slot, spec: ModelSpec, request: Request) -> None:
        self._slot: _Slot | None = slot
        self._lock = slot.lock
        self._guard = slot.guard
        self._spec = spec
        self._decode = request.decode
        self._sources = request.sources
        self._masks_device = request.masks_device
        self._look = request.look
        self._selection = request.selection
        self._results: list[Detections] | None = None
        self._error: Exception | None = None

    def results(self, timeout: float | None = None) -> list[Detections]:
        # In a forked child the lock may never be released, and the GPU is the parent's.
        if self._slot is not None:
            self._guard.check()
        if not self.finish(timeout):
            raise _late(timeout)
        if self._error is not None:
            raise self._error
        assert self._results is not None
        return self._results

    def done(self) -> bool:
        return self._guard.inherited or self.finish(0.0)

    def finish(self, timeout: float | None) -> bool:
        """Waits for the frame and takes its results from the slot; False where `timeout` was too short."""
        seconds = -1.0 if timeout is None else max(float(timeout), 0.0)
        if self._slot is None:
            return True
        # Another thread may be waiting for the same frame, and hold the lock for as long as that takes.
        began = time.perf_counter()
        if not self._lock.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
            return False
        try:
            if self._slot is None:
                return True
            if seconds > 0:
                seconds = max(seconds - (time.perf_counter() - began), 0.0)
            try:
                if not self._slot.graph.wait(seconds):
                    return False
                self._results = self._collect(self._slot.graph)
            except Exception as error:
                if not explained(error):
                    raise  # the frame is still on its way, and can be asked for again
                self._error = error
            self._slot.release()
            self._slot = None
            return True
        finally:
            self._lock.release()

    def _collect(self, graph: _core.FrameGraph) -> list[Detections]:
        began = time.perf_counter()
        selection = self._selection
        # The best of the rows that are wanted are not the best of all.
        limit = None if selection.is_by_class else selection.top_k
        found = graph.results(_ALL_ROWS if limit is None else limit, self._masks_device)
        panoptic = rules_of(self._spec.config).panoptic
        stuff = None if panoptic is None else panoptic.stuff
        results = [
            selection.apply(Detections._from_core(rows, rows["size"], self._spec.classes, stuff))
            for rows in found
        ]
        if self._look is not None:
            for rows in found:
                self._look(rows["size"])
        times = graph.times()
        latency = Latency(
            self._decode,
            times["upload"] + times["preprocess"],
            times["engine"],
            times["postprocess"] + 1e3 * (time.perf_counter() - began),
        )
        return [
            result._with_latency(latency, rows.get("masks_device"))._with_source(source)
            for result, rows, source in zip(
                results, found, self._sources or [None] * len(results), strict=True
            )
        ]


def _late(timeout: float | None) -> TimeoutError:
    return TimeoutError(f"timeout: the frame took longer than {timeout:g} s; ask again")
