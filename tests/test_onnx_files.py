"""ONNX files of others, read with care: damaged, large and malicious ones are refused in words."""

from __future__ import annotations

import json

import fai_fast
import numpy as np
import pytest
from fai_fast.errors import ExportError
from fai_fast.networks import foreign, onnx_file

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

from helpers import others  # noqa: E402
from helpers.others import OPEN, assert_same, expected, picture, spec, write  # noqa: E402


def load(path, given=None, **options):
    return fai_fast.load(path, spec=spec() if given is None else given, device="cpu", **options)


def broken(path, **changes):
    model = others.graph()
    for name, value in changes.items():
        setattr(model, name, value)
    onnx.save(model, path)


def test_a_truncated_file(tmp_path):
    whole = others.graph().SerializeToString()
    path = tmp_path / "theirs.onnx"
    for length in (0, 1, 7, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"theirs\.onnx (is|has)|: the (weights|spec)"):
            load(path)


def test_bytes_that_are_no_model(tmp_path):
    path = tmp_path / "theirs.onnx"
    for content in (b"no graph", b"\x00" * 100, b"\x08\x09", json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"theirs\.onnx is no ONNX model, or is damaged"):
            load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=r"folder\.onnx"):
        load(tmp_path / "folder.onnx")


def test_files_that_are_too_large(tmp_path, monkeypatch):
    path = write(tmp_path / "theirs.onnx")
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 100)
    with pytest.raises(ValueError, match=rf"has {path.stat().st_size} bytes, expected at most 100"):
        load(path)


def test_versions_that_nobody_has(tmp_path):
    path = tmp_path / "theirs.onnx"
    broken(path, ir_version=1000)
    with pytest.raises(ValueError, match=r"has IR version 1000, expected at most"):
        load(path)
    for opset in (3, 1000):
        onnx.save(others.graph(opset=opset), path)
        with pytest.raises(ValueError, match=rf"has opset {opset}, expected 9 to "):
            load(path)
    model = others.graph()
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    with pytest.raises(ValueError, match="names 0 versions"):
        load(path)


def test_operators_of_somebody(tmp_path):
    model = others.graph()
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Gelu", "com.microsoft"
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(
        ValueError, match=r"com\.microsoft::Gelu, which not every engine runs; expected ONNX's alone"
    ):
        load(tmp_path / "theirs.onnx")


def test_a_graph_that_is_not_valid(tmp_path):
    model = others.graph()
    model.graph.node[0].input[0] = "nothing"
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match=r"is not a valid ONNX model: .*nothing"):
        load(tmp_path / "theirs.onnx")


def with_function(depth=1, itself=False):
    """A model whose Relu is a function of its own, which calls another twice, and so on."""
    model = others.graph()
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("mine", 1)]
    node = onnx.helper.make_node
    for level in range(depth):
        inner = {"domain": "mine"} if level else {}
        name = f"f{level - 1}" if level else "Relu"
        nodes = [node(name, ["x"], ["t"], **inner), node(name, ["t"], ["y"], **inner)]
        if itself:
            nodes = [node(f"f{level}", ["x"], ["y"], domain="mine")]
        model.functions.append(onnx.helper.make_function("mine", f"f{level}", ["x"], ["y"], nodes, imports))
    relu = next(item for item in model.graph.node if item.op_type == "Relu")
    relu.op_type, relu.domain = f"f{depth - 1}", "mine"
    return model


def test_functions_are_written_out(tmp_path):
    onnx.save(with_function(2), tmp_path / "theirs.onnx")
    frame, given = picture(), spec(threshold=0.4)
    with load(tmp_path / "theirs.onnx", given, precision="fp32") as model:
        assert_same(model.infer(frame), expected(others.graph(), given, frame, (64, 64)))


def test_functions_that_fill_the_memory(tmp_path):
    onnx.save(with_function(40), tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match=r"has \d+ nodes with its functions written out, expected at most"):
        load(tmp_path / "theirs.onnx")
    onnx.save(with_function(1, itself=True), tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match="its function f0 calls itself"):
        load(tmp_path / "theirs.onnx")


def external(folder, location="theirs.bin", **changes):
    """A file with its first weights in another; `changes` of what it says of them, and that entry."""
    model = others.graph()
    tensor = model.graph.initializer[0]
    (folder / "theirs.bin").write_bytes(b"before" + tensor.raw_data)
    said = {"location": location, "offset": "6", "length": str(len(tensor.raw_data)), **changes}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in said.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path = folder / "theirs.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_in_another_file(tmp_path):
    frame, given = picture(), spec(threshold=0.4)
    for changes in ({}, {"length": None}):
        with load(external(tmp_path, **changes), given, precision="fp32") as model:
            assert_same(model.infer(frame), expected(others.graph(), given, frame, (64, 64)))
    path = tmp_path / "theirs.bin"
    before = foreign.network_of(tmp_path / "theirs.onnx", given, (64, 64)).sha256
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    assert foreign.network_of(tmp_path / "theirs.onnx", given, (64, 64)).sha256 != before


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("../secret.bin", r"'\.\./secret\.bin', expected a file in the folder of the model"),
        ("sub/../../secret.bin", r"expected a file in the folder of the model"),
        ("/etc/passwd", r"'/etc/passwd', expected a file in the folder of the model"),
        ("C:\\secret.bin", r"expected a file in the folder of the model"),
        ("..\\secret.bin", r"expected a file in the folder of the model"),
        ("", r"'', expected a file in the folder"),
        ("none.bin", r"'none\.bin', and there is no such file beside the model"),
        ("link.bin", r"'link\.bin', a link that leads out of the model's folder"),
        ("folder", r"'folder', which is no file"),
    ],
)
def test_weights_from_elsewhere_are_refused(tmp_path, location, text):
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ValueError, match=text):
        load(external(folder, location))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"offset": "-1"}, r"are said to be 864 bytes at -1 of theirs\.bin"),
        ({"offset": "7"}, r"864 bytes at 7 of theirs\.bin, which has 870"),
        ({"length": "12"}, r"expected 864 for shape \(8, 3, 3, 3\)"),
        ({"length": "pears"}, r"offset or length is no number"),
    ],
)
def test_places_in_another_file_that_are_not_there(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        load(external(tmp_path, **changes))


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        ([1 << 40, 1 << 20], r"have 864 bytes, expected \d+ for shape|negative"),
        ([-1, 3], r"negative"),
        ([8, 3, 3, 4], r"864 bytes, expected 1152 for shape"),
    ],
)
def test_weights_of_other_shapes_than_their_bytes(tmp_path, dims, text):
    model = others.graph()
    model.graph.initializer[0].dims[:] = dims
    (tmp_path / "theirs.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=text):
        load(tmp_path / "theirs.onnx")


def test_values_that_no_machine_holds(tmp_path):
    model = others.graph()
    shape = onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 20, 1, 1]), "large")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["large"], ["zeros"]))
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["zeros"], ["sum"]))
    model.graph.node.append(onnx.helper.make_node("Add", ["pred_masks", "sum"], ["more"]))
    model.graph.output[0].name = "more"
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match=r"its value 'zeros' has 1099511627776 elements, expected at most"):
        load(tmp_path / "theirs.onnx")


def test_a_graph_that_cannot_have_the_size(tmp_path):
    """It says that its sides are open, and holds a constant of one size."""
    model = others.graph(**OPEN)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.zeros((1, 1, 16, 16), np.float32), "place")
    )
    node = onnx.helper.make_node("Add", ["pred_masks", "place"], ["masks"], name="placed")
    model.graph.node.append(node)
    model.graph.output[0].name = "masks"
    onnx.save(model, tmp_path / "theirs.onnx")
    with load(tmp_path / "theirs.onnx") as ready:
        assert ready.size == (64, 64)
    with pytest.raises(
        ExportError, match=r"cannot be computed for images \(1, 3, 96, 96\): Add placed: .*im_size="
    ):
        load(tmp_path / "theirs.onnx", im_size=96)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_that_were_changed(tmp_path, seed):
    """Whatever is wrong with a file is said in one of our errors; what can be read makes a graph, or says why not."""
    rng = np.random.default_rng(seed)
    whole = others.graph(boxes=True, **OPEN).SerializeToString()
    path = tmp_path / "theirs.onnx"
    refused = 0
    for _ in range(40):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), rng.integers(1, 6)):
            content[place] = rng.integers(256)
        path.write_bytes(bytes(content))
        try:
            network = foreign.network_of(path, spec(), (64, 64))
            made = network.graph((64, 64), 1)
        except (ValueError, ExportError):
            refused += 1
        else:
            assert [item.name for item in made.graph.output] == ["mask_logits", "class_logits"]
    assert refused
