"""Models on a GPU: frames through a Model over an engine whose outputs are known, and how an engine is prepared."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import logging
import threading
from collections import Counter

import fai_fast
import numpy as np
import pytest
from fai_fast import _core
from fai_fast import _sources as sources
from fai_fast._pipelines import DEPTH
from fai_fast._prepare import Prepared
from fai_fast.engines import select
from fai_fast.engines.base import BaseEngine, OpenContext
from fai_fast.errors import CudaError, EngineError, ExportError, FaiFastError
from fai_fast.model import Model
from helpers import gpu, scenes
from helpers.gpu import FakeGpuEngine, Sampling
from helpers.results import same_bits
from PIL import Image

SIZE = (32, 48)
MODES = pytest.mark.parametrize("task", ["instance", "semantic"])


def spec_of(task="instance"):
    """A model's, of which only the settings matter here."""
    spec = fai_fast.spec("fai-mf-n-shapes")
    config = dataclasses.replace(
        spec.config, postprocessing_type=task, predict_all_pixels=task == "semantic", threshold=0.3
    )
    return dataclasses.replace(spec, task=task, config=config)


def sampling(task="instance", **options):
    config = spec_of(task).config
    return Sampling(size=SIZE, mean=config.pixel_mean, std=config.pixel_std, **options)


def model_of(task="instance", engine=None, **options):
    """A model over a fake engine, which `model.fake` is."""
    engine = FakeGpuEngine(sampling(task, **options)) if engine is None else engine
    prepared = Prepared(
        spec=spec_of(task),
        engine=engine,
        gpu=engine,
        size=SIZE,
        batch_size=engine.inputs[0].shape[0],
        num_threads=None,
        provenance={"precision": "fp32", "artefacts": {}},
        weights=None,
    )
    model = Model(prepared)
    model.fake = engine
    return model


def frame(seed, height=41, width=57):
    return scenes.image(seed, (height, width, 3))


def expected(model, image, **options):
    config = model.spec.config
    defaults = {
        "threshold": config.threshold,
        "mask_threshold": config.mask_threshold,
        "use_mask_score": config.use_mask_score,
        "predict_all_pixels": config.predict_all_pixels,
    }
    return model.fake.network.expected(image, **{**defaults, **options})


def check(model, image, **options):
    found = model.infer(image, **options)
    gpu.same(found, expected(model, image, **options))
    return found


@pytest.fixture
def model():
    with model_of() as model:
        yield model


# --------------------------------------------------------------------------------------------- one frame


@gpu.needed
@MODES
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_infer(task, dtype):
    with model_of(task, dtype=dtype) as model:
        rows = 0
        for seed, (height, width) in enumerate([(41, 57), (20, 90), (64, 33), (41, 57)]):
            rows += len(check(model, frame(seed, height, width), threshold=0.3))
            check(
                model, frame(seed, height, width), resize="letterbox", mask_threshold=0.6, use_mask_score=True
            )
        assert rows > 4
        # The first run, and the capture: all before the first frame.
        assert model.fake.runs == 2 * DEPTH
    assert model.fake.unloaded == 1


@gpu.needed
def test_every_kind_of_picture(model, tmp_path):
    image = frame(1)
    expected = model.infer(image)
    assert len(expected) > 0
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(file.getvalue())
    kinds = [path, str(path), file.getvalue(), io.BytesIO(file.getvalue()), Image.fromarray(image)]
    kinds += [np.asfortranarray(image), gpu.OnDevice(image)]
    for kind in kinds:
        assert model(kind) == expected
    assert model.infer(image[..., ::-1], color="bgr") == expected
    assert model.infer(path).latency.decode > 0
    assert model.infer(image).latency.decode == 0
    assert min(model.infer(image).latency) >= 0
    assert model.infer(Image.fromarray(image[..., 0])) == model.infer(image[..., 0].copy(), color="gray")


@gpu.needed
def test_a_failed_frame_does_not_spoil_the_next(model):
    image = frame(2)
    good = model.infer(image)
    for wrong in (b"", image.astype(np.float32), image[:0], "no-such-file.png", None, 3):
        for call in (model.infer, model.submit):
            with pytest.raises((TypeError, ValueError, OSError)):
                call(wrong)
    for option in ({"threshold": "a"}, {"resize": "crop"}, {"color": "hsv"}, {"masks_device": 1}):
        with pytest.raises((TypeError, ValueError), match=next(iter(option))):
            model.infer(image, **option)
    for _ in range(DEPTH + 1):
        assert model.infer(image) == good


@gpu.needed
@MODES
def test_masks_on_the_device(task):
    with model_of(task) as model:
        found = model.infer(frame(3), threshold=0.1, masks_device=True)
        ticket = model.submit(frame(4, 20, 30), threshold=0.1, masks_device=True)
        assert model.infer(frame(3), threshold=0.1).masks_device is None
        assert len(found) > 1
    for result in (found, ticket.result()):
        memory = result.masks_device
        address, read_only = memory.__cuda_array_interface__["data"]
        assert not read_only
        assert memory.shape == result.mask.shape
        mask = gpu.download(address, memory.shape, np.uint8).view(bool)
        np.testing.assert_array_equal(mask, result.mask)


@gpu.needed
@MODES
def test_the_rows_that_are_wanted(task):
    with model_of(task) as model:
        everything = model.infer(frame(3), threshold=0.1)
        name = everything.class_name[0]
        others = everything.class_name != name
        assert 0 < others.sum() < len(everything)
        assert model.infer(frame(3), threshold=0.1, classes=[name]) == everything.filter(classes=[name])
        last = float(everything.confidence[others].min())
        by_class = {other: (0.1 if other == name else last) for other in everything.class_name.tolist()}
        kept = ~others | (everything.confidence > np.float32(last))
        result = model.submit(frame(3), threshold=by_class).result()
        # Classes that are not named keep the model's own threshold, and have no row here.
        assert result == everything[kept]
        assert len(result) < len(everything)
        with pytest.raises(ValueError, match=r"^masks_device: got True with classes or a threshold for each"):
            model.infer(frame(3), classes=[name], masks_device=True)
        if task == "instance":
            result = model.infer(frame(3), threshold=0.1, top_k=2, masks_device=True)
            assert result == everything[:2]
            assert result.masks_device.shape[0] == 2
            assert model.infer(frame(3), threshold=0.1, top_k=1, classes=[name]) == everything[~others][:1]


@gpu.needed
def test_queries_are_the_raw_triple(model):
    image = frame(5)
    class_ids, scores, masks = model.queries(image)
    images = fai_fast.preprocess(
        image, SIZE, mean=model.spec.config.pixel_mean, std=model.spec.config.pixel_std
    )
    mask_logits, class_logits = model.fake.network(images)
    e = np.exp(class_logits[0] - class_logits[0].max(-1, keepdims=True))
    probability = (e / e.sum(-1, keepdims=True))[:, :-1]
    np.testing.assert_array_equal(class_ids, probability.argmax(-1))
    np.testing.assert_allclose(scores, probability.max(-1), rtol=0, atol=1e-6)
    everything = fai_fast.postprocess(mask_logits, class_logits, image.shape[:2], threshold=-1.0)
    for query, class_id, mask in zip(everything.query, everything.class_id, everything.mask, strict=True):
        np.testing.assert_array_equal(masks[query], np.where(mask, class_id, -1))
    assert len(everything) > 3
    check(model, image)


@gpu.needed
def test_info_says_how_frames_run(model):
    info = model.info()
    assert info["execution"] == "one captured CUDA graph"
    assert info["engine"]["engine"] == "fake-gpu"
    assert info["engine"]["device"] == "cuda:0"
    assert info["memory"]["device"] > 0
    assert info["memory"]["pinned"] > 0
    json.dumps(info)
    runs = model.fake.runs
    held = []
    for _ in range(2):
        tickets = [model.submit(frame(seed)) for seed in range(DEPTH)]
        for ticket in tickets:
            ticket.result()
        held.append(model.info()["memory"]["device"])
    assert held[0] == held[1] > info["memory"]["device"]
    assert model.fake.runs == runs
    assert "fake-gpu fp32" in repr(model)


@gpu.needed
def test_an_engine_that_cannot_be_captured_says_why(caplog):
    class Uncaptured(FakeGpuEngine):
        def _bind_device(self, *addresses):
            context = super()._bind_device(*addresses)
            context._capture = lambda graph: graph.run_uncaptured(context.enqueue, "its kernels ask the CPU")
            return context

    with caplog.at_level(logging.INFO, "fai_fast"), model_of(engine=Uncaptured(sampling())) as model:
        assert model.info()["execution"] == "uncaptured: its kernels ask the CPU"
        assert "its kernels ask the CPU" in caplog.text
        for seed in range(3):
            check(model, frame(seed))
        assert model.fake.runs == 3
        for ticket, seed in [(model.submit(frame(seed)), seed) for seed in range(2 * DEPTH)]:
            gpu.same(ticket.result(), expected(model, frame(seed)))
        model.fake.fail["enqueue"] = RuntimeError("lost")
        with pytest.raises(EngineError, match=r"fake-gpu: running failed: lost"):
            model.infer(frame(0))
        model.fake.fail.clear()
        check(model, frame(0))


@gpu.needed
@pytest.mark.parametrize("where", ["bind", "enqueue"])
def test_an_engine_that_cannot_run_is_known_at_once(where):
    engine = FakeGpuEngine(sampling(), fail={where: RuntimeError("no such kernel")})
    with pytest.raises(EngineError, match=r"^fake-gpu: .*no such kernel"):
        model_of(engine=engine)
    assert engine.unloaded == 1


@gpu.needed
def test_warmup_and_benchmark(model):
    assert model.warmup(1) is model
    table = model.benchmark(frame(1), runs=2, warmup=0)
    assert table["total"]["p50"] >= table["engine"]["p50"] >= 0
    assert table["decode"]["p99"] == 0


# --------------------------------------------------------------------------------------------- batches


@gpu.needed
@MODES
def test_batches(task):
    images = [frame(seed, 30 + 5 * seed, 60 - 7 * seed) for seed in range(5)]
    with model_of(task) as single, model_of(task, batch=3) as model:
        assert model.batch_size == 3
        found = model.infer_batch(images, threshold=0.3)
        assert len(found) == 5
        for image, ours in zip(images, found, strict=True):
            assert ours.size == image.shape[:2]
            gpu.same(ours, expected(model, image, threshold=0.3))
            same_bits(ours, single.infer(image, threshold=0.3))
        assert model.infer_batch([]) == []
        check(model, images[0])
        with pytest.raises(TypeError, match="images: got ndarray"):
            model.infer_batch(images[0])
        with pytest.raises(ValueError, match="image"):
            model.infer_batch([images[0], images[1][:0]])
        same_bits(model.infer_batch(images, threshold=0.3)[4], found[4])


# ------------------------------------------------------------------------------------------ several frames


@gpu.needed
def test_tickets_give_what_infer_gives(model):
    images = [frame(seed, 20 + seed, 50 - seed) for seed in range(4 * DEPTH)]
    tickets = [model.submit(image, threshold=0.3) for image in images]
    # In any order, and more than once.
    for index in [*range(len(images))[::-1], 0, 5]:
        found = tickets[index].result()
        assert found is tickets[index].result(0)
        assert tickets[index].done()
        gpu.same(found, expected(model, images[index], threshold=0.3))
    assert tickets[0].result().latency.total > 0
    same_bits(model.infer(images[2], threshold=0.3), tickets[2].result())


@gpu.needed
def test_frames_go_through_the_engine_in_order_where_asked(model):
    """They need not, but the benchmarks compare."""
    model._pipeline._in_order = True
    seen = []
    network = model.fake.network
    if gpu.EMULATOR is None:
        pytest.skip("what the engine reads is seen on the emulator only")

    class Watched(Sampling):
        def __call__(self, images):
            seen.append(float(images[0, 0, 0, 0]))
            return super().__call__(images)

    network.__class__ = Watched
    shades = list(range(0, 240, 20))
    images = [np.full((8, 8, 3), shade, np.uint8) for shade in shades]
    # Every graph's engine runs once before it is captured.
    for ticket in [model.submit(image) for image in images[:DEPTH]]:
        ticket.result()
    seen.clear()
    with gpu.EMULATOR.settings(order="random", seed=5):
        tickets = [model.submit(image) for image in images]
        for ticket in tickets[::-1]:
            ticket.result()
    assert len(set(seen)) == len(shades)
    assert seen == sorted(seen)


@gpu.needed
def test_frames_of_a_sliding_window(model):
    waiting = []
    for seed in range(20):
        waiting.append((seed, model.submit(frame(seed % 4))))
        if len(waiting) > seed % 5:
            of, ticket = waiting.pop(0)
            gpu.same(ticket.result(), expected(model, frame(of % 4)))
    for of, ticket in waiting:
        gpu.same(ticket.result(), expected(model, frame(of % 4)))


@gpu.needed
def test_the_frame_that_was_submitted_first_is_waited_for(model):
    """Not one behind it, which would end all of them."""
    first, second, third = (model.submit(frame(seed)) for seed in range(3))
    first.result()
    fourth = model.submit(frame(3))  # where the first was
    fifth = model.submit(frame(4))
    assert second._pending._slot is None
    assert third._pending._slot is not None
    assert fourth._pending._slot is not None
    for seed, ticket in enumerate([first, second, third, fourth, fifth]):
        gpu.same(ticket.result(), expected(model, frame(seed)))


@gpu.needed
def test_a_ticket_waits_no_longer_than_asked(model):
    gate = threading.Event()
    hold = (lambda: None) if gpu.EMULATOR else (lambda: gate.wait(60))
    # The one that the next frame takes.
    slot = model._pipeline._slots[-1]

    def engine(stream):
        _core.launch_host_function(stream, hold)
        slot._context.enqueue(stream)

    slot.graph.run_uncaptured(engine, "slow")
    ticket = model.submit(frame(1))
    try:
        assert not ticket.done()
        with pytest.raises(TimeoutError, match=r"timeout: the frame took longer than 0 s; ask again"):
            ticket.result(0)
        with pytest.raises(TimeoutError, match=r"longer than -1 s"):
            ticket.result(-1)
        for wrong in ("soon", [1]):
            with pytest.raises((TypeError, ValueError)):
                ticket.result(wrong)
    finally:
        gate.set()
    gpu.same(ticket.result(60), expected(model, frame(1)))


@gpu.needed
def test_a_ticket_does_not_wait_for_whoever_waits_for_it(model):
    """As a watchdog asks done() of a frame that another thread sits waiting for."""
    ticket = model.submit(frame(1))
    slot = ticket._pending._slot
    waits, go_on = threading.Event(), threading.Event()

    def wait():
        # As result() of another thread does for as long as the frame takes.
        with slot.lock:
            waits.set()
            assert go_on.wait(60)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waits.wait(60)
    assert not ticket.done()
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match="the frame took longer than"):
            ticket.result(timeout)
    go_on.set()
    found = ticket.result(60)
    thread.join()
    gpu.same(found, expected(model, frame(1)))
    with slot.lock:  # which the slot's next frame may hold, and is no business of this ticket's
        assert ticket.done()
        assert ticket.result(0) is found


@gpu.needed
def test_a_sequence_of_frames_keeps_to_one_slot(model):
    model.infer(frame(0))
    held = model.info()["memory"]
    for _ in range(DEPTH):
        model.infer(frame(0))
    assert model.info()["memory"] == held


@gpu.needed
def test_dropped_tickets_do_no_harm(model):
    for seed in range(3 * DEPTH):
        model.submit(frame(seed))
    kept = model.submit(frame(1))
    for seed in range(3 * DEPTH):
        model.submit(frame(seed))
    gpu.same(kept.result(), expected(model, frame(1)))
    check(model, frame(2))
    model.submit(frame(3))


@gpu.needed
def test_results_are_held_in_any_number(model):
    found = [model.infer(frame(seed % 3)) for seed in range(12)]
    tickets = [model.submit(frame(seed % 3)) for seed in range(12)]
    found += [ticket.result() for ticket in tickets]
    model.close()
    for index, result in enumerate(found):
        gpu.same(result, expected(model, frame(index % 3)))


@gpu.needed
@pytest.mark.parametrize("tickets", [False, True])
def test_threads_give_the_same_bits(tickets):
    with model_of() as model:
        images = [frame(seed, 30 + seed, 40) for seed in range(5)]
        right = [model.infer(image) for image in images]
        wrong = []

        def work(start):
            try:
                for index in range(start, start + 10):
                    image = images[index % 5]
                    found = model.submit(image).result() if tickets else model.infer(image)
                    if found != right[index % 5]:
                        wrong.append(index)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(model._pipeline._slots) <= DEPTH


@gpu.needed
@gpu.emulated
def test_a_frame_that_fails_on_the_gpu_fails_its_ticket():
    with gpu.EMULATOR.settings():
        with model_of() as model:
            first = model.submit(frame(0))
            first.result()
            gpu.EMULATOR.set("fail_next_kernel", 700)
            ticket = model.submit(frame(1))
            for _ in range(2):
                with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
                    ticket.result()
            assert ticket.done()
            with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
                model.infer(frame(1))
        gpu.same(first.result(), expected(model, frame(0)))


@gpu.needed
@gpu.emulated
def test_out_of_memory_is_told_and_smaller_frames_go_on(model):
    check(model, frame(0))
    with gpu.EMULATOR.settings(device_memory=gpu.EMULATOR.get("device_bytes") + 1000):
        with pytest.raises(CudaError, match="out of memory on the GPU"):
            model.infer(frame(1, 500, 500))
        check(model, frame(0))
    check(model, frame(1, 200, 300))


# ----------------------------------------------------------------------------------------- frame buffers


@gpu.needed
@pytest.mark.parametrize(
    ("color", "shape"),
    [
        ("rgb", (48, 64, 3)),
        ("bgra", (48, 64, 4)),
        ("gray", (48, 64)),
        ("nv12", (72, 64)),
        ("yuyv", (48, 64, 2)),
    ],
)
def test_frame_buffers(model, color, shape):
    buffer = model.frame_buffer(48, 64, color)
    assert (buffer.shape, buffer.dtype, buffer.any()) == (shape, np.uint8, False)
    buffer[...] = scenes.image(1, shape)
    found = model.infer(buffer, color=color)
    same_bits(found, model.infer(np.array(buffer), color=color))
    gpu.same(found, expected(model, buffer, color=color))
    if color != "nv12":
        upside_down = buffer[::-1]
        same_bits(model.infer(upside_down, color=color), model.infer(np.array(upside_down), color=color))


@gpu.needed
@gpu.emulated
def test_a_frame_buffer_is_sent_in_one_piece_and_without_staging(model):
    """Though it is large enough for several pieces."""
    buffer = model.frame_buffer(300, 400)
    names = ("copies_to_device", "bytes_to_device", "pinned_bytes")

    def counted(image):
        model.infer(image)
        before = [gpu.EMULATOR.get(name) for name in names]
        model.infer(image)
        return [gpu.EMULATOR.get(name) - b for name, b in zip(names, before, strict=True)]

    on_card = gpu.OnDevice(np.array(buffer))
    rest, parameters, _ = counted(on_card)
    assert counted(buffer) == [rest + 1, parameters + buffer.nbytes, 0]
    before = gpu.EMULATOR.get("pinned_bytes")
    _, sent, _ = counted(np.array(buffer))
    assert sent == parameters + buffer.nbytes
    assert gpu.EMULATOR.get("pinned_bytes") >= before + buffer.nbytes


@gpu.needed
@gpu.emulated
def test_a_frame_buffer_lives_as_long_as_anybody_holds_it():
    gc.collect()
    before = gpu.EMULATOR.get("pinned_bytes")
    model = model_of()
    buffer = model.frame_buffer(40, 60)
    buffer[...] = scenes.image(3, (40, 60, 3))
    content = np.array(buffer)
    want = expected(model, content)
    ticket = model.submit(buffer)
    row = buffer[7]
    del buffer
    gc.collect()
    gpu.same(ticket.result(), want)
    del ticket, want
    model.close()
    gc.collect()
    assert gpu.EMULATOR.get("pinned_bytes") == before + content.nbytes
    np.testing.assert_array_equal(row, content[7])
    del row
    gc.collect()
    assert gpu.EMULATOR.get("pinned_bytes") == before
    with pytest.raises(FaiFastError, match="the model is closed"):
        model.frame_buffer(40, 60)


@gpu.needed
def test_frame_buffers_survive_forks_and_exits():
    said = gpu.in_process(
        """
        import os
        import test_gpu_model as tests

        model = tests.model_of()
        kept = [model.frame_buffer(40, 60) for _ in range(3)]
        kept[0][...] = 7
        child = os.fork()
        if child == 0:
            del kept
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert kept[0].min() == 7
        del kept[0]
        child = os.fork()
        if child == 0:
            try:
                model.frame_buffer(40, 60)
            except Exception as error:
                assert "forked" in str(error), error
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        print(model.infer(kept[0]).size)
        # One is left to the interpreter, which ends.
        import builtins
        builtins.kept_for_ever = kept.pop()
        """
    )
    assert said == "(40, 60)"


@gpu.needed
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 10), ValueError, "height and width: got .0, 10., expected sides of 1 to 32767"),
        ((10, "x"), TypeError, "height and width: got "),
        ((32767, 32767), ValueError, "height and width: got 32767 x 32767, expected at most"),
        ((11, 10, "nv12"), ValueError, "got 11 x 10, expected even ones for color 'nv12'"),
        ((10, 11, "uyvy"), ValueError, "width: got 11, expected an even one for color 'uyvy'"),
        ((10, 10, "hsv"), ValueError, "color: got 'hsv', expected one of"),
    ],
)
def test_frame_buffers_that_no_frame_fits(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.frame_buffer(*arguments)


@gpu.needed
@gpu.emulated
def test_frame_buffers_are_told_to_be_scarce(model):
    room = gpu.EMULATOR.get("pinned_bytes") + 100
    with (
        gpu.EMULATOR.settings(pinned_memory=room),
        pytest.raises(CudaError, match="out of page-locked memory of the host"),
    ):
        model.frame_buffer(100, 100)


# -------------------------------------------------------------------------------------------- life cycle


@gpu.needed
def test_clones_share_the_engine():
    model = model_of()
    clone = model.clone()
    another = clone.clone()
    clone.fake = another.fake = model.fake
    check(clone, frame(1))
    ticket = clone.submit(frame(2))
    model.close()
    with pytest.raises(FaiFastError, match="the model is closed"):
        model.infer(frame(1))
    gpu.same(ticket.result(), expected(clone, frame(2)))
    check(another, frame(3))
    assert model.fake.unloaded == 0
    clone.close()
    clone.close()
    check(another, frame(3))
    another.close()
    assert model.fake.unloaded == 1
    for closed in (model, clone, another):
        with pytest.raises(FaiFastError, match="the model is closed"):
            closed.clone()


@gpu.needed
def test_closing_leaves_the_results_of_tickets():
    model = model_of()
    tickets = [model.submit(frame(seed)) for seed in range(DEPTH)]
    model.queries(frame(0))
    model.close()
    model.close()
    for seed, ticket in enumerate(tickets):
        assert ticket.done()
        gpu.same(ticket.result(), expected(model, frame(seed)))
    for call in (model.infer, model.submit, model.queries):
        with pytest.raises(FaiFastError, match="the model is closed; load it again"):
            call(frame(1))
    assert model.info()["memory"] == {"device": 0, "pinned": 0}
    assert model.fake.unloaded == 1


@gpu.needed
@gpu.emulated
def test_closing_gives_all_memory_back():
    gc.collect()
    before = [gpu.EMULATOR.get(name) for name in ("device_bytes", "pinned_bytes")]
    for _ in range(2):
        with model_of() as model:
            kept = [model.submit(frame(seed), masks_device=True) for seed in range(2 * DEPTH)]
            model.queries(frame(1))
            clone = model.clone()
            clone.infer(frame(1))
        clone.close()
        kept = [ticket.result() for ticket in kept]
        assert kept[0].masks_device is not None
        del kept, model, clone
        gc.collect()
        assert [gpu.EMULATOR.get(name) for name in ("device_bytes", "pinned_bytes")] == before


@gpu.needed
def test_closing_while_threads_run():
    model = model_of()
    model.infer(frame(0))
    said = []
    started = threading.Barrier(4)

    def work():
        started.wait()
        try:
            for seed in range(1000):
                model.infer(frame(seed % 3))
        except FaiFastError as error:
            said.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    model.close()
    for thread in threads:
        thread.join()
    assert said == ["the model is closed; load it again"] * 3


@gpu.needed
def test_a_process_may_end_with_an_open_model():
    said = gpu.in_process(
        """
        import test_gpu_model as here
        model = here.model_of()
        found = model.infer(here.frame(1), masks_device=True)
        tickets = [model.submit(here.frame(seed)) for seed in range(5)]
        here.kept = model, found, tickets
        print("done")
        """
    )
    assert said == "done"


@gpu.needed
def test_a_forked_child_is_refused():
    said = gpu.in_process(
        """
        import gc, os
        import test_gpu_model as here
        from fai_fast.errors import EngineError
        model = here.model_of()
        ticket = model.submit(here.frame(1))
        child = os.fork()
        if child == 0:
            refused = 0
            for call in (lambda: model.infer(here.frame(1)), ticket.result):
                try:
                    call()
                except EngineError as error:
                    refused += "fork" in str(error)
            del ticket, model
            gc.collect()
            os._exit(0 if refused == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
        here.gpu.same(ticket.result(), here.expected(model, here.frame(1)))
        model.close()
        print("done")
        """
    )
    assert said == "done"


# --------------------------------------------------------------------------------------------- preparing


class FakeCpuEngine(BaseEngine):
    """The same network on the CPU, between arrays."""

    name = "fake-cpu"

    def __init__(self, network):
        self.network = network
        info = {"version": "1", "device": "CPU", "precision": "fp32", "threads": 1, "path": None}
        super().__init__(network.ports, info)

    def _bind(self, arrays):
        class Context(OpenContext):
            def _run(context):
                context.mask_logits[...], context.class_logits[...] = self.network(context.images)

            def _release(context):
                pass

        return Context(self, arrays)

    def _release(self):
        pass


class Module:
    """A fake of engines/<name>.py; `calls` counts what was asked of it."""

    def __init__(self, name, kind, *, precisions=("fp16", "fp32"), wrong=(), broken=None):
        self.name, self.kind, self.precisions = name, kind, precisions
        self.wrong, self.broken = wrong, broken
        self.calls = Counter()
        self.driver = "13.0"
        self.GRAPH_PRECISION = None if kind == "weights" else {"fp16": "fp16", "fp32": "fp32"}
        if kind == "compiled":
            self.compile_to, self.load_blob = self._compile_to, self._load_blob
        elif kind == "weights":
            self.load_weights = self._load_weights
        elif kind == "graph":
            self.load = self._load
        else:
            self.load = self._load_on_cpu

    def version(self):
        return "1.0"

    def native_precisions(self, device=0):
        return self.precisions

    def depends(self, precision, device=0):
        return {"driver": self.driver, "precision": precision}

    def _engine(self, precision):
        self.calls[precision] += 1
        if self.broken:
            raise EngineError(f"{self.name}: {self.broken}")
        network = sampling(dtype={"fp16": "float16", "fp32": "float32"}[precision])
        if precision in self.wrong:
            network.factor = -network.factor
        return FakeGpuEngine(network)

    def _load_weights(self, weights, size, batch, *, precision, device):
        assert weights.source
        assert (size, batch, device) == (SIZE, 1, 0)
        return self._engine(precision)

    def _load(self, path, *, precision, device):
        assert path.read_text().endswith(precision)
        return self._engine(precision)

    def _compile_to(self, onnx_path, path, *, precision, device):
        self.calls["compiled"] += 1
        if self.broken:
            raise EngineError(f"{self.name}: {self.broken}")
        path.write_text(f"engine of {onnx_path.read_text()}")
        return {"built by": self.name}

    def _load_blob(self, path, *, precision, device):
        self.calls["loaded"] += 1
        if not path.read_text().startswith("engine of"):
            raise EngineError(f"{self.name}: {path} is corrupt")
        return self._engine(precision)

    def _load_on_cpu(self, path, *, precision, num_threads=None):
        assert precision == "fp32"
        assert path.read_text().endswith("fp32")
        self.calls["on the CPU"] += 1
        return FakeCpuEngine(sampling())


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with these engines; load() runs fai_fast.load there."""
    cpu = Module("openvino", "cpu", precisions=())

    class Exported:
        def __init__(self, spec):
            self.spec = spec

        def to_dict(self):
            return {"spec": self.spec.to_dict(), "verification": {"holds": True}}

    def write(weights, path, *, size, batch, precision):
        cpu.calls[f"exported {precision}"] += 1
        path.write_text(f"graph in {precision}")
        return Exported(weights.spec)

    monkeypatch.setattr(sources.exporter, "write", write)
    # The engines' outputs are their own, whatever the network's would be; their size is none that it could have.
    monkeypatch.setattr(sources.exporter.subject, "check_im_size", lambda *size: SIZE)

    def make(*modules, falls_back=True):
        known = {module.name: module for module in ((*modules, cpu) if falls_back else modules)}
        choices = [
            select.Choice(name, "cpu" if module is cpu else "cuda", (("all", "of them"),))
            for name, module in known.items()
        ]
        monkeypatch.setattr(select, "candidates", lambda engine, device: choices)
        monkeypatch.setattr(select, "choose", lambda engine, device: select.Choice(cpu.name, "cpu", ()))
        monkeypatch.setattr(select, "module", {**known, cpu.name: cpu}.__getitem__)

        def load(**options):
            options = {"weights": "random", "im_size": SIZE, "cache_dir": tmp_path, **options}
            return fai_fast.load(spec_of(), **options)

        return load

    make.cpu = cpu
    return make


@gpu.needed
@pytest.mark.parametrize("kind", ["weights", "graph", "compiled"])
def test_the_fastest_precision_whose_masks_agree(machine, kind):
    module = Module("fast", kind)
    load = machine(module)
    with load() as model:
        info = model.info()
        assert info["precision"] == "fp16"
        assert info["precision_reason"].startswith("the fastest here, and finds what fp32 finds: ")
        assert info["precision_verdicts"]["fp16"]["holds"]
        assert info["engine"]["precision"] == "fp16"
        assert info["engine_reasons"] == {"all": "of them"}
        image = frame(1)
        model.fake = model._engine
        gpu.same(model.infer(image), expected(model, image))
    assert module.calls["fp16"] == 1
    assert module.calls["compiled"] == (kind == "compiled")
    assert (
        machine.cpu.calls
        == {
            "weights": {},
            "graph": {"exported fp16": 1, "exported fp32": 1, "on the CPU": 1},
            "compiled": {"exported fp16": 1, "exported fp32": 1, "on the CPU": 1},
        }[kind]
    )


@gpu.needed
@pytest.mark.parametrize("kind", ["weights", "graph", "compiled"])
def test_the_second_start_measures_and_builds_nothing(machine, kind):
    module = Module("fast", kind)
    load = machine(module)
    with load() as model:
        reason = model.info()["precision_reason"]
    module.calls.clear()
    machine.cpu.calls.clear()
    with load() as model:
        assert model.info()["precision_reason"] == reason
        if kind != "weights":
            assert all("from the cache" in said for said in model.info()["artefacts"].values())
    assert module.calls == {"fp16": 1, **({"loaded": 1} if kind == "compiled" else {})}
    assert machine.cpu.calls == {}


@gpu.needed
@pytest.mark.parametrize("kind", ["weights", "compiled"])
def test_another_driver_measures_and_builds_again(machine, kind):
    module = Module("fast", kind)
    load = machine(module)
    load().close()
    module.calls.clear()
    module.driver = "13.1"
    load().close()
    assert module.calls["fp16"] == 1
    if kind == "compiled":
        assert module.calls["compiled"] == 1
        assert machine.cpu.calls["on the CPU"] == 2
    else:
        assert module.calls["fp32"] == 1


@gpu.needed
@pytest.mark.parametrize("kind", ["weights", "graph", "compiled"])
def test_a_precision_whose_masks_differ_is_not_used(machine, kind):
    module = Module("fast", kind, wrong=("fp16",))
    load = machine(module)
    for _ in range(2):
        with load() as model:
            info = model.info()
            assert info["precision"] == "fp32"
            assert info["precision_reason"].startswith("fp16 does not find what fp32 finds: ")
            assert not info["precision_verdicts"]["fp16"]["holds"]
            assert info["precision_reason"].endswith("; the fastest here")
    # Measured once.
    assert machine.cpu.calls["on the CPU"] == (0 if kind == "weights" else 1)


@gpu.needed
def test_a_precision_that_is_asked_for_must_agree_too(machine):
    load = machine(Module("fast", "compiled", wrong=("fp16",)), falls_back=False)
    with pytest.raises(
        EngineError,
        match=r"fast: no precision can be used: fp16 does not find what fp32 finds: .*; precision='fp32' runs here",
    ):
        load(precision="fp16")
    # In order to measure it with labels.
    with load(precision="fp16", verify_precision=False) as model:
        assert (model.info()["precision"], model.info()["precision_reason"]) == ("fp16", "asked for")


@gpu.needed
def test_a_precision_that_the_gpu_does_not_have(machine, caplog):
    load = machine(Module("fast", "weights", precisions=("fp32",)), Module("slow", "weights"))
    with load(precision="fp16") as model:
        assert model.info()["precision"] == "fp16"
        assert model.info()["precision_reason"].startswith("asked for, and finds what fp32 finds: ")
    assert (
        "engine fast is passed over: fast: precision fp16 was asked for, expected one of fp32" in caplog.text
    )


@gpu.needed
def test_engines_are_tried_in_turn_with_one_warning_each(machine, caplog):
    broken = Module("fast", "compiled", broken="this GPU is too old")
    wrong = Module("wrong", "weights", precisions=("fp16",), wrong=("fp16",))
    good = Module("good", "graph")
    unused = Module("unused", "weights")
    with machine(broken, wrong, good, unused)() as model:
        assert model.info()["precision"] == "fp16"
    passed = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(passed) == 2
    assert "engine fast is passed over: fast: this GPU is too old" in passed[0]
    assert "engine wrong is passed over: wrong: no precision can be used" in passed[1]
    assert unused.calls == {}


@gpu.needed
def test_an_engine_without_its_graph_is_passed_over(machine, monkeypatch, caplog):
    """Where the export fails, an engine that needs no graph can still run."""
    load = machine(Module("fast", "graph"), Module("good", "weights"))

    def write(*arguments, **options):
        raise ExportError("the graph is not equal to the network")

    monkeypatch.setattr(sources.exporter, "write", write)
    with load() as model:
        assert model.info()["precision"] == "fp16"
    assert "engine fast is passed over: the graph is not equal" in caplog.text


@gpu.needed
def test_where_the_last_engine_fails_too_all_are_told_of(machine):
    modules = [
        Module(name, "weights", broken=why) for name, why in (("fast", "no memory"), ("last", "no driver"))
    ]
    load = machine(*modules, falls_back=False)
    with pytest.raises(EngineError, match=r"^no engine can be used: fast: no memory; last: no driver$"):
        load()


@gpu.needed
def test_a_corrupt_engine_is_built_again_once(machine, caplog, tmp_path):
    module = Module("fast", "compiled")
    load = machine(module)
    load().close()
    [kept] = tmp_path.rglob("*.engine")
    # As another build of the package might leave it: whole, but not to be loaded.
    (record,) = (path for path in kept.parent.iterdir() if path.name.startswith(kept.name) and path != kept)
    text = "rubbish of as many bytes".ljust(len(kept.read_bytes()))[: len(kept.read_bytes())]
    _replace(kept, record, text)
    module.calls.clear()
    with load() as model:
        assert "built" in model.info()["artefacts"]["engine"]
        check_model(model)
    assert module.calls == {"loaded": 2, "compiled": 1, "fp16": 1}
    assert f"{kept} is built again: fast: {kept} is corrupt" in caplog.text
    with load() as model:
        assert "from the cache" in model.info()["artefacts"]["engine"]


@gpu.needed
def test_an_engine_that_is_corrupt_as_soon_as_it_is_built(machine):
    module = Module("fast", "compiled")
    module.compile_to = lambda onnx_path, path, *, precision, device: path.write_text("rubbish") and None
    load = machine(module)
    with load() as model:
        assert model.info()["engine"]["engine"] == "fake-cpu"
    assert module.calls == {"loaded": 1}


def check_model(model):
    model.fake = model._engine
    check(model, frame(1))


def _replace(kept, record, text):
    """Other bytes in an artefact, and a record that agrees with them."""
    import hashlib

    before = hashlib.sha256(kept.read_bytes()).hexdigest()
    kept.write_text(text)
    after = hashlib.sha256(kept.read_bytes()).hexdigest()
    assert before in record.read_text()
    record.write_text(record.read_text().replace(before, after))


# ---------------------------------------------------------------------------------------------- panoptic


@gpu.needed
@pytest.mark.parametrize("overlap_threshold", [0.0, 0.5])
def test_a_panoptic_model_gives_what_the_cpu_gives(overlap_threshold):
    size, names = (32, 48), ("a", "b", "c")
    rules = fai_fast.Panoptic(stuff=(1,), overlap_threshold=overlap_threshold)
    config = fai_fast.NetworkConfig(3, postprocessing_type="panoptic", panoptic=rules, threshold=0.3)
    spec = fai_fast.ModelSpec(name="theirs", task="panoptic", classes=names, config=config, im_size=size)
    network = Sampling(size=size, mean=config.pixel_mean, std=config.pixel_std)
    engine = FakeGpuEngine(network)
    prepared = Prepared(
        spec=spec, engine=engine, gpu=engine, size=size, batch_size=1, num_threads=None,
        provenance={"precision": "fp32", "artefacts": {}}, weights=None,
    )  # fmt: skip
    kinds = set()
    with Model(prepared) as model:
        for seed in range(6):
            image = frame(seed)
            found = model.infer(image)
            gpu.same(found, network.expected(image, threshold=0.3, panoptic=rules))
            assert found.is_thing.tolist() == [class_id != 1 for class_id in found.class_id]
            kinds |= set(found.is_thing.tolist())
            ids = found.segment_map()
            np.testing.assert_array_equal(np.bincount(ids.ravel(), minlength=len(found) + 1)[1:], found.area)
        found = model.infer(image, masks_device=True)
        memory = found.masks_device
        mask = gpu.download(memory.__cuda_array_interface__["data"][0], memory.shape, np.uint8).view(bool)
        np.testing.assert_array_equal(mask, found.mask)
        some = model.infer(image, classes=["b"])
        assert not some.is_thing.any()
        assert set(np.unique(some.label_map)) <= {-1, 1}
    assert kinds == {True, False}


@gpu.needed
def test_a_model_of_instances_that_compete_gives_what_the_cpu_gives():
    size, names = (32, 48), ("a", "b", "c")
    rules = {"multi_label": True, "overlap_threshold": 0.1, "resampling": fai_fast.Resampling(of="logits")}
    config = fai_fast.NetworkConfig(3, threshold=0.2, **rules)
    spec = fai_fast.ModelSpec(name="theirs", task="instance", classes=names, config=config, im_size=size)
    network = Sampling(size=size, mean=config.pixel_mean, std=config.pixel_std)
    engine = FakeGpuEngine(network)
    prepared = Prepared(
        spec=spec, engine=engine, gpu=engine, size=size, batch_size=1, num_threads=None,
        provenance={"precision": "fp32", "artefacts": {}}, weights=None,
    )  # fmt: skip
    rows = 0
    with Model(prepared) as model:
        for seed in range(4):
            image = frame(seed)
            masks, classes = network(
                fai_fast.preprocess(
                    image, size, mean=config.pixel_mean, std=config.pixel_std, dtype=network.dtype
                )
            )
            found = model.infer(image)
            cpu = fai_fast.postprocess(masks[0], classes[0], image.shape[:2], threshold=0.2, **rules)
            gpu.same_rows(found, cpu)
            assert (found.is_thing, found.label_map) == (None, None)
            rows += len(found)
    assert rows >= 2


@gpu.needed
def test_panoptic_results_are_label_maps():
    rules = {"panoptic": True, "overlap_threshold": 0.8, "weighted": True, "stuff": []}
    with pytest.raises(
        ValueError, match=r"^predict_all_pixels: got False with panoptic or by_sum, expected True"
    ):
        gpu.frame_graph((6, 8, 8), (6, 4), predict_all_pixels=False, rules=rules)
