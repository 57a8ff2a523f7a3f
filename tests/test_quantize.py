"""int8 for CPUs: made from pictures, verified, kept in one file, taken where it is fast."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import _gate, doctor, quantization, quantizer, registry
from fai_fast._gate import Verdict
from fai_fast.cli import main
from fai_fast.engines import openvino, openvino_file
from fai_fast.engines.precision import candidates
from fai_fast.errors import EngineError, ExportError
from fai_fast.quantizer import calibration, read_info
from fai_fast.weights import load_weights
from helpers.networks import network, small_spec

pytest.importorskip("openvino")
pytest.importorskip("nncf")

RNG = np.random.default_rng(0)
PICTURES = [
    np.kron(RNG.integers(0, 255, (4, 6, 3), np.uint8), np.ones((16, 16, 1), np.uint8)) for _ in range(5)
]
GOOD = Verdict("panoptic quality", 0.97, 0.9, "", "40 detections", "5 pictures")
BAD = Verdict("panoptic quality", 0.41, 0.9, "", "40 detections", "5 pictures")
SPEC = small_spec("bisenetformer", transformer_predictor_dec_layers=1)


@pytest.fixture(scope="module")
def weights():
    return load_weights(SPEC, network(SPEC).state_dict())


@pytest.fixture(scope="module")
def graph(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    fai_fast.export(weights, path, im_size=64)
    return path


@pytest.fixture(scope="module")
def made(graph, tmp_path_factory):
    """A quantized file."""
    path = tmp_path_factory.mktemp("made") / "small.openvino"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_gate, "verify", lambda *_, **__: GOOD)
        fai_fast.quantize(graph, PICTURES, path, progress=False)
    return path


@pytest.fixture
def gate(monkeypatch):
    """What the gate is to find, in turn; each must be asked for."""
    coming: list[Verdict] = []
    monkeypatch.setattr(_gate, "verify", lambda *_, **__: coming.pop(0))
    yield coming
    assert coming == []


@pytest.fixture
def quick(made, monkeypatch):
    """NNCF takes seconds for a network: what it made once is given again."""

    def calibrate(graph, count, inputs, attempt):
        assert len(list(inputs())) == count
        return openvino.read_graph(made)

    monkeypatch.setattr(calibration, "calibrate", calibrate)


@pytest.fixture
def verdicts(gate, quick):
    """As `gate`, without NNCF."""
    return gate


def rests() -> int:
    """In how many ways the rest of a quantized graph can be computed here."""
    return len(candidates("openvino"))


# ------------------------------------------------------------------------------------------------- what is made


def test_the_file_runs_and_gives_about_what_fp32_gives(graph, made):
    image = fai_fast.preprocess(PICTURES[0], (64, 64), mean=SPEC.config.pixel_mean, std=SPEC.config.pixel_std)
    outputs = []
    for path, precision in ((graph, "fp32"), (made, "int8+fp32")):
        engine = openvino.load(path, precision=precision)
        assert engine.info()["precision"] == precision
        context = engine.context()
        context.images[...] = image
        context.run()
        outputs.append((context.mask_logits.copy(), context.class_logits.copy()))
        engine.close()
    for exact, low in zip(*outputs, strict=True):
        noise = np.square(low - exact).sum() / np.square(exact).sum()
        # Not the same numbers, and not others.
        assert 0 < noise < 0.05


def test_weights_take_a_byte_each(graph, made):
    small = fai_fast.spec("fai-mf-n-shapes")
    form = registry.bundled_path(small.bundled_weights).with_suffix(".openvino")
    contents = openvino_file.read(form)
    assert contents.weights.size < 1.3 * sum(
        np.prod(shape) for shape in fai_fast.weights.state_shapes(small).values()
    )
    kinds = {
        op.get_element_type().get_type_name()
        for op in openvino.read_graph(made).get_ordered_ops()
        if op.get_type_name() == "Constant" and len(op.shape) == 4 and np.prod(op.shape) > 1000
    }
    assert "i8" in kinds


def test_load_takes_the_file_and_says_what_it_is(made, tmp_path):
    with fai_fast.load(made, cache_dir=tmp_path) as model:
        found = model.infer(PICTURES[0])
        info = model.info()
    assert found.size == PICTURES[0].shape[:2]
    assert (info["precision"], info["name"], info["im_size"]) == ("int8", SPEC.name, (64, 64))
    assert info["engine"]["precision"] == f"int8+{openvino.native_precisions()[0]}"
    assert str(GOOD) in info["precision_reason"]
    assert info["precision_verdicts"]["int8"] == GOOD.to_dict()
    assert fai_fast.load(
        made, precision="int8", engine="openvino", device="cpu", cache_dir=tmp_path
    ).size == (64, 64)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"precision": "fp32"},
            ValueError,
            "precision: got 'fp32' with small.openvino, expected 'auto' or 'int8'",
        ),
        ({"engine": "onnxruntime"}, ValueError, "engine: got 'onnxruntime' with small.openvino"),
        ({"device": "cuda"}, EngineError, "runs on cpu only"),
        ({"im_size": 96}, ValueError, "im_size: got 96 with small.openvino"),
        ({"batch_size": 2}, ValueError, "batch_size: got 2 with small.openvino, expected 1"),
        ({"weights": "random"}, ValueError, "weights: got some with small.openvino"),
        ({"pictures": PICTURES}, ValueError, "pictures: got some with small.openvino"),
    ],
)
def test_what_the_file_has_settled_cannot_be_asked_otherwise(made, tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        fai_fast.load(made, cache_dir=tmp_path, **options)


def test_a_batch_is_filled(weights, tmp_path, gate):
    gate += [GOOD] * rests()
    report = fai_fast.quantize(
        weights, PICTURES, tmp_path / "a.openvino", im_size=(64, 96), batch=2, subset=3
    )
    assert (report.size, report.batch, report.pictures) == ((64, 96), 2, "3 pictures")
    with fai_fast.load(report.path, cache_dir=tmp_path, batch_size=2) as model:
        assert len(model.infer_batch(PICTURES)) == len(PICTURES)


def test_the_report_is_json(made, graph, tmp_path, verdicts):
    verdicts += [GOOD] * rests()
    report = fai_fast.quantize(graph, PICTURES, tmp_path / "a.openvino", progress=False)
    said = json.loads(json.dumps(report.to_dict()))
    assert said["rest"][-1] == "fp32"
    assert said["verification"]["fp32"]["gate"]["value"] == GOOD.value
    assert report.file_size == report.path.stat().st_size
    assert read_info(report.path).verdict == report.verdict


# ------------------------------------------------------------------------------------------ what is not good enough


def test_what_loses_too_much_is_made_again_with_the_rest_kept(graph, tmp_path, gate):
    gate += [BAD] * rests() + [GOOD] * rests()
    report = fai_fast.quantize(graph, PICTURES, tmp_path / "a.openvino", progress=False)
    assert report.kept == calibration.ATTEMPTS[1].name
    model = openvino.read_graph(report.path)
    inputs = {
        op.get_friendly_name(): {item.get_source_output().get_node().get_type_name() for item in op.inputs()}
        for op in model.get_ordered_ops()
        if op.get_type_name() == "MatMul"
    }
    for name, kinds in inputs.items():
        if "/cross/" in name or "/self/" in name or "masks" in name:
            assert "FakeQuantize" not in kinds, name
    assert any("FakeQuantize" in kinds for kinds in inputs.values())


def test_what_loses_too_much_twice_is_refused_with_the_figures(graph, tmp_path, verdicts):
    verdicts += [BAD] * (2 * rests())
    place = tmp_path / "a.openvino"
    place.write_text("before")
    with pytest.raises(ExportError, match=r"int8 loses too much.*quality 0\.41.*quality 0\.41") as raised:
        fai_fast.quantize(graph, PICTURES, place, progress=False)
    for attempt in calibration.ATTEMPTS:
        assert attempt.name in str(raised.value)
    assert place.read_text() == "before"
    assert list(tmp_path.iterdir()) == [place]


def test_what_openvino_does_not_compile_is_made_again_with_the_rest_kept(
    graph, tmp_path, verdicts, monkeypatch
):
    verdicts += [GOOD] * rests()
    whole = openvino.load

    def load(path, *, precision="fp32", **options):
        if (
            precision.startswith("int8")
            and openvino_file.read_account(path)["kept"] == calibration.ATTEMPTS[0].name
        ):
            raise EngineError("openvino: cannot be compiled")
        return whole(path, precision=precision, **options)

    monkeypatch.setattr(openvino, "load", load)
    report = fai_fast.quantize(graph, PICTURES, tmp_path / "a.openvino", progress=False)
    assert report.kept == calibration.ATTEMPTS[1].name


def test_a_rest_that_openvino_does_not_compile_is_left_out(graph, tmp_path, verdicts, monkeypatch, put_on):
    put_on("bf16")
    verdicts.append(GOOD)
    whole = openvino.load

    def load(path, *, precision="fp32", **options):
        if precision == "int8+bf16":
            raise EngineError("openvino: cannot be compiled")
        return whole(path, precision=precision, **options)

    monkeypatch.setattr(openvino, "load", load)
    report = fai_fast.quantize(graph, PICTURES, tmp_path / "a.openvino", progress=False)
    assert report.kept == calibration.ATTEMPTS[0].name
    assert report.rest == tuple(report.verification) == ("fp32",)


@pytest.mark.usefixtures("quick")
def test_what_openvino_never_compiles_is_its_error(graph, tmp_path, monkeypatch):
    whole = openvino.load

    def load(path, *, precision="fp32", **options):
        if precision.startswith("int8"):
            raise EngineError("openvino: cannot be compiled")
        return whole(path, precision=precision, **options)

    monkeypatch.setattr(openvino, "load", load)
    with pytest.raises(EngineError, match=r"^openvino: cannot be compiled$"):
        fai_fast.quantize(graph, PICTURES, tmp_path / "a.openvino", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(rests() < 2, reason="this CPU computes in fp32 alone")
def test_the_rest_is_computed_in_what_it_was_verified_for(graph, tmp_path, verdicts):
    verdicts += [BAD] * (rests() - 1) + [GOOD]
    report = fai_fast.quantize(graph, PICTURES, tmp_path / "a.openvino", progress=False)
    assert report.rest == ("fp32",)
    with fai_fast.load(report.path, cache_dir=tmp_path) as model:
        assert model.info()["engine"]["precision"] == "int8+fp32"


@pytest.mark.parametrize(("fall", "holds"), [(0.49, True), (0.51, False)])
@pytest.mark.usefixtures("verdicts")
def test_with_labels_accuracy_has_the_word(graph, tmp_path, monkeypatch, fall, holds):
    """Whatever the gate says."""
    monkeypatch.setattr(_gate, "verify", lambda *_, **__: BAD if holds else GOOD)
    measured = []

    def accuracy(path, precision):
        measured.append(precision)
        return "segm/AP", 40.0 if precision == "fp32" else 40.0 - fall

    monkeypatch.setattr(quantization, "_accuracy", lambda *_: accuracy)
    monkeypatch.setattr(quantization, "_labels", lambda *_, **__: Labels())
    options = {"coco": "labels/val.json", "progress": False}
    if holds:
        report = fai_fast.quantize(graph, PICTURES, tmp_path / "a.openvino", **options)
        assert report.verdict.startswith("segm/AP 39.51 on val.json, 40.00 in fp32")
        assert measured.count("fp32") == 1
    else:
        with pytest.raises(ExportError, match=r"segm/AP 39\.49, 40\.00 in fp32 \(it may fall by 0\.5\)"):
            fai_fast.quantize(graph, PICTURES, tmp_path / "a.openvino", **options)


class Labels:
    def check(self, spec):
        assert spec.name == SPEC.name


@pytest.mark.usefixtures("quick")
def test_labels_are_measured(weights, tmp_path):
    """A semantic network on labels of its own: what fp32 says, so that its mIoU is 100."""
    from PIL import Image

    folder = tmp_path / "data"
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    with fai_fast.load(
        SPEC, weights=weights.state, im_size=64, precision="fp32", cache_dir=tmp_path
    ) as model:
        for index, picture in enumerate(PICTURES):
            Image.fromarray(picture).save(folder / "images" / f"{index}.png")
            found = model.infer(picture, threshold=0.0).label_map
            Image.fromarray((found + 1).astype(np.uint8)).save(folder / "annotations" / f"{index}.png")
    options = {"ade": folder, "im_size": 64, "tolerance": 1.0, "progress": False, "cache_dir": tmp_path}
    report = fai_fast.quantize(weights, folder / "images", tmp_path / "a.openvino", **options)
    found = report.verification["fp32"]["accuracy"]
    assert (found["metric"], found["fp32"], found["of"]) == ("sem_seg/mIoU", 100.0, "data")
    assert 50 < found["value"] <= 100


# -------------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"path": "a.onnx"}, ValueError, "path: got 'a.onnx', expected a path that ends in .openvino"),
        ({"path": 3}, TypeError, "path: got int"),
        ({"path": "nowhere/a.openvino"}, FileNotFoundError, "path: no such folder: nowhere"),
        ({"precision": "int4"}, ValueError, "precision: got 'int4'"),
        ({"subset": 0}, ValueError, "subset: got 0, expected 1..100000"),
        ({"tolerance": 2}, ValueError, "tolerance"),
        ({"batch": 0}, ValueError, "batch: got 0"),
        ({"im_size": 65}, ValueError, r"im_size: got \(65, 65\), expected multiples of 32"),
        ({"pictures": []}, ValueError, "pictures: got none"),
        ({"pictures": "no-such-folder"}, FileNotFoundError, "pictures: no such folder: no-such-folder"),
        ({"pictures": 3}, TypeError, "pictures: got int"),
        ({"pictures": [b"GIF89a"]}, ValueError, "image"),
        ({"coco": "a.json", "ade": "b"}, ValueError, "ade: got a folder with coco= too"),
        ({"coco": "a.json", "panoptic": "b.json"}, ValueError, "panoptic: got a file with coco= too"),
        ({"panoptic": "b.json"}, ValueError, "pictures: got list with panoptic="),
        ({"coco": "a.json"}, ValueError, "pictures: got list with coco="),
        ({"ade": "no-such"}, FileNotFoundError, "ade: no-such has no folders"),
    ],
)
def test_wrong_arguments_are_named(weights, tmp_path, monkeypatch, changes, error, text):
    monkeypatch.chdir(tmp_path)
    arguments = {"pictures": PICTURES, "path": "a.openvino", "im_size": 64, "cache_dir": tmp_path / "cache"}
    with pytest.raises(error, match=text):
        fai_fast.quantize(weights, **{**arguments, **changes})
    assert not list(tmp_path.glob("*.openvino"))


def test_a_graph_in_fp16_is_refused(weights, tmp_path):
    fai_fast.export(weights, tmp_path / "half.onnx", im_size=64, precision="fp16")
    with pytest.raises(ValueError, match=r"half\.onnx is a fp16 graph, expected one in fp32"):
        fai_fast.quantize(tmp_path / "half.onnx", PICTURES, tmp_path / "a.openvino")


def test_without_nncf_the_error_says_what_installs_it(graph, tmp_path, monkeypatch):
    calibration.nncf.cache_clear()
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ExportError, match=r"NNCF cannot be imported.*pip install 'fai-fast\[quantize\]'"):
        fai_fast.quantize(graph, PICTURES, tmp_path / "a.openvino")
    calibration.nncf.cache_clear()


# --------------------------------------------------------------------------------------------------- damaged files


def damaged(made: Path) -> dict[str, bytes]:
    content = made.read_bytes()
    header = int.from_bytes(content[:8], "little")
    middle = bytearray(content)
    middle[len(content) // 2] ^= 1
    said = bytearray(content)
    place = content.index(b"rest")
    said[place : place + 4] = b"tser"
    return {
        "empty": b"",
        "one byte": content[:1],
        "half a header": content[: header // 2],
        "a header alone": content[: 8 + header],
        "cut": content[:-1],
        "longer": content + b"\0",
        "a bit": bytes(middle),
        "what it says": bytes(said),
        "a huge header": (1 << 62).to_bytes(8, "little") + content[8:],
        "zeros": bytes(len(content)),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "text": b"int8",
    }


DAMAGES = (
    "empty",
    "one byte",
    "half a header",
    "a header alone",
    "cut",
    "longer",
    "a bit",
    "what it says",
    "a huge header",
    "zeros",
    "a picture",
    "text",
)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_an_error_that_names_the_file(made, tmp_path, name):
    path = tmp_path / "broken.openvino"
    path.write_bytes(damaged(made)[name])
    with pytest.raises(EngineError, match=r"broken\.openvino"):
        fai_fast.load(path, cache_dir=tmp_path)


def test_other_files_of_that_name_are_errors(made, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "a.openvino"
    with pytest.raises(FileNotFoundError, match=r"no such file: .*a\.openvino"):
        fai_fast.load(path)
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(EngineError, match="holds something else"):
        fai_fast.load(path)
    save_file(
        {"graph": np.zeros(3, np.float32), "weights": np.zeros(3, np.uint8)},
        path,
        metadata={"fai_fast": "{}"},
    )
    with pytest.raises(EngineError, match="F32"):
        fai_fast.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(EngineError, match="is a folder, expected a file"):
        fai_fast.load(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(EngineError, match="no regular file"):
        fai_fast.load(path)


def forged(path: Path, account: object, graph: bytes, weights: bytes) -> Path:
    """A file whose checksum holds, whatever is in it."""
    from safetensors.numpy import save_file

    said = json.dumps(account)
    tensors = {"graph": np.frombuffer(graph, np.uint8), "weights": np.frombuffer(weights, np.uint8)}
    metadata = {"fai_fast": said, "fai_fast.sha256": openvino_file._digest(said, graph, weights)}
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"<net",
        b"<net name='a' version='11'></net>",
        b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><net name='&b;' version='11'/>",
        b"<net name='a' version='11'><layers></layers><edges></edges></net>",
        b"<net " + b"<a>" * 5000,
    ],
)
def test_a_forged_graph_is_an_error(made, tmp_path, xml):
    contents = openvino_file.read(made)
    path = forged(tmp_path / "a.openvino", contents.account, xml, b"\0" * 64)
    with pytest.raises(EngineError, match=r"a\.openvino"):
        fai_fast.load(path, cache_dir=tmp_path)


def test_a_graph_whose_weights_are_not_there_is_an_error(made, tmp_path):
    contents = openvino_file.read(made)
    path = forged(tmp_path / "a.openvino", contents.account, contents.graph, contents.weights.tobytes()[:100])
    with pytest.raises(EngineError, match=r"a\.openvino"):
        fai_fast.load(path, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 99},
        {"rest": []},
        {"rest": ["bf16"]},
        {"rest": ["fp32", "fp8"]},
        {"rest": 3},
        {"im_size": [64, 1 << 40]},
        {"im_size": "64"},
        {"batch": -1},
        {"batch": "1"},
        {"spec": {}},
        {"spec": None},
        {"weights_sha256": 1},
        {"kept": None},
        {"verification": {"fp32": 3}},
        {"verification": None},
        {"versions": []},
    ],
)
def test_what_a_forged_account_says_is_checked(made, tmp_path, changes):
    contents = openvino_file.read(made)
    account = {**contents.account, **changes}
    path = forged(tmp_path / "a.openvino", account, contents.graph, contents.weights.tobytes())
    with pytest.raises(EngineError, match=r"a\.openvino was not written by this version"):
        fai_fast.load(path, cache_dir=tmp_path)


def test_an_account_of_another_size_than_the_graph_is_an_error(made, tmp_path):
    contents = openvino_file.read(made)
    account = {**contents.account, "im_size": [96, 96]}
    path = forged(tmp_path / "a.openvino", account, contents.graph, contents.weights.tobytes())
    with pytest.raises(EngineError, match="96"):
        fai_fast.load(path, cache_dir=tmp_path)


# ------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    """A cache with the fp32 graph and its engine, which every load here needs."""
    folder = tmp_path_factory.mktemp("exported")
    options = {"weights": weights.state, "im_size": 64, "num_threads": 1, "precision": "fp32"}
    fai_fast.load(SPEC, cache_dir=folder, **options).close()
    return folder


@pytest.fixture
def load(weights, exported, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)

    def run(**options):
        arguments = {"weights": weights.state, "im_size": 64, "cache_dir": tmp_path, "num_threads": 1}
        with fai_fast.load(SPEC, **{**arguments, **options}) as model:
            assert model.infer(PICTURES[0]).size == PICTURES[0].shape[:2]
            return model.info()

    return run


def test_the_cache_keeps_it_by_pictures(load, verdicts):
    with pytest.raises(EngineError, match="no int8 form of these weights in 64x64 is there: pass pictures="):
        load(precision="int8")
    verdicts += [GOOD] * rests()
    first = load(precision="int8", pictures=PICTURES)
    assert first["precision"] == "int8"
    assert "(built: not there yet)" in first["artefacts"]["quantized"]
    for options in ({"pictures": PICTURES}, {}):
        again = load(precision="int8", **options)
        assert again["artefacts"]["quantized"].endswith("(from the cache)")
        assert again["artefacts"]["engine"].endswith("(from the cache)")
        assert again["precision_verdicts"] == first["precision_verdicts"]
    verdicts += [GOOD] * rests()
    other = load(precision="int8", pictures=PICTURES[:2])
    assert other["artefacts"]["quantized"].endswith("(built: not there yet)")
    # Other weights have no form yet.
    with pytest.raises(EngineError, match="no int8 form of these weights"):
        load(precision="int8", weights=network(SPEC, seed=1).state_dict())


def test_one_that_loses_too_much_can_be_had_to_be_measured(load, verdicts, put_on):
    put_on("vnni")
    verdicts += [BAD] * rests()
    info = load(precision="int8", pictures=PICTURES, verify_precision=False)
    assert str(BAD) in info["precision_reason"]
    # Nobody gets it without asking for it.
    assert load()["precision"] == "fp32"
    with pytest.raises(EngineError, match="no int8 form of these weights"):
        load(precision="int8")


def test_what_is_damaged_in_the_cache_is_not_taken(load, verdicts):
    verdicts += [GOOD] * rests()
    path = Path(load(precision="int8", pictures=PICTURES)["artefacts"]["quantized"].partition(" (")[0])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(EngineError, match="no int8 form of these weights"):
        load(precision="int8")
    verdicts += [GOOD] * rests()
    assert "corrupt" in load(precision="int8", pictures=PICTURES)["artefacts"]["quantized"]


def test_auto_takes_it_where_it_is_fast(load, verdicts, host, weights, tmp_path):
    verdicts += [GOOD] * rests()
    report = fai_fast.quantize(SPEC, PICTURES, weights=weights.state, im_size=64, cache_dir=tmp_path)
    assert report.path.is_relative_to(tmp_path)
    fast = bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(host.features))
    others = [name for name in host.precisions if name != "fp32"]
    verdicts += [] if fast else [GOOD] * bool(others)
    info = load()
    assert info["precision"] == ("int8" if fast else host.precisions[0])
    if fast:
        assert (
            f"native on this CPU; it was made from 5 pictures, held against fp32: {GOOD}"
            in info["precision_reason"]
        )
    # Asked for, it runs anywhere.
    assert load(precision="int8")["precision"] == "int8"


def test_auto_holds_it_against_fp32_on_the_pictures_that_are_given(load, verdicts, put_on):
    put_on("vnni")
    verdicts += [GOOD] * rests()
    load(precision="int8", pictures=PICTURES)
    verdicts += [GOOD]
    assert load(pictures=PICTURES[:3])["precision"] == "int8"
    verdicts += [BAD]
    info = load(pictures=PICTURES[:2])
    assert info["precision"] == "fp32"
    assert f"int8 is native on this CPU, but does not find what fp32 finds: {BAD}" in info["precision_reason"]


def test_another_engine_has_no_int8(load):
    pytest.importorskip("onnxruntime")
    with pytest.raises(
        EngineError, match="onnxruntime: precision 'int8' was asked for, which only openvino has"
    ):
        load(engine="onnxruntime", precision="int8")


@pytest.mark.parametrize(("path", "precision"), [("graph", "int8+fp32"), ("made", "fp32")])
def test_a_graph_is_not_computed_as_another_kind(request, path, precision):
    with pytest.raises(ValueError, match=f"precision: got '{precision.replace('+', '.')}' with small"):
        openvino.load(request.getfixturevalue(path), precision=precision)


# -------------------------------------------------------------------------------------------------- the demo model


def test_the_demo_brings_a_form_of_its_own_weights(put_on, tmp_path):
    """tools/quantize_shapes.py makes it: to be run after every change of the weights."""
    spec = fai_fast.spec("fai-mf-n-shapes")
    info = read_info(registry.bundled_path(spec.bundled_weights).with_suffix(".openvino"))
    assert info.weights_sha256 == load_weights(spec).sha256
    assert info.spec.config == spec.config
    for said in info.verification.values():
        found = said["accuracy"]
        assert found["metric"] == "segm/AP"
        assert found["value"] >= found["fp32"] - 0.5
    put_on("vnni")
    with fai_fast.load(spec.name, cache_dir=tmp_path) as model:
        info = model.info()
        assert (info["precision"], info["engine"]["precision"]) == ("int8", "int8+fp32")
        assert "comes with the package" in info["artefacts"]["quantized"]
        assert len(model.infer(registry.FOLDER / "samples" / "shapes.jpg")) > 3
    put_on("fp32")
    assert fai_fast.load(spec.name, cache_dir=tmp_path).info()["precision"] == "fp32"
    # Of another size or of other weights it is not.
    put_on("vnni")
    assert fai_fast.load(spec.name, im_size=64, cache_dir=tmp_path).info()["precision"] == "fp32"


def test_a_form_of_other_weights_is_not_taken(put_on, tmp_path, monkeypatch):
    put_on("vnni")
    read = read_info
    other = lambda path: dataclasses.replace(read(path), weights_sha256="0" * 64)  # noqa: E731
    monkeypatch.setattr("fai_fast.quantizer.kept.read_info", other)
    assert fai_fast.load("fai-mf-n-shapes", cache_dir=tmp_path).info()["precision"] == "fp32"


# ------------------------------------------------------------------------------------------------ other processes


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


def test_nncf_is_quiet_and_calls_nobody():
    done = run(
        "import logging, sys\n"
        "from fai_fast.quantizer import calibration\n"
        "calibration.nncf()\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "assert logging.getLoggerClass() is logging.Logger\n"
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.fixture(scope="module")
def masks_with(made, tmp_path_factory):
    """A function: the quantized network's masks in a process with those variables."""
    path = tmp_path_factory.mktemp("out") / "out.npy"
    code = (
        "import sys, numpy as np\n"
        "from fai_fast.engines import openvino\n"
        f"context = openvino.load({str(made)!r}, precision='int8+fp32').context()\n"
        "context.images[...] = np.random.default_rng(0).normal(size=context.images.shape)\n"
        "context.run()\n"
        f"np.save({str(path)!r}, context.mask_logits)\n"
    )

    def masks(**environment):
        run(code, **environment)
        return np.load(path)

    return masks


@pytest.fixture(scope="module")
def masks(masks_with):
    return masks_with()


@pytest.mark.parametrize("isa", ["AVX", "AVX2", "AVX512_CORE"])
def test_fewer_instructions_give_about_the_same(masks, masks_with, isa):
    """Without VNNI products of int8 take other instructions, whose sums of two overflow now and then."""
    exact, low = masks, masks_with(ONEDNN_MAX_CPU_ISA=isa, DNNL_MAX_CPU_ISA=isa)
    assert np.square(low - exact).sum() < 0.03 * np.square(exact).sum()


# ------------------------------------------------------------------------------------------- command line, doctor


def test_the_command_writes_the_file(graph, tmp_path, capsys, verdicts):
    from PIL import Image

    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    verdicts += [GOOD] * rests()
    out = tmp_path / "a.openvino"
    assert main(["quantize", str(graph), "--images", str(tmp_path), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert f"wrote {out}" in said.out
    # Whoever can read other new files of this user can read it.
    (tmp_path / "other").touch()
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert "panoptic quality 0.97" in said.out
    verdicts += [BAD] * (2 * rests())
    assert main(["quantize", str(graph), "--images", str(tmp_path), "-o", str(out), "--json", "-"]) == 1
    assert "int8 loses too much" in capsys.readouterr().err
    assert fai_fast.load(out, cache_dir=tmp_path / "cache").spec.name == SPEC.name
    frame = ["--frame", "96x64", "-o", str(tmp_path / "b.openvino")]
    assert main(["quantize", str(graph), "--images", str(tmp_path), *frame]) == 2
    assert "--frame: got (64, 96) with" in capsys.readouterr().err
    files = ["--cache-dir", str(tmp_path / "cache"), "--output", str(tmp_path / "drawn")]
    assert main(["predict", str(out), str(tmp_path / "0.png"), *files]) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["m"], "--images"),
        (
            ["m", "--images", ".", "-o", "a.onnx"],
            "--output: got 'a.onnx', expected a name that ends with .openvino",
        ),
        (["m", "--images", ".", "-o", "nowhere/a.openvino"], "--output: no such folder: nowhere"),
        (["m", "--images", ".", "--coco", "a", "--ade", "b"], "not allowed with"),
        (["m", "--images", ".", "--subset", "0"], "--subset"),
        (["m", "--images", ".", "--frame", "1920"], "--frame: got '1920', expected 1920x1080"),
        (["fai-mf-n-shapes", "--images", ".", "--frame", "64x64", "--im-size", "64"], "not allowed with"),
        (["fai-mf-n-shapes", "--images", "empty"], "--images: got none of empty, expected at least one"),
    ],
)
def test_wrong_usage(arguments, text, capsys, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_labels_that_are_not_there_are_called_by_their_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    assert main(["quantize", "fai-mf-n-shapes", "--images", ".", "--coco", "nowhere.json"]) == 1
    assert "error: --coco: no such file: nowhere.json" in capsys.readouterr().err


def test_doctor_says_whether_int8_is_fast_here(host):
    said = doctor.report()["precision"]["int8"]
    if {"avx512_vnni", "avx_vnni", "amx_int8"} & set(host.features):
        assert said.startswith("fast on this CPU")
    else:
        assert "hardly faster than fp32: it has none of avx512_vnni, avx_vnni and amx_int8" in said


# ------------------------------------------------------------------------------------------------------ every one


# The first is quantized above; the second is bisenetformer-m-ade under another name, as test_tensorrt_rtx.py holds.
DONE = ("fai-mf-n-shapes", "fai-bf-m-ade")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in fai_fast.models() if name not in DONE])
def test_every_network_quantizes_and_runs(name, tmp_path, gate):
    """With weights that find nothing: whether they are good enough is the gate's matter."""
    gate += [GOOD] * rests()
    report = fai_fast.quantize(
        name,
        PICTURES[:2],
        tmp_path / "a.openvino",
        weights="random",
        im_size=64,
        cache_dir=tmp_path,
        progress=False,
    )
    with fai_fast.load(report.path, cache_dir=tmp_path) as model:
        assert model.spec.name == name
        assert model.infer(PICTURES[0]).size == PICTURES[0].shape[:2]
        image = model.queries(PICTURES[0])
    assert np.isfinite(image[1]).all()
    assert report.precision == quantizer.PRECISION


def test_a_file_says_of_a_folder_how_its_path_ends():
    from fai_fast.quantizer import _without_folders

    assert _without_folders("300 pictures of /home/me/pears/images") == "300 pictures of pears/images"
    assert _without_folders("1 picture of images") == "1 picture of images"
    assert _without_folders("6 drawn pictures") == "6 drawn pictures"
