"""What precision="auto" takes, on every kind of CPU, whichever this one is."""

from __future__ import annotations

import logging

import fai_fast
import numpy as np
import pytest
from fai_fast import _gate, cache, doctor
from fai_fast._gate import Verdict
from fai_fast.engines import cpu, openvino, precision
from helpers.networks import small_spec

pytest.importorskip("openvino")

AGREES, DIFFERS = (
    Verdict("panoptic quality", value, 0.9, "", "31 detections", "6 drawn pictures")
    for value in (0.987, 0.712)
)
FRAME = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A deployed graph in a file, which loads in a moment."""
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    spec = small_spec("bisenetformer", transformer_predictor_dec_layers=1)
    fai_fast.export(spec, path, weights="random", im_size=64)
    return path


@pytest.fixture
def verdicts(monkeypatch):
    """What the measurements of a low precision are to find, in turn; each must be asked for."""
    coming = []
    monkeypatch.setattr(_gate, "verify", lambda *_: coming.pop(0))
    yield coming
    assert coming == []


@pytest.fixture
def load(graph, tmp_path):
    """Loads it, runs a frame, and closes it; Model.info()."""

    def run(**options):
        options = {"device": "cpu", "num_threads": 1, **options}
        with fai_fast.load(graph, cache_dir=tmp_path, **options) as model:
            assert model.infer(FRAME).size == FRAME.shape[:2]
            return model.info()

    return run


@pytest.mark.parametrize(
    ("features", "fastest"),
    [
        (("amx_bf16", "amx_fp16", "avx512_fp16"), ("bf16", "fp16", "fp32")),
        (("amx_bf16", "avx512_fp16"), ("bf16", "fp32")),
        (("asimd", "asimdhp"), ("bf16", "fp16", "fp32")),
    ],
)
def test_fp16_that_is_computed_in_float32_is_given_but_not_tried(monkeypatch, features, fastest):
    """As with AVX512-FP16 alone, where it is slower than fp32."""
    monkeypatch.setattr(cpu, "features", lambda: features)
    assert set(cpu.precisions(["FP32", "FP16", "BF16", "INT8"])) == {"bf16", "fp16", "fp32"}
    monkeypatch.setattr(openvino, "native_precisions", lambda: cpu.precisions(["FP32", "FP16", "BF16"]))
    assert precision.candidates("openvino") == fastest


def test_the_fastest_that_agrees_is_taken(host, load, verdicts):
    low = host.precisions[0] != "fp32"
    verdicts += [AGREES] if low else []
    info = load()
    assert info["precision"] == host.precisions[0]
    assert info["precision_reason"] == (
        f"native on this CPU, and finds what fp32 finds: {AGREES}"
        if low
        else "openvino computes no smaller precision natively on this CPU"
    )
    # The second start neither measures nor compiles.
    again = load()
    assert again["precision_reason"] == info["precision_reason"]
    assert again["artefacts"]["engine"].endswith("(from the cache)")


def test_what_disagrees_is_passed_over_for_the_next(host, load, verdicts, caplog):
    caplog.set_level(logging.INFO, "fai_fast")
    refused = [name for name in host.precisions if name != "fp32"][:1]
    verdicts += [DIFFERS] * len(refused) + [AGREES] * (len(host.precisions) > 2)
    info = load()
    assert info["precision"] == (host.precisions[1] if refused else "fp32")
    said = [f"openvino in {name} does not find what fp32 finds: {DIFFERS}" for name in refused]
    assert all(text in caplog.text for text in said)
    # There is nothing that anyone could do about it.
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    caplog.clear()
    again = load()
    assert again["precision"] == info["precision"]
    assert not any(text in caplog.text for text in said)


def test_where_none_agrees_it_is_float32_that_says_why(host, load, verdicts):
    low = host.precisions[:-1]
    verdicts += [DIFFERS] * len(low)
    info = load()
    assert info["precision"] == "fp32"
    assert info["engine"]["precision"] == "fp32"
    for name in low:
        assert f"{name} is native on this CPU, but does not find what fp32" in info["precision_reason"]
        assert info["precision_verdicts"][name] == DIFFERS.to_dict()
    assert load()["precision_reason"] == info["precision_reason"]


@pytest.mark.parametrize("asked", ["bf16", "fp16", "fp32"])
@pytest.mark.usefixtures("verdicts")
def test_what_is_asked_for_is_given_without_a_question_or_refused(host, load, asked):
    if asked in host.precisions:
        info = load(engine="openvino", precision=asked)
        assert (info["precision"], info["precision_reason"]) == (asked, "asked for")
    else:
        with pytest.raises(fai_fast.EngineError) as raised:
            load(engine="openvino", precision=asked)
        native = ", ".join(map(repr, host.precisions))
        assert f"openvino: precision {asked!r} was asked for, expected one of {native}" in str(raised.value)


@pytest.mark.usefixtures("verdicts")
def test_what_is_slower_than_fp32_is_given_where_it_is_asked_for(put_on, load, monkeypatch):
    put_on("amx")
    monkeypatch.setattr(cpu, "precisions", lambda _: ("fp32", "fp16"))
    assert load(precision="fp16")["precision"] == "fp16"
    assert load()["precision"] == "fp32"


def test_a_cache_that_moves_between_cpus_has_something_for_each(put_on, load, verdicts):
    """Kernels that were compiled, and verdicts that were measured, are one machine's."""
    found = {}
    for name, coming in {"bf16": [AGREES], "amx": [DIFFERS, AGREES], "fp32": []}.items():
        put_on(name)
        verdicts += coming
        found[name] = load()
        assert "(built: " in found[name]["artefacts"]["engine"]
    assert [info["precision"] for info in found.values()] == ["bf16", "fp16", "fp32"]
    for name, info in found.items():
        put_on(name)
        again = load()
        assert (again["precision"], again["precision_reason"]) == (
            info["precision"],
            info["precision_reason"],
        )
        assert again["artefacts"]["engine"].endswith("(from the cache)")


@pytest.mark.parametrize("whose", ["record", "file"])
def test_foreign_files_in_the_place_of_a_verdict_are_replaced(put_on, load, verdicts, tmp_path, whose):
    put_on("amx")
    verdicts += [DIFFERS, AGREES] * 2
    info = load()
    kept = {item.path: item.path.read_bytes() for item in cache.list_artefacts(tmp_path)}
    assert sum("-agreement" in path.name for path in kept) == 2
    for path in kept:
        (cache.record_path(path) if whose == "record" else path).write_bytes(b"not what you think\n")
    again = load()
    assert (again["precision"], again["precision_reason"]) == ("fp16", info["precision_reason"])
    for item in cache.list_artefacts(tmp_path):
        assert item.complete
        assert item.path.suffix == ".blob" or item.path.read_bytes() == kept[item.path]


def test_the_engine_and_the_doctor_say_what_the_cpu_has(host):
    assert openvino.native_precisions() == precision.candidates("openvino") == host.precisions
    assert precision.candidates("onnxruntime") == ("fp32",)
    assert openvino.depends()["features"] == list(host.features)
    report = doctor.report()
    assert report["system"]["cpu"] == host.name
    assert report["system"]["features"] == list(host.features)


def test_onnxruntime_computes_in_float32_on_all_of_them(host, load):
    info = load(engine="onnxruntime")
    assert info["precision"] == "fp32"
    assert info["engine"]["device_name"] == host.name
    with pytest.raises(fai_fast.EngineError, match="onnxruntime: precision 'bf16' was asked for"):
        load(engine="onnxruntime", precision="bf16")
