from __future__ import annotations

from dataclasses import dataclass

import fai_fast
import numpy as np
import pytest

from bench import peers, scenes
from bench.floor import Floor, touched

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZE = (640, 640)


@dataclass(frozen=True)
class Case:
    height: int
    width: int
    color: str = "rgb"
    dtype: str = "float32"
    resize: str = "stretch"
    out: bool = True

    def __str__(self) -> str:
        resize = "" if self.resize == "stretch" else f", {self.resize}"
        out = "" if self.out else ", allocating"
        return f"{self.height}x{self.width} {self.color} to {self.dtype}{resize}{out}"


CASES = [
    Case(1080, 1920),
    pytest.param(Case(1080, 1920, out=False), marks=pytest.mark.full),
    pytest.param(Case(720, 1280), marks=pytest.mark.full),
    pytest.param(Case(2160, 3840), marks=pytest.mark.full),
    pytest.param(Case(1080, 1920, color="bgr"), marks=pytest.mark.full),
    Case(1080, 1920, color="nv12"),
    pytest.param(Case(1080, 1920, dtype="float16"), marks=pytest.mark.full),
    Case(1080, 1920, resize="letterbox"),
]


def _floor(case: Case, content: tuple[int, int]) -> Floor:
    rows = touched(case.height, content[0])
    read = rows * case.width * 3
    if case.color == "nv12":
        read = rows * case.width + touched(case.height // 2, content[0] // 2) * case.width
    written = 3 * SIZE[0] * SIZE[1] * np.dtype(case.dtype).itemsize
    return Floor(read, written, "whole rows of the frame that have a weight; every value of the tensor once")


def _steps(tensor: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference in steps of an 8-bit value, before normalizing."""
    difference = np.abs(tensor.astype(np.float32) - reference.astype(np.float32))
    return float((difference * np.float32(STD)[:, None, None]).max())


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_preprocess(case: Case, threads: int, compare) -> None:
    image = (scenes.nv12 if case.color == "nv12" else scenes.frame)(case.height, case.width)
    options = {"mean": MEAN, "std": STD, "color": case.color, "resize": case.resize, "dtype": case.dtype}
    if case.out:
        options["out"] = np.empty((1, 3, *SIZE), case.dtype)

    held = None

    def ours():
        # As people write it: a tensor is let go when its name takes the next one.
        nonlocal held
        held = fai_fast.preprocess(image, SIZE, **options)
        return held

    tensor, content, offset = ours(), SIZE, (0, 0)
    if case.resize == "letterbox":
        tensor, letterbox = tensor
        content, offset = letterbox.content, letterbox.offset
    tensor = tensor.copy()

    rivals, tolerance = {}, {}
    if not case.out:
        out = np.empty((1, 3, *SIZE), case.dtype)
        rivals["fai_fast, out="] = lambda: fai_fast.preprocess(image, SIZE, out=out, **options)
        tolerance["fai_fast, out="] = 0.0
    if cv := peers.load("opencv"):

        def resized():
            if case.resize == "letterbox":
                return cv.letterbox(image, SIZE, content, offset, MEAN)
            return cv.resize(image, SIZE, case.color)

        rivals["OpenCV + NumPy"] = lambda: cv.normalize(resized(), MEAN, STD, case.dtype)
        rivals["OpenCV + NumPy, planes first"] = lambda: cv.normalize_planes(resized(), MEAN, STD, case.dtype)
        if case.color == "rgb" and case.resize == "stretch" and case.dtype == "float32":
            rivals["OpenCV blobFromImage"] = lambda: cv.blob(image, SIZE, MEAN, STD)
        rivals["OpenCV resize alone, uint8"] = resized
        # A rival of ours has its tolerance already.
        tolerance = dict.fromkeys(rivals, 2.5 if case.color == "nv12" else 1.1) | tolerance
        # Not the same job, it only shows what the resize costs; its result is checked through the others.
        del tolerance["OpenCV resize alone, uint8"]
    torch_steps = peers.load("torch_steps")
    if torch_steps and case.color == "rgb" and case.resize == "stretch" and case.dtype == "float32":
        rivals["torch"] = lambda: torch_steps.preprocess(image, SIZE, MEAN, STD)
        tolerance["torch"] = 1.1
        assert _steps(tensor, torch_steps.preprocess_exact(image, SIZE, MEAN, STD)) <= 1e-3

    for name, limit in tolerance.items():
        result = rivals[name]()
        assert result.shape == tensor.shape
        assert result.dtype == tensor.dtype
        assert _steps(tensor, result) <= limit, name
    compare("preprocess", str(case), threads, _floor(case, content), ours, rivals)
