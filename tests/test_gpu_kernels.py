"""The CUDA kernels against the CPU's: the same tensor bit for bit, the same masks."""

from __future__ import annotations

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
from fai_fast import _core
from helpers import gpu, scenes
from helpers.frames import PACKED, PLANAR
from helpers.frames import frame as any_frame
from helpers.golden import CASES, load, settings_of, truth_of
from helpers.gpu import MEAN, STD
from helpers.logits import networks, options_of
from helpers.results import same_bits
from hypothesis import given, settings

pytestmark = gpu.needed

MODES = pytest.mark.parametrize("semantic", [False, True], ids=["instance", "semantic"])


# -------------------------------------------------------------------------------------------- preprocess


def preprocessed(frames, size, dtype="float32", mean=MEAN, std=STD, **layout):
    """What an engine would read, of one frame or of a batch."""
    batch = frames if isinstance(frames, list) else [frames]
    graph = gpu.frame_graph((1, 1, 1), (1, 2), size=size, batch=len(batch), dtype=dtype, mean=mean, std=std)
    assert graph.capture(lambda stream: None) is None
    shape = (len(batch), 3, *size)
    _core.copy_to_device(graph.images, np.full(shape, np.nan, dtype))
    gpu.submit(graph, [gpu.item(frame, **layout) for frame in batch])
    gpu.take(graph)
    return gpu.download(graph.images, shape, dtype)


def on_cpu(frame, size, dtype="float32", mean=MEAN, std=STD, **layout):
    tensor = fai_fast.preprocess(frame, size, mean=mean, std=std, dtype=dtype, **layout)
    return tensor if layout.get("resize", "stretch") == "stretch" else tensor[0]


def same_tensor(ours, cpu):
    assert ours.dtype == cpu.dtype
    assert ours.shape == cpu.shape
    differs = ours.view(f"u{ours.itemsize}") != cpu.view(f"u{cpu.itemsize}")
    if differs.any():
        first = tuple(np.argwhere(differs)[0])
        pytest.fail(
            f"{differs.sum()} of {differs.size} values differ, the first at {first}: {ours[first]}, {cpu[first]}"
        )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("resize", ["stretch", "letterbox", "pad"])
@pytest.mark.parametrize("color", PACKED + PLANAR)
@pytest.mark.parametrize(("shape", "size"), [((54, 96), (32, 64)), ((20, 14), (33, 65))], ids=["down", "up"])
def test_every_format(color, resize, dtype, shape, size):
    frame = any_frame(1, color, *shape)
    same_tensor(
        preprocessed(frame, size, dtype, color=color, resize=resize),
        on_cpu(frame, size, dtype, color=color, resize=resize),
    )


@pytest.mark.parametrize("yuv_range", ["limited", "full"])
@pytest.mark.parametrize("yuv_matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("color", ["nv12", "i420", "yuyv", "uyvy"])
def test_every_matrix_and_range(color, yuv_matrix, yuv_range):
    frame = any_frame(2, color, 38, 46)
    layout = {"color": color, "yuv_matrix": yuv_matrix, "yuv_range": yuv_range}
    same_tensor(preprocessed(frame, (40, 24), **layout), on_cpu(frame, (40, 24), **layout))


sides = st.integers(1, 50) | st.sampled_from([1, 2, 63, 64, 65, 129])


@st.composite
def frames(draw):
    color = draw(st.sampled_from(PACKED + PLANAR))
    height, width = draw(sides), draw(sides)
    planes = color in PLANAR and draw(st.booleans())
    if color in PLANAR and not planes:
        height, width = height + height % 2, width + width % 2
    elif color in ("yuyv", "uyvy"):
        width += width % 2
    return color, any_frame(draw(st.integers(0, 2**16)), color, height, width, planes)


@settings(max_examples=120)
@given(
    frame=frames(),
    size=st.tuples(sides, sides),
    resize=st.sampled_from(["stretch", "letterbox", "pad"]),
    yuv_matrix=st.sampled_from(["bt601", "bt709"]),
    yuv_range=st.sampled_from(["limited", "full"]),
    dtype=st.sampled_from(["float32", "float16"]),
    normalize=st.sampled_from(
        [
            (MEAN, STD),
            ((0.0,) * 3, (1.0,) * 3),
            ((1.0, 2.0, 3.0), (255.0,) * 3),
            ((0.0,) * 3, (0.5, 2.0, -3.0)),
        ]
    ),
)
def test_any_frame(frame, size, resize, yuv_matrix, yuv_range, dtype, normalize):
    color, image = frame
    mean, std = normalize
    options = {"dtype": dtype, "mean": mean, "std": std, "color": color, "resize": resize}
    options |= {"yuv_matrix": yuv_matrix, "yuv_range": yuv_range}
    same_tensor(preprocessed(image, size, **options), on_cpu(image, size, **options))


def views(image):
    """The same kind of picture in ways that NumPy can hold it."""
    wide = np.zeros((image.shape[0], image.shape[1] + 9, *image.shape[2:]), np.uint8)
    wide[:, 5:-4] = image
    yield image[::-1]
    yield image[:, ::-1]
    yield image[::2, 1::3]
    yield image[3:-5, 7:-2]
    yield wide[:, 5:-4]
    yield np.asfortranarray(image)
    yield np.broadcast_to(image[:1], image.shape)
    if image.ndim == 3:
        yield image[..., ::-1]
        yield image.transpose(1, 0, 2)


@pytest.mark.parametrize("color", ["rgb", "gray", "rgba", "yuyv"])
def test_any_strides(color):
    image = any_frame(3, color, 44, 60)
    for view in views(image):
        if color == "yuyv" and view.shape[1] % 2:
            continue
        same_tensor(preprocessed(view, (31, 30), color=color), on_cpu(view, (31, 30), color=color))


@pytest.mark.parametrize("color", PLANAR)
@pytest.mark.parametrize(("height", "width"), [(40, 52), (41, 53), (1, 1)])
def test_planes_of_their_own(color, height, width):
    planes = any_frame(4, color, height, width, planes=True)
    padded = tuple(np.pad(plane, [(1, 2), (3, 4)] + [(0, 0)] * (plane.ndim - 2)) for plane in planes)
    cropped = tuple(
        plane[1 : 1 + inner.shape[0], 3 : 3 + inner.shape[1]]
        for plane, inner in zip(padded, planes, strict=True)
    )
    flipped = tuple(plane[::-1, ::-1] for plane in planes)
    for image in (planes, cropped, flipped):
        same_tensor(preprocessed(image, (24, 36), color=color), on_cpu(image, (24, 36), color=color))


def test_a_camera_frame():
    image = scenes.image(5, (1080, 1920, 3))
    same_tensor(preprocessed(image, (320, 320), "float16"), on_cpu(image, (320, 320), "float16"))


@pytest.mark.parametrize("color", ["rgb", "nv12"])
def test_a_frame_in_the_memory_of_the_gpu(color):
    image = any_frame(6, color, 50, 70)
    same_tensor(
        preprocessed(gpu.OnDevice(image), (33, 35), color=color), on_cpu(image, (33, 35), color=color)
    )


def test_images_of_a_batch_are_apart():
    batch = [scenes.image(seed, shape) for seed, shape in enumerate([(40, 50, 3), (7, 9, 3), (64, 31, 3)])]
    ours = preprocessed(batch, (32, 48), resize="letterbox")
    for index, image in enumerate(batch):
        same_tensor(ours[index : index + 1], on_cpu(image, (32, 48), resize="letterbox"))


# ------------------------------------------------------------------------------------------- postprocess


def compare(mask_logits, class_logits, size, *, letterbox=None, activation="softmax", truth=None, **options):
    """Runs both, and returns the GPU's result."""
    semantic = options.pop("predict_all_pixels", False)
    frame = np.zeros((*size, 3), np.uint8)
    graph = gpu.with_logits(
        mask_logits,
        class_logits,
        semantic=semantic,
        activation=activation,
        size=(8, 8) if letterbox is None else letterbox.input,
    )
    ours = gpu.detect(graph, frame, resize="stretch" if letterbox is None else "letterbox", **options)
    common = {**options, "predict_all_pixels": semantic, "class_activation": activation}
    gpu.same(ours, gpu.expected(mask_logits, class_logits, size, letterbox=letterbox, truth=truth, **common))
    return ours


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path, dtype):
    case = load(path)
    result = compare(
        case["mask_logits"].astype(dtype),
        case["class_logits"].astype(dtype),
        tuple(case["size"].tolist()),
        truth=truth_of(path),
        **settings_of(case),
    )
    by_query = np.argsort(result.query)
    np.testing.assert_array_equal(result.query[by_query], case["query"])
    np.testing.assert_array_equal(result.class_id[by_query], case["class_id"])
    np.testing.assert_allclose(result.confidence[by_query], case["confidence"], rtol=0, atol=1e-4)


@settings(max_examples=150)
@given(network=networks(), size=st.tuples(sides, sides), options=options_of)
def test_any_network(network, size, options):
    mask_logits, class_logits, activation = network
    compare(mask_logits, class_logits, size, activation=activation, **options)


@settings(max_examples=60)
@given(network=networks(), frame=st.tuples(sides, sides), target=st.tuples(sides, sides), options=options_of)
def test_any_letterbox(network, frame, target, options):
    mask_logits, class_logits, activation = network
    letterbox = fai_fast.Letterbox.fit(frame, target)
    compare(mask_logits, class_logits, frame, letterbox=letterbox, activation=activation, **options)


@settings(max_examples=12)
@given(
    network=networks(queries=st.sampled_from([254, 255, 256, 257, 300]), side=st.integers(1, 10)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    options=options_of,
)
def test_many_queries(network, size, options):
    mask_logits, class_logits, activation = network
    compare(mask_logits, class_logits, size, activation=activation, **options)


@pytest.mark.parametrize("queries", [255, 256, 257])
def test_labels_of_one_byte_and_of_two(queries):
    """From 256 queries on a label takes two bytes."""
    masks = np.full((queries, 6, 8), np.nan, np.float32)
    masks[-1], masks[-2] = -2.0, -3.0
    masks[-2, :, 4:] = 4.0
    classes = np.zeros((queries, 3), np.float32)
    classes[:, 1] = 3.0
    found = compare(masks, classes, (21, 33), predict_all_pixels=True, threshold=0.0)
    assert sorted(found.query) == [queries - 2, queries - 1]
    masks[:] = np.nan
    assert len(compare(masks, classes, (21, 33), predict_all_pixels=True, threshold=0.0)) == 0


@MODES
@pytest.mark.parametrize("use_mask_score", [False, True])
@pytest.mark.parametrize("mask_dtype", [np.float32, np.float16])
@pytest.mark.parametrize("class_dtype", [np.float32, np.float16])
def test_every_precision(semantic, use_mask_score, mask_dtype, class_dtype):
    mask_logits, class_logits = scenes.blobs(3, queries=12, grid=(20, 28), objects=6)
    options = {"use_mask_score": use_mask_score, "predict_all_pixels": semantic, "threshold": 0.3}
    found = compare(mask_logits.astype(mask_dtype), class_logits.astype(class_dtype), (61, 85), **options)
    assert len(found) > 2


@MODES
@pytest.mark.parametrize("size", [(1, 1), (1, 97), (130, 1), (33, 65), (5, 200), (64, 128), (3, 2)])
def test_any_size(semantic, size):
    mask_logits, class_logits = scenes.blobs(5, queries=8, grid=(18, 22), objects=4)
    compare(mask_logits, class_logits, size, predict_all_pixels=semantic, threshold=0.1)


@MODES
@pytest.mark.parametrize("grid", [(1, 1), (1, 70), (70, 1), (3, 33), (9, 8)])
def test_any_grid(semantic, grid):
    mask_logits, class_logits = scenes.noise(4, queries=5, grid=grid)
    compare(mask_logits, class_logits, (29, 41), predict_all_pixels=semantic, threshold=0.01)


@MODES
def test_a_camera_frame_of_objects(semantic):
    mask_logits, class_logits = scenes.blobs(7, queries=20, grid=(40, 40), objects=10, dtype=np.float16)
    found = compare(
        mask_logits,
        class_logits,
        (1080, 1920),
        predict_all_pixels=semantic,
        threshold=0.3,
        use_mask_score=True,
    )
    assert len(found) >= 5


@pytest.mark.parametrize("queries", [40, 41, 64, 300])
@pytest.mark.parametrize("use_mask_score", [False, True])
def test_more_contestants_than_are_kept_at_hand(queries, use_mask_score):
    """Every query is as good as every other, so that none can be left out of a tile."""
    rng = np.random.default_rng(8)
    masks = rng.normal(0, 0.2, (queries, 12, 10)).astype(np.float32)
    classes = np.zeros((queries, 3), np.float32)
    classes[:, 0] = 4 + rng.normal(0, 0.01, queries)
    options = {"predict_all_pixels": True, "threshold": 0.0, "use_mask_score": use_mask_score}
    found = compare(masks, classes, (50, 43), **options)
    assert len(found) > 30


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "values",
    [
        (-200.0, -90.0, -87.0, -86.0, -80.0),  # what the bounds know as nothing is still larger or smaller
        (-90.0, -20.0, 0.0, 16.0, 17.0, 90.0),
        (-np.inf, -75.0, 75.0, np.inf),
        (2.0, 2.0 + 2**-9, 2.0 + 2**-8),
    ],
)
def test_a_contest_of_extremes(values, dtype):
    """Who may compete is decided with bounds, by the hardware's approximations; who wins is not."""
    rng = np.random.default_rng(12)
    masks = rng.choice(np.array(values, dtype), (12, 21, 19))
    classes = rng.normal(0, 0.01, (12, 3)).astype(dtype)
    compare(masks, classes, (50, 43), predict_all_pixels=True, threshold=0.0, use_mask_score=False)


@pytest.mark.parametrize("value", [0.0, 9.0])
def test_ties_go_to_the_first_query(value):
    masks = np.full((50, 9, 9), value, np.float32)
    classes = np.zeros((50, 3), np.float32)
    found = compare(masks, classes, (20, 33), predict_all_pixels=True, threshold=0.0)
    assert found.query.tolist() == [0]
    assert found.mask.all()


@MODES
@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("mask_threshold", [0.5, 0.0, 1.0, -1.0])
def test_thresholds_at_the_ends(semantic, threshold, mask_threshold):
    mask_logits, class_logits = scenes.noise(9, queries=7, grid=(9, 11), classes=3)
    mask_logits[2] = np.inf
    mask_logits[3] = -np.inf
    options = {"threshold": threshold, "mask_threshold": mask_threshold, "predict_all_pixels": semantic}
    found = compare(mask_logits, class_logits, (23, 70), **options)
    if threshold >= 1 or (mask_threshold > 1 and not semantic):
        assert len(found) == 0


@MODES
def test_nan_takes_its_query_out_and_no_other(semantic):
    mask_logits, class_logits = scenes.blobs(10, queries=9, grid=(16, 17), objects=9)
    mask_logits[1, 7, 5] = np.nan
    mask_logits[4, 15, 16] = np.nan
    class_logits[6, 0] = np.nan
    class_logits[7, -1] = np.nan
    class_logits[8, 3] = np.inf
    found = compare(mask_logits, class_logits, (40, 50), predict_all_pixels=semantic, threshold=0.0)
    assert set(found.query) <= {0, 2, 3, 5}
    assert len(found) > 1


@MODES
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nothing_but_nan(semantic, dtype):
    masks, classes = np.full((5, 6, 7), np.nan, dtype), np.full((5, 4), np.nan, dtype)
    found = compare(masks, classes, (19, 23), predict_all_pixels=semantic, threshold=-1.0)
    assert len(found) == 0
    assert found.mask.shape == (0, 19, 23)
    if semantic:
        assert (found.label_map == -1).all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_class_logits_without_a_finite_value(activation):
    masks = np.full((4, 6, 7), 3.0, np.float32)
    classes = np.full((4, 5), -np.inf, np.float32)
    classes[1, 2] = np.inf
    classes[2, 4] = 80000.0
    classes[3] = 1.0
    compare(masks, classes, (19, 23), activation=activation, threshold=-1.0)


def test_masks_that_overflow_the_first_payload():
    """Room for 1 MiB of masks is there before the first frame; these need more, the next frames too."""
    queries, size = 40, (400, 600)
    masks = np.full((queries, 8, 8), 5.0, np.float32)
    classes = np.zeros((queries, 3), np.float32)
    classes[:, 0] = np.linspace(2, 4, queries)
    assert queries * size[0] * -(-size[1] // 64) * 8 > 1 << 20
    graph = gpu.with_logits(masks, classes)
    frame = np.zeros((*size, 3), np.uint8)
    expected = gpu.expected(masks, classes, size)
    for _ in range(3):
        found = gpu.detect(graph, frame)
        assert found.mask.all()
        gpu.same(found, expected)


@MODES
def test_a_batch_with_fewer_frames_than_images(semantic):
    pairs = [scenes.blobs(seed, queries=8, grid=(14, 15), objects=5) for seed in range(3)]
    masks, classes = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    graph = gpu.with_logits(masks, classes, semantic=semantic, size=(16, 16))
    shapes = [(30, 40), (17, 70), (64, 5)]
    for count in (3, 1, 2, 3):
        frames = [np.zeros((*shape, 3), np.uint8) for shape in shapes[:count]]
        gpu.submit(graph, [gpu.item(frame) for frame in frames], threshold=0.2, use_mask_score=True)
        found = gpu.take(graph)
        assert len(found) == count
        for index, ours in enumerate(found):
            options = {"threshold": 0.2, "use_mask_score": True, "predict_all_pixels": semantic}
            gpu.same(ours, gpu.expected(masks[index], classes[index], shapes[index], **options))


def test_the_best_rows_are_kept():
    mask_logits, class_logits = scenes.blobs(11, queries=20, grid=(12, 12), objects=20)
    graph = gpu.with_logits(mask_logits, class_logits)
    frame = np.zeros((24, 24, 3), np.uint8)
    everything = gpu.detect(graph, frame, threshold=0.1)
    gpu.same(everything, gpu.expected(mask_logits, class_logits, (24, 24), threshold=0.1))
    assert len(everything) > 5
    for top in (0, 1, 4, len(everything)):
        gpu.submit(graph, [gpu.item(frame)], threshold=0.1)
        [found] = gpu.take(graph, top_k=top)
        same_bits(found, everything[:top])
