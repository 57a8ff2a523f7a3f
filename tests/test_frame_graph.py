"""The owner of a frame's stream, memory and graph: what it promises to whoever submits frames, and how it fails."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import weakref

import fai_fast
import numpy as np
import pytest
from fai_fast import _core
from fai_fast.errors import CudaError, EngineError
from helpers import gpu, scenes
from helpers.frames import frame as any_frame
from helpers.gpu import item
from helpers.results import same_bits

LONG = os.environ.get("FAI_FAST_LONG") == "1"
ANYWHERE = "a uint8 array .* in the memory of the CPU or of the model's GPU"
MODES = pytest.mark.parametrize("semantic", [False, True], ids=["instance", "semantic"])
BLACK = np.zeros((24, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def logits():
    return scenes.blobs(1, queries=8, grid=(12, 14), objects=6)


def expected(logits, size, **options):
    return gpu.expected(*logits, size, **{"threshold": 0.2, **options})


def check(graph, logits, frame, *, semantic=False, **options):
    """One frame gives what the CPU finds."""
    options = {"threshold": 0.2, **options}
    ours = gpu.detect(graph, frame, **options)
    options = {name: value for name, value in options.items() if name != "color"}
    gpu.same(ours, expected(logits, ours.size, predict_all_pixels=semantic, **options))
    return ours


# ------------------------------------------------------------------------------------------------- frames


@gpu.needed
@MODES
def test_frames_of_any_size_and_format_use_one_capture(logits, semantic):
    calls = []
    graph = gpu.with_logits(*logits, semantic=semantic, size=(16, 24))
    assert graph.capture(calls.append) is None
    assert calls == [graph.stream] * 2  # the engine's first run, and the capture
    formats = [
        ("rgb", (24, 40)),
        ("nv12", (30, 50)),
        ("gray", (7, 3)),
        ("bgra", (64, 33)),
        ("i420", (30, 50)),
        ("yuyv", (90, 20)),
        ("rgb", (24, 40)),
    ]
    for seed, (color, size) in enumerate(formats):
        image = any_frame(seed, color, *size)
        found = gpu.detect(graph, image, color=color, threshold=0.2)
        gpu.same(found, expected(logits, size, predict_all_pixels=semantic))
        tensor = gpu.download(graph.images, (1, 3, 16, 24), "float32")
        cpu = fai_fast.preprocess(image, (16, 24), mean=gpu.MEAN, std=gpu.STD, color=color)
        np.testing.assert_array_equal(tensor, cpu)
    assert len(calls) == 2


@gpu.needed
@MODES
def test_results_stay_as_they_were(logits, semantic):
    """The first ones lie in pinned memory, which the graph must leave alone; more than eight are copied."""
    graph = gpu.with_logits(*logits, semantic=semantic)
    sizes = [(20 + 3 * i, 90 - 4 * i) for i in range(14)]
    kept = [gpu.detect(graph, np.zeros((*size, 3), np.uint8), threshold=0.2) for size in sizes]
    for _ in range(3):
        gpu.detect(graph, np.zeros((70, 70, 3), np.uint8), threshold=0.0)
    graph.close()
    del graph
    gc.collect()
    for size, found in zip(sizes, kept, strict=True):
        gpu.same(found, expected(logits, size, predict_all_pixels=semantic))


@gpu.needed
def test_every_frame_has_its_own_thresholds(logits):
    graph = gpu.with_logits(*logits)
    numbers = set()
    for threshold in (0.2, 0.9, 0.0, 0.5):
        for mask_threshold in (0.5, 0.9):
            for use_mask_score in (False, True):
                options = {"threshold": threshold, "mask_threshold": mask_threshold}
                numbers.add(len(check(graph, logits, BLACK, use_mask_score=use_mask_score, **options)))
    assert len(numbers) > 2


@gpu.needed
@MODES
def test_a_reported_score_is_above_the_threshold_as_on_the_cpu(semantic):
    masks, classes = scenes.blobs(3, queries=30, grid=(12, 14), objects=20)
    classes[0, :] = -np.inf
    classes[1, 1] = -np.inf  # of no probability, which drops no query
    classes[2, 2] = np.inf
    graph = gpu.with_logits(masks, classes, semantic=semantic)
    everything = gpu.detect(graph, BLACK, threshold=-1.0)
    assert 1 in everything.query or semantic
    assert not {0, 2} & set(everything.query.tolist())
    for score in everything.confidence[:12]:
        found = gpu.detect(graph, BLACK, threshold=float(score))
        assert found.query.tolist() == everything.query[everything.confidence > score].tolist()
        on_cpu = fai_fast.postprocess(
            masks, classes, found.size, threshold=float(score), predict_all_pixels=semantic
        )
        if gpu.EMULATOR is not None:  # whose exponential is the CPU's to the bit
            assert found.query.tolist() == on_cpu.query.tolist()
            assert found.confidence.tobytes() == on_cpu.confidence.tobytes()


@gpu.needed
def test_the_way_to_resize_may_change_between_frames_of_one_size(logits):
    graph = gpu.with_logits(*logits, size=(32, 32))
    letterbox = fai_fast.Letterbox.fit((24, 40), (32, 32))
    boxes = {"letterbox": letterbox, "pad": fai_fast.Letterbox.fit((24, 40), (32, 32), "pad")}
    for resize in ("stretch", "letterbox", "letterbox", "pad", "letterbox", "pad", "stretch"):
        found = gpu.detect(graph, BLACK, resize=resize, threshold=0.2)
        gpu.same(found, expected(logits, (24, 40), letterbox=boxes.get(resize)))


@gpu.needed
@MODES
def test_a_frame_in_pinned_memory(logits, semantic):
    """Labels of a frame lie in pinned memory, which the graph's own upload reads; what follows does not."""
    labels = gpu.with_logits(*logits, semantic=True)
    graph = gpu.with_logits(*logits, semantic=semantic, size=(16, 24))
    for size in ((48, 64), (24, 16), (48, 64)):
        gpu.submit(labels, [item(np.zeros((*size, 3), np.uint8))])
        assert labels.wait(-1.0)
        [rows] = labels.results(100, False)
        for image in (rows["segments"], np.array(rows["segments"]) ^ 1, rows["segments"][:, ::-1]):
            check(graph, logits, image, semantic=semantic, color="gray")
            tensor = gpu.download(graph.images, (1, 3, 16, 24), "float32")
            cpu = fai_fast.preprocess(image, (16, 24), mean=gpu.MEAN, std=gpu.STD, color="gray")
            np.testing.assert_array_equal(tensor, cpu)


@gpu.needed
def test_stages_are_timed(logits):
    graph = gpu.with_logits(*logits)
    assert set(graph.times().values()) == {0.0}
    gpu.detect(graph, BLACK)
    times = graph.times()
    assert list(times) == ["upload", "preprocess", "engine", "postprocess"]
    assert min(times.values()) >= 0
    assert times["postprocess"] > 0
    with pytest.raises(CudaError, match="closed"):
        graph.close() or graph.times()


# ---------------------------------------------------------------------------------------------- uncaptured


@gpu.needed
@MODES
@pytest.mark.parametrize("batch", [1, 2])
def test_uncaptured_frames_are_the_same(logits, semantic, batch):
    pair = [np.stack([array] * batch) for array in logits]
    graphs = [gpu.with_logits(*pair, semantic=semantic, capture=capture) for capture in (True, False)]
    for size in ((24, 40), (50, 31), (24, 40)):
        frames = [item(scenes.image(seed, (*size, 3))) for seed in range(batch)]
        for graph in graphs:
            gpu.submit(graph, frames, threshold=0.2)
        for one, other in zip(*map(gpu.take, graphs), strict=True):
            same_bits(one, other)
            gpu.same(one, expected(logits, size, predict_all_pixels=semantic))
    shape = (batch, 3, 8, 8)
    captured, uncaptured = (gpu.download(graph.images, shape, "float32") for graph in graphs)
    np.testing.assert_array_equal(captured, uncaptured)


@gpu.needed
def test_an_engine_that_cannot_be_captured_runs_uncaptured(logits):
    graph = gpu.with_logits(*logits)
    calls = []

    def engine(stream):
        calls.append(stream)
        if len(calls) == 2:
            raise RuntimeError("this operator has no graph")

    assert "this operator has no graph" in graph.capture(engine)
    for count in (3, 4):
        check(graph, logits, BLACK)
        assert len(calls) == count


@gpu.needed
def test_an_engine_that_waits_for_the_gpu_runs_uncaptured(logits):
    """As a synchronization during capture is refused, and spoils the capture."""
    graph = gpu.with_logits(*logits)
    arrays = np.zeros((1, 3, 8, 8), np.float32), logits[0].copy(), logits[1].copy()
    calls = []

    def engine(stream):
        calls.append(stream)
        if len(calls) == 2:
            graph.run_engine(lambda stream: None, *arrays)

    assert "cudaError" in graph.capture(engine)
    check(graph, logits, BLACK)
    assert len(calls) == 3


@gpu.needed
def test_an_engine_whose_error_is_swallowed_is_found_out_all_the_same(logits):
    graph = gpu.with_logits(*logits)
    arrays = np.zeros((1, 3, 8, 8), np.float32), logits[0].copy(), logits[1].copy()

    def engine(stream):
        with contextlib.suppress(CudaError):
            graph.run_engine(lambda stream: None, *arrays)

    assert "cudaErrorStreamCapture" in graph.capture(engine)


@gpu.needed
def test_the_last_engine_given_is_the_one_that_runs(logits):
    graph = gpu.with_logits(*logits)
    check(graph, logits, BLACK)
    calls = []
    assert graph.run_uncaptured(calls.append, "for a while") == "for a while"
    check(graph, logits, BLACK)
    assert calls == [graph.stream]
    assert graph.capture(lambda stream: None) is None
    check(graph, logits, BLACK)
    assert len(calls) == 1


@gpu.needed
def test_an_engine_that_fails_at_its_first_run(logits):
    graph = gpu.with_logits(*logits)

    def engine(stream):
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        graph.capture(engine)
    check(graph, logits, BLACK)  # with the engine that it had
    fresh = gpu.frame_graph((2, 3, 3), (2, 3))
    with pytest.raises(CudaError, match=r"no engine: call capture\(\) first"):
        gpu.submit(fresh, [item(BLACK)])


@gpu.needed
def test_an_engine_that_fails_in_a_frame_leaves_the_graph_usable(logits):
    graph = gpu.with_logits(*logits, capture=False)
    fail = [False]

    def engine(stream):
        if fail[0]:
            raise RuntimeError("lost its thread")

    graph.run_uncaptured(engine, "")
    kept = check(graph, logits, BLACK)
    for size in ((31, 17), (24, 40)):
        fail[0] = True
        with pytest.raises(RuntimeError, match="lost its thread"):
            gpu.submit(graph, [item(np.zeros((*size, 3), np.uint8))])
        assert graph.wait(0.0)
        assert graph.results(100, False) == []
        fail[0] = False
        check(graph, logits, np.zeros((*size, 3), np.uint8))
    gpu.same(kept, expected(logits, (24, 40)))


@gpu.needed
def test_the_engine_is_let_go_of(logits):
    class Engine:
        def __call__(self, stream):
            pass

    for capture in (True, False):
        graph, engine = gpu.with_logits(*logits), Engine()
        if capture:
            graph.capture(engine)
        else:
            graph.run_uncaptured(engine, "")
        gone = weakref.ref(engine)
        del engine
        assert gone() is not None
        graph.close()
        assert gone() is None


# ------------------------------------------------------------------------------------------- in flight


@gpu.needed
def test_waiting_has_an_end(logits):
    gate = threading.Event()
    # The emulator runs host functions in the thread that waits.
    hold = (lambda: None) if gpu.EMULATOR else (lambda: gate.wait(60))
    graph = gpu.with_logits(*logits, capture=False)
    graph.run_uncaptured(lambda stream: _core.launch_host_function(stream, hold), "")
    gpu.submit(graph, [item(BLACK)], threshold=0.2)
    assert graph.wait(0.0) is False
    with pytest.raises(CudaError, match="a frame is in flight; take its result first"):
        gpu.submit(graph, [item(BLACK)])
    with pytest.raises(CudaError, match="in flight"):
        graph.results(100, False)
    with pytest.raises(CudaError, match="in flight"):
        graph.capture(lambda stream: None)
    gate.set()
    assert graph.wait(60.0) is True
    assert graph.wait(0.0) is True
    [found] = gpu.take(graph)
    gpu.same(found, expected(logits, (24, 40)))
    assert graph.results(100, False) == []


@gpu.needed
def test_closing_waits_for_the_frame_in_flight(logits):
    graph = gpu.with_logits(*logits)
    ended = []
    graph.capture(lambda stream: _core.launch_host_function(stream, lambda: ended.append(1)))
    ended.clear()
    gpu.submit(graph, [item(BLACK)])
    graph.close()
    assert ended == [1]
    for call in (
        lambda: graph.wait(0.0),
        lambda: graph.results(1, False),
        lambda: gpu.submit(graph, [item(BLACK)]),
        lambda: graph.stream,
        lambda: graph.memory(),
        lambda: graph.capture(lambda stream: None),
    ):
        with pytest.raises(CudaError, match="the frame graph is closed"):
            call()
    graph.close()


@gpu.needed
def test_a_frame_begins_after_the_one_that_it_follows(logits):
    order = []
    graphs = [gpu.with_logits(*logits) for _ in range(3)]
    for name, graph in enumerate(graphs):

        def engine(stream, name=name):
            _core.launch_host_function(stream, lambda: order.append(name))

        assert graph.capture(engine) is None
    order.clear()
    before = None
    for graph in graphs:
        gpu.submit(graph, [item(BLACK)], threshold=0.2, after=before)
        before = graph
    [last] = gpu.take(graphs[2])  # which ends all of them
    assert order == [0, 1, 2]
    for graph in graphs[:2]:
        same_bits(gpu.take(graph)[0], last)
    gpu.submit(graphs[0], [item(BLACK)], after=graphs[0])
    gpu.take(graphs[0])
    graphs[2].close()
    gpu.submit(graphs[0], [item(BLACK)], after=graphs[2])
    gpu.take(graphs[0])


@gpu.needed
@gpu.emulated
@pytest.mark.parametrize("order", ["eager", "random", "lazy"])
def test_nothing_depends_on_when_the_gpu_works(logits, order):
    with gpu.EMULATOR.settings(order=order, seed=3):
        graphs = [gpu.with_logits(*logits, size=(16, 24)) for _ in range(3)]
        sizes = [(10 + 7 * i, 60 - 5 * i) for i in range(9)]
        waiting, before = [], None
        for number, size in enumerate(sizes):
            if len(waiting) == 3:
                of, graph = waiting.pop(0)
                gpu.same(gpu.take(graph)[0], expected(logits, of))
            graph = graphs[number % 3]
            gpu.submit(graph, [item(scenes.image(number, (*size, 3)))], threshold=0.2, after=before)
            waiting.append((size, graph))
            before = graph
        for of, graph in waiting:
            gpu.same(gpu.take(graph)[0], expected(logits, of))


# --------------------------------------------------------------------------- frames in the GPU's memory


class Tensor:
    """DLPack over the memory of an OnDevice, as torch and CuPy have it."""

    def __init__(self, array, device=0, legacy=False):
        self.held = gpu.OnDevice(array)
        self.array, self.device, self.legacy = array, device, legacy
        self.streams = []

    def __dlpack_device__(self):
        return 2, self.device

    def __dlpack__(self, *, stream=None, **keywords):
        if self.legacy and keywords:
            raise TypeError("unexpected keyword")
        self.streams.append(stream)
        return _capsule(self.held.address, self.array.shape, self.held)


@gpu.needed
@pytest.mark.parametrize("color", ["rgb", "gray", "nv12", "yuyv"])
def test_frames_are_read_where_they_are(logits, color):
    graph = gpu.with_logits(*logits, size=(16, 24))
    for seed, size in enumerate([(30, 40), (12, 50), (30, 40)]):
        image = any_frame(seed, color, *size)
        found = gpu.detect(graph, gpu.OnDevice(image), color=color, threshold=0.2)
        gpu.same(found, expected(logits, size))
        tensor = gpu.download(graph.images, (1, 3, 16, 24), "float32")
        cpu = fai_fast.preprocess(image, (16, 24), mean=gpu.MEAN, std=gpu.STD, color=color)
        np.testing.assert_array_equal(tensor, cpu)


@gpu.needed
def test_strided_frames_are_read_where_they_are(logits):
    graph = gpu.with_logits(*logits, size=(16, 24))
    image = scenes.image(1, (30, 64, 4))
    held = gpu.OnDevice(image, strides=(256, 4, 1))
    held.__cuda_array_interface__["shape"] = (30, 50, 3)  # a crop, without alpha
    gpu.detect(graph, held, color="bgr")
    tensor = gpu.download(graph.images, (1, 3, 16, 24), "float32")
    crop = image[:, :50, :3]
    cpu = fai_fast.preprocess(crop, (16, 24), mean=gpu.MEAN, std=gpu.STD, color="bgr")
    np.testing.assert_array_equal(tensor, cpu)


@gpu.needed
def test_planes_are_read_where_they_are(logits):
    graph = gpu.with_logits(*logits, size=(16, 24))
    planes = any_frame(3, "i420", 31, 45, planes=True)
    gpu.detect(graph, tuple(map(gpu.OnDevice, planes)), color="i420")
    tensor = gpu.download(graph.images, (1, 3, 16, 24), "float32")
    cpu = fai_fast.preprocess(planes, (16, 24), mean=gpu.MEAN, std=gpu.STD, color="i420")
    np.testing.assert_array_equal(tensor, cpu)
    mixed = (gpu.OnDevice(planes[0]), *planes[1:])
    with pytest.raises(ValueError, match="image: got planes in the memory of the CPU and of a GPU"):
        gpu.submit(graph, [item(mixed, color="i420")])


@gpu.needed
def test_a_frame_in_flight_keeps_its_memory(logits):
    graph = gpu.with_logits(*logits)
    held = gpu.OnDevice(BLACK)
    gone = weakref.ref(held)
    gpu.submit(graph, [item(held)])
    del held
    assert gone() is not None
    gpu.take(graph)
    assert gone() is None


@gpu.needed
def test_memory_that_is_not_the_gpus_is_refused(logits):
    graph = gpu.with_logits(*logits)
    held = gpu.OnDevice(BLACK)
    on_host = np.zeros((24, 40, 3), np.uint8)
    held.__cuda_array_interface__["data"] = (on_host.ctypes.data, False)
    with pytest.raises(
        ValueError, match="image: got an address outside any GPU's memory, expected memory of device 0"
    ):
        gpu.submit(graph, [item(held)])
    held.__cuda_array_interface__["data"] = (0, False)
    with pytest.raises(ValueError, match="image: got an address outside any GPU's memory"):
        gpu.submit(graph, [item(held)])
    check(graph, logits, BLACK)


@gpu.needed
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"typestr": "<f4"}, TypeError, "image: got dtype <f4"),
        ({"shape": (24, 40)}, ValueError, "image: got shape"),
        ({"shape": (24, 40, 3, 1, 1)}, ValueError, "image: got"),
        ({"shape": "24"}, TypeError, "malformed"),
        ({"shape": (24, None, 3)}, TypeError, "malformed"),
        ({"data": None}, TypeError, "fails"),
        ({"data": ("a", False)}, TypeError, "malformed"),
        ({"strides": (120, 3)}, TypeError, "fails"),
        ({"strides": "abc"}, TypeError, "malformed"),
        ({"stream": "abc"}, TypeError, "malformed"),
        ({"mask": 1}, ValueError, "masked"),
        ({"shape": (24, 0, 3)}, ValueError, "image: got 24 x 0, expected sides of 1 to"),
        ({"shape": (24, -1, 3)}, ValueError, "image: got 24 x -1, expected sides of 1 to"),
        ({"typestr": None}, TypeError, "malformed"),
    ],
)
def test_malformed_interfaces_are_told_from_frames(logits, change, error, message):
    graph = gpu.with_logits(*logits)
    held = gpu.OnDevice(BLACK)
    held.__cuda_array_interface__ |= change
    with pytest.raises(error, match=message):
        gpu.submit(graph, [item(held)])
    check(graph, logits, BLACK)


@gpu.needed
def test_interfaces_that_are_none_are_told_from_frames(logits):
    graph = gpu.with_logits(*logits)

    class Broken:
        def __init__(self, value):
            self.value = value

        @property
        def __cuda_array_interface__(self):
            if isinstance(self.value, Exception):
                raise self.value
            return self.value

    for value in (None, 3, {}, []):
        with pytest.raises(TypeError, match="image: got"):
            gpu.submit(graph, [item(Broken(value))])
    # Theirs, or a signal handler's that ran meanwhile: not ours to rename.
    with pytest.raises(OSError, match=r"^gone$"):
        gpu.submit(graph, [item(Broken(OSError("gone")))])
    check(graph, logits, BLACK)


@gpu.needed
def test_the_producers_stream_is_waited_for_and_waits(logits):
    """What is on it at submission ends before the frame is read; what comes after begins when it has been."""
    graph, producer = gpu.with_logits(*logits), gpu.with_logits(*logits)
    order = []
    graph.capture(lambda stream: _core.launch_host_function(stream, lambda: order.append("frame")))
    order.clear()
    _core.launch_host_function(producer.stream, lambda: order.append("before"))
    gpu.submit(graph, [item(gpu.OnDevice(BLACK, stream=producer.stream))])
    _core.launch_host_function(producer.stream, lambda: order.append("after"))
    arrays = np.zeros((1, 3, 8, 8), np.float32), logits[0].copy(), logits[1].copy()
    producer.run_engine(lambda stream: None, *arrays)  # which waits for its stream
    assert order == ["before", "frame", "after"]
    gpu.take(graph)


@gpu.needed
@pytest.mark.parametrize("legacy", [False, True])
def test_dlpack_tensors_are_read_where_they_are(logits, legacy):
    graph = gpu.with_logits(*logits, size=(16, 24))
    image = scenes.image(2, (33, 21, 3))
    tensor = Tensor(image, legacy=legacy)
    found = gpu.detect(graph, tensor, threshold=0.2)
    gpu.same(found, expected(logits, (33, 21)))
    assert tensor.streams == [graph.stream]  # the producer makes this one wait
    ours = gpu.download(graph.images, (1, 3, 16, 24), "float32")
    np.testing.assert_array_equal(ours, fai_fast.preprocess(image, (16, 24), mean=gpu.MEAN, std=gpu.STD))
    gone = weakref.ref(tensor.held)
    del tensor
    assert gone() is None  # the capsule's deleter was called


@gpu.needed
def test_tensors_of_other_devices_are_refused(logits):
    graph = gpu.with_logits(*logits)
    with pytest.raises(
        ValueError,
        match="image: got memory of CUDA device 5, expected that of the model's device 0 or the CPU's",
    ):
        gpu.submit(graph, [item(Tensor(BLACK, device=5))])

    class Elsewhere(Tensor):
        def __dlpack_device__(self):
            return 10, 0

    with pytest.raises(ValueError, match="image: got a Elsewhere in the memory of DLPack device type 10"):
        gpu.submit(graph, [item(Elsewhere(BLACK))])

    class Broken(Tensor):
        def __dlpack__(self, **keywords):
            raise OSError("gone")

    with pytest.raises(TypeError, match="image: got a Broken whose DLPack export fails"):
        gpu.submit(graph, [item(Broken(BLACK))])
    check(graph, logits, BLACK)


@gpu.needed
def test_tensors_of_torch(logits):
    torch = gpu.torch_on_gpu()
    if torch is None:
        pytest.skip("there is no torch that can use the GPU")
    graph = gpu.with_logits(*logits, size=(16, 24))
    image = scenes.image(3, (60, 80, 3))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        tensor = torch.from_numpy(image).cuda(non_blocking=True).flip(0)
        gpu.submit(graph, [item(tensor[:, 10:70])])
    gpu.take(graph)
    ours = gpu.download(graph.images, (1, 3, 16, 24), "float32")
    cpu = fai_fast.preprocess(image[::-1, 10:70], (16, 24), mean=gpu.MEAN, std=gpu.STD)
    np.testing.assert_array_equal(ours, cpu)


# --------------------------------------------------------------------------------------- masks on the GPU


def masks_of(memory):
    interface = memory.__cuda_array_interface__
    assert interface["typestr"] == "|b1"
    assert interface["strides"] is None
    assert interface["version"] == 3
    assert interface["shape"] == memory.shape
    if 0 in memory.shape:
        return np.zeros(memory.shape, bool)
    return gpu.download(interface["data"][0], memory.shape, np.uint8).view(bool)


@gpu.needed
@MODES
@pytest.mark.parametrize("size", [(24, 40), (33, 65), (1, 130)])
def test_masks_on_the_device(logits, semantic, size):
    graph = gpu.with_logits(*logits, semantic=semantic)
    gpu.submit(graph, [item(np.zeros((*size, 3), np.uint8))], threshold=0.05)
    [found] = gpu.take(graph, masks_device=True)
    assert len(found) > 2
    assert found.masks_device.shape == (len(found), *size)
    assert found.masks_device.__dlpack_device__() == (2, 0)
    np.testing.assert_array_equal(masks_of(found.masks_device), found.mask)
    assert found[0].masks_device is None


@gpu.needed
def test_masks_on_the_device_of_a_batch_and_of_nothing(logits):
    masks, classes = (np.stack([array, array[::-1]]) for array in logits)
    graph = gpu.with_logits(masks, classes)
    frames = [item(np.zeros((*size, 3), np.uint8)) for size in ((30, 20), (11, 70))]
    for threshold in (0.2, 1.0):
        gpu.submit(graph, frames, threshold=threshold)
        for found in gpu.take(graph, masks_device=True):
            np.testing.assert_array_equal(masks_of(found.masks_device), found.mask)
            assert (len(found) == 0) == (threshold == 1.0)
    gpu.submit(graph, frames, threshold=0.2)
    best = gpu.take(graph, top_k=2, masks_device=True)
    assert [found.masks_device.shape[0] for found in best] == [2, 2]
    np.testing.assert_array_equal(masks_of(best[1].masks_device), best[1].mask)


@gpu.needed
def test_masks_on_the_device_outlive_the_graph(logits):
    graph = gpu.with_logits(*logits)
    gpu.submit(graph, [item(BLACK)], threshold=0.2)
    [found] = gpu.take(graph, masks_device=True)
    gpu.detect(graph, np.zeros((50, 50, 3), np.uint8))
    graph.close()
    del graph
    gc.collect()
    np.testing.assert_array_equal(masks_of(found.masks_device), found.mask)


@gpu.needed
def test_masks_on_the_device_are_a_dlpack_tensor(logits):
    graph = gpu.with_logits(*logits)
    gpu.submit(graph, [item(BLACK)], threshold=0.2)
    [found] = gpu.take(graph, masks_device=True)
    memory = found.masks_device
    for keywords, name in (
        ({}, "dltensor"),
        ({"stream": 1}, "dltensor"),
        ({"stream": None, "max_version": (0, 8)}, "dltensor"),
        ({"stream": -1, "max_version": (1, 0)}, "dltensor_versioned"),
        ({"max_version": (1, 2), "dl_device": None, "copy": None}, "dltensor_versioned"),
    ):
        capsule = memory.__dlpack__(**keywords)
        assert f'"{name}"' in repr(capsule)
    for keywords in ({"stream": "a"}, {"max_version": 1}, {"max_version": ()}, {"max_version": ("a", 0)}):
        with pytest.raises(TypeError, match=next(iter(keywords))):
            memory.__dlpack__(**keywords)
    shape, mask = memory.shape, found.mask
    # A tensor outlives what it was taken from, and gives its memory back.
    before = _live()
    del memory, found
    gc.collect()
    assert _live() == before  # the last capsule holds it
    interface = _tensor_of(capsule)
    np.testing.assert_array_equal(gpu.download(interface["address"], shape, np.uint8).view(bool), mask)
    assert interface["shape"] == shape
    assert interface["device"] == (2, 0)
    assert interface["dtype"] == (6, 8, 1)
    # The graph keeps it for the next frame's, and gives it back with itself.
    held = graph.memory()["device"]
    del capsule
    gc.collect()
    kept = graph.memory()["device"] - held
    assert kept >= mask.size
    assert _live() == before
    everything = sum(graph.memory().values())
    graph.close()
    if gpu.EMULATOR:
        assert before - _live() == everything


@gpu.needed
def test_masks_on_the_device_use_memory_again(logits):
    graph = gpu.with_logits(*logits)
    gpu.detect(graph, np.zeros((48, 80, 3), np.uint8))  # the largest: what else the graph needs is there

    def masks(height=24, width=40):
        gpu.submit(graph, [item(np.zeros((height, width, 3), np.uint8))], threshold=0.2)
        [found] = gpu.take(graph, masks_device=True)
        np.testing.assert_array_equal(masks_of(found.masks_device), found.mask)
        return found.masks_device

    def address(memory):
        return memory.__cuda_array_interface__["data"][0]

    first, second = masks(), masks()
    assert address(first) != address(second)
    place = address(first)
    del first
    third = masks(20, 30)  # smaller
    assert address(third) == place
    # What is kept is not what everybody ever held.
    del second, third
    many = [masks() for _ in range(5)]
    before = graph.memory()["device"]
    size = many[0].shape[0] * 24 * 40
    del many
    gc.collect()
    assert size <= graph.memory()["device"] - before <= 2 * (size + size // 4)
    # Nothing that is kept is large enough: it goes.
    large = masks(48, 80)
    assert graph.memory()["device"] == before
    # The last owner frees it, after the graph.
    content = masks_of(large).copy()
    graph.close()
    np.testing.assert_array_equal(masks_of(large), content)
    live = _live()
    del large
    gc.collect()
    if gpu.EMULATOR:
        assert _live() < live


@gpu.needed
@gpu.emulated
def test_memory_of_masks_is_used_again_when_nobody_reads_it(logits):
    """Their owner may have left work on any stream: the device is waited for, once, and only where memory is used
    again."""
    graph = gpu.with_logits(*logits)
    waits = []
    for _ in range(3):
        gpu.submit(graph, [item(BLACK)], threshold=0.2)
        assert graph.wait(-1.0)
        waits += _counted(("synchronizations",), lambda: graph.results(100, True))
    assert [count - waits[0] for count in waits] == [0, 1, 1]


@gpu.needed
@MODES
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16), (7, 33), (31, 129), (40, 64), (9, 1000)])
def test_masks_on_the_device_of_any_size(logits, semantic, size):
    """The masks follow each other without a gap: most begin in the middle of a vector."""
    graph = gpu.with_logits(*logits, semantic=semantic)
    gpu.submit(graph, [item(np.zeros((*size, 3), np.uint8))], threshold=0.0)
    [found] = gpu.take(graph, masks_device=True)
    np.testing.assert_array_equal(masks_of(found.masks_device), found.mask)


@gpu.needed
@MODES
def test_masks_on_the_device_of_many_rows(semantic):
    """More than a launch expands, and labels of two bytes."""
    count = 300
    mask_logits = np.full((count, 2, count), -9, np.float32)
    mask_logits[np.arange(count), :, np.arange(count)] = 9
    class_logits = np.tile(np.float32([9, 0]), (count, 1))
    graph = gpu.with_logits(mask_logits, class_logits, semantic=semantic)
    gpu.submit(graph, [item(np.zeros((11, 3 * count, 3), np.uint8))], threshold=0.1)
    [found] = gpu.take(graph, top_k=count, masks_device=True)
    assert len(found) == count
    np.testing.assert_array_equal(masks_of(found.masks_device), found.mask)


@gpu.needed
def test_torch_reads_masks_on_the_device(logits):
    torch = gpu.torch_on_gpu()
    if torch is None:
        pytest.skip("there is no torch that can use the GPU")
    graph = gpu.with_logits(*logits)
    gpu.submit(graph, [item(BLACK)], threshold=0.2)
    [found] = gpu.take(graph, masks_device=True)
    tensors = torch.from_dlpack(found.masks_device), torch.as_tensor(found.masks_device, device="cuda")
    mask = found.mask
    graph.close()
    del graph, found
    gc.collect()
    for tensor in tensors:
        assert tensor.dtype == torch.bool
        np.testing.assert_array_equal(tensor.cpu().numpy(), mask)


# ------------------------------------------------------------------------------------- wrong arguments

RIGHT = {
    "device": 0,
    "batch": 1,
    "size": (8, 8),
    "dtype": "float32",
    "mask_logits": (3, 4, 5),
    "mask_dtype": "float32",
    "class_logits": (3, 6),
    "class_dtype": "float32",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "predict_all_pixels": False,
    "softmax": True,
}


@gpu.needed
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch: got 0, expected 1 to 256"),
        ({"batch": 257}, "batch: got 257"),
        ({"size": (0, 8)}, "size"),
        ({"size": (8, -1)}, "size"),
        ({"size": (8, 1 << 40)}, "size"),
        ({"dtype": "float64"}, "dtype: got 'float64'"),
        ({"mask_dtype": "uint8"}, "mask_dtype: got 'uint8'"),
        ({"class_dtype": ""}, "class_dtype: got ''"),
        ({"mask_logits": (0, 4, 5), "class_logits": (0, 6)}, "class_logits"),
        ({"mask_logits": (3, 0, 5)}, "mask_logits"),
        ({"mask_logits": (1 << 40, 4, 5)}, "class_logits"),
        ({"mask_logits": (5, 16384, 16384), "class_logits": (5, 6)}, "mask_logits' values"),
        ({"class_logits": (4, 6)}, r"class_logits: got shape \(4, 6\), expected as many queries .* 3"),
        ({"class_logits": (3, 1)}, "class_logits' columns"),
        ({"class_logits": (3, 1 << 40)}, "class_logits"),
        (
            {"mask_logits": (1025, 4, 5), "class_logits": (1025, 6), "predict_all_pixels": True},
            "mask_logits' queries: got 1025, expected 1 to 1024",
        ),
        ({"mask_logits": (65535, 1, 1), "class_logits": (65535, 6)}, "mask_logits' queries: got 65535"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"std": (1.0, np.nan, 1.0)}, "std"),
        ({"mean": (np.inf, 0.0, 1.0)}, "mean"),
    ],
)
def test_wrong_descriptions_are_refused(change, message):
    _core.FrameGraph(**RIGHT).close()
    with pytest.raises(ValueError, match=message):
        _core.FrameGraph(**{**RIGHT, **change})


@gpu.needed
@pytest.mark.parametrize(
    "change",
    [
        {"device": "a"},
        {"device": None},
        {"batch": 1 << 40},
        {"batch": 1.5},
        {"size": 8},
        {"size": (8,)},
        {"size": None},
        {"mask_logits": (3, 4)},
        {"class_logits": (3, "a")},
        {"mean": (1.0, 2.0)},
        {"mean": "abc"},
        {"dtype": 3},
        {"softmax": "abc"},
    ],
)
def test_descriptions_of_wrong_types_are_refused(change):
    with pytest.raises(TypeError):
        _core.FrameGraph(**{**RIGHT, **change})


@gpu.needed
def test_a_device_that_is_not_there():
    count = len(_core.cuda_devices())
    for index in (count, -1, 1000):
        with pytest.raises(CudaError, match=f"device: got {index}, expected 0 to {count - 1}"):
            _core.FrameGraph(**{**RIGHT, "device": index})


@gpu.needed
@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        ([], ValueError, "images: got 0, expected 1 to the batch's 1"),
        ([item(BLACK)] * 2, ValueError, "images: got 2, expected 1 to the batch's 1"),
        ([item(BLACK)[:4]], TypeError, "incompatible"),
        ([item(BLACK, color="hsv")], ValueError, "color: got 'hsv'"),
        ([item(BLACK, resize="crop")], ValueError, "resize: got 'crop'"),
        ([item(BLACK, yuv_matrix="bt2020")], ValueError, "yuv_matrix: got 'bt2020'"),
        ([item(BLACK, yuv_range="")], ValueError, "yuv_range: got ''"),
        ([item(BLACK, color=None)], TypeError, "incompatible"),
        ([item(None)], TypeError, f"image: got NoneType, expected {ANYWHERE}"),
        ([item("frame.png")], TypeError, f"image: got str, expected {ANYWHERE}"),
        ([item(())], ValueError, "image: got a tuple of 0 planes"),
        ([item((BLACK,) * 4)], ValueError, "image: got a tuple of 4 planes"),
        ([item((BLACK, None), color="nv12")], TypeError, "image: got NoneType"),
        ([item(BLACK.astype(np.float32))], TypeError, "image: got dtype float32"),
        ([item(BLACK[:, :, :2])], ValueError, "image: got shape"),
        ([item(BLACK[:0])], ValueError, "image: got 0 x 40, expected sides of 1 to"),
        ([item(BLACK[None])], ValueError, "image: got shape"),
        (3, TypeError, "incompatible"),
        ([3], TypeError, "incompatible"),
    ],
)
def test_wrong_frames_are_refused(logits, frames, error, message):
    graph = gpu.with_logits(*logits)
    with pytest.raises(error, match=message):
        gpu.submit(graph, frames)
    assert graph.wait(0.0)
    check(graph, logits, BLACK)


@gpu.needed
def test_a_wrong_frame_in_a_batch_spoils_nothing(logits):
    pair = [np.stack([array] * 3) for array in logits]
    graph = gpu.with_logits(*pair)
    good = item(BLACK)
    for wrong in (item(BLACK[:0]), item(BLACK, color="nv12"), item(gpu.OnDevice(BLACK), color="gray")):
        with pytest.raises(ValueError, match="image"):
            gpu.submit(graph, [good, wrong, good])
        gpu.submit(graph, [good, item(gpu.OnDevice(BLACK))], threshold=0.2)
        for found in gpu.take(graph):
            gpu.same(found, expected(logits, (24, 40)))


@gpu.needed
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_thresholds_are_numbers(logits, value):
    graph = gpu.with_logits(*logits)
    for name in ("threshold", "mask_threshold"):
        with pytest.raises(ValueError, match=rf"^{name}: got -?(nan|inf), expected a finite number"):
            gpu.submit(graph, [item(BLACK)], **{name: value})
        with pytest.raises(TypeError):
            gpu.submit(graph, [item(BLACK)], **{name: "a"})
    check(graph, logits, BLACK)


@gpu.needed
def test_other_wrong_arguments_are_refused(logits):
    graph = gpu.with_logits(*logits)
    array = np.zeros((4, 4), np.float32)
    for call in (
        lambda: graph.capture(3),
        lambda: graph.capture(None),
        lambda: graph.run_uncaptured("a", "b"),
        lambda: graph.wait("a"),
        lambda: graph.results("a", False),
        lambda: graph.submit([item(BLACK)], 0.5, 0.5, False, 3),
        lambda: graph.adopt("a", None),
        lambda: graph.run_engine(None, array, array, array),
        lambda: _core.launch_host_function(graph.stream, 3),
        lambda: _core.copy_to_device("a", array),
        lambda: _core.copy_to_device(graph.images, 3),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    for call in (
        lambda: _core.copy_to_device(array.ctypes.data, array),
        lambda: _core.copy_from_device(array, 0),
        lambda: _core.copy_from_device(array[:, ::2], graph.images),
        lambda: _core.copy_to_device(graph.images, array[::-1]),
    ):
        with pytest.raises(ValueError, match=r"outside any GPU's memory|not C-contiguous"):
            call()
    read_only = np.zeros(3, np.float32)
    read_only.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match=r"read-only|writable"):
        _core.copy_from_device(read_only, graph.images)
    if gpu.EMULATOR:  # a real allocation may be larger than it says
        with pytest.raises(CudaError, match="cudaMemcpy failed"):
            _core.copy_to_device(graph.images, np.zeros(3 * 8 * 8 + 1, np.float32))
    assert graph.results(-1, False) == []
    check(graph, logits, BLACK)


@gpu.needed
@pytest.mark.parametrize("name", ["images", "mask_logits", "class_logits"])
def test_the_engines_arrays_are_checked(logits, name):
    graph = gpu.with_logits(*logits)
    right = {
        "images": np.zeros((1, 3, 8, 8), np.float32),
        "mask_logits": logits[0][None].copy(),
        "class_logits": logits[1][None].copy(),
    }
    graph.run_engine(lambda stream: None, **right)
    np.testing.assert_array_equal(right["mask_logits"][0], logits[0])
    np.testing.assert_array_equal(right["class_logits"][0], logits[1])
    array = right[name]
    read_only = array.copy()
    read_only.flags.writeable = False
    wrong = [array.astype(np.float16), array[..., :-1], array[..., ::-1], np.zeros(0, np.float32), None]
    wrong += [] if name == "images" else [read_only]
    for given in wrong:
        with pytest.raises((TypeError, ValueError), match=name):
            graph.run_engine(lambda stream: None, **{**right, name: given})

    def fails(stream):
        raise KeyError("no engine")

    with pytest.raises(KeyError, match="no engine"):
        graph.run_engine(fails, **right)
    check(graph, logits, BLACK)


# ------------------------------------------------------------------------------------------ what fails


@gpu.needed
@gpu.emulated
def test_out_of_memory_says_so_and_the_process_goes_on(logits):
    graph = gpu.with_logits(*logits)
    small = check(graph, logits, BLACK)
    large = np.zeros((600, 800, 3), np.uint8)
    with gpu.EMULATOR.settings(device_memory=gpu.EMULATOR.get("device_bytes") + 1000):
        with pytest.raises(
            CudaError,
            match=r"out of memory on the GPU \(0 MiB of \d+ MiB are free\) .* smaller im_size, batch_size or frame",
        ):
            gpu.submit(graph, [item(large)])
        same_bits(check(graph, logits, BLACK), small)
        with pytest.raises(CudaError, match="out of memory on the GPU"):
            gpu.frame_graph((100, 80, 80), (100, 10))
        gpu.submit(graph, [item(BLACK)], threshold=0.2)
        with pytest.raises(CudaError, match="out of memory on the GPU"):
            gpu.take(graph, masks_device=True)
        same_bits(check(graph, logits, BLACK), small)
    check(graph, logits, large)
    check(graph, logits, BLACK)


@gpu.needed
@gpu.emulated
@pytest.mark.parametrize("semantic", [False, True])
def test_out_of_memory_at_any_allocation(logits, semantic):
    """Whatever of a larger frame does not fit, the next frame is as if it had not been."""
    logits = [array[:2] for array in logits]
    large = scenes.image(1, (90, 300, 3))
    graph = gpu.with_logits(*logits, semantic=semantic)
    check(graph, logits, BLACK, semantic=semantic)
    small = graph.memory()
    check(graph, logits, large, semantic=semantic)
    growth = {kind: bytes - small[kind] for kind, bytes in graph.memory().items()}
    failed = 0
    for kind in ("device", "pinned"):
        for room in range(0, growth[kind], growth[kind] // 7):
            graph = gpu.with_logits(*logits, semantic=semantic)
            check(graph, logits, BLACK, semantic=semantic)
            with gpu.EMULATOR.settings(**{f"{kind}_memory": gpu.EMULATOR.get(f"{kind}_bytes") + room}):
                try:
                    gpu.submit(graph, [item(large)], threshold=0.2)
                    gpu.take(graph)
                except CudaError as error:
                    failed += "out of" in str(error)
                check(graph, logits, BLACK, semantic=semantic)
            check(graph, logits, large, semantic=semantic)
    assert failed > 5


@gpu.needed
@gpu.emulated
def test_masks_for_which_there_is_no_pinned_memory():
    masks = np.full((12, 8, 8), 5.0, np.float32)
    classes = np.zeros((12, 3), np.float32)
    classes[:, 0] = np.linspace(2, 4, 12)
    graph = gpu.with_logits(masks, classes)
    large = np.zeros((700, 1000, 3), np.uint8)
    gpu.detect(graph, BLACK)
    before = graph.memory()
    with gpu.EMULATOR.settings(pinned_memory=gpu.EMULATOR.get("pinned_bytes") + large.nbytes + 100_000):
        gpu.submit(graph, [item(large)])
        with pytest.raises(CudaError, match="out of page-locked memory of the host"):
            gpu.take(graph)
        gpu.same(gpu.detect(graph, BLACK), gpu.expected(masks, classes, (24, 40)))
    gpu.same(gpu.detect(graph, large), gpu.expected(masks, classes, (700, 1000)))
    assert graph.memory()["pinned"] > before["pinned"] + large.nbytes


@gpu.needed
@gpu.emulated
def test_a_launch_that_fails_leaves_the_graph_usable(logits):
    for capture in (True, False):
        graph = gpu.with_logits(*logits, capture=capture)
        check(graph, logits, BLACK)
        with gpu.EMULATOR.settings(fail_next_launch=701):
            # Which is over with the launch: nobody need restart.
            with pytest.raises(CudaError, match=r"cudaErrorLaunchOutOfResources, [^;]*$"):
                gpu.submit(graph, [item(np.zeros((31, 40, 3), np.uint8))])
            check(graph, logits, BLACK)
            check(graph, logits, np.zeros((31, 40, 3), np.uint8))
    for error, reason in (209, "has no code for this GPU"), (3, "forked .* 'spawn'"):
        with gpu.EMULATOR.settings(fail_next_launch=error), pytest.raises(CudaError, match=reason):
            gpu.submit(graph, [item(BLACK)])


@gpu.needed
@gpu.emulated
def test_a_kernel_that_fails_is_told_of_wherever_it_is_waited_for(logits):
    graph = gpu.with_logits(*logits)
    with gpu.EMULATOR.settings(fail_next_kernel=700):
        gpu.submit(graph, [item(BLACK)])
        with pytest.raises(
            CudaError,
            match=r"running a frame failed: cudaErrorIllegalAddress, .* \(device_graph\.cu:\d+\); "
            r"nothing can run .* any more: restart it",
        ):
            graph.wait(-1.0)
        with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
            gpu.submit(graph, [item(BLACK)])
        graph.close()
    check(gpu.with_logits(*logits), logits, BLACK)


@gpu.needed
@gpu.emulated
@pytest.mark.parametrize("failing", ["device_memory", "pinned_memory"])
def test_an_upload_that_fails_midway_leaves_nothing_on_the_stream(logits, failing):
    """The batch's first image is on its way from pinned memory where there is no room for the second."""
    graph = gpu.with_logits(*[np.stack([array] * 2) for array in logits])
    pinned = _pinned(logits, 24, 40)
    other, large = (scenes.image(1, size) for size in ((24, 40), (300, 400)))
    pair = [item(pinned, "gray"), item(other, "gray")]
    gpu.submit(graph, pair, threshold=0.2)
    gpu.take(graph)
    names = ("copies_to_device", "bytes_to_device")
    rest, parameters = _counted(names, lambda: gpu.submit(graph, pair) or gpu.take(graph))
    with gpu.EMULATOR.settings(
        **{failing: gpu.EMULATOR.get(failing.replace("memory", "bytes")) + 1000}, order="lazy"
    ):
        before = [gpu.EMULATOR.get(name) for name in names]
        with pytest.raises(CudaError, match="out of"):
            gpu.submit(graph, [item(pinned, "gray"), item(large, "gray")])
        # The copy that had begun has run: its memory may go now.
        assert [gpu.EMULATOR.get(name) - b for name, b in zip(names, before, strict=True)] == [1, 24 * 40]
        assert graph.wait(0.0)
        assert graph.results(100, False) == []
        assert set(graph.times().values()) == {0.0}
    assert _counted(names, lambda: gpu.submit(graph, pair) or gpu.take(graph)) == [rest, parameters]


@gpu.needed
@gpu.emulated
def test_a_graph_on_the_second_gpu_makes_no_context_on_the_first():
    said = gpu.in_process(
        """
        import threading
        import numpy as np
        from helpers import gpu
        from fai_fast import _core

        def work():
            graph = gpu.frame_graph((2, 3, 3), (2, 3), device=1)
            assert graph.capture(lambda stream: None) is None
            for frame in (np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30, 3), np.uint8)[::-1]):
                gpu.submit(graph, [gpu.item(frame)])
                assert graph.wait(-1.0)
                [rows] = graph.results(10, True)
                graph.times()
            entered = _core.enter_cuda_device(1)
            inner = _core.enter_cuda_device(1)
            assert (entered, inner) == (True, False)
            _core.leave_cuda_device(inner)
            _core.leave_cuda_device(entered)
            del rows
            graph.close()

        work()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        second = gpu.EMULATOR.get("contexts")
        # Where a device is the thread's own, it is so afterwards.
        first = gpu.frame_graph((2, 3, 3), (2, 3))
        work()
        gpu.detect(first.capture(lambda stream: None) or first, np.zeros((20, 30, 3), np.uint8))
        print(second, gpu.EMULATOR.get("contexts"), gpu.EMULATOR.get("device_bytes") > 0)
        """,
        FAI_FAST_EMULATOR_DEVICES="2",
    )
    assert said == "2 3 True"


ABSENT = [
    ("missing", "no NVIDIA driver is installed here", None),
    (
        "too_old",
        r"the NVIDIA driver is too old: it supports CUDA 11.4, this build of fai_fast needs 13.0",
        "11.4",
    ),
    ("without_device", "there is an NVIDIA driver, but no GPU that this process may use", "13.0"),
]
ASK = """
import json
from fai_fast import _core
from fai_fast.errors import CudaError, EngineError
assert issubclass(CudaError, EngineError)
said = []
for call in (_core.cuda_devices, lambda: _core.FrameGraph(**RIGHT), lambda: _core.launch_host_function(1, print)):
    try:
        call()
    except CudaError as error:
        said.append(str(error))
print(json.dumps([said, _core.cuda_versions()]))
"""


@gpu.emulated
@pytest.mark.parametrize(("driver", "text", "version"), ABSENT)
def test_what_is_absent_is_named(driver, text, version):
    import json

    script = f"RIGHT = {RIGHT!r}\n{ASK}"
    said, versions = json.loads(
        gpu.in_process(script, FAI_FAST_EMULATOR_DRIVER=driver, CUDA_VISIBLE_DEVICES="7")
    )
    assert len(said) == 3
    assert all(text in sentence for sentence in said)
    assert versions == {"driver": version, "toolkit": "13.0"}
    if driver == "without_device":
        assert "(CUDA_VISIBLE_DEVICES is '7')" in said[0]


@pytest.mark.skipif(fai_fast.build_info()["cuda"]["compiled"], reason="this build has CUDA")
def test_a_build_without_cuda_says_so():
    assert _core.cuda_versions() == {"driver": None, "toolkit": None}
    for call in (
        _core.cuda_devices,
        lambda: _core.FrameGraph(**RIGHT),
        lambda: _core.launch_host_function(1, print),
        lambda: _core.copy_to_device(256, np.zeros(3)),
        lambda: _core.copy_from_device(np.zeros(3), 256),
    ):
        with pytest.raises(
            CudaError, match="fai_fast was built without CUDA; to build it with, install"
        ) as caught:
            call()
        assert isinstance(caught.value, EngineError)


@gpu.needed
def test_a_forked_child_is_refused():
    """And its parent notices nothing, whatever the child lets go of."""
    said = gpu.in_process(
        """
        import gc, os, sys
        import numpy as np
        from helpers import gpu
        from fai_fast.errors import CudaError

        logits = np.full((2, 3, 3), 9, np.float32), np.array([[4, 0], [3, 0]], np.float32)
        frame = np.zeros((20, 30, 3), np.uint8)
        graph, other = gpu.with_logits(*logits), gpu.with_logits(*logits)
        gpu.submit(other, [gpu.item(frame)])
        [kept] = gpu.take(other, masks_device=True)
        gpu.submit(graph, [gpu.item(frame)])
        child = os.fork()
        if child == 0:
            refused = 0
            calls = [
                lambda: graph.wait(-1.0),
                lambda: other.results(1, False),
                lambda: gpu.submit(other, [gpu.item(frame)]),
                lambda: other.capture(lambda stream: None),
            ]
            for call in calls:
                try:
                    call()
                except CudaError as error:
                    refused += "forked" in str(error) and "spawn" in str(error)
            graph.close()
            del kept, graph, other
            gc.collect()
            os._exit(0 if refused == len(calls) else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        [found] = gpu.take(graph)
        assert found.mask.all() and len(found) == 2
        assert kept.mask.all()
        assert gpu.detect(other, frame).mask.all()
        print("done")
        """
    )
    assert said == "done"


@gpu.needed
def test_a_process_may_end_with_everything_open():
    """Frame graphs, a frame in flight, results and masks that modules hold when the interpreter ends."""
    for last in ("", "gpu.submit(graph, [gpu.item(frame)]); sys.exit(0)"):
        said = gpu.in_process(
            f"""
            import sys
            import numpy as np
            from helpers import gpu

            logits = np.full((2, 3, 3), 9, np.float32), np.array([[4, 0], [3, 0]], np.float32)
            frame = np.zeros((20, 30, 3), np.uint8)
            graph, closed = gpu.with_logits(*logits), gpu.with_logits(*logits)
            gpu.submit(graph, [gpu.item(frame)])
            kept = gpu.take(graph, masks_device=True)
            taken = kept[0].masks_device.__dlpack__()
            sys.modules["numpy"].kept = graph, kept, taken
            print("done", flush=True)
            {last}
            """
        )
        assert said == "done"


# ---------------------------------------------------------------------------------------------- growth


def _live():
    """Bytes of the GPU's and of pinned memory that are held."""
    return gpu.EMULATOR.get("device_bytes") + gpu.EMULATOR.get("pinned_bytes") if gpu.EMULATOR else 0


@gpu.needed
@MODES
def test_many_frames_of_changing_sizes_take_no_more_memory(logits, semantic):
    frames = 2000 if LONG else 300
    logits = [array[:3, ..., :6] for array in logits]
    rng = np.random.default_rng(5)
    colors = ("rgb", "gray", "nv12", "rgba")
    sizes = [(int(h) * 2, int(w) * 2) for h, w in rng.integers(2, 40, (12, 2))] + [(80, 80)]
    images = [(color, any_frame(1, color, *size)) for size in sizes for color in colors]
    graph = gpu.with_logits(*logits, semantic=semantic)
    held = None
    for number in range(frames):
        if number == 2 * len(images):
            held = graph.memory(), _live()
        color, image = images[number * 7 % len(images)]
        found = gpu.detect(graph, image, color=color, threshold=0.2)
        if number % 50 == 0:
            gpu.same(found, expected(logits, found.size, predict_all_pixels=semantic))
    assert held is not None
    assert (graph.memory(), _live()) == held
    live = _live()
    held_by_graph = sum(graph.memory().values())
    assert held_by_graph > 0
    del found
    graph.close()
    if gpu.EMULATOR:
        # Event after event, and the parameters of nothing else, are no memory.
        assert live - _live() == held_by_graph


@gpu.needed
@gpu.emulated
@MODES
def test_a_frame_is_one_launch_and_one_synchronization(logits, semantic):
    graph = gpu.with_logits(*logits, semantic=semantic)
    frame = scenes.image(0, (50, 60, 3))
    other = scenes.image(0, (30, 70, 3))
    for image in (frame, other):
        gpu.detect(graph, image, threshold=0.2)
    names = ("mallocs", "graph_launches", "synchronizations")
    for image in (frame, frame, other, frame):
        before = [gpu.EMULATOR.get(name) for name in names]
        gpu.submit(graph, [item(image)], threshold=0.2)
        assert graph.wait(-1.0)
        graph.results(100, False)
        assert [gpu.EMULATOR.get(name) - b for name, b in zip(names, before, strict=True)] == [0, 1, 1]


def _pinned(logits, height, width):
    """A gray frame in pinned memory: labels of a frame."""
    labels = gpu.with_logits(*logits, semantic=True)
    gpu.submit(labels, [item(np.zeros((height, width, 3), np.uint8))])
    assert labels.wait(-1.0)
    return labels.results(100, False)[0]["segments"]


def _counted(names, work):
    before = [gpu.EMULATOR.get(name) for name in names]
    work()
    return [gpu.EMULATOR.get(name) - b for name, b in zip(names, before, strict=True)]


@gpu.needed
@gpu.emulated
def test_ordinary_memory_is_sent_in_pieces_and_pinned_memory_in_one(logits):
    graph = gpu.with_logits(*logits)
    pinned = _pinned(logits, 96, 128)
    frame = np.array(pinned)
    names = ("copies_to_device", "bytes_to_device", "waits")
    on_card = gpu.OnDevice(frame)

    def one(image):
        gpu.detect(graph, image, color="gray", threshold=0.2)

    one(frame)  # whose tables are new
    rest, parameters, _ = _counted(names, lambda: one(on_card))
    assert _counted(names, lambda: one(pinned)) == [rest + 1, parameters + frame.nbytes, 0]
    for piece_bytes, pieces in ((128, 96), (5 * 128, 20), (1000, 14), (1 << 20, 1)):
        # One thread's pieces are passed on one by one.
        graph.set_staging(threads=1, piece_bytes=piece_bytes, past_cache=False)
        assert _counted(names, lambda: one(frame)) == [rest + pieces, parameters + frame.nbytes, 0]
        graph.set_staging(threads=8, piece_bytes=piece_bytes, past_cache=True)
        sent, sent_bytes, _ = _counted(names, lambda: one(frame))
        assert sent_bytes == parameters + frame.nbytes
        assert rest < sent <= rest + pieces


@gpu.needed
@gpu.emulated
@pytest.mark.parametrize("setting", ["integrated", "host_page_tables"])
def test_what_the_gpu_reads_where_it_is_is_not_uploaded(logits, setting):
    frames = [any_frame(seed, "nv12", 48, 64) for seed in range(3)]
    wide = scenes.image(4, (48, 80, 3))
    with gpu.EMULATOR.settings(**{setting: 1}):
        graph = gpu.with_logits(*logits, size=(16, 24))
        names = ("bytes_to_device", "pinned_bytes")
        gpu.detect(graph, frames[0], color="nv12", threshold=0.2)
        on_card = gpu.OnDevice(frames[0])
        rest, _ = _counted(names, lambda: gpu.detect(graph, on_card, color="nv12", threshold=0.2))
        for frame in frames:
            sent, _ = _counted(names, lambda frame=frame: check(graph, logits, frame, color="nv12"))
            assert sent == rest
            tensor = gpu.download(graph.images, (1, 3, 16, 24), "float32")
            cpu = fai_fast.preprocess(frame, (16, 24), mean=gpu.MEAN, std=gpu.STD, color="nv12")
            np.testing.assert_array_equal(tensor, cpu)
        check(graph, logits, wide[:, ::-2])
        tensor = gpu.download(graph.images, (1, 3, 16, 24), "float32")
        cpu = fai_fast.preprocess(wide[:, ::-2], (16, 24), mean=gpu.MEAN, std=gpu.STD)
        np.testing.assert_array_equal(tensor, cpu)


@gpu.needed
def test_a_frame_waits_for_the_engine_before_it_and_not_for_what_follows_that(logits):
    """Which order=lazy shows: nothing runs before somebody waits for it."""
    if not gpu.EMULATOR:
        pytest.skip("only the emulator lets nothing run too early")
    graphs = [gpu.with_logits(*logits) for _ in range(2)]
    with gpu.EMULATOR.settings(order="lazy"):
        gpu.submit(graphs[0], [item(BLACK)], threshold=0.2)
        [waits] = _counted(
            ["waits"], lambda: gpu.submit(graphs[1], [item(BLACK)], threshold=0.2, after=graphs[0])
        )
        assert waits == 1
        [waits] = _counted(["waits"], lambda: gpu.take(graphs[1]))
        assert waits == 0
        gpu.take(graphs[0])


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_staging_copies_every_byte_in_order(threads, past_cache):
    rng = np.random.default_rng(2)
    whole = rng.integers(0, 256, (67, 90, 3), np.uint8)
    luma, chroma = any_frame(1, "nv12", 40, 70)[:40], any_frame(1, "nv12", 40, 70)[40:]
    for image in (whole, whole[::-2, 3:80], whole[:, ::-1], whole[:, :, ::-1], whole[..., 0], (luma, chroma)):
        planes = image if isinstance(image, tuple) else (image,)
        dense = np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in planes])
        for piece_bytes in (1, 100, 999, 1 << 18):
            room = np.zeros(dense.size + 3, np.uint8)
            pieces, runs = _core.stage(
                image, room[3:], threads=threads, piece_bytes=piece_bytes, past_cache=past_cache
            )
            np.testing.assert_array_equal(room[3:], dense)
            assert room[:3].sum() == 0
            assert 1 <= runs <= pieces <= 512
            assert (pieces, runs) == (runs, pieces) or threads > 1


def test_staging_wants_room_for_the_frame():
    frame = np.zeros((4, 5, 3), np.uint8)
    right = {"threads": 1, "piece_bytes": 100}
    with pytest.raises(ValueError, match="out: got uint8 of shape"):
        _core.stage(frame, np.zeros(59, np.uint8), **right)
    with pytest.raises(ValueError, match=r"out: got uint8 .* writable"):
        _core.stage(frame, np.frombuffer(bytes(60), np.uint8), **right)
    with pytest.raises(ValueError, match="image: got float32"):
        _core.stage(frame.astype(np.float32), np.zeros(60, np.uint8), **right)
    for name in right:
        with pytest.raises(ValueError, match=f"{name}: got 0, expected at least 1"):
            _core.stage(frame, np.zeros(60, np.uint8), **{**right, name: 0})


@gpu.needed
def test_threads_with_a_graph_each(logits):
    wrong = []

    def work(seed):
        try:
            graph = gpu.with_logits(*logits, size=(16, 24))
            for number in range(8):
                size = (20 + seed + number, 30)
                found = gpu.detect(graph, np.zeros((*size, 3), np.uint8), threshold=0.2)
                gpu.same(found, expected(logits, size))
                time.sleep(0)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ----------------------------------------------------------------------------------- DLPack, by hand


def _types():
    """DLPack's structs, from its specification: https://dmlc.github.io/dlpack/latest/c_api.html"""
    import ctypes as c

    class Device(c.Structure):
        _fields_ = (("type", c.c_int32), ("id", c.c_int32))

    class Dtype(c.Structure):
        _fields_ = (("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16))

    class DlTensor(c.Structure):
        _fields_ = (
            ("data", c.c_void_p),
            ("device", Device),
            ("ndim", c.c_int32),
            ("dtype", Dtype),
            ("shape", c.POINTER(c.c_int64)),
            ("strides", c.POINTER(c.c_int64)),
            ("byte_offset", c.c_uint64),
        )

    class Managed(c.Structure):
        pass

    deleter = c.CFUNCTYPE(None, c.POINTER(Managed))
    Managed._fields_ = (("tensor", DlTensor), ("context", c.c_void_p), ("deleter", deleter))

    class Versioned(c.Structure):
        _fields_ = (
            ("version", c.c_uint32 * 2),
            ("context", c.c_void_p),
            ("deleter", c.c_void_p),
            ("flags", c.c_uint64),
            ("tensor", DlTensor),
        )

    return Managed, Versioned, deleter


_kept = {}


def _capsule(address, shape, held):
    """An unversioned capsule of bytes on the device that holds `held` until its deleter is called."""
    import ctypes as c

    managed_type, _, deleter_type = _types()
    managed = managed_type()
    managed.tensor.data = address
    managed.tensor.device.type, managed.tensor.device.id = 2, 0
    managed.tensor.ndim = len(shape)
    managed.tensor.dtype.code, managed.tensor.dtype.bits, managed.tensor.dtype.lanes = 1, 8, 1
    sides = (c.c_int64 * len(shape))(*shape)
    managed.tensor.shape = c.cast(sides, c.POINTER(c.c_int64))
    key = c.addressof(managed)

    def delete(_):
        # The function itself must live until it has returned.
        _kept[key] = _kept[key][1]

    managed.deleter = deleter_type(delete)
    _kept[key] = ((managed, sides, held), managed.deleter)
    new = c.pythonapi.PyCapsule_New
    new.restype, new.argtypes = c.py_object, [c.c_void_p, c.c_char_p, c.c_void_p]
    return new(key, b"dltensor", None)


def _tensor_of(capsule):
    import ctypes as c

    get = c.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = c.c_void_p, [c.py_object, c.c_char_p]
    tensor = _types()[1].from_address(get(capsule, b"dltensor_versioned")).tensor
    return {
        "address": tensor.data + tensor.byte_offset,
        "shape": tuple(tensor.shape[: tensor.ndim]),
        "device": (tensor.device.type, tensor.device.id),
        "dtype": (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes),
    }
