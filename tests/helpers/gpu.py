"""A GPU for tests, a real one or the emulator of tests/cuda_emulator, and engines on it whose outputs are known."""

from __future__ import annotations

import os
import sys
import textwrap
from dataclasses import dataclass
from subprocess import run as run_process

import fai_fast
import numpy as np
import pytest
import reference
import reference_panoptic
from cuda_emulator.control import Emulator
from fai_fast import _core
from fai_fast.detections import Detections
from fai_fast.engines.base import INPUT, OUTPUTS, TensorSpec
from fai_fast.engines.gpu import OpenGpuContext, OpenGpuEngine
from fai_fast.errors import CudaError

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
LAYOUT = {"color": "rgb", "resize": "stretch", "yuv_matrix": "bt601", "yuv_range": "limited"}


def _missing():
    try:
        _core.cuda_devices()
    except CudaError as error:
        return str(error)
    return ""


def _emulator():
    try:
        return Emulator(_core.__file__)
    except AttributeError:
        # Tests of faults and counters must not be skipped because the emulator hides its switches.
        if not MISSING and "emulated" in _core.cuda_devices()[0]["name"]:
            raise
        return None


MISSING = _missing()
EMULATOR = _emulator()
needed = pytest.mark.gpu  # conftest.py skips these where one is missing
emulated = pytest.mark.skipif(EMULATOR is None, reason="only the emulator has faults and counters")


def torch_on_gpu():
    """torch where it can use the GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def in_process(script, **environment):
    """What a script prints in a process of its own, which must end well."""
    done = run_process(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env={**os.environ, **environment},
        cwd=os.path.dirname(os.path.dirname(__file__)),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------------ memory


def download(address, shape, dtype):
    array = np.empty(shape, dtype)
    _core.copy_from_device(array, address)
    return array


class OnDevice:
    """An array's copy in the GPU's memory, as other libraries hand theirs over.

    The memory is the input of a frame graph of its own, since nothing else here allocates any."""

    def __init__(self, array, stream=None, strides=None, **interface):
        array = np.ascontiguousarray(array)
        room = -(-array.nbytes // 12)
        self._graph = frame_graph((1, 1, 1), (1, 2), size=(1, room), dtype="float32")
        self.address = self._graph.images
        _core.copy_to_device(self.address, array)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.address, False),
            "strides": strides,
            "version": 3,
            **({} if stream is None else {"stream": stream}),
            **interface,
        }


# ------------------------------------------------------------------------------------------ frame graphs


def frame_graph(mask_shape, class_shape, *, size=(8, 8), batch=1, dtype="float32", device=0, **options):
    """A FrameGraph without an engine; `mask_shape` (Q, h, w), `class_shape` (Q, K)."""
    return _core.FrameGraph(
        device=device,
        batch=batch,
        size=size,
        dtype=dtype,
        mask_logits=mask_shape,
        class_logits=class_shape,
        **{
            "mask_dtype": "float32",
            "class_dtype": "float32",
            "mean": MEAN,
            "std": STD,
            "predict_all_pixels": False,
            "softmax": True,
            **options,
        },
    )


def with_logits(mask_logits, class_logits, *, semantic=False, activation="softmax", capture=True, **options):
    """A FrameGraph whose engine gives these: (Q, h, w) and (Q, K), or one of each for every image of the batch."""
    if mask_logits.ndim == 3:
        mask_logits, class_logits = mask_logits[None], class_logits[None]
    graph = frame_graph(
        mask_logits.shape[1:],
        class_logits.shape[1:],
        batch=len(mask_logits),
        mask_dtype=str(mask_logits.dtype),
        class_dtype=str(class_logits.dtype),
        predict_all_pixels=semantic,
        softmax=activation == "softmax",
        **options,
    )
    _core.copy_to_device(graph.mask_logits, np.ascontiguousarray(mask_logits))
    _core.copy_to_device(graph.class_logits, np.ascontiguousarray(class_logits))
    if capture:
        assert graph.capture(lambda stream: None) is None
    else:
        assert graph.run_uncaptured(lambda stream: None, "asked for") == "asked for"
    return graph


def item(frame, color="rgb", resize="stretch", yuv_matrix="bt601", yuv_range="limited"):
    """A frame as FrameGraph.submit() takes it."""
    return frame, color, resize, yuv_matrix, yuv_range


def submit(graph, frames, *, threshold=0.5, mask_threshold=0.5, use_mask_score=False, after=None):
    graph.submit(frames, threshold, mask_threshold, use_mask_score, after)


def take(graph, top_k=1 << 20, masks_device=False):
    """The results of the frame in flight, as Detections."""
    assert graph.wait(-1.0)
    found = graph.results(top_k, masks_device)
    for rows in found:
        if "bits" in rows:
            _core.Masks(rows["bits"], rows["offsets"], rows["boxes"], rows["size"]).check_form()
    return [
        Detections._from_core(rows, rows["size"], None)._with_latency(None, rows.get("masks_device"))
        for rows in found
    ]


def detect(graph, frame, *, color="rgb", resize="stretch", **options):
    """One frame through the graph."""
    submit(graph, [item(frame, color, resize)], **options)
    [found] = take(graph)
    return found


# --------------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Expected:
    """What the CPU finds, and where there is a real GPU the float64 truth (see reference.py)."""

    cpu: Detections
    truth: reference.Truth | reference_panoptic.Truth | None


def expected(mask_logits, class_logits, size, *, letterbox=None, truth=None, **options):
    """What a GPU should find; `truth` where it is known already."""
    cpu = fai_fast.postprocess(mask_logits, class_logits, size, letterbox=letterbox, **options)
    if EMULATOR is not None:
        return Expected(cpu, None)
    box = letterbox and (letterbox.input, letterbox.content, letterbox.offset)
    if truth is None and (rules := options.pop("panoptic", None)) is not None:
        options |= {"stuff": rules.stuff, "overlap_threshold": rules.overlap_threshold}
        truth = reference_panoptic.panoptic(
            mask_logits, class_logits, size, letterbox=box, weighted=rules.weighted, **options
        )
    elif truth is None:
        truth = reference.postprocess(mask_logits, class_logits, size, letterbox=box, **options)
    return Expected(cpu, truth)


def same(ours, expected):
    """The GPU's result is the CPU's. Real GPUs may decide pixels otherwise that are within 1e-4 of their decision, and
    what follows from those; the emulator runs the kernels with the CPU's own arithmetic, and leaves nothing to allow
    but the mask score's sum, which the GPU adds up in whole units."""
    cpu = expected.cpu
    assert ours.size == cpu.size
    assert (ours.label_map is None) == (cpu.label_map is None)
    if ours.label_map is not None:
        painted = np.full(ours.size, -1, np.int16)
        for class_id, mask in zip(ours.class_id, ours.mask, strict=True):
            painted[mask] = class_id
        np.testing.assert_array_equal(ours.label_map, painted)
    if isinstance(expected.truth, reference_panoptic.Truth):
        if not expected.truth.unclear:
            reference_panoptic.assert_matches(expected.truth, ours)
        return
    if expected.truth is not None:
        reference.assert_matches(expected.truth, ours)
        return
    assert sorted(ours.query) == sorted(cpu.query)
    mine, other = np.argsort(ours.query), np.argsort(cpu.query)
    np.testing.assert_allclose(ours.confidence[mine], cpu.confidence[other], rtol=0, atol=1e-6)
    order = np.lexsort((ours.query, -ours.confidence))
    assert order.tolist() == list(range(len(ours)))
    for name in ("class_id", "xyxy", "area"):
        np.testing.assert_array_equal(getattr(ours, name)[mine], getattr(cpu, name)[other], err_msg=name)
    np.testing.assert_array_equal(ours.mask[mine], cpu.mask[other])


def same_rows(ours, cpu):
    """As same() on the emulator, of rows of which several may be of one query. A real GPU's exponential may differ
    from the CPU's in the last bits, and so may the pixels next to a decision."""
    assert ours.size == cpu.size
    mine, other = np.lexsort((ours.class_id, ours.query)), np.lexsort((cpu.class_id, cpu.query))
    for name in ("query", "class_id"):
        np.testing.assert_array_equal(getattr(ours, name)[mine], getattr(cpu, name)[other], err_msg=name)
    exact = EMULATOR is not None
    np.testing.assert_allclose(ours.confidence[mine], cpu.confidence[other], atol=2e-6 if exact else 1e-4)
    order = np.lexsort((ours.class_id, ours.query, -ours.confidence))
    assert order.tolist() == list(range(len(ours)))
    differ = (ours.mask[mine] != cpu.mask[other]).mean() if len(ours) else 0.0
    assert differ <= (0 if exact else 1e-4)
    if exact:
        for name in ("xyxy", "area"):
            np.testing.assert_array_equal(getattr(ours, name)[mine], getattr(cpu, name)[other], err_msg=name)


# ----------------------------------------------------------------------------------------------- engines


class Sampling:
    """A network that samples its input: outputs that depend on the frame, exact in every precision.

    mask_logits[q] is channel q % 3 at every `step`-th pixel, times one of 1, -1, 2, -2; class_logits[q, k] is
    channel (q + k) % 3 at one pixel, times 4.
    """

    def __init__(
        self, queries=6, columns=4, size=(32, 48), step=4, batch=1, dtype="float32", mean=MEAN, std=STD
    ):
        height, width = size
        self.step, self.dtype, self.mean, self.std = step, dtype, mean, std
        self.ports = {
            "images": TensorSpec("images", dtype, (batch, 3, height, width)),
            "mask_logits": TensorSpec(
                "mask_logits", dtype, (batch, queries, -(-height // step), -(-width // step))
            ),
            "class_logits": TensorSpec("class_logits", dtype, (batch, queries, columns)),
        }
        q, k = np.arange(queries), np.arange(columns)
        self.channel = q % 3
        self.factor = np.array([1, -1, 2, -2])[q // 3 % 4].astype(dtype)
        self.class_channel = (q[:, None] + k) % 3
        self.y = (7 * q[:, None] + 3 * k) % height
        self.x = (5 * q[:, None] + 11 * k) % width

    def __call__(self, images):
        sampled = images[:, self.channel, :: self.step, :: self.step]
        return sampled * self.factor[:, None, None], images[:, self.class_channel, self.y, self.x] * 4

    def expected(self, frame, *, color="rgb", resize="stretch", **options):
        """What should be found in a frame; `options` are those of fai_fast.postprocess."""
        size = self.ports["images"].shape[2:]
        settings = {"mean": self.mean, "std": self.std, "dtype": self.dtype, "color": color}
        images, letterbox = fai_fast.preprocess(frame, size, resize="letterbox", **settings)
        size = letterbox.frame
        if resize == "stretch":
            images, letterbox = fai_fast.preprocess(frame, self.ports["images"].shape[2:], **settings), None
        masks, classes = self(images)
        return expected(masks[0], classes[0], size, letterbox=letterbox, **options)


class FakeGpuEngine(OpenGpuEngine):
    """Runs a :class:`Sampling` on the GPU: as a host function on the emulator, whose memory the host can read, else in
    torch."""

    name = "fake-gpu"

    def __init__(self, network=None, *, fail=None):
        self.network = Sampling() if network is None else network
        self.fail = {} if fail is None else fail
        self.runs = 0
        self.unloaded = 0
        info = {
            "version": "1",
            "precision": "fp32" if self.network.dtype == "float32" else "fp16",
            "path": None,
        }
        super().__init__(self.network.ports, 0, info)

    def _bind_device(self, images, mask_logits, class_logits, stream):
        if "bind" in self.fail:
            raise self.fail["bind"]
        addresses = {INPUT: images, OUTPUTS[0]: mask_logits, OUTPUTS[1]: class_logits}
        return FakeGpuContext(
            self, {name: _view(addresses[name], port) for name, port in self._ports.items()}
        )

    def _unload(self):
        self.unloaded += 1


class FakeGpuContext(OpenGpuContext):
    def __init__(self, engine, arrays):
        super().__init__(engine)
        self._fake = engine
        self._arrays = arrays
        if EMULATOR is None:
            self._prepare_torch()

    def _enqueue(self, stream):
        self._fake.runs += 1
        if "enqueue" in self._fake.fail:
            raise self._fake.fail["enqueue"]
        if EMULATOR is not None:
            _core.launch_host_function(stream, self._run)
        else:
            self._run_torch(stream)

    def _release(self):
        self._arrays = None

    def _run(self):
        masks, classes = self._fake.network(self._arrays["images"])
        self._arrays["mask_logits"][...] = masks
        self._arrays["class_logits"][...] = classes

    def _prepare_torch(self):
        torch, network = torch_on_gpu(), self._fake.network
        if torch is None:
            pytest.skip("engines that read their input need torch with CUDA here")
        images, masks, classes = (self._arrays[name] for name in (INPUT, *OUTPUTS))
        self._factor = torch.from_numpy(network.factor).cuda()[:, None, None]
        # A plane after the other, since an index by tensors would allocate.
        step = network.step
        self._pairs = [
            (images[:, int(c), ::step, ::step], masks[:, q]) for q, c in enumerate(network.channel)
        ]
        flat = (
            network.class_channel * images.shape[2] * images.shape[3]
            + network.y * images.shape[3]
            + network.x
        )
        self._index = torch.from_numpy(flat.ravel()).cuda()
        self._chosen = torch.empty((len(images), flat.size), dtype=images.dtype, device="cuda")
        self._images, self._masks, self._classes = images, masks, classes
        torch.cuda.synchronize()

    def _run_torch(self, stream):
        import torch

        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            for source, out in self._pairs:
                out.copy_(source)
            self._masks.mul_(self._factor)
            flat = self._images.view(len(self._images), -1)
            torch.index_select(flat, 1, self._index, out=self._chosen)
            torch.mul(self._chosen.view(self._classes.shape), 4, out=self._classes)


def _view(address, port):
    """The device's memory as an array of NumPy on the emulator, else of torch."""
    if EMULATOR is not None:
        import ctypes

        dtype = np.dtype(port.dtype)
        count = int(np.prod(port.shape))
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        return np.frombuffer(memory, dtype, count).reshape(port.shape)

    class Memory:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": port.shape,
            "typestr": np.dtype(port.dtype).str,
            "data": (address, False),
            "strides": None,
            "version": 3,
        }

    torch = torch_on_gpu()
    return None if torch is None else torch.as_tensor(Memory(), device="cuda")
