"""Videos that tests make, and a model of their own in place of a network."""

from __future__ import annotations

import os
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
from fai_fast import Detections

from helpers.models import Bright

SIZE = (48, 64)


def value(index):
    """What picture `index` of a video is filled with."""
    return 40 + 5 * index


def picture(index, size=SIZE):
    """Left the frame's value, right its complement, so that pictures differ and turned ones too."""
    image = np.full((*size, 3), value(index), np.uint8)
    image[:, size[1] // 2 :] = 255 - value(index)
    return image


def write_video(
    path, frames=12, *, codec="mpeg4", pix_fmt="yuv420p", size=SIZE, rate=25, image=None, **options
):
    """A video of :func:`picture`, or of one `image` all along; `options` are the container's."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        for index in range(frames):
            pixels = picture(index, size) if image is None else image
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_display_matrix(path, a, b, c, d):
    """Lets an MP4 be shown with x' = a x + c y and y' = b x + d y."""
    data = bytearray(path.read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(upright, data.index(b"tkhd"))
    data[place : place + 20] = struct.pack(">5i", a << 16, b << 16, 0, c << 16, d << 16)
    path.write_bytes(data)
    return path


def brightness(image, color="rgb"):
    """The value of the upper left pixel, and the size."""
    plane = np.asarray(image[0] if isinstance(image, tuple) else image)
    first = plane[0, 0]
    return int(first if np.ndim(first) == 0 else first[0]), plane.shape[:2]


class Fake:
    """A model that finds one pixel, whose score tells the frame's upper left value.

    Attributes:
        seen: values of the frames that were submitted.
        finished: how many are done.
        gate: frames wait while it is not set.
    """

    def __init__(self, workers=1, fail=lambda number: None, delay=lambda number: 0.0):
        self.seen = []
        self.finished = 0
        self.gate = threading.Event()
        self.gate.set()
        self._fail, self._delay = fail, delay
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fake")

    def submit(self, image, **options):
        self.options = options
        number = len(self.seen)
        self.seen.append(brightness(image)[0])
        return self._pool.submit(self._run, image, number)

    def _run(self, image, number):
        assert self.gate.wait(30)
        time.sleep(self._delay(number))
        try:
            if error := self._fail(number):
                raise error
            found, size = brightness(image)
            return Detections(xyxy=[[0, 0, 1, 1]], confidence=[found / 256], class_id=[0], size=size)
        finally:
            self.finished += 1

    def close(self):
        self._pool.shutdown()


def found(detections):
    """What :class:`Fake` saw."""
    return round(256 * float(detections.confidence[0]))


def until(condition):
    """Waits for something that is about to happen."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stream_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fai_fast-")]


def descriptors():
    return sorted(os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _open(name))


def _open(name):
    return os.path.lexists(f"/proc/self/fd/{name}")


def arrays_for_ever():
    while True:
        yield picture(0)


class Streamed(Fake):
    """In place of a network: `asked` is what load() got, `served` the options that the stream's results depend on."""

    def _serve(self, stream, **options):
        self.served = options
        stream._serve(self, {})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Both(Bright):
    """In place of a network, for pictures and for videos; `fail` is asked for each frame of a video."""

    def __init__(self, fail=lambda number: None):
        super().__init__()
        self._streamed = Streamed(fail=fail)

    def stream(self, source, *, threshold=None, **options):
        from fai_fast.stream import Stream

        self.served = {"threshold": threshold}
        return Stream(self._streamed, source, **options)

    def _serve(self, stream, **options):
        self.served = options
        self._streamed._serve(stream, **options)

    def close(self):
        self._streamed.close()
