"""Where names are imported from: what users and their pickles rely on, wherever the code of it moves to."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, Latency, PackedMasks, evaluate, stream

ROOT = Path(__file__).resolve().parents[1]

# Paths that code outside was written against, beside what the documents name.
PATHS = [
    "fai_fast.detections.Detections",
    "fai_fast.detections.Latency",
    "fai_fast.detections.PackedMasks",
    "fai_fast.evaluate.AdeData",
    "fai_fast.evaluate.AdeReport",
    "fai_fast.evaluate.CocoData",
    "fai_fast.evaluate.CocoReport",
    "fai_fast.evaluate.Comparison",
    "fai_fast.evaluate.IN_FLIGHT",
    "fai_fast.evaluate.Report",
    "fai_fast.evaluate.Run",
    "fai_fast.evaluate.TOLERANCE",
    "fai_fast.evaluate.TOP_K",
    "fai_fast.evaluate.ade",
    "fai_fast.evaluate.coco",
    "fai_fast.evaluate.compare",
    "fai_fast.model.Model",
    "fai_fast.model.load",
    "fai_fast.ops.postprocess",
    "fai_fast.ops.preprocess",
    "fai_fast.render.SUFFIXES",
    "fai_fast.render.color",
    "fai_fast.render.draw",
    "fai_fast.render.save",
    "fai_fast.stream.Frame",
    "fai_fast.stream.LIVE_TIMEOUT",
    "fai_fast.stream.Stream",
    "fai_fast.stream.StreamStats",
    "fai_fast.stream.decoded_pixels",
]


def named_paths(text):
    """``fai_fast.a.b`` in code and prose, and what is imported from the package."""
    names = {f"fai_fast{path}" for path in re.findall(r"(?<![\w/.-])fai_fast((?:\.[A-Za-z_]\w*)+)", text)}
    for module, imported in re.findall(r"from (fai_fast[\w.]*) import ([\w, ]+)", text):
        names |= {f"{module}.{name.split()[0]}" for name in imported.split(",")}
    return names


def resolve(path):
    """What a dotted path leads to: modules as far as there are some, attributes from there on."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(path)


DOCUMENTS = [
    ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md") if (ROOT / name).exists()
] + sorted(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*") if path.is_file())
NAMED = sorted({path for file in DOCUMENTS for path in named_paths(file.read_text(errors="ignore"))})


@pytest.mark.parametrize("name", fai_fast.__all__)
def test_every_public_name_is_there(name):
    assert getattr(fai_fast, name) is not None
    assert name in dir(fai_fast)


@pytest.mark.parametrize("path", [*NAMED, *PATHS])
def test_every_path_leads_somewhere(path):
    resolve(path)


def test_the_documents_were_read():
    assert {"fai_fast.load", "fai_fast.Detections"} <= set(NAMED)
    assert named_paths("`fai_fast.a.b`, a/fai_fast.c\nfrom fai_fast.d import e, f as g") == {
        "fai_fast.a.b",
        "fai_fast.d",
        "fai_fast.d.e",
        "fai_fast.d.f",
    }
    for wrong in ("fai_fast.nothing", "fai_fast.stream.nothing", "fai_fast.stream.Frame.nothing"):
        with pytest.raises(AttributeError):
            resolve(wrong)


def test_a_function_is_not_hidden_by_a_module_of_its_name():
    assert [
        inspect.isfunction(resolve(f"fai_fast.evaluate.{name}")) for name in ("coco", "ade", "compare")
    ] == [
        True,
        True,
        True,
    ]


def results():
    mask = np.zeros((2, 6, 8), bool)
    mask[0, 1:3, 2:5] = mask[1, 4:, 3:] = True
    rows = {
        "xyxy": [[2, 1, 5, 3], [3, 4, 8, 6]],
        "confidence": [0.9, 0.6],
        "class_id": [1, 0],
        "size": (6, 8),
    }
    labels = np.where(mask[0], 1, np.where(mask[1], 0, 255)).astype(np.uint8)
    report = evaluate.CocoReport(
        model="m",
        engine="openvino",
        precision="fp32",
        im_size=(6, 8),
        threshold=0.5,
        images=1,
        missing=(),
        metrics={"segm/AP": 1.0},
        per_class={"cat": None},
        published={},
        published_per_class={},
        published_im_size=640,
        objects=1,
        detections=2,
    )
    return [
        Detections(**rows, mask=mask),
        Detections(**rows, query=[1, 0], label_source=labels, class_names=["a", "b"]),
        Detections(**rows)._with_latency(Latency(0, 1, 2, 3)),
        PackedMasks.from_bool(mask),
        Latency(0.0, 1.0, 2.0, 3.0),
        stream.StreamStats(*range(11)),
        report,
        evaluate.Comparison((evaluate.Run("openvino", "fp32", report),), 0.5),
    ]


@pytest.mark.parametrize("made", results(), ids=lambda made: type(made).__name__)
def test_a_pickle_of_the_time_when_each_room_was_one_file_loads(made):
    # Protocol 0 is text, in which a class is the name of its module and its own.
    old, count = re.subn(
        rb"(fai_fast\.(?:detections|stream|evaluate))\.\w+\n", rb"\1\n", pickle.dumps(made, 0)
    )
    assert count > 0
    assert pickle.loads(old) == made
