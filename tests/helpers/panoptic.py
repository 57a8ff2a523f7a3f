"""Made data in COCO's panoptic format, and a model that knows what to say of it."""

from __future__ import annotations

import io
import json

import numpy as np
from fai_fast import Detections, ModelSpec, NetworkConfig, Panoptic
from PIL import Image

from helpers.results import Ticket

NAMES = ("person", "car", "sky", "road")
IDS = (1, 3, 187, 149)  # of the categories, which are not in their order
THINGS = np.array([True, True, False, False])
SIZE = (6, 10)


def spec_of(classes=NAMES, stuff=(2, 3), **changes):
    config = NetworkConfig(len(classes), postprocessing_type="panoptic", panoptic=Panoptic(stuff=stuff))
    fields = {"name": "theirs", "task": "panoptic", "classes": classes, "im_size": 64, "config": config}
    return ModelSpec(**{**fields, **changes})


def png_of(ids):
    ids = np.asarray(ids)
    pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def record_of(image_id, infos, **more):
    return {
        "image_id": image_id,
        "file_name": f"{image_id:06d}.png",
        "segments_info": [
            {"id": i, "category_id": IDS[category], "iscrowd": int(crowd), "area": 5, "bbox": [0, 0, 1, 1]}
            for i, (category, crowd) in infos.items()
        ],
        **more,
    }


def write(folder, pictures, name="truth", categories=True):
    """A JSON and its PNGs; `pictures` are (ids, infos)."""
    pngs = folder / name
    pngs.mkdir(exist_ok=True)
    document = {"annotations": []}
    if categories:
        document["categories"] = [
            {"id": i, "name": text, "isthing": int(thing)}
            for i, text, thing in zip(IDS, NAMES, THINGS.tolist(), strict=True)
        ]
        document["images"] = []
    for image_id, (ids, infos) in enumerate(pictures, 1):
        ids = np.asarray(ids)
        document["annotations"].append(record_of(image_id, infos))
        (pngs / f"{image_id:06d}.png").write_bytes(png_of(ids))
        if categories:
            height, width = ids.shape
            document["images"].append(
                {"id": image_id, "file_name": f"{image_id:06d}.png", "height": height, "width": width}
            )
            (folder / "images").mkdir(exist_ok=True)
            pixels = np.full((height, width, 3), image_id, np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{image_id:06d}.png")
    (folder / f"{name}.json").write_text(json.dumps(document))
    return document


def change(folder, edit, name="truth"):
    path = folder / f"{name}.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


class Oracle:
    """A model that knows what to say of a picture by the value of its pixels."""

    size = (64, 64)

    def __init__(self, answers, spec=None):
        self.spec = spec_of() if spec is None else spec
        self.answers = answers
        self.asked = []

    def submit(self, frame, *, threshold):
        self.asked.append((int(frame.flat[0]), threshold))
        return Ticket(self.answers[int(frame.flat[0])])

    def info(self):
        return {"engine": {"engine": "oracle"}, "precision": "fp32"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def answer(ids, infos):
    """A panoptic result; `infos` are {id: (class, ...)}."""
    ids = np.asarray(ids)
    source = np.full(ids.shape, 255, np.uint8)
    for place, i in enumerate(infos):
        source[ids == i] = place
    n = len(infos)
    classes = [info[0] for info in infos.values()]
    return Detections(
        xyxy=np.tile([0.0, 0, ids.shape[1], ids.shape[0]], (n, 1)), confidence=np.linspace(0.9, 0.5, n),
        class_id=classes, query=np.arange(n), size=ids.shape, class_names=NAMES, label_source=source,
        is_thing=np.array([THINGS[i] for i in classes], bool),
    )  # fmt: skip


TRUTH = [
    ([[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [3, 3, 2, 2, 2]], {1: (1, False), 2: (2, False), 3: (0, False)}),
    ([[1, 1, 0, 2, 2, 300]], {1: (1, False), 2: (1, False), 300: (0, True)}),
]
FOUND = [
    ([[5, 5, 0, 6, 6], [5, 5, 0, 6, 6], [5, 7, 6, 6, 6]], {5: (1, False), 6: (2, False), 7: (3, False)}),
    ([[4, 4, 0, 0, 5, 6]], {4: (1, False), 5: (1, False), 6: (0, False)}),
]
# Cars: 4/7 and 1 of two that are found, one that is wrong and one that is missed; the person is missed, and found where
# there is a crowd; the sky is found whole, and the road is nowhere.
CARS = 100 * (4 / 7 + 1) / 3
GOOD = {i: answer(*item) for i, item in enumerate(FOUND, 1)}
