"""Networks of transformers from a model, a folder or a name to results; small ones, with random weights."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np
import pytest
from fai_fast import _core
from fai_fast.engines import openvino
from fai_fast.errors import CudaError, WeightsError
from fai_fast.networks import pretrained, remembered
from fai_fast.networks.families import describe
from helpers.families import LABELS, SIDE, processor, small

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch")

KINDS = ("mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3", "rf_detr")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """One for all tests here: a graph takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A network and its image processor as ``save_pretrained`` writes them."""
    place = tmp_path_factory.mktemp("models") / "eomt-instance"
    small("eomt").save_pretrained(place)
    settings = {"size": {"shortest_edge": SIDE, "longest_edge": SIDE}, "do_pad": True}
    transformers.EomtImageProcessorPil(**settings).save_pretrained(place)
    return place


def frame(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def load(model: Any, cache: Path, **options: Any) -> fai_fast.Model:
    given = {"engine": "openvino", "precision": "fp32", "num_threads": 1, **options}
    return fai_fast.load(model, cache_dir=cache, **given)


def logits_of(network: Any, images: Any, **more: Any) -> list[Any]:
    with torch.no_grad():
        found = network(pixel_values=torch.from_numpy(images), **more)
    names = (
        ("pred_masks", "logits")
        if hasattr(found, "pred_masks")
        else ("masks_queries_logits", "class_queries_logits")
    )
    return [getattr(found, name).numpy() for name in names]


# ----------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_gives_what_its_module_gives(kind, cache):
    network = small(kind)
    with load(network, cache, im_size=SIDE, task="instance", processor=processor(kind)) as model:
        assert model.spec.classes == LABELS
        assert (model.spec.family, model.spec.task, model.size) == (kind, "instance", (SIDE, SIDE))
        said = model.info()["verification"]
        assert said["against"].startswith("the module in PyTorch")
        settings = model.spec.config
        images = fai_fast.preprocess(frame(3), model.size, mean=settings.pixel_mean, std=settings.pixel_std)
        more = {}
        if kind == "oneformer":
            words = processor(kind)["tokenizer"](["the task is instance"], "max_length", 24, True)
            ids, real = torch.tensor(words["input_ids"]), torch.tensor(words["attention_mask"])
            more["task_inputs"] = ids * real
        true_masks, true_classes = logits_of(network, images, **more)
        # Of random weights no logit of OneFormer's, times a score, reaches a half.
        mask_threshold = 0.0 if kind == "oneformer" else 0.5
        found = model(frame(3), threshold=0.0, mask_threshold=mask_threshold)
        expected = fai_fast.postprocess(
            true_masks,
            true_classes,
            (SIDE, SIDE),
            threshold=0.0,
            mask_threshold=mask_threshold,
            use_mask_score=settings.use_mask_score,
            class_activation="sigmoid" if settings.cls_sigmoid else "softmax",
            multi_label=settings.multi_label,
            resampling=settings.resampling,
            overlap_threshold=settings.overlap_threshold,
        )
        graph = openvino.read_graph(Path(model.info()["artefacts"]["graph"].partition(" (")[0]))
    assert len(found) == len(expected) > 0
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-4)
    assert not network.training
    # What transformers' code becomes is what OpenVINO's rewriting knows.
    operations = [node.get_type_name() for node in graph.get_ordered_ops()]
    deformable = 1 if kind in ("mask2former", "oneformer", "rf_detr") else 0
    assert (operations.count("EmbeddingBagPackedSum"), operations.count("GridSample")) == (deformable, 0)


def test_factors_are_in_the_weights_and_masks_are_a_product():
    graph = pretrained.find(small("eomt")).network().graph((SIDE, SIDE), 1).graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    kinds = [item.op_type for item in graph.node]
    assert "Einsum" not in kinds
    # What is left is of GELU: half of a product.
    factors = [name for item in graph.node if item.op_type == "Mul" for name in item.input if name in shapes]
    assert len(factors) == kinds.count("Erf")
    makers = {name: item for item in graph.node for name in item.output}
    masks = makers["mask_logits"]
    assert (masks.op_type, makers[masks.input[0]].op_type) == ("Reshape", "MatMul")


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_other_tasks_of_the_same_network(task, cache):
    with load(small("eomt"), cache, task=task) as model:
        assert model.spec.task == task
        found = model(frame(1, (48, 91)), threshold=0.0)
    assert found.size == (48, 91)
    assert (found.label_map >= 0).any() or task == "panoptic"


def test_the_module_is_left_as_it_was(cache):
    network = small("eomt")
    network.train()
    network.embeddings.eval()
    load(network, cache).close()
    assert network.training
    assert not network.embeddings.training


def test_a_network_in_half_precision_is_taken_as_float32(cache):
    network = small("eomt").half()
    with load(network, cache) as model:
        assert model.info()["verification"]["mask_difference"] < 1e-4
    assert next(network.parameters()).dtype == torch.float16


def test_a_network_in_double_precision_is_taken_as_float32():
    network = small("eomt").double()
    assert pretrained.find(network, task="instance").network().sha256 == (
        pretrained.find(small("eomt"), task="instance").network().sha256
    )
    assert next(network.parameters()).dtype == torch.float64


class _Upside(transformers.EomtForUniversalSegmentation):
    """Of somebody whose network is the library's but for the sign of its masks."""

    def forward(self, pixel_values, **more):
        found = super().forward(pixel_values, **more)
        found.masks_queries_logits = -found.masks_queries_logits
        return found


def test_what_other_code_computes_is_another_graph(monkeypatch):
    def digest(network: Any) -> str:
        return pretrained.find(network, task="instance").network().sha256

    def changed(change: Any) -> Any:
        change(network := small("eomt"))
        return network

    def upside(network: Any) -> None:
        network.__class__ = _Upside

    def hooked(network: Any) -> None:
        network.class_predictor.register_forward_hook(lambda module, given, found: 2 * found)

    def patched(network: Any) -> None:
        theirs = network.class_predictor.forward
        network.class_predictor.forward = lambda given: 3 * theirs(given)

    digests = [digest(changed(change)) for change in (id, upside, hooked, patched)]
    assert len(set(digests)) == len(digests)
    assert digest(changed(upside)) == digests[1]

    kind = transformers.EomtForUniversalSegmentation
    theirs = kind.forward

    @functools.wraps(theirs)
    def forward(self, *given, **more):
        found = theirs(self, *given, **more)
        found.masks_queries_logits = 5 * found.masks_queries_logits
        return found

    monkeypatch.setattr(kind, "forward", forward)
    assert digest(small("eomt")) not in digests


# Of what PyTorch itself imports for it.
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_compiled_model_is_the_one_that_was_compiled():
    network = small("eomt")
    assert pretrained.is_pretrained(torch.compile(network))
    found = pretrained.find(torch.compile(network), task="instance").network()
    assert found.sha256 == pretrained.find(network, task="instance").network().sha256


def test_a_model_without_weights_or_with_others_than_tensors():
    with torch.device("meta"):
        empty = transformers.EomtForUniversalSegmentation(small("eomt").config)
    with pytest.raises(
        ValueError, match=r"Eomt\w+ has no values for '\S+', which is on the device 'meta', expected"
    ):
        pretrained.find(empty, task="instance").network()
    quantized = small("eomt")
    quantized.class_predictor = _Packed()
    with pytest.raises(
        ValueError, match=r"Eomt\w+ has 'class_predictor\.kind' of the type dtype among its weights"
    ):
        pretrained.find(quantized, task="instance").network()


class _Packed(torch.nn.Module):
    """What PyTorch's quantized layers leave in a state dict."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}kind"] = torch.qint8


def test_other_weights_are_another_graph(cache):
    one, other = small("eomt"), small("eomt", seed=1)
    with load(one, cache) as first, load(other, cache) as second, load(one, cache) as again:
        digests = [model.info()["weights_sha256"] for model in (first, second, again)]
    assert digests[0] == digests[2] != digests[1]


def test_a_spec_in_place_of_what_the_configuration_says(cache):
    with load(small("eomt"), cache) as model:
        own = model.spec
    config = dataclasses.replace(own.config, threshold=0.125)
    mine = dataclasses.replace(own, config=config, classes=("a", "b", "c", "d", "e"))
    with load(small("eomt"), cache, spec=mine) as model:
        assert model.spec == mine


def test_a_spec_need_not_name_the_family():
    own = pretrained.find(small("eomt"), task="panoptic").spec
    mine = dataclasses.replace(own, family="custom", name="mine")
    network = pretrained.find(small("eomt"), spec=mine).network()
    assert network.spec == mine
    assert network.fixed_size == (SIDE, SIDE)
    assert [item.name for item in network.graph((SIDE, SIDE), 1).graph.output] == [
        "mask_logits",
        "class_logits",
    ]
    with pytest.raises(ValueError, match="task: got 'instance' with a spec= of the task 'panoptic'"):
        pretrained.find(small("eomt"), task="instance", spec=mine)


def test_a_model_is_pickled_as_its_graph(cache):
    model = load(small("eomt"), cache)
    again = pickle.loads(pickle.dumps(model))
    with model, again:
        assert again.spec == model.spec
        assert again(frame()).confidence.tolist() == model(frame()).confidence.tolist()


# ------------------------------------------------------------------------------------- folders and names


def test_a_folder_is_loaded_as_the_model_in_it(folder, cache):
    with load(folder, cache) as model:
        assert (model.spec.name, model.spec.task) == ("eomt-instance", "instance")
        assert model.spec.config.resize == "pad"
        from_folder = model(frame(2, (40, 60)), threshold=0.0)
    network = transformers.EomtForUniversalSegmentation.from_pretrained(folder).eval()
    with load(network, cache) as model:
        assert model.spec.name == "eomt-instance"
        assert model(frame(2, (40, 60)), threshold=0.0).confidence.tolist() == from_folder.confidence.tolist()


def test_a_folder_is_exported_to_a_file_that_says_everything(folder, cache, tmp_path):
    report = fai_fast.export(folder, tmp_path / "m.onnx", task="panoptic", cache_dir=cache)
    assert report.verified
    assert report.size == (SIDE, SIDE)
    with load(tmp_path / "m.onnx", cache) as model:
        assert (model.spec.family, model.spec.task) == ("eomt", "panoptic")
        assert model.spec.classes == LABELS


def test_the_command_line_takes_a_folder(folder, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where pictures of the results are put
    from fai_fast.cli import main

    picture = tmp_path / "p.png"
    from PIL import Image

    Image.fromarray(frame()).save(picture)
    options = ["--cache-dir", str(cache)]
    out = tmp_path / "p.json"
    said = ["--task", "semantic", "--json", str(out), *options]
    assert main(["predict", str(folder), str(picture), *said]) == 0
    assert json.loads(out.read_text())["task"] == "semantic"
    file = tmp_path / "g.onnx"
    assert main(["export", str(folder), str(file), "--task", "instance", *options]) == 0
    assert fai_fast.load(file, engine="openvino", cache_dir=cache).spec.task == "instance"


def _with_weights(folder: Path, place: Path, change: Any) -> Path:
    """A copy of the folder whose weights were changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, place)
    weights = change(load_file(place / "model.safetensors"))
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda weights: {name: value for name, value in weights.items() if "predictor" not in name},
            r"have no 'class_predictor.bias', 'class_predictor.weight', expected all of Eomt",
        ),
        (
            lambda weights: {f"model.{name}": value for name, value in weights.items()},
            r"have no '[\w.]+', '[\w.]+', '[\w.]+' and \d+ more, expected all of Eomt",
        ),
        (
            lambda weights: {**weights, "query.weight": torch.zeros(7, 32)},
            r"another network than its config.json: 'query.weight' has the shape \(7, 32\), expected \(12, 32\)$",
        ),
    ],
    ids=["missing", "other-names", "other-shape"],
)
def test_weights_that_do_not_fit_are_refused_and_not_drawn_at_random(change, text, folder, tmp_path):
    place = _with_weights(folder, tmp_path / "mine-instance", change)
    with pytest.raises(WeightsError, match=text):
        pretrained.find(place).network()


def test_the_weights_of_a_compiled_module_are_its_own(folder, tmp_path, caplog, monkeypatch):
    # Nor does the library say that all of them were missing.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    place = _with_weights(
        folder,
        tmp_path / folder.name,
        lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
    )
    assert pretrained.find(place).network().sha256 == pretrained.find(folder).network().sha256
    assert "MISSING" not in caplog.text


def test_weights_with_something_else_in_them_are_not_read(folder, tmp_path):
    place = tmp_path / "theirs-instance"
    shutil.copytree(folder, place)
    (place / "model.safetensors").unlink()
    torch.save({"weights": Path("not a tensor")}, place / "pytorch_model.bin")
    with pytest.raises(
        WeightsError, match="theirs-instance hold something else than tensors, or are damaged"
    ):
        pretrained.find(place).network()


# ------------------------------------------------------------------------------------- the second start


_SECOND = """
import sys
import fai_fast
for engine in ("openvino", "onnxruntime"):
    with fai_fast.load(sys.argv[1], engine=engine, device="cpu", precision="fp32", cache_dir=sys.argv[2]) as model:
        assert "(from the cache)" in model.info()["artefacts"]["graph"], model.info()
        assert model.spec.config.resize == "pad"
heavy = {"torch", "transformers", "huggingface_hub"} & {name.partition(".")[0] for name in sys.modules}
assert not heavy, heavy
"""


def test_the_second_start_of_a_folder_imports_neither_transformers_nor_torch(folder, cache):
    load(folder, cache).close()
    subprocess.run([sys.executable, "-c", _SECOND, str(folder), str(cache)], check=True, timeout=300)


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The places that transformers itself was asked about."""
    places: list[str] = []
    transformers_itself = pretrained._transformers

    def watched(shown: str) -> Any:
        places.append(shown)
        return transformers_itself(shown)

    monkeypatch.setattr(pretrained, "_transformers", watched)
    return places


def _renamed(place: Path) -> None:
    said = json.loads((place / "config.json").read_text())
    said["id2label"]["0"] = "robot"
    (place / "config.json").write_text(json.dumps(said))


def _brighter(place: Path) -> None:
    said = json.loads((place / "preprocessor_config.json").read_text())
    (place / "preprocessor_config.json").write_text(json.dumps({**said, "image_mean": [0.25] * 3}))


@pytest.mark.parametrize(
    ("change", "same_spec", "same_weights"),
    [
        (lambda place: (place / "README.md").write_text("new"), True, True),
        (lambda place: small("eomt", seed=1).save_pretrained(place), True, False),
        (_renamed, False, False),
        (_brighter, False, True),
    ],
    ids=["nothing", "weights", "config", "processor"],
)
def test_what_changes_in_a_folder_is_seen(change, same_spec, same_weights, folder, tmp_path, asked):
    place = tmp_path / folder.name
    shutil.copytree(folder, place)
    first = pretrained.find(place, memory=tmp_path / "cache").network()
    again = pretrained.find(place, memory=tmp_path / "cache").network()
    assert asked == [str(place)]
    assert (again.spec, again.sha256, again.source) == (first.spec, first.sha256, first.source)
    assert again.fixed_size == first.fixed_size == (SIDE, SIDE)
    change(place)
    changed = pretrained.find(place, memory=tmp_path / "cache").network()
    assert (len(asked) == 1) == (same_spec and same_weights)
    assert (changed.spec == first.spec) == same_spec
    assert (changed.sha256 == first.sha256) == same_weights


def test_another_version_task_or_spec_is_asked_for_again(folder, tmp_path, asked, monkeypatch):
    def found(**options: Any) -> Any:
        return pretrained.find(folder, memory=tmp_path, **options).network()

    first = found()
    assert found(task="panoptic").spec.task == "panoptic"
    own = dataclasses.replace(first.spec, classes=("a", "b", "c", "d", "e"))
    assert found(spec=own).spec == own
    count = len(asked)
    assert found(task="panoptic").spec.task == "panoptic"
    assert found(spec=own).spec == own
    assert len(asked) == count
    version = remembered.importlib.metadata.version
    monkeypatch.setattr(
        remembered.importlib.metadata, "version", lambda name: version(name) + ".1" * (name == "transformers")
    )
    found()
    assert len(asked) == count + 1


def test_a_graph_that_is_missing_is_made_of_the_folder(folder, tmp_path, asked):
    place = tmp_path / folder.name
    shutil.copytree(folder, place)
    first = pretrained.find(place, memory=tmp_path / "cache").network().graph((SIDE, SIDE), 1)
    again = pretrained.find(place, memory=tmp_path / "cache").network()
    assert len(asked) == 1
    assert again.graph((SIDE, SIDE), 1) == first
    assert len(asked) == 2
    again = pretrained.find(place, memory=tmp_path / "cache").network()
    small("eomt", seed=1).save_pretrained(place)
    with pytest.raises(WeightsError, match="was changed while it was in use"):
        again.graph((SIDE, SIDE), 1)


def test_a_name_is_found_in_the_cache_of_its_hub(folder, tmp_path, asked, monkeypatch):
    from huggingface_hub import constants

    hub = tmp_path / "hub" / "models--theirs--eomt-instance"
    shutil.copytree(folder, hub / "snapshots" / "abc")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    first = pretrained.find("theirs/eomt-instance", memory=tmp_path / "cache").network()
    again = pretrained.find("theirs/eomt-instance", memory=tmp_path / "cache").network()
    assert asked == ["theirs/eomt-instance"]
    assert (again.spec, again.sha256) == (first.spec, first.sha256)
    # Without a processor it may only not have come yet, and is looked for again.
    (hub / "snapshots" / "abc" / "preprocessor_config.json").unlink()
    for count in (2, 3):
        pretrained.find("theirs/eomt-instance", memory=tmp_path / "cache").network()
        assert len(asked) == count
    (hub / "refs" / "main").write_text("def")
    assert remembered.snapshot_of("theirs/eomt-instance") is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_of_a_configuration_says_the_same(kind):
    config, task = small(kind).config, "instance"
    facts = json.loads(json.dumps(remembered._fields_of(config)))
    assert describe(remembered._configuration(facts), None, "a", task) == describe(config, None, "a", task)


@pytest.mark.parametrize("name", ["facebook/no-such-network", "a/b"])
def test_an_unknown_name_is_told_with_those_that_there_are(name, cache):
    with pytest.raises(ValueError, match="no such file or folder") as caught:
        load(name, cache)
    text = str(caught.value)
    assert "fai-mf-m-coco-ins" in text
    assert "token" not in text.lower()
    assert "login" not in text.lower()


# ------------------------------------------------------------------------------------------------- errors


def test_a_model_of_another_kind_is_refused_by_name(cache):
    config = transformers.Mask2FormerConfig(backbone_config=small("maskformer").config.backbone_config)
    with pytest.raises(
        ValueError, match=r"got a SwinModel, which is no network .* EomtForUniversalSegmentation"
    ):
        load(transformers.SwinModel(config.backbone_config), cache)


def test_a_folder_of_another_kind_is_refused(tmp_path, cache):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        ValueError, match=r"is of the type 'bert' of transformers .* expected one of mask2former"
    ):
        load(tmp_path, cache)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        load(tmp_path, cache)


def test_a_folder_without_weights_is_told(folder, tmp_path, cache):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(WeightsError, match="transformers cannot read"):
        load(tmp_path, cache)


def test_without_transformers_the_error_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        WeightsError, match=r"transformers is not installed: pip install 'fai-fast\[networks\]'"
    ):
        load(folder, tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"im_size": 128},
            ValueError,
            "im_size: got 128, expected the size that the input .* fixed to, 64 x 64",
        ),
        ({"im_size": 60}, ValueError, "im_size: got"),
        ({"task": "depth"}, ValueError, "task: got 'depth'"),
        ({"weights": {}}, ValueError, "weights: got some"),
        ({"processor": 3}, TypeError, "processor: got int"),
    ],
)
def test_a_wrong_argument_is_named(options, error, message, cache):
    with pytest.raises(error, match=message):
        load(small("eomt"), cache, **options)


def test_an_engine_for_a_gpu_that_is_not_here(cache, monkeypatch):
    def none():
        raise CudaError("no GPU, as the test says")

    monkeypatch.setattr(_core, "cuda_devices", none)
    with pytest.raises(CudaError, match="no GPU, as the test says"):
        load(small("eomt"), cache, engine="torch-cuda")


def test_what_only_transformers_is_told_is_refused_elsewhere(cache):
    for options in ({"task": "instance"}, {"processor": {}}):
        with pytest.raises(ValueError, match="only networks of transformers are told it"):
            load("fai-mf-n-shapes", cache, **options)


def test_oneformer_needs_words(cache):
    with pytest.raises(ValueError, match="processor: got None, expected a OneFormerProcessor"):
        load(small("oneformer"), cache, task="instance")


def test_own_names_and_folders_are_none_of_transformers(tmp_path):
    assert pretrained.find("fai-mf-n-shapes") is None
    assert pretrained.find(tmp_path) is None
    assert pretrained.find("models/theirs.onnx") is None
    assert pretrained.find(7) is None
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model_info.json").write_text("{}")
    assert pretrained.find(tmp_path) is None


@pytest.mark.parametrize("kind", [pytest.param("mask2former", marks=pytest.mark.slow), "eomt"])
def test_int8_is_made_of_them_as_of_our_own(kind, cache):
    pytest.importorskip("nncf", reason="NNCF is not installed")
    pictures = [frame(seed) for seed in range(4)]
    # What nobody trained is unsure everywhere, so that int8 may find other things.
    options = {"im_size": SIDE, "task": "instance", "verify_precision": False}
    with load(small(kind), cache, precision="int8", pictures=pictures, **options) as model:
        assert model.info()["precision"] == "int8"
        low = model.queries(pictures[0])[1]
    with load(small(kind), cache, im_size=SIDE, task="instance") as model:
        exact = model.queries(pictures[0])[1]
    assert low.shape == exact.shape == (12,)
    assert not np.array_equal(low, exact)
    assert np.abs(low - exact).mean() < 0.1
