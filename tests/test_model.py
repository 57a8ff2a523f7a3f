"""load() and Model, on small networks with random weights."""

from __future__ import annotations

import asyncio
import io
import logging
import subprocess
import sys
import threading
from functools import partial

import fai_fast
import numpy as np
import pytest
import torch
from helpers.networks import network, small_spec
from PIL import Image
from reference import stretch

SIZE = (64, 96)


# In float32, which is what results are compared with: "auto" takes bf16 or fp16 where the CPU has them.
load = partial(fai_fast.load, precision="fp32")


@pytest.fixture(scope="module")
def spec():
    return small_spec("bisenetformer", transformer_predictor_dec_layers=2)


@pytest.fixture(scope="module")
def instance_spec():
    return small_spec("fai_mf", "instance", transformer_predictor_dec_layers=2)


@pytest.fixture(scope="module")
def checkpoint(spec, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    torch.save({"model": network(spec).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(spec, checkpoint, cache):
    with load(spec, weights=checkpoint, im_size=SIZE, cache_dir=cache) as model:
        yield model


@pytest.fixture(scope="module")
def frame():
    yy, xx = np.mgrid[:70, :110]
    waves = np.stack([128 + 100 * np.sin(xx / (5 + c)) * np.cos(yy / (7 - c)) for c in range(3)], -1)
    return waves.astype(np.uint8)


def plain(spec, frame, size=SIZE, resize="stretch"):
    """The reference network's outputs for a frame."""
    inputs = fai_fast.preprocess(frame, size, mean=0, std=1, resize=resize)
    box = None
    if resize != "stretch":
        inputs, box = inputs
        # Padding is the mean, or black.
        mean = np.asarray(spec.config.pixel_mean, np.float32)[:, None, None] * (resize == "letterbox")
        top, left = box.offset
        padded = np.broadcast_to(mean, inputs.shape).copy()
        rows, columns = slice(top, top + box.content[0]), slice(left, left + box.content[1])
        padded[..., rows, columns] = inputs[..., rows, columns]
        inputs = padded
    with torch.inference_mode():
        out = network(spec)(torch.from_numpy(inputs))
    return out.mask_logits.numpy(), out.class_logits.numpy(), box


def same(ours: fai_fast.Detections, expected: fai_fast.Detections) -> None:
    """Equal but for what rounding does to a few pixels and to the sixth digit of a score."""
    assert len(expected) > 0
    assert sorted(ours.query) == sorted(expected.query)
    mine, other = np.argsort(ours.query), np.argsort(expected.query)
    assert np.array_equal(ours.class_id[mine], expected.class_id[other])
    np.testing.assert_allclose(ours.confidence[mine], expected.confidence[other], atol=1e-3)
    assert (ours.mask[mine] != expected.mask[other]).mean() < 2e-3


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "pad"])
def test_semantic_results_are_those_of_the_reference_network(model, spec, frame, resize):
    masks, classes, box = plain(spec, frame, resize=resize)
    options = {"predict_all_pixels": True, "threshold": 0.3, "class_names": spec.classes}
    expected = fai_fast.postprocess(masks, classes, frame.shape[:2], letterbox=box, **options)
    got = model.infer(frame, threshold=0.3, resize=resize)
    same(got, expected)
    assert got.size == (70, 110)
    assert got.class_names == ("a", "b", "c")
    assert got.label_map is not None


def test_instance_results_are_those_of_the_reference_network(instance_spec, frame, tmp_path):
    spec = instance_spec
    state = network(spec).state_dict()
    with load(spec, weights=state, im_size=SIZE, cache_dir=tmp_path) as model:
        got = model.infer(frame, threshold=0.2, mask_threshold=0.45, use_mask_score=True)
    masks, classes, _ = plain(spec, frame)
    expected = fai_fast.postprocess(
        masks, classes, frame.shape[:2], threshold=0.2, mask_threshold=0.45, use_mask_score=True
    )
    same(got, expected)


def test_every_kind_of_picture_gives_the_same_result(model, frame, tmp_path):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(file.getvalue())
    expected = model.infer(frame)
    kinds = [path, str(path), file.getvalue(), io.BytesIO(file.getvalue()), Image.fromarray(frame)]
    kinds += [torch.from_numpy(frame.copy()), np.asfortranarray(frame)]
    for image in kinds:
        assert model(image) == expected
    assert model.infer(frame[..., ::-1], color="bgr") == expected
    assert model.infer(path).latency.decode > 0
    assert model.infer(frame).latency.decode == 0


def test_gray_pictures_are_seen_as_rgb(model, frame, tmp_path):
    path = tmp_path / "gray.png"
    Image.fromarray(frame[..., 0]).save(path)
    thrice = np.repeat(frame[..., :1], 3, axis=2)
    assert model.infer(path) == model.infer(thrice) == model.infer(frame[..., 0], color="gray")


def test_latency_tells_every_stage(model, frame):
    latency = model.infer(frame).latency
    assert isinstance(latency, fai_fast.Latency)
    assert min(latency.preprocess, latency.engine, latency.postprocess) > 0
    assert latency.total == pytest.approx(sum(latency))


def test_a_batch_gives_what_single_frames_give(model, spec, checkpoint, cache, frame):
    frames = [frame, frame[::-1], frame[:, :50]]
    singles = [model.infer(image) for image in frames]
    assert model.infer_batch(frames) == singles
    assert model.infer_batch([]) == []
    with load(spec, weights=checkpoint, im_size=SIZE, cache_dir=cache, batch_size=2) as batched:
        assert batched.batch_size == 2
        for ours, single in zip(batched.infer_batch(frames), singles, strict=True):
            assert ours.size == single.size
            same(ours, single)


def test_queries_are_the_raw_triple(model, spec, frame):
    class_ids, scores, masks = model.queries(frame)
    mask_logits, class_logits, _ = plain(spec, frame)
    e = np.exp(class_logits[0] - class_logits[0].max(-1, keepdims=True))
    probability = (e / e.sum(-1, keepdims=True))[:, :-1]
    assert np.array_equal(class_ids, probability.argmax(-1))
    np.testing.assert_allclose(scores, probability.max(-1), atol=1e-4)
    assert (class_ids.dtype, scores.dtype, masks.dtype) == (np.int64, np.float32, np.int16)
    m = 1 / (1 + np.exp(-mask_logits[0].astype(np.float64)))
    m = stretch(m.shape[1], 70) @ m @ stretch(m.shape[2], 110).T
    winner = (probability.max(-1)[:, None, None] * m).argmax(0)
    expected = np.where(winner == np.arange(len(m))[:, None, None], class_ids[:, None, None], -1)
    assert (masks != expected).mean() < 2e-3


def test_threads_give_the_same_bits(model, frame):
    frames = [np.roll(frame, shift, 1) for shift in range(6)]
    expected = [model.infer(image) for image in frames]
    wrong = []

    def work(start):
        for index in range(12):
            which = (start + index) % len(frames)
            if model.infer(frames[which]) != expected[which]:
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_second_start_takes_everything_from_the_cache(model, spec, checkpoint, cache, frame, caplog):
    with (
        caplog.at_level(logging.DEBUG, "fai_fast"),
        load(spec, weights=checkpoint, im_size=SIZE, cache_dir=cache) as again,
    ):
        assert again.infer(frame) == model.infer(frame)
        said = again.info()["artefacts"]
    assert all("from the cache" in text for text in said.values()), said
    assert not [
        record for record in caplog.records if "built" in record.message or "made ready" in record.message
    ]


def test_the_second_start_does_not_load_torch(spec, checkpoint, cache, model, tmp_path):
    import json

    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    code = f"""
import json, sys, fai_fast
spec = fai_fast.ModelSpec.from_dict(json.load(open({str(tmp_path / "spec.json")!r})))
options = dict(im_size={SIZE}, cache_dir={str(cache)!r}, precision="fp32")
with fai_fast.load(spec, weights={str(checkpoint)!r}, **options) as model:
    model.warmup(1)
assert "torch" not in sys.modules and "onnx" not in sys.modules, "loaded"
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_other_weights_and_sizes_get_graphs_of_their_own(spec, checkpoint, cache, frame, tmp_path):
    other = tmp_path / "other.pth"
    torch.save(network(spec, seed=1).state_dict(), other)
    with load(spec, weights=other, im_size=SIZE, cache_dir=cache) as model:
        assert "built" in model.info()["artefacts"]["graph"]
    with load(spec, weights=checkpoint, im_size=64, cache_dir=cache) as model:
        assert model.size == (64, 64)
        assert "built" in model.info()["artefacts"]["graph"]


def test_damaged_artefacts_are_built_again(spec, checkpoint, cache, model, frame, tmp_path):
    import shutil

    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    for path in copy.rglob("*"):
        if path.suffix in (".onnx", ".blob"):
            path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    with load(spec, weights=checkpoint, im_size=SIZE, cache_dir=copy) as again:
        assert again.infer(frame) == model.infer(frame)
        assert all("corrupt" in text for text in again.info()["artefacts"].values())


def test_an_exported_file_brings_everything_with_it(spec, checkpoint, cache, model, frame, tmp_path):
    path = tmp_path / "mine.onnx"
    fai_fast.export(spec, path, weights=checkpoint, im_size=SIZE)
    with load(path, cache_dir=cache) as again:
        assert again.spec == model.spec
        assert again.infer(frame) == model.infer(frame)
        with pytest.raises(fai_fast.WeightsError, match="was loaded from a graph"):
            fai_fast.export(again, tmp_path / "twice.onnx")
    fai_fast.export(model, tmp_path / "same.onnx", im_size=SIZE)
    with load(tmp_path / "same.onnx", cache_dir=cache) as same_again:
        assert same_again.infer(frame) == model.infer(frame)
    with pytest.raises(ValueError, match=r"weights: got some with mine\.onnx"):
        fai_fast.load(path, weights=checkpoint)
    with pytest.raises(ValueError, match=r"im_size: got 128 with mine\.onnx"):
        fai_fast.load(path, im_size=128)


def test_onnxruntime_gives_the_same(model, spec, checkpoint, cache, frame):
    with load(spec, weights=checkpoint, im_size=SIZE, cache_dir=cache, engine="onnxruntime") as other:
        assert other.info()["engine"]["engine"] == "onnxruntime"
        same(other.infer(frame, threshold=0.2), model.infer(frame, threshold=0.2))


def test_info_says_what_runs_and_why(model, checkpoint):
    info = model.info()
    assert info["name"] == "small-bisenetformer"
    assert info["im_size"] == SIZE
    assert str(checkpoint) in info["weights"]
    assert info["engine"]["engine"] == "openvino"
    assert (info["precision"], info["precision_reason"]) == ("fp32", "asked for")
    assert info["verification"]
    assert set(info["engine_reasons"]) >= {"openvino", "onnxruntime"}
    assert "small-bisenetformer 64x96 openvino" in repr(model)


def test_benchmark_and_warmup(model, frame):
    assert model.warmup(1) is model
    table = model.benchmark(frame, runs=3, warmup=0)
    assert list(table) == ["decode", "preprocess", "engine", "postprocess", "total"]
    assert table["total"]["p50"] >= table["engine"]["p50"] > 0
    assert table["decode"]["p99"] == 0
    with pytest.raises(ValueError, match="runs: got 0"):
        model.benchmark(frame, runs=0)


def test_a_closed_model_says_so(spec, checkpoint, cache, frame):
    with load(spec, weights=checkpoint, im_size=SIZE, cache_dir=cache) as model:
        model.infer(frame)
    model.close()
    with pytest.raises(fai_fast.FaiFastError, match="closed"):
        model.infer(frame)


def test_every_way_to_run_a_picture_has_the_same_limit(model, frame, tmp_path, monkeypatch):
    import asyncio

    path = tmp_path / "a.png"
    Image.fromarray(frame).save(path)
    pixels = frame.shape[0] * frame.shape[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 3)

    def streamed(source):
        def run(image, **options):
            with model.stream(source(image), **options) as stream:
                [(shown, detections)] = stream
            assert shown.image().shape == frame.shape
            return detections

        return run

    ways = {
        "infer": model.infer,
        "submit": lambda image, **options: model.submit(image, **options).result(),
        "infer_async": lambda image, **options: asyncio.run(model.infer_async(image, **options)),
        "infer_batch": lambda image, **options: model.infer_batch([image], **options)[0],
        "queries": model.queries,
        "benchmark": lambda image, **options: model.benchmark(image, runs=1, warmup=0, **options),
        "stream of a file": streamed(lambda image: image),
        "stream of a pattern": streamed(lambda image: str(image.parent / "*.png")),
        "stream of a folder": streamed(lambda image: image.parent),
        "stream of an iterator": streamed(lambda image: iter([image])),
    }
    expected = model.infer(frame)
    for name, way in ways.items():
        with pytest.raises(ValueError, match=r"image: .*a\.png is too large: .*aise max_pixels="):
            way(path)
        message = rf"a\.png is too large: 110 x 70, expected at most {pixels - 1} pixels; raise max_pixels="
        with pytest.raises(ValueError, match=message):
            way(path, max_pixels=pixels - 1)
        result = way(path, max_pixels=pixels)
        assert name in ("queries", "benchmark") or result == expected
        for wrong, error in ((0, ValueError), (2**28 + 1, ValueError), ("9", TypeError)):
            with pytest.raises(error, match=r"^max_pixels: got"):
                way(path, max_pixels=wrong)
    # Of frames in memory it says nothing, but a wrong one is told.
    assert model.infer(frame, max_pixels=1) == expected
    with pytest.raises(ValueError, match="max_pixels: got 0"):
        model.infer(frame, max_pixels=0)


def test_files_are_turned_upright_and_pillow_images_are_not(model, frame, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(frame).save(tmp_path / "a.png", exif=exif)
    assert model.infer(tmp_path / "a.png") == model.infer(np.rot90(frame, -1))
    with Image.open(tmp_path / "a.png") as image:
        assert model.infer(image) == model.infer(frame)


def test_a_pillow_image_that_is_damaged_is_named(model, frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    for mode in ("RGB", "CMYK"):
        data = file.getvalue()
        if mode == "CMYK":
            file = io.BytesIO()
            Image.fromarray(frame).convert("CMYK").save(file, "JPEG")
            data = file.getvalue()
        with (
            Image.open(io.BytesIO(data[: len(data) // 2])) as image,
            pytest.raises(ValueError, match=f"^image: got a Pillow image of mode '{mode}': ."),
        ):
            model.infer(image)


def test_a_failed_frame_does_not_spoil_the_next(model, frame):
    expected = model.infer(frame)
    for wrong in (b"", frame.astype(np.float32), frame[:0], "no-such-file.png", None, 3):
        with pytest.raises((TypeError, ValueError, OSError)):
            model.infer(wrong)
    with pytest.raises(TypeError, match="images: got ndarray"):
        model.infer_batch(frame)
    for _ in range(6):
        assert model.infer(frame) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "magic"}, ValueError, "engine: got 'magic'"),
        ({"device": "tpu"}, ValueError, "device: got 'tpu'"),
        ({"precision": "fp8"}, ValueError, "precision: got 'fp8'"),
        ({"im_size": 100}, ValueError, r"im_size: got .*100"),
        ({"im_size": (64, 96, 3)}, (TypeError, ValueError), "im_size"),
        ({"num_threads": 0}, ValueError, "num_threads"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"weights": "gone.pth"}, (fai_fast.WeightsError, FileNotFoundError), r"gone\.pth"),
    ],
)
def test_wrong_arguments_are_named(spec, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        fai_fast.load(spec, **{"weights": "random", "im_size": 64, "cache_dir": tmp_path, **options})


def test_unknown_models_are_named():
    with pytest.raises(ValueError, match=r"fai-mf-m-cocoins.*fai-mf-m-coco-ins"):
        fai_fast.load("fai-mf-m-cocoins")


def test_the_bundled_model_needs_no_torch(tmp_path):
    code = f"""
import sys
sys.modules["torch"] = None  # as if it were not installed
import fai_fast
from pathlib import Path
sample = Path(fai_fast.__file__).parent / "registry" / "samples" / "shapes.jpg"
with fai_fast.load("fai-mf-n-shapes", cache_dir={str(tmp_path)!r}) as model:
    assert model.info()["verification"]["against"] == "stored", model.info()["verification"]
    assert len(model.infer(sample)) > 0
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_importing_the_package_loads_nothing_heavy():
    code = """
import sys, fai_fast
heavy = {"torch", "openvino", "onnxruntime", "onnx", "PIL", "tqdm", "safetensors", "filelock"} & set(sys.modules)
assert not heavy, heavy
assert "fai_fast.model" not in sys.modules
assert {"load", "Model", "export", "models", "spec", "reference", "losses"} <= set(dir(fai_fast))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("color", "shape"),
    [
        ("rgb", (48, 64, 3)),
        ("rgba", (48, 64, 4)),
        ("gray", (48, 64)),
        ("i420", (72, 64)),
        ("uyvy", (48, 64, 2)),
    ],
)
def test_frame_buffers_on_the_cpu(model, color, shape):
    buffer = model.frame_buffer(48, 64, color)
    assert (buffer.shape, buffer.dtype, buffer.any()) == (shape, np.uint8, False)
    assert model.infer(buffer, color=color).size == (48, 64)


@pytest.mark.parametrize("name", ["threshold", "mask_threshold"])
def test_thresholds_are_fractions_wherever_they_are_given(name):
    frame = np.zeros((32, 32, 3), np.uint8)
    with fai_fast.load("fai-mf-n-shapes", im_size=64, precision="fp32") as model:
        for call in (
            lambda **options: model.infer(frame, **options),
            lambda **options: model.submit(frame, **options),
            lambda **options: model.infer_batch([frame], **options),
            lambda **options: model.stream([frame], **options),
            lambda **options: asyncio.run(model.infer_async(frame, **options)),
        ):
            for value in (50, -1, 1.5):
                with pytest.raises(ValueError, match=rf"^{name}: got {value}, expected 0 to 1$"):
                    call(**{name: value})
            with pytest.raises(ValueError, match=f"{name}: got nan, expected a finite number"):
                call(**{name: float("nan")})


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [("x", TypeError), (True, TypeError), (float("nan"), ValueError), (float("inf"), ValueError)],
)
def test_a_result_is_waited_for_as_long_as_a_finite_number_says(model, frame, timeout, kind):
    ticket = model.submit(frame)
    with pytest.raises(kind, match=r"^timeout: got .*, expected a (finite )?number"):
        ticket.result(timeout)
    # Longer than clocks can count.
    assert len(ticket.result(1e300)) == len(ticket.result())
