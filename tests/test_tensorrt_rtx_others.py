"""TensorRT-RTX builds networks that are not FocoosAI's ahead of time, in fp16 and in int8; small ones."""

from __future__ import annotations

import importlib.util

import fai_fast
import pytest
from fai_fast import _scenes
from fai_fast.exporter import tensorrt
from helpers import others

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
if not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")):
    pytest.skip("TensorRT-RTX is not installed: pip install tensorrt-rtx", allow_module_level=True)

FAMILIES = ("mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3", "rf_detr")
# Turing, which refuses most, and two with other kernels.
TARGETS = ["sm75", "sm86", "sm120"]


def export(kind, folder, precision, **options):
    from helpers.families import processor, small

    given = {"format": "tensorrt", "target": TARGETS, "precision": precision, "task": "instance"}
    if precision == "int8":
        given["pictures"] = [_scenes.draw(seed, (64, 64)) for seed in range(4)]
    return fai_fast.export(
        small(kind), folder / "m.engine", im_size=64, processor=processor(kind), **(given | options)
    )


def test_a_file_of_somebody_in_int8(tmp_path):
    path = others.write(tmp_path / "theirs.onnx", **others.OPEN)
    report = fai_fast.export(
        path,
        tmp_path / "m.engine",
        spec=others.spec(),
        format="tensorrt",
        target="sm75",
        precision="int8",
        pictures=[others.picture(seed) for seed in range(4)],
    )
    assert (report.verified, report.precision, report.targets) == (True, "int8", ("sm75",))
    assert tensorrt.read_record(report.path).int8 == report.int8 != ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_builds_in_fp16(kind, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    report = export(kind, tmp_path, "fp16")
    assert (report.verified, report.precision, report.targets) == (True, "fp16", tuple(TARGETS))
    assert report.file_size > 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_builds_in_int8(kind, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    # Of random weights the order of RF-DETR's proposals is a matter of rounding, so that queries cannot be compared.
    report = export(kind, tmp_path, "int8", verify=kind != "rf_detr")
    assert (report.precision, report.targets) == ("int8", tuple(TARGETS))
    assert int(report.int8.split(" %")[0].rsplit(" ", 1)[1]) > 70
    assert tensorrt.read_record(report.path).int8 == report.int8
