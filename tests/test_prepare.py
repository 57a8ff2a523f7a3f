"""What is kept of a model, and what is said where no engine takes it."""

from __future__ import annotations

import dataclasses
import logging
import shutil

import fai_fast
import pytest
from fai_fast import _artefacts as artefacts
from fai_fast import _prepare as prepare
from fai_fast.engines import select
from fai_fast.errors import CudaError, EngineError

ENGINES = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def base():
    return fai_fast.spec("fai-mf-n-shapes")


def renamed(base, **changes):
    classes = tuple(f"Klasse {index}" for index in range(len(base.classes)))
    return dataclasses.replace(base, classes=classes, **changes)


def reconfigured(base):
    return dataclasses.replace(base, config=dataclasses.replace(base.config, threshold=0.1))


@pytest.mark.parametrize("engine", ENGINES)
def test_specs_of_one_name_do_not_evict_each_other(base, engine, tmp_path, caplog):
    pytest.importorskip(engine)
    caplog.set_level(logging.DEBUG, "fai_fast")
    specs = [base, renamed(base), renamed(base, note="second"), reconfigured(base)]
    assert {spec.name for spec in specs} == {base.name}
    for spec in specs * 2:
        with fai_fast.load(spec, cache_dir=tmp_path, engine=engine, precision="fp32", im_size=64) as model:
            assert model.spec == spec
    built = [record.getMessage() for record in caplog.records if "exporting" in record.getMessage()]
    assert len(built) == len(specs)


def test_every_file_in_the_cache_has_a_place_of_its_own(base, tmp_path):
    depends = {"weights": "a", "size": [1, 2]}
    place = artefacts._place(base, tmp_path, "1x2-b1.onnx", depends)
    assert place == artefacts._place(base, tmp_path, "1x2-b1.onnx", {"size": [1, 2], "weights": "a"})
    others = [{**depends, "size": [1, 3]}, {**depends, "exporter": 2}, {"weights": "a"}, {"größe": "\ud800"}]
    places = {artefacts._place(base, tmp_path, "1x2-b1.onnx", other) for other in others}
    assert len(places | {place}) == 5
    assert {item.suffix for item in places} == {".onnx"}
    assert {item.parent for item in places} == {place.parent}


def test_a_graph_that_changes_while_it_is_compiled_is_not_kept(base, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    path, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    fai_fast.export(base, path, im_size=64, verify=False)
    fai_fast.export(renamed(base), other, im_size=64, verify=False)
    module = select.module("openvino")
    compile_to = module.compile_to

    def replaced(graph, *args, **kwargs):
        shutil.copyfile(other, path)
        return compile_to(graph, *args, **kwargs)

    monkeypatch.setattr(module, "compile_to", replaced)
    options = {"engine": "openvino", "precision": "fp32", "cache_dir": tmp_path / "cache"}
    with pytest.raises(EngineError, match=r"a\.onnx was changed while it was in use"):
        fai_fast.load(path, **options)
    monkeypatch.undo()
    assert not list((tmp_path / "cache").rglob("*.blob"))
    with fai_fast.load(path, **options) as model:
        assert model.spec.classes == renamed(base).classes


# ------------------------------------------------------------------------------------------- who refuses what


def no_precision_but(monkeypatch, natives):
    for engine, native in natives.items():
        monkeypatch.setattr(select.module(engine), "native_precisions", lambda native=native: native)


def test_a_precision_that_no_engine_has_is_told_of_all(base, tmp_path, monkeypatch):
    for engine in ENGINES:
        pytest.importorskip(engine)
    no_precision_but(monkeypatch, {"openvino": ("bf16", "fp32"), "onnxruntime": ("fp32",)})
    with pytest.raises(EngineError) as caught:
        fai_fast.load(base, device="cpu", precision="fp16", cache_dir=tmp_path, im_size=64)
    assert str(caught.value) == (
        "no engine can be used: openvino: precision 'fp16' was asked for, expected one of 'bf16', 'fp32', which it "
        "computes natively on this CPU; onnxruntime: precision 'fp16' was asked for, expected one of 'fp32', which it "
        "computes natively on this CPU"
    )


def test_one_engine_speaks_for_itself(base, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    with pytest.raises(
        EngineError, match=r"^onnxruntime: precision 'bf16' was asked for, expected one of 'fp32'"
    ):
        fai_fast.load(base, engine="onnxruntime", precision="bf16", cache_dir=tmp_path, im_size=64)


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([CudaError("a: full"), CudaError("full")], CudaError),
        ([CudaError("a: full"), EngineError("b: lacks it")], EngineError),
    ],
    ids=["alike", "unlike"],
)
def test_what_all_say_is_of_their_kind(base, tmp_path, monkeypatch, errors, kind):
    choices = [select.Choice(name, "cuda", ()) for name in ("a", "b")]
    monkeypatch.setattr(select, "candidates", lambda engine, device: choices)
    left = iter(errors)

    def refuse(*args):
        raise next(left)

    monkeypatch.setattr(prepare, "_on_gpu", refuse)
    with pytest.raises(kind, match=r"^no engine can be used: a: full; b: (full|lacks it)$") as caught:
        fai_fast.load(base, cache_dir=tmp_path, im_size=64)
    assert type(caught.value) is kind
