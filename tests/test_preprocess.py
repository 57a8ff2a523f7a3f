"""preprocess and Letterbox against the float64 reference."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import torch
from helpers import scenes
from helpers.frames import MEAN, PACKED, PLANAR, STD, frame
from helpers.guard import run_to_done
from hypothesis import given, settings
from PIL import Image

STEP = 1e-3  # of an 8-bit step, before normalizing


def assert_close(tensor, expected, mean, std):
    """Equal to STEP of an 8-bit step, plus what the output's own dtype rounds away."""
    assert tensor.shape == expected.shape
    assert tensor.flags.c_contiguous
    mean, std = (np.broadcast_to(np.asarray(value, float), 3)[:, None, None] for value in (mean, std))
    digits = 2.0**-11 if tensor.dtype == np.float16 else 2.0**-22
    largest = np.abs(expected) + np.abs(mean / std) + 255 / np.abs(std)
    if tensor.dtype == np.float16:
        largest = np.abs(expected)
    allowed = STEP / np.abs(std) + digits * largest + 2.0**-24
    error = np.abs(tensor.astype(np.float64) - expected)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), f"{tensor[worst]} for {expected[worst]} at {worst}"


def check(image, size, *, mean=MEAN, std=STD, color="rgb", dtype="float32", **yuv):
    tensor = fai_fast.preprocess(image, size, mean=mean, std=std, color=color, dtype=dtype, **yuv)
    expected = reference.preprocess(
        image, size, mean, std, color, yuv.get("yuv_matrix", "bt601"), yuv.get("yuv_range", "limited")
    )
    assert tensor.dtype == dtype
    assert_close(tensor, expected, mean, std)
    return tensor


# ------------------------------------------------------------------------------------------- properties

sides = st.integers(1, 70) | st.sampled_from([1, 2, 127, 128, 129, 300])


@st.composite
def frames(draw):
    color = draw(st.sampled_from(PACKED + PLANAR))
    height, width = draw(sides), draw(sides)
    planes = color in PLANAR and draw(st.booleans())
    if color in PLANAR and not planes:
        height, width = height + height % 2, width + width % 2
    elif color in ("yuyv", "uyvy"):
        width += width % 2
    return color, frame(draw(st.integers(0, 2**16)), color, height, width, planes)


@settings(max_examples=500)
@given(
    frame=frames(),
    size=st.tuples(sides, sides),
    matrix=st.sampled_from(["bt601", "bt709"]),
    yuv_range=st.sampled_from(["limited", "full"]),
    dtype=st.sampled_from(["float32", "float16"]),
    normalize=st.sampled_from([(MEAN, STD), (0.0, 1.0), (127.5, 127.5), ((1, 2, 3), 255), (0, (0.5, 2, -3))]),
)
def test_equals_reference(frame, size, matrix, yuv_range, dtype, normalize):
    color, image = frame
    mean, std = normalize
    check(image, size, mean=mean, std=std, color=color, dtype=dtype, yuv_matrix=matrix, yuv_range=yuv_range)


@settings(max_examples=200)
@given(frame=frames(), target=st.tuples(sides, sides), dtype=st.sampled_from(["float32", "float16"]))
def test_letterbox_equals_reference(frame, target, dtype):
    color, image = frame
    tensor, letterbox = fai_fast.preprocess(
        image, target, mean=MEAN, std=STD, color=color, resize="letterbox", dtype=dtype
    )
    height, width = reference.to_rgb(image, color).shape[:2]
    assert letterbox.frame == (height, width)
    assert letterbox.input == target
    assert (letterbox.content, letterbox.offset) in reference.fits((height, width), target)
    geometry = (letterbox.content, letterbox.offset)
    expected = reference.preprocess(image, target, MEAN, STD, color, content=geometry)
    assert_close(tensor, expected, MEAN, STD)
    padding = np.ones(target, bool)
    (content_h, content_w), (top, left) = geometry
    padding[top : top + content_h, left : left + content_w] = False
    assert (tensor[0][:, padding] == 0).all()


@settings(max_examples=200)
@given(
    frame=frames(),
    target=st.tuples(sides, sides),
    dtype=st.sampled_from(["float32", "float16"]),
    normalize=st.sampled_from([(MEAN, STD), (0.0, 1.0), ((1, 2, 3), 255), (0, (0.5, 2, -3))]),
)
def test_pad_equals_reference(frame, target, dtype, normalize):
    color, image = frame
    mean, std = normalize
    tensor, letterbox = fai_fast.preprocess(
        image, target, mean=mean, std=std, color=color, resize="pad", dtype=dtype
    )
    size = reference.to_rgb(image, color).shape[:2]
    geometry = reference.pad(size, target)
    assert letterbox == fai_fast.Letterbox(size, target, *geometry)
    assert letterbox == fai_fast.Letterbox.fit(size, target, "pad")
    expected = reference.preprocess(image, target, mean, std, color, content=geometry, black=True)
    assert_close(tensor, expected, mean, std)
    beside = np.ones(target, bool)
    beside[: geometry[0][0], : geometry[0][1]] = False
    means, stds = (np.broadcast_to(np.asarray(value, np.float32), 3) for value in (mean, std))
    # As a black pixel's, to the last bit.
    black, _ = fai_fast.preprocess(
        np.zeros((1, 1, 3), np.uint8), (1, 1), mean=mean, std=std, resize="pad", dtype=dtype
    )
    assert (tensor[0][:, beside] == black[0, :, :, 0]).all()
    np.testing.assert_allclose(black[0, :, 0, 0], -means / stds, rtol=1e-3)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (512, 512), (97, 640), (1000, 31)])
def test_pad_is_resizing_and_padding_in_torch(shape):
    image = scenes.image(7, (*shape, 3))
    tensor, letterbox = fai_fast.preprocess(image, (256, 256), mean=MEAN, std=STD, resize="pad")
    height, width = letterbox.content
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), size=(height, width), mode="bilinear"
    )
    padded = torch.nn.functional.pad(resized, (0, 256 - width, 0, 256 - height))
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    assert_close(tensor, ((padded - mean) / std).double().numpy(), MEAN, STD)


@settings(max_examples=300)
@given(frame=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), side=st.integers(1, 1500))
def test_pad_has_the_sizes_of_transformers(frame, side):
    transforms = pytest.importorskip("transformers.image_transforms", reason="transformers is not installed")
    expected = transforms.get_size_with_aspect_ratio(frame, side, side)
    # Where they give a side that is larger than the input, or none at all, there is nothing to be equal to.
    expected = tuple(min(max(length, 1), side) for length in expected)
    letterbox = fai_fast.Letterbox.fit(frame, (side, side), "pad")
    assert (letterbox.content, letterbox.offset) == (expected, (0, 0))


@pytest.mark.parametrize("color", PACKED + PLANAR)
@pytest.mark.parametrize("size", [(640, 640), (97, 211), (1, 1)])
def test_camera_frame(color, size):
    check(frame(1, color, 270, 480), size, color=color)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1080, 1920), (640, 640)),
        ((33, 47), (66, 94)),
        ((64, 64), (32, 32)),
        ((64, 64), (64, 64)),
        ((50, 70), (123, 19)),
        ((1, 1), (8, 9)),
        ((2, 3), (1, 1)),
        ((1, 500), (7, 3)),
        ((37, 3001), (29, 777)),
    ],
)
def test_equals_torch(shape, size):
    image = scenes.image(3, (*shape, 3))
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
    result = fai_fast.preprocess(image, size, mean=0, std=1)
    np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=STEP)


def test_same_size_is_exact():
    image = scenes.image(4, (37, 53, 3))
    tensor = fai_fast.preprocess(image, (37, 53), mean=0, std=1)
    np.testing.assert_array_equal(tensor[0], image.transpose(2, 0, 1))


def test_a_flat_frame_stays_flat():
    image = np.empty((31, 45, 3), np.uint8)
    image[...] = (7, 130, 255)
    tensor = fai_fast.preprocess(image, (77, 19), mean=0, std=1)
    expected = np.broadcast_to(np.array([7, 130, 255])[:, None, None], (3, 77, 19))
    np.testing.assert_allclose(tensor[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("color", "matrix", "yuv_range", "sample", "rgb"),
    [
        # Published corner values: black, white, and the primaries to a rounding step.
        ("yuyv", "bt601", "limited", (16, 128, 128), (0, 0, 0)),
        ("yuyv", "bt601", "limited", (235, 128, 128), (255, 255, 255)),
        ("yuyv", "bt601", "limited", (81, 90, 240), (255, 0, 0)),
        ("yuyv", "bt709", "limited", (63, 102, 240), (255, 0, 0)),
        ("yuyv", "bt601", "full", (76, 85, 255), (255, 0, 0)),
        ("yuyv", "bt601", "limited", (41, 240, 110), (0, 0, 255)),
        ("yuyv", "bt709", "limited", (173, 42, 26), (0, 255, 0)),
        ("yuyv", "bt601", "limited", (0, 0, 0), (0, 135, 0)),  # outside the range: clamped
    ],
)
def test_known_colors(color, matrix, yuv_range, sample, rgb):
    y, u, v = sample
    image = np.empty((2, 4, 2), np.uint8)
    image[..., 0] = y
    image[..., 1] = (u, v, u, v)
    tensor = fai_fast.preprocess(
        image, (2, 4), mean=0, std=1, color=color, yuv_matrix=matrix, yuv_range=yuv_range
    )
    np.testing.assert_allclose(tensor[0].reshape(3, -1).T, np.broadcast_to(rgb, (8, 3)), rtol=0, atol=1.6)


def test_defaults_are_bt601_limited_rgb_float32():
    image = frame(1, "nv12", 8, 8)
    explicit = fai_fast.preprocess(
        image, (5, 5), mean=0, std=1, color="nv12", yuv_matrix="bt601", yuv_range="limited", dtype="float32"
    )
    np.testing.assert_array_equal(fai_fast.preprocess(image, (5, 5), mean=0, std=1, color="nv12"), explicit)
    assert explicit.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.dtype("float16"), "float16"])
def test_ways_to_say_float16(dtype):
    image = scenes.image(1, (9, 9, 3))
    assert fai_fast.preprocess(image, (4, 4), mean=0, std=1, dtype=dtype).dtype == np.float16


def test_mean_and_std_as_arrays():
    image = scenes.image(1, (9, 9, 3))
    expected = fai_fast.preprocess(image, (4, 4), mean=MEAN, std=STD)
    for kind in (list, np.array, lambda values: np.array(values, np.float32)):
        np.testing.assert_allclose(
            fai_fast.preprocess(image, (4, 4), mean=kind(MEAN), std=kind(STD)), expected, rtol=1e-6, atol=1e-6
        )


def test_gray_of_two_dimensions():
    image = scenes.image(1, (13, 17))
    np.testing.assert_array_equal(
        fai_fast.preprocess(image, (8, 8), mean=0, std=1, color="gray"),
        fai_fast.preprocess(image[..., None], (8, 8), mean=0, std=1, color="gray"),
    )


# ---------------------------------------------------------------------------------------- memory layouts


def embed(how, shape, fill):
    """A writable view of `shape` inside a larger buffer of bytes `fill`."""
    height, width, channels = shape

    def buffer(*shape):
        return np.full(shape, fill, np.uint8)

    if how == "padded pitch":
        return buffer(height, width + 7, channels)[:, 3 : 3 + width]
    if how == "rows reversed":
        return buffer(height + 2, width, channels)[1:-1][::-1]
    if how == "columns reversed":
        return buffer(height, width + 2, channels)[:, 1:-1][:, ::-1]
    if how == "channels reversed":
        return buffer(height, width, channels + 1)[..., :-1][..., ::-1]
    if how == "all reversed":
        return buffer(height + 1, width + 1, channels)[1:, 1:][::-1, ::-1, ::-1]
    if how == "planar":
        return buffer(channels, height + 1, width + 5)[:, :-1, 2:-3].transpose(1, 2, 0)
    if how == "rotated":
        return buffer(width + 1, height + 1, channels)[:-1, 1:].transpose(1, 0, 2)
    if how == "fortran":
        return buffer(channels + 1, width, height)[:-1].T
    if how == "every second column":
        return buffer(height, width * 2, channels)[:, ::2]
    if how == "every third row":
        return buffer(height * 3, width, channels)[::3]
    if how == "first channels of more":
        return buffer(height, width, channels + 1)[..., :channels]
    if how == "last channels of more":
        return buffer(height, width, channels + 2)[..., 2:]
    assert how == "every second channel"
    return buffer(height, width, channels * 2)[..., ::2]


LAYOUTS = [
    "padded pitch",
    "rows reversed",
    "columns reversed",
    "channels reversed",
    "all reversed",
    "planar",
    "rotated",
    "fortran",
    "every second column",
    "every third row",
    "first channels of more",
    "last channels of more",
    "every second channel",
]


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("color", PACKED)
def test_any_layout(how, color):
    """Bit for bit what the contiguous frame gives, and nothing from the bytes around it."""
    for height, width, size in ((37, 46, (23, 29)), (5, 6, (33, 40)), (16, 16, (16, 16)), (2, 2, (1, 1))):
        image = frame(5, color, height, width)
        expected = check(image, size, color=color)
        for fill in (0, 255):
            view = embed(how, image.shape, fill)
            view[...] = image
            result = fai_fast.preprocess(view, size, mean=MEAN, std=STD, color=color)
            assert result.tobytes() == expected.tobytes()


@pytest.mark.parametrize("how", [name for name in LAYOUTS if "channel" not in name])
@pytest.mark.parametrize("color", PLANAR)
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("yuv_range", ["limited", "full"])
def test_any_layout_of_planes(how, color, matrix, yuv_range):
    options = {"color": color, "yuv_matrix": matrix, "yuv_range": yuv_range}
    for height, width, size in ((38, 46, (23, 29)), (6, 4, (33, 40))):
        whole = frame(6, color, height, width)
        expected = check(whole, size, **options)
        for fill in (0, 255):
            view = embed(how, (*whole.shape, 1), fill)[..., 0]
            view[...] = whole
            result = fai_fast.preprocess(view, size, mean=MEAN, std=STD, **options)
            assert result.tobytes() == expected.tobytes()
    for height, width, size in ((37, 45, (23, 29)), (1, 1, (5, 4)), (3, 2, (2, 3))):
        planes = frame(6, color, height, width, planes=True)
        expected = check(planes, size, **options)
        for fill in (0, 255):
            views = []
            for plane in planes:
                solid = plane.reshape(*plane.shape[:2], -1)
                view = embed(how, solid.shape, fill)
                view[...] = solid
                views.append(view if plane.ndim == 3 else view[..., 0])
            result = fai_fast.preprocess(tuple(views), size, mean=MEAN, std=STD, **options)
            assert result.tobytes() == expected.tobytes()


def test_whole_array_and_its_planes_agree():
    whole = frame(7, "i420", 12, 16)
    flat = whole[12:].reshape(2, 6, 8)
    np.testing.assert_array_equal(
        fai_fast.preprocess(whole, (7, 9), mean=0, std=1, color="i420"),
        fai_fast.preprocess((whole[:12], flat[0], flat[1]), (7, 9), mean=0, std=1, color="i420"),
    )


def test_i420_with_an_odd_number_of_chroma_rows():
    """Height 6: the last row of U and the first of V share a row of the array."""
    for fill in (0, 255):
        view = embed("padded pitch", (9, 8, 1), fill)[..., 0]
        view[...] = frame(8, "i420", 6, 8)
        check(view, (6, 8), color="i420")


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_zero_strides(axes):
    image = scenes.image(9, [1 if axis in axes else side for axis, side in enumerate((21, 34, 3))])
    image = np.broadcast_to(image, (21, 34, 3))
    check(image, (30, 20))


def test_enormous_view_of_few_bytes():
    image = np.broadcast_to(np.uint8(9), (32767, 8192, 3))
    tensor = fai_fast.preprocess(image, (3, 4), mean=0, std=1)
    assert (tensor == 9).all()


def test_read_only():
    image = scenes.image(1, (9, 9, 3))
    image.flags.writeable = False
    check(image, (4, 4))


def test_reads_nothing_outside_the_frame():
    """Frames that end, or begin, at a page that may not be touched."""
    script = """
        import fai_fast, numpy as np
        from helpers.guard import guarded
        from helpers.frames import PACKED, PLANAR, frame
        for color in PACKED + PLANAR:
            for height, width in ((2, 2), (16, 16), (6, 34), (64, 50), (4, 1022)):
                for planes in (False, True)[: 1 + (color in PLANAR)]:
                    image = frame(1, color, height, width, planes)
                    for size in ((1, 1), (height, width), (height * 2, width * 2), (11, 13), (3, 500)):
                        results = [fai_fast.preprocess(image, size, mean=0, std=1, color=color)]
                        for side in ("start", "end"):
                            copy = tuple(guarded(p, side) for p in image) if planes else guarded(image, side)
                            results.append(fai_fast.preprocess(copy, size, mean=0, std=1, color=color))
                            # Writing must stay inside, too.
                            out = guarded(np.zeros((3, *size), np.float32), side)
                            fai_fast.preprocess(image, size, mean=0, std=1, color=color, out=out)
                            results.append(out[None])
                        assert len({result.tobytes() for result in results}) == 1
        print("done")
    """
    run_to_done(script)


# ------------------------------------------------------------------------------------------------- out=


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("lead", [(), (1,)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox", "pad"])
def test_out_is_filled_and_returned(dtype, lead, resize):
    image = scenes.image(2, (20, 47, 3))
    options = {"mean": MEAN, "std": STD, "resize": resize, "dtype": dtype}
    expected = fai_fast.preprocess(image, (33, 31), **options)
    out = np.full((*lead, 3, 33, 31), np.nan, dtype)
    result = fai_fast.preprocess(image, (33, 31), out=out, **options)
    if resize != "stretch":
        assert result[1] == expected[1]
        result, expected = result[0], expected[0]
    assert result is out
    assert out.reshape(expected.shape).tobytes() == expected.tobytes()


def test_out_decides_the_dtype_when_none_is_given():
    image = scenes.image(2, (20, 47, 3))
    out = np.empty((1, 3, 8, 8), np.float16)
    assert fai_fast.preprocess(image, (8, 8), mean=0, std=1, dtype=None, out=out) is out
    assert out.tobytes() == fai_fast.preprocess(image, (8, 8), mean=0, std=1, dtype="float16").tobytes()


@pytest.mark.parametrize("color", ["rgb", "nv12"])
def test_out_allocates_nothing(color):
    image = frame(1, color, 270, 480)
    out = np.empty((1, 3, 320, 320), np.float32)
    options = {"mean": MEAN, "std": STD, "color": color, "out": out}
    fai_fast.preprocess(image, (320, 320), **options)
    tracemalloc.start()
    try:
        fai_fast.preprocess(image, (320, 320), **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The smallest array of interest is one row of the output, 1280 bytes; a copy of frame or output is 10**5.
    assert peak < 10_000


# ------------------------------------------------------------------------------------------------- no out=


def fresh(seed=0, size=(96, 128), **options):
    """A tensor of more than 64 KiB, whose memory is lent, and what must be in it."""
    image = scenes.image(seed, (40, 60, 3))
    options = {"mean": MEAN, "std": STD, **options}
    tensor = fai_fast.preprocess(image, size, **options)
    expected = np.empty_like(tensor)
    fai_fast.preprocess(image, size, out=expected, **options)
    return tensor, expected


def test_memory_that_was_let_go_serves_the_next_call():
    first, _ = fresh(1)
    address = first.ctypes.data
    second, _ = fresh(2)
    assert second.ctypes.data != address
    del first
    third, expected = fresh(3)
    assert third.ctypes.data == address
    np.testing.assert_array_equal(third, expected)


@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor[0, 1],
        lambda tensor: tensor.reshape(-1)[::7],
        memoryview,
        torch.from_numpy,
        torch.from_dlpack,
    ],
    ids=["item", "view", "memoryview", "torch", "dlpack"],
)
def test_memory_that_somebody_still_looks_at_is_not_lent(keep):
    tensor, _ = fresh(1)
    kept = keep(tensor)
    # NumPy asks torch's tensors in a way that they warn of.
    seen = kept.numpy() if isinstance(kept, torch.Tensor) else kept
    before = np.array(seen)
    del tensor
    for seed in range(2, 6):
        fresh(seed)
    np.testing.assert_array_equal(np.array(seen), before)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_comes_is_an_ordinary_array(dtype):
    tensor, expected = fresh(dtype=dtype)
    assert type(tensor) is np.ndarray
    assert tensor.flags.c_contiguous
    assert tensor.flags.aligned
    assert tensor.flags.writeable
    np.testing.assert_array_equal(tensor, expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tensor)), expected)
    np.testing.assert_array_equal(np.resize(tensor, (2, *tensor.shape))[1], expected)
    with pytest.raises(ValueError, match="own"):
        tensor.resize((2, *tensor.shape))
    tensor *= 2
    np.testing.assert_array_equal(tensor, expected * 2)


@pytest.mark.skipif(
    bool(fai_fast.build_info()["sanitizers"]) or not Path("/proc/self/statm").exists(),
    reason="needs /proc, and no sanitizer, which gives memory back late",
)
def test_one_block_is_kept_and_a_huge_one_is_not():
    """By the memory of a process of its own."""
    script = """
    import resource
    import numpy as np, fai_fast
    image = np.zeros((8, 8, 3), np.uint8)
    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() >> 20
    def tensors(side, count):
        return [fai_fast.preprocess(image, (side, side), mean=0, std=1) for _ in range(count)]
    tensors(1900, 1)  # of 41 MiB; what a call needs besides
    before = resident()
    many = tensors(1900, 4)
    held = resident() - before
    del many
    after_many = resident() - before
    many = tensors(2600, 1)  # of 77 MiB
    del many
    print(held, after_many, resident() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    held, after_many, after_huge = map(int, done.stdout.split())
    assert held > 110
    # The block that was kept before counts for nothing.
    assert after_many < 20
    assert after_huge < 20


def test_an_array_outlives_the_module():
    script = """
    import atexit, sys
    import numpy as np, fai_fast
    image = np.full((8, 8, 3), 7, np.uint8)
    tensors = [fai_fast.preprocess(image, (200, 200), mean=0, std=1) for _ in range(3)]
    sys.kept = tensors.pop()  # until the interpreter clears its own modules
    atexit.register(lambda: print(sys.kept.sum() / sys.kept.size))
    for name in [name for name in sys.modules if name.startswith("fai_fast")]:
        del sys.modules[name]
    del fai_fast
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "7.0\n")


def test_out_inside_a_batch():
    images = [scenes.image(i, (30, 40, 3)) for i in range(3)]
    batch = np.full((3, 3, 16, 24), np.nan, np.float32)
    for image, slot in zip(images, batch, strict=True):
        fai_fast.preprocess(image, (16, 24), mean=MEAN, std=STD, out=slot)
    for image, slot in zip(images, batch, strict=True):
        assert fai_fast.preprocess(image, (16, 24), mean=MEAN, std=STD)[0].tobytes() == slot.tobytes()


# -------------------------------------------------------------------------------------------- letterbox


@pytest.mark.parametrize(
    ("frame_size", "target", "content", "offset"),
    [
        ((1080, 1920), (640, 640), (360, 640), (140, 0)),
        ((1920, 1080), (640, 640), (640, 360), (0, 140)),
        ((480, 640), (640, 640), (480, 640), (80, 0)),
        ((100, 100), (33, 50), (33, 33), (0, 8)),
        ((7, 7), (7, 7), (7, 7), (0, 0)),
        ((1, 1000), (10, 10), (1, 10), (4, 0)),
        ((3, 4), (300, 401), (300, 400), (0, 0)),
    ],
)
def test_letterbox_geometry(frame_size, target, content, offset):
    letterbox = fai_fast.Letterbox.fit(frame_size, target)
    assert letterbox == fai_fast.Letterbox(frame=frame_size, input=target, content=content, offset=offset)


@settings(max_examples=300)
@given(
    frame=st.tuples(st.integers(1, 32767), st.integers(1, 8000)),
    target=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
)
def test_letterbox_fits(frame, target):
    letterbox = fai_fast.Letterbox.fit(frame, target)
    assert (letterbox.content, letterbox.offset) in reference.fits(frame, target)
    for axis in (0, 1):
        assert letterbox.offset[axis] >= 0
        assert letterbox.offset[axis] + letterbox.content[axis] <= target[axis]


@settings(max_examples=200)
@given(
    frame=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    target=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_letterbox_maps_boxes(frame, target, corners):
    letterbox = fai_fast.Letterbox.fit(frame, target)
    (height, width), (top, left), content = frame, letterbox.offset, letterbox.content
    x = np.sort(corners[:2]) * width
    y = np.sort(corners[2:]) * height
    box = np.array([[x[0], y[0], x[1], y[1]], [0, 0, width, height]], np.float32)
    there = letterbox.to_input(box)
    expected = box * np.tile([content[1] / width, content[0] / height], 2) + np.tile([left, top], 2)
    np.testing.assert_allclose(there, expected, rtol=1e-5, atol=1e-3)
    # Coordinates in the input are good to 1e-3 of its pixels: so many of the frame's.
    scale = max(1, width / content[1], height / content[0])
    np.testing.assert_allclose(letterbox.to_frame(there), box, rtol=1e-5, atol=1e-3 * scale)


def test_letterbox_is_frozen():
    letterbox = fai_fast.Letterbox.fit((10, 20), (30, 40))
    with pytest.raises(AttributeError):
        letterbox.frame = (1, 1)
    assert hash(letterbox) == hash(fai_fast.Letterbox.fit((10, 20), (30, 40)))


# --------------------------------------------------------------------------------- where frames come from


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pil(mode):
    shape = {"RGB": (21, 30, 3), "RGBA": (21, 30, 4), "L": (21, 30)}[mode]
    array = scenes.image(1, shape)
    picture = Image.fromarray(array)
    assert picture.mode == mode
    result = fai_fast.preprocess(picture, (11, 17), mean=MEAN, std=STD)
    color = {"RGB": "rgb", "RGBA": "rgba", "L": "gray"}[mode]
    assert_close(result, reference.preprocess(array, (11, 17), MEAN, STD, color), MEAN, STD)


@pytest.mark.parametrize(
    "mode", ["P", "CMYK", "1", "LA", "PA", "I;16", "I", "F", "YCbCr", "LAB", "HSV", "RGBX", "La", "RGBa"]
)
def test_pil_of_other_modes_is_right_or_refused(mode):
    if mode == "I;16":
        picture = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    else:
        source = Image.fromarray(scenes.image(1, (20, 30, 3)))
        steps = {"La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"], "PA": ["LA", "PA"]}.get(mode, [mode])
        picture = source
        for step in steps:
            picture = picture.convert(step) if step != "LAB" else Image.new("LAB", (30, 20), (90, 20, 30))
    assert picture.mode == mode
    refusal = None
    try:
        result = fai_fast.preprocess(picture, (11, 17), mean=MEAN, std=STD)
    except (TypeError, ValueError) as error:
        refusal = str(error)
    if refusal is not None:
        assert "image" in refusal
        assert repr(mode) in refusal
    else:
        rgb = np.asarray(picture.convert("RGB"))
        assert_close(result, reference.preprocess(rgb, (11, 17), MEAN, STD), MEAN, STD)


def test_pil_decides_the_color():
    with pytest.raises((TypeError, ValueError), match="color"):
        fai_fast.preprocess(Image.new("RGB", (4, 4)), (2, 2), mean=0, std=1, color="bgr")


def test_torch_tensors():
    image = scenes.image(1, (21, 30, 3))
    expected = check(image, (11, 17))
    tensor = torch.from_numpy(image)
    planar = tensor.permute(2, 0, 1).contiguous()
    wide = torch.zeros((42, 61, 3), dtype=torch.uint8)
    wide[::2, 1::2] = tensor
    for variant in (tensor, planar.permute(1, 2, 0), wide[::2, 1::2]):
        result = fai_fast.preprocess(variant, (11, 17), mean=MEAN, std=STD)
        assert result.tobytes() == expected.tobytes()


class OnlyArrayInterface:
    def __init__(self, array):
        self._array = array

    @property
    def __array_interface__(self):
        return self._array.__array_interface__


class OnlyDLPack:
    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


@pytest.mark.parametrize("view", [np.s_[:], np.s_[::-1], np.s_[:, ::-2], np.s_[1:, 2:-3]])
@pytest.mark.parametrize(
    "wrap",
    [OnlyArrayInterface, OnlyDLPack, memoryview, lambda array: OnlyDLPack(torch.from_numpy(array.copy()))],
    ids=["__array_interface__", "dlpack of numpy", "memoryview", "dlpack of torch"],
)
def test_protocols(wrap, view):
    image = scenes.image(1, (21, 30, 3))[view]
    expected = check(image, (11, 17))
    result = fai_fast.preprocess(wrap(image), (11, 17), mean=MEAN, std=STD)
    assert result.tobytes() == expected.tobytes()


def test_buffers():
    image = scenes.image(1, (21, 30, 3))
    expected = check(image, (11, 17))
    for owner in (bytearray, bytes):
        view = memoryview(owner(image.tobytes())).cast("B", shape=image.shape)
        assert fai_fast.preprocess(view, (11, 17), mean=MEAN, std=STD).tobytes() == expected.tobytes()


def test_planes_of_several_kinds():
    y, u, v = frame(3, "i420", 9, 11, planes=True)
    expected = check((y, u, v), (5, 7), color="i420")
    mixed = (torch.from_numpy(y), OnlyArrayInterface(u), memoryview(v))
    result = fai_fast.preprocess(mixed, (5, 7), mean=MEAN, std=STD, color="i420")
    assert result.tobytes() == expected.tobytes()


def test_the_frame_is_left_alone():
    image = scenes.image(1, (21, 30, 3))
    copy = image.copy()
    fai_fast.preprocess(image, (640, 640), mean=MEAN, std=STD)
    np.testing.assert_array_equal(image, copy)
