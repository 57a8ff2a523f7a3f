"""In place of a network, for tests of what is around it."""

from __future__ import annotations

import fai_fast
import numpy as np
from fai_fast import Detections, Latency

SPEC = fai_fast.spec("fai-mf-s-coco-ins")


class Bright:
    """Finds one object: the bright part of the picture."""

    spec = SPEC
    size = (384, 640)

    def __init__(self):
        self.thresholds = []
        self.closed = False

    def infer(self, image, *, threshold=None):
        from fai_fast.images import is_encoded, read_image

        frame = read_image(image) if is_encoded(image) else image
        self.thresholds.append(threshold)
        mask = (frame if frame.ndim == 2 else frame.mean(-1)) > 127
        ys, xs = np.nonzero(mask)
        n = int(len(ys) > 0)
        return Detections(
            xyxy=[[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]] if n else [],
            confidence=[0.75] * n,
            class_id=[2] * n,
            size=mask.shape,
            class_names=SPEC.classes,
            mask=mask[None][:n],
        )._with_latency(Latency(0.0, 1.0, 2.0, 4.0))

    def warmup(self):
        return self

    def benchmark(self, image, *, runs, warmup):
        self.ran = image, runs, warmup
        times = {"mean": 1.5, "p50": 1.0, "p90": 2.0, "p99": 3.0}
        return dict.fromkeys(("decode", "preprocess", "engine", "postprocess", "total"), times)

    def info(self):
        return {"engine": {"engine": "fake", "device": "cpu"}, "precision": "fp32", "im_size": self.size}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True


class Slow:
    """Finds the whole picture, and waits for the signal in the third picture of the last precision."""

    size = (64, 64)

    def __init__(self, pause, options):
        self.spec = fai_fast.spec("fai-mf-n-shapes")
        self.precision = options["precision"]
        self.pause, self.seen = pause, 0

    def submit(self, frame, **_):
        self.seen += 1
        if self.seen == 3 and self.precision in ("auto", "bf16"):
            self.pause()
        return self

    def result(self, timeout=None):
        return fai_fast.Detections(
            xyxy=[[0, 0, 8, 8]],
            confidence=[0.9],
            class_id=[0],
            size=(8, 8),
            class_names=self.spec.classes,
            mask=np.ones((1, 8, 8), bool),
        )

    def info(self):
        return {"engine": {"engine": "fake"}, "precision": self.precision}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
