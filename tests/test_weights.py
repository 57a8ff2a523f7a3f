"""Weights: read from any checkpoint, held against the network, and fetched from servers that misbehave."""

from __future__ import annotations

import dataclasses
import http.server
import io
import json
import logging
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fai_fast import cache, download, reference, weights
from fai_fast.errors import WeightsError
from fai_fast.registry import BackboneConfig, ModelConfig, ModelSpec, spec
from fai_fast.weights import check_state, load_weights, locate, read_file, state_shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch

State = dict[str, np.ndarray]


def tiny(family: str = "fai_mf", **changes) -> ModelSpec:
    """A network of a few ten thousand parameters."""
    config = {
        "num_classes": 2,
        "backbone_config": BackboneConfig("stdc", base=8, layers=(1, 1, 1)),
        "num_queries": 5,
        "pixel_decoder_out_dim": 8,
        "pixel_decoder_feat_dim": 8,
        "pixel_decoder_transformer_dim_feedforward": 8,
        "transformer_predictor_out_dim": 8,
        "transformer_predictor_hidden_dim": 16,
        "transformer_predictor_dec_layers": 2,
        "transformer_predictor_dim_feedforward": 16,
        "postprocessing_type": "instance",
        **changes,
    }
    return ModelSpec(f"tiny-{family}", family, "instance", ("a", "b"), ModelConfig(**config), 64)


def random_state(model: ModelSpec, seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    return {
        key: np.zeros(shape, np.int64) if key.endswith("tracked") else rng.random(shape, np.float32)
        for key, shape in state_shapes(model).items()
    }


def tensors(state: State) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in state.items()}


def assert_same(found: State, expected: State, **tolerance) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == np.float32
        assert found[key].shape == value.shape
        np.testing.assert_allclose(found[key], value, err_msg=key, **(tolerance or {"rtol": 0}))


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    return tiny()


@pytest.fixture(scope="module")
def state(model) -> State:
    return random_state(model)


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fai_fast"]


# State against network


NETWORKS = [
    {},
    {
        "backbone_config": BackboneConfig("stdc", base=16, layers=(2, 3, 1)),
        "transformer_predictor_dec_layers": 3,
    },
    {"backbone_config": BackboneConfig("resnet", depth=50)},
    {"pixel_decoder_out_dim": 12, "transformer_predictor_out_dim": 12},
]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *(("fai_mf", changes) for changes in NETWORKS),
        *(("bisenetformer", changes) for changes in NETWORKS),
        ("fai_mf", {"pixel_decoder_transformer_layers": 2}),
    ],
)
def test_shapes_are_those_of_the_reference_network(family, changes):
    model = tiny(family, **changes)
    with torch.device("meta"):
        network = reference.build(model)
    expected = [(key, tuple(value.shape)) for key, value in network.state_dict().items()]
    assert list(state_shapes(model).items()) == expected


def test_a_state_is_put_into_order_and_float32(model, state):
    shuffled = dict(sorted(state.items(), reverse=True))
    found, same = check_state(model, {key: value.astype(np.float64) for key, value in shuffled.items()})
    assert same == model
    assert_same(found, state)
    assert all(value.flags.c_contiguous for value in found.values())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_other_precisions_become_float32(model, state, kind):
    given = {
        key: value.to(kind).requires_grad_() if value.is_floating_point() else value
        for key, value in tensors(state).items()
    }
    found, _ = check_state(model, given)
    assert_same(
        found, state, rtol={torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float64: 0}[kind], atol=1e-6
    )


def test_values_that_lie_scattered_in_memory_are_gathered(model, state):
    given = {
        key: value.T.copy().T if value.ndim == 2 else torch.from_numpy(value)[None].expand(2, *value.shape)[1]
        for key, value in state.items()
    }
    found, _ = check_state(model, given)
    assert_same(found, state)
    assert all(value.flags.c_contiguous for value in found.values())


def test_what_no_output_depends_on_may_be_missing_or_extra(model, state):
    given = {key: value for key, value in state.items() if not key.endswith(("tracked", "empty_weight"))}
    given["head.nowhere.num_batches_tracked"] = np.array(3)
    given["head.predictor.empty_weight"] = np.zeros(7)
    found, _ = check_state(model, given)
    assert list(found) == list(state)
    assert found["head.criterion.empty_weight"].tolist() == [1, 1, np.float32(0.1)]
    assert all(value == 0 for key, value in found.items() if key.endswith("tracked"))


def test_keys_may_all_begin_with_module(model, state):
    found, _ = check_state(model, {f"module.{key}": value for key, value in state.items()})
    assert_same(found, state)
    mixed = {f"module.{key}" if index else key: value for index, (key, value) in enumerate(state.items())}
    with pytest.raises(
        WeightsError, match=r"missing: .*taken without 'module\.', and 1 others were left out: pixel"
    ):
        check_state(model, mixed)


def lightning(network: torch.nn.Module) -> dict:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network
            self.register_buffer("seen", torch.zeros(()))

    return {"epoch": 3, "state_dict": Module().state_dict(), "loops": {"fit": {"done": 1}}}


def averaged(network: torch.nn.Module) -> dict:
    return torch.optim.swa_utils.AveragedModel(network).state_dict()


def compiled(network: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(network, backend="eager")


# As trainers write them, made by PyTorch's own wrappers.
FORMS = {
    "state_dict": lambda n: {"state_dict": n.state_dict(), "epoch": 1},
    "model_state_dict": lambda n: {"model_state_dict": n.state_dict(), "optimizer_state_dict": {"state": {}}},
    "model": lambda n: {"model": n.state_dict(), "optimizer": {"lr": 0.1}},
    "ema": lambda n: {"ema": n.state_dict()},
    "ema.module": lambda n: {"ema": {"module": n.state_dict(), "updates": 7}},
    "ema_state_dict": lambda n: {"ema_state_dict": {"steps": torch.tensor(3), **averaged(n)}},
    "data parallel": lambda n: torch.nn.DataParallel(n).state_dict(),
    "compiled": lambda n: compiled(n).state_dict(),
    "averaged": averaged,
    "lightning": lightning,
    "lightning, compiled": lambda n: lightning(compiled(n)),
    "compiled data parallel": lambda n: compiled(torch.nn.DataParallel(n)).state_dict(),
    "data parallel compiled in a file": lambda n: {"model": torch.nn.DataParallel(compiled(n)).state_dict()},
    "averaged data parallel": lambda n: {"state_dict": averaged(torch.nn.DataParallel(n))},
    "a name of its own": lambda n: torch.nn.ModuleDict({"detector": n}).state_dict(),
}


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_load_in_the_forms_that_trainers_write(tmp_path, model, form):
    network = reference.build(model)
    expected = {key: value.float().numpy() for key, value in network.state_dict().items()}
    saved = FORMS[form](network)
    torch.save(saved, tmp_path / "a.pth")
    assert_same(load_weights(model, tmp_path / "a.pth").state, expected)
    assert_same(load_weights(model, saved).state, expected)


def test_of_two_networks_in_a_file_the_averaged_is_taken_and_a_line_says_so(tmp_path, model, caplog):
    one, two = tensors(random_state(model, 1)), tensors(random_state(model, 2))
    torch.save({"model": one, "ema": two}, tmp_path / "a.pth")
    found = load_weights(model, tmp_path / "a.pth")
    assert_same(found.state, {key: value.numpy() for key, value in two.items()})
    [line] = messages(caplog)
    assert "holds 'ema' and 'model': taking 'ema'" in line


def test_two_networks_under_one_key_are_an_error_that_names_both(model, state):
    both = {f"{prefix}.{key}": value for prefix in ("student", "teacher") for key, value in state.items()}
    with pytest.raises(
        WeightsError, match=r"holds 2 networks, whose names begin with 'student\.', 'teacher\.'"
    ):
        check_state(model, both)
    # And what it says works.
    only = {k.removeprefix("student."): v for k, v in both.items() if k.startswith("student.")}
    assert_same(check_state(model, only)[0], state)


def test_the_prefix_of_what_does_not_fit_is_named(model, state):
    strange = {f"my.net.{key}": value for key, value in state.items() if "query_feat" not in key}
    with pytest.raises(WeightsError, match=r"All its names begin with 'my\.net'\."):
        check_state(model, strange)


def test_names_that_are_left_out_are_told(model, state, caplog):
    caplog.set_level(logging.INFO, "fai_fast")
    check_state(model, {**{f"model.{k}": v for k, v in state.items()}, "metric.total": np.zeros(())})
    [line] = messages(caplog)
    assert "begin with 'model.'" in line
    assert "1 others are left out: metric.total" in line


def test_the_checkpoint_decides_on_the_depth_and_one_line_says_so(caplog):
    deep = tiny(transformer_predictor_dec_layers=4, pixel_decoder_transformer_layers=2)
    given = random_state(deep)
    found, adapted = check_state(tiny(), given, "x.pth")
    assert adapted == dataclasses.replace(tiny(), config=deep.config)
    assert_same(found, given)
    assert messages(caplog) == [
        "tiny-fai_mf: x.pth has 4 decoder layers, not 2: taking 4",
        "tiny-fai_mf: x.pth has 2 encoder layers, not 0: taking 2",
    ]
    caplog.clear()
    _, adapted = check_state(deep, random_state(tiny()))
    assert adapted.config == tiny().config
    assert len(messages(caplog)) == 2
    caplog.clear()
    check_state(deep, given)
    assert messages(caplog) == []


def test_the_published_checkpoint_of_fai_m2f_has_six_layers(caplog):
    published = {
        key: np.zeros(shape, np.float32) for key, shape in state_shapes(spec("fai-mf-m-coco-ins")).items()
    }
    _, adapted = check_state(spec("fai-m2f-m-coco-ins"), published)
    assert adapted.config.transformer_predictor_dec_layers == 6
    assert messages(caplog) == ["fai-m2f-m-coco-ins: state dict has 6 decoder layers, not 9: taking 6"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("head.predictor.query_feat.weight"),
            r"missing: head\.predictor\.query_feat\.weight",
        ),
        (lambda s: s.update(extra=np.zeros(1)), "not of the network: extra"),
        (
            lambda s: s.update({"head.predictor.query_embed.weight": np.zeros((5, 17))}),
            r"of another shape: head\.predictor\.query_embed\.weight is \(5, 17\), expected \(5, 16\)",
        ),
        (
            lambda s: [s.pop(key) for key in list(s) if "ffn_layers.1" in key],
            r"missing: .*ffn_layers\.1\..* and 3 more",
        ),
        (
            lambda s: [s.pop(key) for key in list(s) if "head" in key],
            r"missing: head\.predictor\.transformer_self",
        ),
        (
            lambda s: s.update({"head.predictor.transformer_ffn_layers.1000000000.norm.bias": np.zeros(16)}),
            "a layer with the number 1000000000",
        ),
        (
            lambda s: s["pixel_decoder.layer_4.weight"].__setitem__((0, 0, 0, 0), np.nan),
            r"layer_4\.weight .*NaN",
        ),
        (
            lambda s: s["pixel_decoder.layer_4.norm.bias"].__setitem__(0, np.inf),
            r"layer_4\.norm\.bias .*infinite",
        ),
        (
            lambda s: s["pixel_decoder.layer_4.norm.running_var"].__setitem__(0, -1),
            "running_var has negative",
        ),
        (lambda s: s.update({"pixel_decoder.layer_4.norm.bias": np.zeros(8, np.int8)}), "norm.bias is int8"),
        (
            lambda s: s.update({"pixel_decoder.layer_4.norm.bias": np.full(8, 1e300)}),
            r"norm\.bias .*infinite",
        ),
        (
            lambda s: s.update({"pixel_decoder.layer_4.norm.bias": "text"}),
            r"norm\.bias is \(\), expected \(8,\)",
        ),
        (lambda s: s.clear(), "is empty"),
        (lambda s: s.update({3: np.zeros(1)}), "a key that is no str"),
    ],
)
def test_any_other_mismatch_is_an_error_that_names_the_keys(model, change, message):
    given = {key: value.copy() for key, value in random_state(model).items()}
    change(given)
    with pytest.raises(WeightsError, match=message):
        check_state(model, given, "x.pth")


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("meta", lambda: torch.empty(8, device="meta")),
        ("torch.sparse_coo", lambda: torch.zeros(8).to_sparse()),
        ("quantized", lambda: torch.quantize_per_tensor(torch.zeros(8), 0.1, 0, torch.qint8)),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, that it will not quantize for ever
def test_tensors_without_plain_values_are_named(model, kind, made):
    given = {**random_state(model), "pixel_decoder.layer_4.norm.bias": made()}
    with pytest.raises(
        WeightsError, match=rf"^x\.pth: .*norm\.bias is a tensor of kind {kind}, expected a dense"
    ):
        check_state(model, given, "x.pth")


def test_weights_of_another_model_are_recognized():
    other = {
        key: np.zeros(shape, np.float32) for key, shape in state_shapes(spec("bisenetformer-m-ade")).items()
    }
    with pytest.raises(
        WeightsError,
        match=r"does not fit bisenetformer-s-ade: .* They fit (fai-bf-m-ade|bisenetformer-m-ade)\.",
    ):
        check_state(spec("bisenetformer-s-ade"), other)


# Files


def save_zip(state: object, path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: object, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ""])
def test_pytorch_checkpoints_are_read_whatever_their_suffix(tmp_path, model, state, save, suffix):
    path = tmp_path / f"model{suffix}"
    save({"model": tensors(state), "iteration": 3, "optimizer": {"lr": 0.1}}, path)
    found = load_weights(model, path)
    assert_same(found.state, state)
    assert found.spec == model
    assert found.source == str(path)
    assert found.sha256 == cache.sha256_of(path)


def test_a_bare_state_dict_is_read_too(tmp_path, model, state):
    torch.save(tensors(state), tmp_path / "a.pth")
    assert_same(load_weights(model, str(tmp_path / "a.pth")).state, state)


def test_a_network_of_pytorch_takes_the_state(model, state):
    network = reference.build(model)
    found = load_weights(model, state)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in found.state.items()}, strict=True)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_are_read_without_pytorch(tmp_path, model, state, kind, monkeypatch):
    path = tmp_path / "model.safetensors"
    given = {
        key: value.to(kind) if value.is_floating_point() else value for key, value in tensors(state).items()
    }
    save_torch(given, path)
    expected = {key: value.float().numpy() for key, value in given.items()}
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_same(load_weights(model, path).state, expected)


@pytest.mark.parametrize("first", [0x80, 0x50])
def test_safetensors_are_told_by_more_than_their_first_byte(tmp_path, first):
    """The length of the header may have any low byte, that of a pickle (0x80) too."""
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    length = next(size for size in range(len(header), 1000) if size % 256 == first)
    path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + struct.pack("<f", 1.5))
    assert read_file(path)["a"].tolist() == [1.5]


class Malicious:
    """Runs a command where it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


class Harmless:
    pass


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, state, save):
    path = tmp_path / "model.pth"
    save({"model": tensors(state), "trainer": Malicious(tmp_path / "ran")}, path)
    with pytest.raises(
        WeightsError, match=r"holds more than tensors \(\w+\.mkdir\).*is refused.*torch\.save\("
    ) as caught:
        read_file(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("extra", [Harmless(), np.zeros(3), torch.nn.Linear(1, 1)])
def test_other_objects_in_a_checkpoint_are_refused(tmp_path, state, extra):
    torch.save({"model": tensors(state), "x": extra}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds more than tensors"):
        read_file(tmp_path / "a.pth")


class Net(torch.nn.Module):
    """As users have them: it holds a network, and can only be unpickled where this class is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)


PICKLED = {
    "a whole module": lambda net: net,
    "a module under a key": lambda net: {"epoch": 3, "model": net, "args": Harmless()},
    "a module that is averaged": lambda net: {"model": None, "ema": net},
    "a state dict with more beside it": lambda net: {"model": net.state_dict(), "args": Harmless()},
    "a state dict with more in it": lambda net: {**net.state_dict(), "args": Harmless()},
}


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("form", PICKLED)
def test_what_a_refusal_advises_works(tmp_path, form, save):
    net, path, new_path = Net(), tmp_path / "a.pth", tmp_path / "new.pth"
    save(PICKLED[form](net), path)
    with pytest.raises(WeightsError, match="is refused; if you trust it, save its tensors: ") as caught:
        read_file(path)
    advice = str(caught.value).partition("save its tensors: ")[2]
    exec(advice, {"torch": torch, "path": path, "new_path": new_path})
    found = read_file(new_path)
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(torch.as_tensor(found[key]), value) for key, value in net.state_dict().items())


def test_looking_for_an_advice_runs_nothing(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"model": Net(), "trainer": Malicious(tmp_path / "ran")}, path)
    with pytest.raises(WeightsError, match=r"\['model'\]\.state_dict\(\)"):
        read_file(path)
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.raises(WeightsError, match="holds more than tensors"):
        read_file(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def zipped(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def legacy(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def safe() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(400)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def other_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return file.getvalue()


NUMBERS = {"a": torch.arange(1000.0)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"\n<html>", "is a web page"),
        (b'{"message": "not found"}', "is a JSON file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is of no known format"),
        (b"abc", "is of no known format"),
        (zipped(NUMBERS)[:-200], "is damaged or incomplete"),
        (zipped(NUMBERS)[:100], "is damaged or incomplete"),
        (flipped(zipped(NUMBERS)), "is damaged: the checksum of .* is wrong"),
        (other_zip(), "is damaged or incomplete"),
        (legacy(NUMBERS)[:-100], "is damaged or incomplete"),
        (legacy(NUMBERS)[:10], "is damaged or incomplete|holds more than tensors"),
        (b"\x80\x02", "is damaged or incomplete"),
        (safe()[:-1], "is damaged or incomplete"),
        (safe() + b"x", "is damaged or incomplete"),
        (safe()[:30], "is damaged or incomplete"),
        (struct.pack("<Q", 10) + b"{" + b"x" * 50, "is damaged or incomplete"),
        (zipped([1, 2]), "holds a list, expected a state dict"),
        (zipped(torch.zeros(2)), "holds a Tensor, expected a state dict"),
        (zipped({}), "holds a dict without anything in it, expected a state dict"),
        (zipped({1: torch.zeros(2)}), "holds a dict with a key that is not a str, expected a state dict"),
        (
            zipped({"epoch": 3, "lr": 0.1}),
            "holds 'epoch', 'lr', and no tensors under them, expected a state dict",
        ),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_with_the_reason(tmp_path, content, message):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_file(path)
    assert str(path) in str(caught.value)


@given(st.data(), st.sampled_from([zipped(NUMBERS), legacy(NUMBERS), safe()]))
@settings(max_examples=150)
def test_a_file_with_any_bytes_changed_is_read_or_refused(tmp_path_factory, data, content):
    changed = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(changed) - 1)), max_size=5)) if changed else []:
        changed[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "model.pth"
    path.write_bytes(changed)
    try:
        assert all(isinstance(key, str) for key in read_file(path))
    except WeightsError as error:
        text = str(error)
    else:
        return
    assert str(path) in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_with_what_to_do(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pt")
    with pytest.raises(
        WeightsError, match=r"is a TorchScript archive.*torch\.save\(torch\.jit\.load\(path\)"
    ):
        read_file(tmp_path / "a.pt")


def test_eight_bit_floats_are_refused_by_name(tmp_path):
    save_torch({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="a is F8_E4M3"):
        read_file(tmp_path / "a.safetensors")


def test_without_pytorch_the_extra_to_install_is_named(tmp_path, model, state, monkeypatch):
    save_legacy(tensors(state), tmp_path / "a.pth")
    save_zip(tensors(state), tmp_path / "b.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_same(load_weights(model, tmp_path / "b.pth").state, state)
    with pytest.raises(
        WeightsError,
        match=r"a\.pth, a checkpoint in the format before PyTorch 1\.6, needs PyTorch.*'fai-fast\[torch\]'",
    ):
        load_weights(model, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"random.* needs PyTorch.*pip install 'fai-fast\[torch\]'"):
        load_weights(model, "random")


# What weights= may be


def test_random_weights_are_the_default_initialization_and_always_the_same(model):
    before = torch.random.get_rng_state()
    first, second = load_weights(model, "random"), load_weights(model, "random")
    assert torch.equal(before, torch.random.get_rng_state())
    assert_same(first.state, second.state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = reference.build(model).state_dict()
    assert_same(first.state, {key: value.numpy() for key, value in expected.items()})
    assert first.sha256 == second.sha256 != load_weights(tiny("bisenetformer"), "random").sha256
    assert first.source == "random, seed 0"


def test_a_state_dict_is_identified_by_its_values(model, state):
    first = locate(model, state)
    other = {**state, "pixel_decoder.layer_4.norm.bias": np.zeros(8, np.float32)}
    assert first.sha256 == first.read().sha256 == locate(model, tensors(state)).sha256
    assert first.sha256 != locate(model, other).sha256
    assert (first.path, first.source) == (None, "the given state dict")


def test_located_weights_are_not_read_yet(tmp_path, model):
    path = tmp_path / "model.pth"
    path.write_bytes(b"nonsense")
    found = locate(model, path)
    assert (found.path, found.source, found.sha256) == (path, str(path), cache.sha256_of(path))
    with pytest.raises(WeightsError, match="of no known format"):
        found.read()


def test_a_second_look_at_an_untouched_file_reads_nothing(tmp_path, model, state, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_numpy(state, path)
    now = time.time_ns
    monkeypatch.setattr(cache.time, "time_ns", lambda: now() + 60_000_000_000)
    first = locate(model, path, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(cache, "sha256_of", lambda path: pytest.fail("it was read"))
    assert locate(model, path, cache_dir=tmp_path / "cache").sha256 == first.sha256


def test_a_file_that_is_not_what_was_located_is_refused(tmp_path, model, state):
    path = tmp_path / "model.safetensors"
    save_numpy(state, path)
    found = locate(model, path, cache_dir=tmp_path / "cache")
    save_numpy(random_state(model, 1), path)
    with pytest.raises(WeightsError, match=r"model\.safetensors changed while it was in use, or is damaged"):
        found.read()


def test_a_models_own_weights_are_those_beside_it_then_in_the_package_then_at_its_address(
    tmp_path, model, state, monkeypatch
):
    save_numpy(state, tmp_path / "beside.safetensors")
    save_numpy(random_state(model, seed=1), tmp_path / "bundled.safetensors")
    monkeypatch.setattr(weights, "bundled_path", lambda name: tmp_path / name)
    both = dataclasses.replace(
        model, weights_path=str(tmp_path / "beside.safetensors"), bundled_weights="bundled.safetensors"
    )
    assert_same(load_weights(both).state, state)
    assert_same(load_weights(dataclasses.replace(both, weights_path=None)).state, random_state(model, seed=1))
    with pytest.raises(WeightsError, match=r"tiny-fai_mf has none of its own; pass a path"):
        load_weights(model)


def test_a_name_will_do_for_the_model(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        load_weights("fai-mf-m-ade", tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="'fai-mf-x'"):
        load_weights("fai-mf-x")


@pytest.mark.parametrize("wrong", [3, ["a.pth"], b"a.pth", 1.5])
def test_weights_of_another_type_are_an_error(model, wrong):
    with pytest.raises(TypeError, match="weights: got"):
        load_weights(model, wrong)


@pytest.mark.parametrize(
    "url", ["ftp://host/a.pth", "file:///etc/passwd", "s3://bucket/a.pth", "http://", "http://u:p@h/a"]
)
def test_only_http_addresses_are_followed(model, url, tmp_path):
    with pytest.raises(ValueError, match=r"weights: got .*expected an address that starts with http"):
        load_weights(model, url, cache_dir=tmp_path)


def test_a_folder_or_nothing_is_no_file(tmp_path, model):
    with pytest.raises(WeightsError, match="is a folder, expected a file"):
        load_weights(model, tmp_path)
    with pytest.raises(WeightsError, match="does not exist"):
        load_weights(model, tmp_path / "a.pth")


# Downloads


class Server(http.server.ThreadingHTTPServer):
    """Serves one file on loopback, each request as the next entry of `plan` says, then properly.

    Entries: "stall:N" and "cut:N" send N bytes and then nothing, or close; "status:N"; "redirect:URL"; "whole" ignores
    Range; "long:N" promises N bytes more than there are; "chunked",
    "chunked-cut:N" and "old-cut:N" (HTTP/1.0) do not say the length; "encoded"; "slow" waits for `go` in the middle;
    "blind" answers a Range whatever If-Range says.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = content, '"1"'
        self.plan: list[str] = []
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0
        self.go, self.closing = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/models/tiny/model_final.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append((self.path, wanted))
        action, _, argument = (server.plan.pop(0) if server.plan else "").partition(":")
        if action == "status":
            self.send_error(int(argument))
            return
        if action == "redirect":
            self.send_response(302)
            self.send_header("Location", argument)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, start = server.content, 0
        if (
            wanted
            and action != "whole"
            and (action == "blind" or self.headers.get("If-Range") == server.etag)
        ):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        if server.etag:
            self.send_header("ETag", server.etag)
        if action == "encoded":
            self.send_header("Content-Encoding", "gzip")
        if action.startswith("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
        elif action != "old-cut":
            self.send_header("Content-Length", str(len(body) + (int(argument) if action == "long" else 0)))
        self.end_headers()
        self.send_body(action, body, int(argument) if argument else len(body))

    def send_body(self, action: str, body: bytes, count: int) -> None:
        if action.startswith("chunked"):
            for piece in (body[:count], b"") if action == "chunked" else (body[:count],):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            return
        if action == "slow":
            self.write(body[: len(body) // 2])
            self.server.go.wait(60)
            self.write(body[len(body) // 2 :])
            return
        self.write(body[:count])
        if action == "stall":
            self.server.closing.wait(60)

    def write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
            self.wfile.flush()
            self.server.sent += len(data)
        except OSError:  # the client went away
            pass

    def version_string(self) -> str:
        return "test"


@pytest.fixture
def server(state, tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(
        download, "DEFAULT", download.Transfer(timeout=0.3, retries=2, backoff=0.01, worthwhile=1000)
    )
    save_numpy(state, tmp_path / "served")
    with Server((tmp_path / "served").read_bytes()) as running:
        Handler.protocol_version = "HTTP/1.1"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.closing.set()
        running.go.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def fetch(server, model, tmp_path) -> Callable[[], weights.Weights]:
    def call() -> weights.Weights:
        return load_weights(model, server.url, cache_dir=tmp_path / "cache", progress=False)

    return call


@pytest.fixture
def target(server, tmp_path) -> Path:
    return download.cached_path(server.url, tmp_path / "cache")


def files(target: Path) -> set[str]:
    """What lies beside a file, but for locks and the cache's mark."""
    names = {path.name for path in target.parent.iterdir()}
    return {name for name in names if not name.endswith(".lock") and name != ".fai_fast-cache"}


WHOLE = {"model_final.pth", "model_final.pth.json"}
PART = {"model_final.pth.part", "model_final.pth.part.json"}


def test_weights_are_downloaded_once(server, fetch, target, state):
    first = fetch()
    assert_same(first.state, state)
    assert first.source == f"{server.url} (in {target})"
    assert first.sha256 == cache.sha256_of(target)
    assert re.fullmatch(r".*/cache/weights/tiny-[0-9a-f]{8}/model_final\.pth", target.as_posix())
    assert files(target) == WHOLE
    record = cache.Record.read(cache.record_path(target))
    assert (record.size, record.sha256, record.info["etag"]) == (len(server.content), first.sha256, '"1"')
    assert_same(fetch().state, state)
    assert len(server.asked) == 1


def test_the_models_address_is_used_where_no_weights_are_given(server, model, state, tmp_path):
    published = dataclasses.replace(model, weights_url=server.url)
    assert_same(load_weights(published, cache_dir=tmp_path / "cache").state, state)


def test_the_cache_can_be_set_in_the_environment(server, model, tmp_path, monkeypatch):
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path / "elsewhere"))
    load_weights(model, server.url)
    assert (tmp_path / "elsewhere" / "weights").is_dir()


@pytest.mark.parametrize("action", ["stall", "cut"])
def test_an_interrupted_download_goes_on_where_it_was(server, fetch, state, action):
    half = len(server.content) // 2
    server.plan = [f"{action}:{half}"]
    assert_same(fetch().state, state)
    assert [wanted for _, wanted in server.asked] == [None, f"bytes={half}-"]
    assert server.sent == len(server.content)


def test_many_interruptions_are_survived_while_each_attempt_brings_something(server, fetch, state):
    server.plan = ["cut:2000"] * 8
    assert_same(fetch().state, state)
    assert len(server.asked) == 9
    assert server.sent == len(server.content)


def test_attempts_that_bring_nothing_are_bounded_and_what_came_is_kept(server, fetch, target, state):
    server.plan = ["cut:5000", *["cut:0"] * 9]
    with pytest.raises(WeightsError, match=r"closed the connection after 5000 of \d+ bytes \(3 attempts\)"):
        fetch()
    assert len(server.asked) == 3
    assert files(target) == PART
    server.plan.clear()
    assert_same(fetch().state, state)
    assert server.asked[-1][1] == "bytes=5000-"
    assert server.sent == len(server.content)


def test_a_server_that_never_answers_is_given_up(server, fetch):
    server.plan = ["stall:0"] * 9
    with pytest.raises(WeightsError, match=r"nothing came in time \(3 attempts\)"):
        fetch()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_passing_errors_are_tried_again(server, fetch, state, status):
    server.plan = [f"status:{status}"] * 2
    assert_same(fetch().state, state)


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (410, 1), (503, 3), (304, 1)])
def test_lasting_errors_say_where_the_file_may_be_put(server, fetch, target, status, attempts):
    server.plan = [f"status:{status}"] * 9
    with pytest.raises(WeightsError, match=f"the server answered {status}") as caught:
        fetch()
    assert len(server.asked) == attempts
    for text in (server.url, f"put it at {target}", "weights="):
        assert text in str(caught.value)


def test_a_server_that_ignores_ranges_starts_again(server, fetch, state):
    server.plan = ["cut:5000", "whole"]
    assert_same(fetch().state, state)
    assert server.sent == 5000 + len(server.content)


@pytest.mark.parametrize("action", ["", "blind"])
def test_a_file_that_changed_meanwhile_is_never_mixed(server, fetch, target, model, action, tmp_path):
    # Where the values are: the names in the file's beginning are the same in both versions.
    server.plan = [f"cut:{3 * len(server.content) // 4}", "cut:0", "cut:0", "cut:0"]
    with pytest.raises(WeightsError):
        fetch()
    assert files(target) == PART
    save_numpy(random_state(model, seed=2), tmp_path / "changed")
    server.content, server.etag, server.plan = (tmp_path / "changed").read_bytes(), '"2"', [action]
    assert_same(fetch().state, random_state(model, seed=2))
    assert target.read_bytes() == server.content


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_a_file_without_a_version_is_not_resumed(server, fetch, state, etag):
    server.plan, server.etag = ["cut:5000"], etag
    assert_same(fetch().state, state)
    assert [wanted for _, wanted in server.asked] == [None, None]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, fetch, target, state):
    server.plan = ["cut:5000", "cut:0", "cut:0", "cut:0"]
    with pytest.raises(WeightsError):
        fetch()
    target.with_name("model_final.pth.part").write_bytes(bytes(len(server.content) + 1))
    assert_same(fetch().state, state)


def test_a_part_that_is_complete_is_taken_without_asking(server, fetch, target, state):
    server.plan = ["cut:5000", "cut:0", "cut:0", "cut:0"]
    with pytest.raises(WeightsError):
        fetch()
    target.with_name("model_final.pth.part").write_bytes(server.content)
    asked = len(server.asked)
    assert_same(fetch().state, state)
    assert len(server.asked) == asked


@pytest.mark.parametrize("text", ["", "{", "[]", '{"etag": "\\"1\\"\\nX: y", "last_modified": null}'])
def test_an_unreadable_note_on_a_part_means_starting_again(server, fetch, target, state, text):
    target.parent.mkdir(parents=True)
    target.with_name("model_final.pth.part").write_bytes(b"unknown")
    target.with_name("model_final.pth.part.json").write_text(text)
    assert_same(fetch().state, state)
    assert server.asked[0][1] is None


def test_a_promise_of_more_bytes_than_come_is_noticed(server, fetch, target):
    server.plan = ["long:10"] * 9
    with pytest.raises(
        WeightsError, match=r"closed the connection after \d+ of \d+ bytes|the server answered 416"
    ):
        fetch()
    assert "model_final.pth" not in files(target)


def test_a_file_of_unknown_length_is_taken(server, fetch, state):
    server.plan = ["chunked"]
    assert_same(fetch().state, state)


def test_a_chunk_that_breaks_off_is_noticed(server, fetch, state):
    server.plan = ["chunked-cut:5000"]
    assert_same(fetch().state, state)
    assert len(server.asked) == 2


def test_a_file_of_unknown_length_that_breaks_off_is_noticed(server, fetch, target):
    server.plan = ["old-cut:5000"]
    Handler.protocol_version = "HTTP/1.0"
    with pytest.raises(WeightsError, match="what the server sent is damaged or incomplete"):
        fetch()
    assert files(target) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>Sign in to this network</html>", "what the server sent is a web page"),
        (bytes(range(200, 256)) * 20, "what the server sent is of no known format"),
        (flipped(zipped(NUMBERS)), "what the server sent is damaged"),
        (b"", "the server sent an empty file"),
    ],
)
def test_what_is_no_checkpoint_is_not_kept(server, fetch, target, state, content, message):
    good, server.content = server.content, content
    with pytest.raises(WeightsError, match=message):
        fetch()
    assert "model_final.pth" not in files(target)
    server.content = good
    assert_same(fetch().state, state)


def test_weights_of_another_network_are_named_and_kept(server, fetch, target, tmp_path):
    save_numpy({"a": np.zeros(3, np.float32)}, tmp_path / "other")
    server.content = (tmp_path / "other").read_bytes()
    with pytest.raises(WeightsError, match="does not fit tiny-fai_mf"):
        fetch()
    assert files(target) == WHOLE


def test_an_encoding_that_nobody_asked_for_is_refused(server, fetch):
    server.plan = ["encoded"]
    with pytest.raises(WeightsError, match="sent it encoded as 'gzip'"):
        fetch()


def test_redirects_are_followed_with_the_range(server, fetch, state):
    server.plan = ["redirect:/a", "cut:5000", "redirect:/b", "redirect:/c"]
    assert_same(fetch().state, state)
    first = "/models/tiny/model_final.pth"
    assert [path for path, _ in server.asked] == [first, "/a", first, "/b", "/c"]
    assert server.asked[-1][1] == "bytes=5000-"


def test_a_loop_of_redirects_ends(server, fetch):
    server.plan = [f"redirect:/{index % 2}" for index in range(50)]
    with pytest.raises(WeightsError, match="redirects more than 5 times"):
        fetch()
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:,x", "javascript:x", "http://[bad"]
)
def test_redirects_leave_http_for_nothing_else(server, fetch, place):
    server.plan = [f"redirect:{place}"] * 9
    with pytest.raises(WeightsError, match=r"only http and https are followed|Invalid"):
        fetch()
    assert len(server.asked) == 1


def test_redirects_do_not_fall_back_to_http():
    handler = download._Redirects()
    secure = urllib.request.Request("https://host/a")
    with pytest.raises(download._Refused, match="never https to http"):
        handler.redirect_request(secure, io.BytesIO(), 302, "", None, "http://host/a")
    assert handler.redirect_request(secure, io.BytesIO(), 302, "", None, "/b").full_url == "https://host/b"
    plain = urllib.request.Request("http://host/a")
    assert (
        handler.redirect_request(plain, io.BytesIO(), 302, "", None, "https://x/b").full_url == "https://x/b"
    )


def test_without_a_network_the_error_says_what_to_do(model, tmp_path, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    url = "https://public.example/models/a/model_final.pth?token=secret"
    path = download.cached_path(url, tmp_path)
    with pytest.raises(WeightsError, match="Name or service not known") as caught:
        load_weights(model, url, cache_dir=tmp_path)
    for text in (
        "https://public.example/models/a/model_final.pth",
        f"put it at {path}",
        "pass its path as weights=",
    ):
        assert text in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_given_up(model, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "DEFAULT", download.Transfer(timeout=0.3, retries=1, backoff=0.01))
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsError, match=r"no answer: .*refused.* \(2 attempts\)"):
        load_weights(model, f"http://127.0.0.1:{port}/a.pth", cache_dir=tmp_path)


# What is in the cache already


def test_a_file_put_there_by_hand_is_taken_after_a_full_check(server, fetch, target, state):
    target.parent.mkdir(parents=True)
    target.write_bytes(server.content)
    assert_same(fetch().state, state)
    assert files(target) == WHOLE
    assert cache.Record.read(cache.record_path(target)).info["by_hand"]
    assert_same(fetch().state, state)
    assert server.asked == []


@pytest.mark.parametrize("content", [b"", b"<html>", zipped(NUMBERS)[:-100]])
def test_a_bad_file_put_there_by_hand_is_left_alone_and_named(server, fetch, target, content):
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    with pytest.raises(WeightsError, match="replace it, or delete it to have it downloaded") as caught:
        fetch()
    assert str(target) in str(caught.value)
    assert target.read_bytes() == content
    assert files(target) == {"model_final.pth"}
    assert server.asked == []


def keep_time(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Damages a file without a trace in its size and times, as a disk does."""
    status = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"\d+ bytes, expected \d+"),
        (lambda path: path.write_bytes(flipped(path.read_bytes())), "SHA-256 is not the one on record"),
        (lambda path: cache.record_path(path).write_text("{"), "record is unreadable"),
        (lambda path: keep_time(path, lambda data: b"\xff" * 50 + data[50:]), "of no known format"),
    ],
)
def test_a_damaged_file_is_downloaded_again_with_one_line(
    server, fetch, target, state, damage, reason, caplog
):
    fetch()
    os.utime(target, ns=(1, target.stat().st_mtime_ns))
    damage(target)
    assert_same(fetch().state, state)
    assert target.read_bytes() == server.content
    assert len(server.asked) == 2
    lines = [line for line in messages(caplog) if "is corrupt" in line]
    assert len(lines) == 1
    assert re.search(reason, lines[0])
    assert lines[0].endswith("downloading it again")


def test_a_file_with_another_time_but_the_same_content_is_trusted(server, fetch, target, state):
    fetch()
    os.utime(target, ns=(1, 1))
    assert_same(fetch().state, state)
    assert len(server.asked) == 1


def test_a_cache_that_cannot_be_written_to_is_a_clear_error(server, model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"cannot write to .*file.*FAI_FAST_CACHE"):
        load_weights(model, server.url, cache_dir=tmp_path / "file")
    assert server.asked == []


def test_too_little_space_is_noticed_before_the_download(server, fetch, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        WeightsError, match=r"\d+ bytes are still to be downloaded to .*, where 1000 are free"
    ):
        fetch()
    assert server.sent <= len(server.content)


# Other processes

CLIENT = """
    import json, logging, resource, signal, sys
    from fai_fast import download, weights
    from fai_fast.registry import ModelSpec
    signal.signal(signal.SIGINT, signal.default_int_handler)
    url, folder, spec, limit = sys.argv[1:]
    if int(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        found = weights.load_weights(ModelSpec.from_dict(json.loads(spec)), url, cache_dir=folder)
        print("loaded", found.sha256)
    except KeyboardInterrupt:
        print("interrupted")
    except weights.WeightsError as error:
        print(error)
"""


@pytest.fixture
def client(server, model, tmp_path) -> Callable[..., subprocess.Popen[str]]:
    def start(limit: int = 0) -> subprocess.Popen[str]:
        arguments = [server.url, str(tmp_path / "cache"), json.dumps(model.to_dict()), str(limit)]
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CLIENT), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.01)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_two_processes_download_once(server, client, target):
    server.plan = ["slow"]
    first = client()
    wait_for(lambda: size(target.with_name("model_final.pth.part")), "the first process's download")
    second = client()
    assert second.stderr is not None
    waiting = second.stderr.readline()
    server.go.set()
    done = [first.communicate()[0], second.communicate()[0]]
    assert waiting == f"waiting for another process that downloads {target}\n"
    assert done == [f"loaded {cache.sha256_of(target)}\n"] * 2
    assert len(server.asked) == 1
    assert files(target) == WHOLE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_download_that_was_killed_goes_on_at_the_next_start(server, client, target, fetch, state, number):
    half = len(server.content) // 2
    server.plan = ["slow"]
    killed = client()
    wait_for(lambda: size(target.with_name("model_final.pth.part")) == half, "half of the file")
    killed.send_signal(number)
    assert killed.communicate()[0] == ("interrupted\n" if number == signal.SIGINT else "")
    assert files(target) == PART
    server.go.set()
    server.sent = 0
    assert_same(fetch().state, state)
    assert server.asked[-1][1] == f"bytes={half}-"
    assert files(target) == WHOLE


def test_a_disk_that_gets_full_is_a_clear_error(server, client, target, fetch, state):
    said = client(limit=4096).communicate()[0]
    assert f"no space left for {target.parent}" in said
    assert server.url in said
    assert "model_final.pth" not in files(target)
    assert_same(fetch().state, state)


# What is shown


def test_cached_paths_are_readable_and_stay_in_the_cache(tmp_path):
    seen = set()
    for url in (
        "https://host/a/model_final.pth",
        "https://host/b/model_final.pth",
        "https://host/b/model_final.pth?v=2",
        "https://host/",
        "https://host/../../../etc/passwd",
        "https://host/%2e%2e/%2e%2e/x",
        "https://host/..%2f..%2fx",
        f"https://host/{'a' * 500}/{'b' * 500}.pth",
        "https://host/a/.hidden",
        "https://host/ü/ä b.pth",
    ):
        path = download.cached_path(url, tmp_path)
        assert path.relative_to(tmp_path).parts[0] == "weights"
        assert len(path.relative_to(tmp_path).parts) == 3
        assert ".." not in path.parts
        assert not path.name.startswith(".")
        assert max(map(len, path.relative_to(tmp_path).parts)) <= 100
        seen.add(path)
    assert len(seen) == 10


def test_a_download_says_where_it_goes(server, fetch, target, caplog):
    with caplog.at_level(logging.INFO, "fai_fast"):
        fetch()
    assert messages(caplog) == [f"downloading {server.url} to {target}.part"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_only_on_a_terminal_and_where_it_is_wanted(server, model, tmp_path, monkeypatch):
    drawn = {}
    for name, file, progress in [
        ("terminal", Terminal(), True),
        ("file", io.StringIO(), True),
        ("no", Terminal(), False),
    ]:
        monkeypatch.setattr(sys, "stderr", file)
        load_weights(model, server.url, cache_dir=tmp_path / name, progress=progress)
        drawn[name] = file.getvalue()
    assert "tiny-" in drawn["terminal"]
    assert "100%" in drawn["terminal"]
    assert (drawn["file"], drawn["no"]) == ("", "")
