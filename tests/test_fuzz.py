"""Malformed calls: each works or raises TypeError, ValueError or BufferError that names an argument."""

from __future__ import annotations

import re

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers import scenes
from hypothesis import HealthCheck, assume, given, settings
from PIL import Image

ALLOWED = (TypeError, ValueError, BufferError)


class Lying:
    """Claims a protocol and answers it with whatever it was given."""

    def __init__(self, **answers):
        for name, answer in answers.items():
            setattr(self, name, answer)

    def __repr__(self):
        return "Lying()"


class Raises:
    """Every protocol raises."""

    def __init__(self, error):
        self._error = error

    @property
    def __array_interface__(self):
        raise self._error

    def __array__(self, *args, **kwargs):
        raise self._error

    def __dlpack__(self, **kwargs):
        raise self._error

    def __dlpack_device__(self):
        raise self._error

    def __len__(self):
        raise self._error

    def __index__(self):
        raise self._error

    def __float__(self):
        raise self._error

    def __iter__(self):
        raise self._error

    def __repr__(self):
        return "Raises()"


def interface(**changes):
    """A valid __array_interface__ with some entries replaced; the memory it points to is real."""
    array = np.zeros((4, 4, 3), np.uint8)
    entries = {**array.__array_interface__, **changes}
    entries = {name: value for name, value in entries.items() if value is not ...}
    return Lying(__array_interface__=entries, keep=array)


def dlpack(capsule, device=(1, 0)):
    class Tensor:
        def __dlpack__(self, **options):
            return capsule

        def __dlpack_device__(self):
            return device

    return Tensor()


def misaligned(dtype, shape):
    count = int(np.prod(shape))
    return np.zeros(count * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype).reshape(shape)


def read_only(array):
    array.flags.writeable = False
    return array


DTYPES = [
    "u1",
    "i1",
    "u2",
    "i4",
    "i8",
    "u8",
    "f2",
    "f4",
    "f8",
    ">f4",
    ">f2",
    ">u2",
    "c8",
    "c16",
    "?",
    "O",
    "S3",
    "U2",
    "M8[s]",
    "m8[ns]",
    [("a", "u1"), ("b", "f4")],
    [("r", "u1")],
    "V3",
    "g",
]
SHAPES = [
    (),
    (0,),
    (1,),
    (3,),
    (0, 0, 3),
    (0, 4, 3),
    (4, 0, 3),
    (4, 4, 0),
    (4, 4),
    (6, 4),
    (5, 3),
    (4, 4, 1),
    (4, 4, 2),
    (4, 4, 3),
    (4, 4, 4),
    (4, 4, 5),
    (1, 4, 4, 3),
    (2, 4, 4, 3),
    (1, 1, 4, 4, 3),
    (1, 1, 1, 4, 4, 3),
    (0, 0, 0, 0, 0, 0),
    (1, 3, 8, 8),
    (3, 8, 8),
    (5, 4),
    (5, 0),
    (5, 1),
    (2, 5, 4, 4),
]
# Views of one element: as large as an address space, as small as a byte.
ENORMOUS = [
    (40000, 40000, 3),
    (2**20, 2**20, 3),
    (2**31, 1, 3),
    (1, 2**31, 3),
    (2**33, 4, 4),
    (2**62, 1),
    (1, 2**62),
    (4, 4, 2**40),
    (2**20, 2**20, 2**20),
    (32768, 1, 3),
    (1, 32768, 3),
    (3 * 2**30, 2),
    (1, 2**40, 4, 4),
    (2**40, 5, 4, 4),
    (2**17, 4, 4),
    (2**24, 1, 1),
    (2**17, 4),
    (2**24, 2),
    (5, 2**40),
    (0, 2**40),
]


@st.composite
def arrays(draw):
    """Arrays of every dtype, shape and layout, few of which any argument wants."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    kind = draw(
        st.sampled_from(["plain"] * 4 + ["enormous", "random shape", "misaligned", "strided", "overlapping"])
    )
    if kind == "enormous":
        shape = draw(st.sampled_from(ENORMOUS))
        assume(np.prod([float(side) for side in shape]) * dtype.itemsize < 2**63)  # NumPy's own limit
        return np.broadcast_to(np.zeros((), dtype), shape)
    if kind == "random shape":
        shape = tuple(draw(st.lists(st.integers(0, 6), max_size=6)))
    else:
        shape = draw(st.sampled_from(SHAPES))
    if kind == "misaligned" and not dtype.hasobject:
        return misaligned(dtype, shape)
    array = np.zeros(shape, dtype)
    if kind == "strided":
        array = np.zeros([side * 2 for side in shape], dtype)[tuple(np.s_[::-2] for _ in shape)]
    elif kind == "overlapping" and array.size:
        array = np.lib.stride_tricks.as_strided(array, shape, [0] * len(shape))
    elif draw(st.integers(0, 5)) == 0:
        array.flags.writeable = False
    return array


NOT_ARRAYS = [
    None,
    "rgb",
    "",
    b"abc",
    b"",
    bytearray(12),
    0,
    -1,
    3.5,
    float("nan"),
    True,
    [],
    (),
    {},
    {1: 2},
    [[]],
    [[1, 2], [3]],
    [None],
    (None, None),
    object(),
    object,
    np,
    print,
    range(3),
    slice(3),
    Ellipsis,
    1j,
    np.uint8(3),
    np.float32(2),
    np.datetime64("2020-01-01"),
    memoryview(b""),
    memoryview(bytearray(48)).cast("B", shape=(4, 4, 3)),
    memoryview(np.zeros((4, 4, 3), ">f4")),
    (np.zeros((4, 4), np.uint8),) * 2,
    (np.zeros((4, 4), np.uint8), np.zeros((2, 2, 2), np.uint8)),
    (np.zeros((4, 4), np.uint8),) * 9,
    [np.zeros((4, 4), np.uint8), None, None],
    [np.zeros((4, 4, 3), np.uint8)],
    np.ma.masked_array(np.zeros((4, 4, 3), np.uint8), mask=True),
    torch.zeros(4, 4, 3),
    torch.zeros(4, 4, 3, dtype=torch.uint8),
    torch.zeros(5, 4, 4, dtype=torch.bfloat16),
    torch.zeros(5, 4, 4, requires_grad=True),
    torch.zeros(4, 4, 3, dtype=torch.complex64).conj(),
    torch.zeros(4, 4, 3, device="meta"),
    torch.zeros(4, 4, 3).to_sparse(),
    torch.zeros(0),
    Image.new("RGB", (4, 4)),
    Image.new("I;16", (4, 4)),
    Image.new("RGB", (0, 4)),
    Raises(TypeError("a TypeError of its own")),
    Raises(ValueError("a ValueError of its own")),
    Raises(BufferError("a BufferError of its own")),
    Raises(RuntimeError("a RuntimeError of its own")),
    Lying(__array_interface__=None),
    Lying(__array_interface__=3),
    Lying(__array_interface__={}),
    Lying(__array_interface__={"version": 3}),
    interface(),
    interface(data=None),
    interface(data=...),
    interface(data=3),
    interface(data=("x", False)),
    interface(data=(None, False)),
    interface(data=(0, False)),
    interface(shape=None),
    interface(shape=...),
    interface(shape=(4, "x", 3)),
    interface(shape=(-4, 4, 3)),
    interface(shape=(1,) * 70),
    interface(shape=(2**63, 1, 1)),
    interface(shape=()),
    interface(typestr=...),
    interface(typestr=7),
    interface(typestr="|u1x"),
    interface(typestr="nonsense"),
    interface(typestr="|O8"),
    interface(typestr=">f8"),
    interface(typestr=""),
    interface(strides=(1,)),
    interface(strides=("a", "b", "c")),
    interface(strides=3),
    interface(version="three"),
    interface(version=...),
    interface(descr=[("", ">f4")]),
    interface(mask=np.ones((4, 4, 3), bool)),
    Lying(__dlpack__=None),
    Lying(__dlpack__=3, __dlpack_device__=4),
    Lying(__dlpack__=lambda **options: None),
    dlpack(None),
    dlpack(3),
    dlpack("capsule"),
    dlpack(np.zeros(3).__dlpack__(), device=(2, 0)),
    dlpack(np.zeros((4, 4, 3), np.uint8).__dlpack__(), device=None),
    dlpack(np.zeros((4, 4, 3), np.uint8).__dlpack__(), device=(1,)),
    dlpack(np.zeros((4, 4, 3), np.uint8).__dlpack__(), device="cpu"),
    dlpack(np.zeros((4, 4, 3), np.uint8).__dlpack__(), device=("cpu", 0)),
    dlpack(np.zeros((4, 4, 3), np.uint8).__dlpack__(), device=(2**70, 0)),
    Lying(shape=(4, 4, 3), dtype=np.uint8, ndim=3),
    Lying(__array_struct__=3),
    Lying(__array_struct__=None),
]

SCALARS = [
    None,
    "",
    "0.5",
    b"1",
    0,
    1,
    -1,
    2,
    0.5,
    -0.0,
    1e-45,
    1e300,
    -1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**31,
    2**32,
    2**63,
    2**64,
    10**400,
    -(2**63),
    -(10**400),
    True,
    1j,
    [],
    [0.5],
    (0.5, 0.5),
    {},
    object(),
    np.float16(0.3),
    np.float64("nan"),
    np.int8(-3),
    np.array(0.5),
    np.array([0.5]),
    np.zeros(0),
    np.array(["x"]),
    np.datetime64("NaT"),
    Raises(TypeError("a TypeError of its own")),
    Raises(ValueError("a ValueError of its own")),
]
TRIPLES = [
    (1, 2, 3),
    [1.0, 2.0, 3.0],
    (1, 2),
    (1, 2, 3, 4),
    (1, None, 3),
    (1, "2", 3),
    (1, float("nan"), 3),
    (0, 0, 0),
    (1e-300, 1, 1),
    ((1, 2, 3),),
    [[1], [2], [3]],
    np.ones((3, 1)),
    np.ones(3, complex),
    np.array([1, 2, 3], object),
    np.array([None] * 3),
    "abc",
    {1, 2, 3},
    (10**400, 1, 1),
]
SIZES = [
    (8, 8),
    [8, 8],
    np.array([8, 8]),
    (8,),
    (8, 8, 8),
    (),
    8,
    (0, 8),
    (8, 0),
    (-8, 8),
    (8.0, 8.0),
    (8.5, 8),
    ("8", "8"),
    "88",
    "8",
    b"88",
    (None, 8),
    ((8, 8), (8, 8)),
    [(8, 8), (8, 8)],
    [(8, 8), None],
    (float("nan"), 8),
    (float("inf"), 8),
    (True, True),
    (32768, 1),
    (1, 32768),
    (32767, 32767),
    (2**31, 1),
    (2**32 + 8, 8),
    (2**63, 1),
    (2**64, 1),
    (10**400, 1),
    (1, -(2**63)),
    {8: 8, 9: 9},
    {8, 9},
    np.array([8, 8], np.uint64),
    np.array([8.0, 8.0]),
    np.array([[8, 8]]),
    np.array([8, 8], object),
    range(8, 10),
]
WORDS = [
    "RGB",
    "rgb ",
    "",
    "letterbox",
    "stretch",
    "pad",
    "softmax",
    "relu",
    "nv12",
    "float64",
    "uint8",
    "f4",
    "x" * 100_000,
    "\0",
    "\ud800",
    b"rgb",
    3,
    ["rgb"],
    np.float64,
    np.dtype("f4"),
    object,
    int,
]
COLOURS = ["rgb", "bgr", "rgba", "bgra", "gray", "nv12", "i420", "yuyv", "uyvy"]


def box(**changes):
    """A Letterbox, and what dataclasses let one build that no frame can have."""
    fields = {"frame": (8, 8), "input": (16, 16), "content": (16, 16), "offset": (0, 0)} | changes
    try:
        return fai_fast.Letterbox(**fields)
    except ALLOWED:
        return None


LETTERBOXES = [
    box(),
    box(content=(17, 16)),
    box(content=(0, 0)),
    box(content=(-1, 4)),
    box(offset=(-5, 0)),
    box(offset=(1, 0)),
    box(offset=(2**40, 0)),
    box(input=(0, 0)),
    box(input=(2**70, 3)),
    box(frame=(0, 0)),
    box(frame=(9, 9)),
    box(frame=None),
    box(content="ab"),
    box(content=(float("nan"), 1)),
    box(offset=(0.5, 0.5)),
    [box(), box()],
    [box()],
    [None, None],
    (16, 16),
    "letterbox",
    Lying(frame=(8, 8), input=(16, 16), content=(16, 16), offset=(0, 0)),
    object(),
]

# By index: some of them refuse to be hashed, which sampled_from does.
not_arrays = st.integers(0, len(NOT_ARRAYS) - 1).map(lambda i: NOT_ARRAYS[i])
things = st.one_of(arrays(), arrays(), not_arrays)
scalars = st.sampled_from(SCALARS) | st.floats() | st.integers()
words = st.sampled_from(WORDS) | st.sampled_from(SCALARS) | st.text(max_size=5)
sizes = (
    st.sampled_from(SIZES) | st.tuples(st.integers(-3, 40), st.integers(-3, 40)) | st.sampled_from(SCALARS)
)
threads = scalars | st.integers(-5, 300)
outs = st.sampled_from(
    [
        np.zeros((1, 3, 8, 8), np.float32),
        np.zeros((3, 8, 8), np.float16),
        np.zeros((3, 8, 8), np.float64),
        np.zeros((1, 3, 8, 8), ">f4"),
        np.zeros((1, 3, 8, 9), np.float32),
        np.zeros((1, 3, 8, 16), np.float32)[..., ::2],
        np.zeros((1, 3, 8, 8), np.float32)[:, ::-1],
        np.zeros((8, 8, 3), np.float32).transpose(2, 0, 1),
        np.broadcast_to(np.float32(0), (1, 3, 8, 8)),
        read_only(np.zeros((1, 3, 8, 8), np.float32)),
        misaligned(np.float32, (1, 3, 8, 8)),
        np.zeros((2, 3, 8, 8), np.float32),
        np.zeros((1, 1, 3, 8, 8), np.float32),
    ]
)


def valid(function):
    """Arguments of a call that works."""
    if function is fai_fast.preprocess:
        return {"image": scenes.image(0, (4, 4, 3)), "size": (8, 8), "mean": 0.0, "std": 1.0}
    mask_logits, class_logits = scenes.blobs(0, queries=5, grid=(4, 4), objects=3, classes=3)
    if function is fai_fast.postprocess:
        return {"mask_logits": mask_logits, "class_logits": class_logits, "size": (8, 8)}
    return {
        "mask_logits": np.stack([mask_logits] * 2),
        "class_logits": np.stack([class_logits] * 2),
        "size": (8, 8),
    }


PANOPTICS = [
    fai_fast.Panoptic(),
    fai_fast.Panoptic(stuff=(0, 2), overlap_threshold=0.0),
    fai_fast.Panoptic(stuff=(1,), weighted=False),
    fai_fast.Panoptic(stuff=(3,)),
    fai_fast.Panoptic(stuff=(2**31 - 1,)),
    fai_fast.Panoptic,
    {"stuff": [1]},
    [fai_fast.Panoptic()] * 2,
    "panoptic",
]
_POSTPROCESS = {
    "mask_logits": things,
    "class_logits": things,
    "size": sizes,
    "threshold": scalars,
    "mask_threshold": scalars,
    "use_mask_score": scalars,
    "predict_all_pixels": st.booleans() | scalars,
    "class_activation": st.sampled_from(["softmax", "sigmoid"]) | words,
    "class_names": st.sampled_from(
        [["a", "b", "c"], ["a"], "abc", [1, 2, 3], [None] * 3, ("a", "b", "c", "d"), {}]
    )
    | things,
    "letterbox": st.sampled_from(LETTERBOXES),
    "num_threads": threads,
    "panoptic": st.integers(0, len(PANOPTICS) - 1).map(lambda i: PANOPTICS[i]) | scalars,
    "combine": st.sampled_from(["contest", "sum"]) | words,
}
STRANGE = {
    fai_fast.preprocess: {
        "image": things,
        "size": sizes,
        "mean": st.sampled_from(TRIPLES) | scalars,
        "std": st.sampled_from(TRIPLES) | scalars,
        "color": st.sampled_from(COLOURS) | words,
        "resize": st.sampled_from(["stretch", "letterbox", "pad"]) | words,
        "dtype": st.sampled_from(["float16", "float32"]) | words,
        "out": outs | things,
        "yuv_matrix": st.sampled_from(["bt601", "bt709"]) | words,
        "yuv_range": st.sampled_from(["limited", "full"]) | words,
    },
    fai_fast.postprocess: _POSTPROCESS,
    fai_fast.postprocess_batch: _POSTPROCESS,
    fai_fast.Detections: {
        "xyxy": things,
        "confidence": things,
        "class_id": things,
        "size": sizes,
        "query": things,
        "class_names": _POSTPROCESS["class_names"],
        "tracker_id": things,
        "mask": things,
        "packed": things,
        "label_source": things,
        "is_thing": things,
    },
    fai_fast.Letterbox.fit: {"frame": sizes, "input": sizes},
}


def valid_detections():
    return {
        "xyxy": np.array([[0, 0, 3, 3], [1, 2, 4, 8]], np.float32),
        "confidence": np.array([0.9, 0.8], np.float32),
        "class_id": np.array([1, 0]),
        "size": (8, 8),
    }


def valid_arguments(function):
    if function is fai_fast.Detections:
        return valid_detections()
    if function == fai_fast.Letterbox.fit:
        return {"frame": (8, 8), "input": (16, 16)}
    return valid(function)


COUNTING = ("mask_logits", "class_logits", "xyxy")


def names_an_argument(text, names):
    return any(re.search(rf"\b{name}\b", text) for name in names)


@st.composite
def malformed(draw, function):
    """Keyword arguments of a call with one to three arguments replaced, and the names of these."""
    arguments = valid_arguments(function)
    strange = STRANGE[function]
    replaced = draw(st.lists(st.sampled_from(sorted(strange)), min_size=1, max_size=3, unique=True))
    for name in replaced:
        arguments[name] = draw(strange[name])
    if function is fai_fast.preprocess and draw(st.integers(0, 3)) == 0:
        arguments["color"] = draw(st.sampled_from(COLOURS))
        replaced = [*replaced, "color"]
    return arguments, replaced


def attempt(function, arguments, replaced):
    try:
        result = function(**arguments)
    except ALLOWED as error:
        # The complaint may be about an argument that was left alone but does not go with a replaced one: an
        # array that says how many rows there are makes the others wrong.
        names = STRANGE[function] if len(replaced) > 1 or replaced[0] in COUNTING else replaced
        assert names_an_argument(str(error), names), f"{type(error).__name__}: {error}"  # noqa: PT017
        return None
    return result


def exercise(result):
    """What came out must be usable, whatever went in."""
    for detections in result if isinstance(result, list) else [result]:
        if isinstance(detections, fai_fast.Detections):
            assert len(detections) == len(detections.query)
            assert detections.xyxy.shape == (len(detections), 4)
            repr(detections)


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


# What reads or writes where it may not is seen under the sanitizers, which .ci/run runs these with.
SHARE = 1 if fai_fast.build_info()["sanitizers"] else 3


def fuzz(function, examples):
    @settings(max_examples=examples // SHARE, suppress_health_check=list(HealthCheck))
    @given(call=malformed(function))
    def run(call):
        exercise(attempt(function, *call))

    run()


def test_valid_arguments_are_valid():
    """Else the fuzzing below would fuzz nothing."""
    for function in STRANGE:
        assert function(**valid_arguments(function)) is not None


def test_preprocess():
    fuzz(fai_fast.preprocess, 1000)


def test_postprocess():
    fuzz(fai_fast.postprocess, 800)


def test_postprocess_batch():
    fuzz(fai_fast.postprocess_batch, 400)


def test_detections():
    fuzz(fai_fast.Detections, 400)


def test_letterbox():
    fuzz(fai_fast.Letterbox.fit, 150)


@pytest.mark.parametrize("function", list(STRANGE), ids=lambda function: function.__qualname__)
def test_each_strange_thing_alone(function):
    """No argument meets all of the lists above by chance: here each does, one at a time."""
    groups = {
        "image": NOT_ARRAYS,
        "mask_logits": NOT_ARRAYS,
        "class_logits": NOT_ARRAYS,
        "xyxy": NOT_ARRAYS,
        "confidence": NOT_ARRAYS,
        "class_id": NOT_ARRAYS,
        "query": NOT_ARRAYS,
        "tracker_id": NOT_ARRAYS,
        "mask": NOT_ARRAYS,
        "packed": NOT_ARRAYS,
        "label_source": NOT_ARRAYS,
        "is_thing": NOT_ARRAYS,
        "out": NOT_ARRAYS,
        "size": SIZES + SCALARS,
        "frame": SIZES + SCALARS,
        "input": SIZES + SCALARS,
        "mean": TRIPLES + SCALARS,
        "std": TRIPLES + SCALARS,
        "letterbox": LETTERBOXES,
        "class_names": NOT_ARRAYS,
    }
    words_of = ("color", "resize", "dtype", "yuv_matrix", "yuv_range", "class_activation")
    failures = []
    for name in STRANGE[function]:
        for thing in groups.get(name, WORDS + SCALARS if name in words_of else SCALARS):
            try:
                exercise(attempt(function, valid_arguments(function) | {name: thing}, [name]))
            except Exception as error:
                failures.append(f"{name}={repr(thing)[:80]} ({type(thing).__name__}): {first_line(error)}")
    assert not failures, "\n".join(failures)


TAKES_ARRAYS = ("image", "out", "mask_logits", "class_logits", "xyxy", "confidence", "class_id", "mask")


@pytest.mark.parametrize(
    ("function", "name"),
    [(function, name) for function in STRANGE for name in STRANGE[function] if name in TAKES_ARRAYS],
    ids=lambda value: value if isinstance(value, str) else value.__qualname__,
)
def test_enormous(function, name):
    """Nothing may be sized by a shape that was not checked yet: not memory, not loops, not products."""
    failures = []
    for dtype in ("u1", "f2", "f4", ">f4", "?"):
        for shape in ENORMOUS:
            try:
                thing = np.broadcast_to(np.zeros((), dtype), shape)
            except ValueError:
                continue  # beyond what NumPy itself can say
            try:
                exercise(attempt(function, valid_arguments(function) | {name: thing}, [name]))
            except Exception as error:
                failures.append(f"{dtype} {shape}: {first_line(error)}")
    assert not failures, "\n".join(failures)


# ------------------------------------------------------------------------------- what an error must say


def messages(function, name, value, *expected, error=(TypeError, ValueError)):
    with pytest.raises(error) as raised:
        function(**(valid_arguments(function) | {name: value} if isinstance(name, str) else value))
    text = str(raised.value)
    for part in (name, *expected):
        assert re.search(part, text), f"{part!r} is not in: {text}"


IMAGE_ERRORS = [
    ("image", np.zeros((4, 4, 3), np.float32), TypeError, ["float32", "uint8"]),
    ("image", np.zeros((4, 4, 3), bool), TypeError, ["bool", "uint8"]),
    ("image", np.zeros((4, 4, 4), np.uint8), ValueError, [r"\(4, 4, 4\)", r"\(H, W, 3\)"]),
    ("image", np.zeros((4, 4), np.uint8), ValueError, [r"\(4, 4\)", r"\(H, W, 3\)"]),
    ("image", np.zeros((0, 4, 3), np.uint8), ValueError, ["0", "1"]),
    ("image", np.broadcast_to(np.uint8(0), (40000, 40, 3)), ValueError, ["40000", "32767"]),
    ("image", np.broadcast_to(np.uint8(0), (32767, 32767, 3)), ValueError, ["32767", str(2**28)]),
    ("image", None, TypeError, ["None"]),
    ("image", "frame.jpg", TypeError, ["str"]),
    ("size", (0, 8), ValueError, ["0", "1"]),
    ("size", (8, -1), ValueError, ["-1", "1"]),
    ("size", (8, 40000), ValueError, ["40000", "32767"]),
    ("size", (8, 8, 8), ValueError, ["8, 8, 8|3 values", "height, width|h, w|H, W|two|2"]),
    ("size", "big", TypeError, ["big|str"]),
    ("size", (8.5, 8), TypeError, ["8.5|float", "int"]),
    ("mean", (1, 2), ValueError, ["2", "3|R, G, B"]),
    ("mean", float("nan"), ValueError, ["nan", "finite"]),
    ("mean", "red", TypeError, ["str|red"]),
    ("std", 0, ValueError, ["0"]),
    ("std", (1, 0, 1), ValueError, ["0"]),
    ("std", float("inf"), ValueError, ["inf", "finite"]),
    ("color", "hsv", ValueError, ["hsv", "rgb", "nv12"]),
    ("color", 3, TypeError, ["3|int", "str|'rgb'"]),
    ("resize", "crop", ValueError, ["crop", "stretch", "letterbox", "pad"]),
    ("dtype", "float64", (TypeError, ValueError), ["float64", "float32", "float16"]),
    ("yuv_matrix", "bt2020", ValueError, ["bt2020", "bt601", "bt709"]),
    ("yuv_range", "wide", ValueError, ["wide", "limited", "full"]),
    ("out", np.zeros((1, 3, 8, 9), np.float32), ValueError, [r"\(1, 3, 8, 9\)", r"\(1, 3, 8, 8\)"]),
    ("out", np.zeros((1, 3, 8, 8), np.float64), (TypeError, ValueError), ["float64", "float32"]),
    ("out", np.zeros((1, 3, 8, 8), np.float16), (TypeError, ValueError), ["float16", "float32"]),
    ("out", read_only(np.zeros((1, 3, 8, 8), np.float32)), ValueError, ["read-only|writ"]),
    ("out", np.zeros((8, 8, 3), np.float32).transpose(2, 0, 1), ValueError, ["contiguous"]),
    ("out", [1, 2], TypeError, ["list"]),
]


@pytest.mark.parametrize(("name", "value", "error", "parts"), IMAGE_ERRORS)
def test_preprocess_errors(name, value, error, parts):
    messages(fai_fast.preprocess, name, value, *parts, error=error)


@pytest.mark.parametrize(
    ("color", "shape", "parts"),
    [
        ("rgba", (4, 4, 3), [r"\(4, 4, 3\)", r"\(H, W, 4\)"]),
        ("gray", (4, 4, 3), [r"\(4, 4, 3\)", r"\(H, W\)"]),
        ("nv12", (5, 4), [r"\(5, 4\)", "even"]),
        ("nv12", (6, 5), [r"\(6, 5\)", "even"]),
        ("nv12", (6, 4, 3), [r"\(6, 4, 3\)"]),
        ("i420", (9, 3), [r"\(9, 3\)", "even"]),
        ("yuyv", (4, 5, 2), [r"\(4, 5, 2\)", "even"]),
        ("uyvy", (4, 4, 3), [r"\(4, 4, 3\)", r"\(H, W, 2\)"]),
    ],
)
def test_frame_shape_errors(color, shape, parts):
    with pytest.raises(ValueError, match="image") as raised:
        fai_fast.preprocess(np.zeros(shape, np.uint8), (8, 8), mean=0, std=1, color=color)
    for part in parts:
        assert re.search(part, str(raised.value)), f"{part!r} is not in: {raised.value}"


@pytest.mark.parametrize(
    ("color", "shapes", "part"),
    [
        ("nv12", [(4, 4)], "1"),
        ("nv12", [(4, 4), (2, 2)], r"\(2, 2\)"),
        ("nv12", [(5, 5), (2, 3, 2)], r"\(2, 3, 2\)"),
        ("nv12", [(4, 4), (2, 2), (2, 2)], "3"),
        ("i420", [(4, 4), (2, 2)], "2"),
        ("i420", [(5, 5), (3, 3), (3, 2)], r"\(3, 2\)"),
        ("i420", [(4, 4, 3), (2, 2), (2, 2)], r"\(4, 4, 3\)"),
        ("rgb", [(4, 4), (4, 4), (4, 4)], "planes|tuple"),
    ],
)
def test_plane_errors(color, shapes, part):
    planes = tuple(np.zeros(shape, np.uint8) for shape in shapes)
    with pytest.raises((TypeError, ValueError), match="image") as raised:
        fai_fast.preprocess(planes, (8, 8), mean=0, std=1, color=color)
    assert re.search(part, str(raised.value))


MASKS = np.zeros((5, 4, 4), np.float32)
CLASSES = np.zeros((5, 4), np.float32)
LOGIT_ERRORS = [
    ("mask_logits", MASKS.astype(np.float64), TypeError, ["float64", "float32", "float16"]),
    ("mask_logits", MASKS.astype(int), TypeError, ["int64", "float32"]),
    ("mask_logits", MASKS.astype(">f4"), TypeError, [">f4|byte|endian", "float32"]),
    ("mask_logits", MASKS[0], ValueError, [r"\(4, 4\)", r"\(Q, h, w\)"]),
    ("mask_logits", MASKS[None, None], ValueError, [r"\(1, 1, 5, 4, 4\)|5 dimensions", r"\(Q, h, w\)"]),
    ("mask_logits", np.stack([MASKS, MASKS]), ValueError, [r"\(2, 5, 4, 4\)", "batch|1, Q"]),
    ("mask_logits", MASKS[:4], ValueError, ["4", "5", "class_logits"]),
    ("mask_logits", MASKS[:, :0], ValueError, [r"\(5, 0, 4\)|0 x 4"]),
    ("mask_logits", None, TypeError, ["None"]),
    ("class_logits", CLASSES.astype(np.float64), TypeError, ["float64", "float32", "float16"]),
    ("class_logits", CLASSES[0], ValueError, [r"\(4,\)"]),
    ("class_logits", CLASSES[:3], ValueError, ["3", "5", "mask_logits"]),
    ("class_logits", CLASSES[:, :1], ValueError, ["1", "2|no object"]),
    ("class_logits", CLASSES[:, :0], ValueError, ["0"]),
    ("size", (0, 4), ValueError, ["0", "1"]),
    ("size", (4, 40000), ValueError, ["40000", "32767"]),
    ("size", (32767, 32767), ValueError, ["32767", str(2**28)]),
    ("size", None, TypeError, ["None"]),
    ("size", (4.5, 4), TypeError, ["4.5|float", "int"]),
    ("threshold", float("nan"), ValueError, ["nan", "finite"]),
    ("threshold", float("inf"), ValueError, ["inf", "finite"]),
    ("threshold", "high", TypeError, ["high|str"]),
    ("mask_threshold", float("nan"), ValueError, ["nan", "finite"]),
    ("mask_threshold", -float("inf"), ValueError, ["inf", "finite"]),
    ("mask_threshold", None, TypeError, ["None"]),
    ("class_activation", "relu", ValueError, ["relu", "softmax", "sigmoid"]),
    ("class_names", ["a", "b"], ValueError, ["2", "3"]),
    ("class_names", [1, 2, 3], TypeError, ["int|1", "str"]),
    ("class_names", "abc", TypeError, ["str|abc"]),
    ("letterbox", (16, 16), TypeError, ["tuple|16", "Letterbox"]),
    ("num_threads", -1, ValueError, ["-1"]),
    ("num_threads", 0, ValueError, ["0"]),
    ("num_threads", 1.5, TypeError, ["1.5|float", "int"]),
    ("panoptic", True, TypeError, ["bool", "fai_fast.Panoptic"]),
    ("panoptic", fai_fast.Panoptic(stuff=(3,)), ValueError, ["stuff", "3", "0 to 2"]),
    ("combine", "mean", ValueError, ["mean", "contest", "sum"]),
]


@pytest.mark.parametrize(("name", "value", "error", "parts"), LOGIT_ERRORS)
def test_postprocess_errors(name, value, error, parts):
    messages(fai_fast.postprocess, name, value, *parts, error=error)


@pytest.mark.parametrize(
    ("name", "value", "error", "parts"),
    [
        ("mask_logits", MASKS, ValueError, [r"\(5, 4, 4\)", r"\(B, Q, h, w\)"]),
        ("mask_logits", np.stack([MASKS] * 3), ValueError, ["3", "2", "class_logits"]),
        ("class_logits", CLASSES, ValueError, [r"\(5, 4\)", r"\(B, Q, "]),
        ("class_logits", np.stack([CLASSES] * 3), ValueError, ["3", "2", "mask_logits"]),
        ("size", [(8, 8)] * 3, ValueError, ["3", "2"]),
        ("size", [(8, 8), (0, 8)], ValueError, ["0"]),
        ("letterbox", [fai_fast.Letterbox.fit((8, 8), (16, 16))] * 3, ValueError, ["3", "2"]),
        ("letterbox", 5, TypeError, ["int|5", "Letterbox"]),
        ("threshold", float("nan"), ValueError, ["nan", "finite"]),
    ],
)
def test_postprocess_batch_errors(name, value, error, parts):
    messages(fai_fast.postprocess_batch, name, value, *parts, error=error)


def test_out_is_untouched_by_a_refused_call():
    out = np.full((1, 3, 8, 8), 7, np.float32)
    for bad in ({"std": 0}, {"image": np.zeros((4, 4), np.uint8)}, {"color": "hsv"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            fai_fast.preprocess(**(valid(fai_fast.preprocess) | {"out": out} | bad))
    assert (out == 7).all()


def test_out_that_overlaps_the_image_is_right_or_refused():
    memory = np.zeros(3 * 8 * 8 * 4, np.uint8)
    image = memory[: 8 * 8 * 3].reshape(8, 8, 3)
    image[...] = scenes.image(1, (8, 8, 3))
    out = memory.view(np.float32).reshape(1, 3, 8, 8)
    expected = fai_fast.preprocess(image.copy(), (8, 8), mean=0, std=1)
    refusal = None
    try:
        fai_fast.preprocess(image, (8, 8), mean=0, std=1, out=out)
    except ValueError as error:
        refusal = str(error)
    if refusal is None:
        np.testing.assert_array_equal(out, expected)
    else:
        assert "out" in refusal
        assert "image" in refusal


def test_mistyped_calls():
    for function in (fai_fast.preprocess, fai_fast.postprocess, fai_fast.postprocess_batch):
        with pytest.raises(TypeError):
            function()
        with pytest.raises(TypeError, match="colour"):
            function(**valid(function), colour="rgb")
