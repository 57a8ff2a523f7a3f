"""Networks that are nobody's: PyTorch modules with a spec, whatever they return, held against themselves."""

from __future__ import annotations

import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import fai_fast
import numpy as np
import pytest
from fai_fast.errors import ExportError, FaiFastError, WeightsError
from fai_fast.networks import foreign
from fai_fast.networks.module import _tensors
from fai_fast.ops import postprocess, preprocess

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")

from helpers.others import NAMES, QUERIES, picture, spec  # noqa: E402


@dataclass
class Output:
    masks: Any
    logits: Any
    loss: Any = None


Pair = namedtuple("Pair", ["logits", "masks"])
FORMS = {
    "tuple": lambda masks, logits: (masks, logits),
    "list": lambda masks, logits: [logits, masks],
    "dict": lambda masks, logits: {"logits": logits, "masks": masks, "count": 3},
    "named": lambda masks, logits: Pair(logits, masks),
    "dataclass": Output,
    "nested": lambda masks, logits: {"aux": None, "last": {"masks": masks, "logits": logits}},
    "boxes": lambda masks, logits: (logits, masks, torch.zeros(len(masks), QUERIES, 4)),
}


class Theirs(torch.nn.Module):
    """Two convolutions, with a batch normalization and dropout, which training would show."""

    def __init__(self, form=FORMS["tuple"], columns=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.drop = torch.nn.Dropout(0.5)
        self.second = torch.nn.Conv2d(8, QUERIES, 3, 2, 1)
        self.classes = torch.nn.Linear(8, QUERIES * columns)
        self.form = form
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.6)

    def forward(self, images):
        features = self.drop(self.norm(self.first(images)).relu())
        logits = self.classes(features.mean((2, 3))).view(len(images), QUERIES, -1)
        return self.form(self.second(features), 2 * logits)


def expected(module, given, frame, size):
    config = given.config
    images = torch.from_numpy(preprocess(frame, size, mean=config.pixel_mean, std=config.pixel_std))
    trained = module.training
    with torch.no_grad():
        features = module.eval().norm(module.first(images)).relu()
        masks = module.second(features)[0].numpy()
        logits = 2 * module.classes(features.mean((2, 3))).view(1, QUERIES, -1)[0].numpy()
    module.train(trained)
    return postprocess(masks, logits, frame.shape[:2], threshold=config.threshold, class_names=given.classes)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    assert np.array_equal(ours.class_id, theirs.class_id)
    assert np.allclose(ours.confidence, theirs.confidence, atol=1e-4)
    assert (ours.mask & theirs.mask).sum() >= 0.999 * (ours.mask | theirs.mask).sum()


@pytest.mark.parametrize("form", FORMS)
def test_whatever_it_returns(tmp_path, form):
    module, given, frame = Theirs(FORMS[form]), spec(threshold=0.3), picture()
    options = {"spec": given, "device": "cpu", "precision": "fp32", "cache_dir": tmp_path}
    with fai_fast.load(module, **options) as model:
        assert_same(model.infer(frame), expected(module, given, frame, (64, 64)))
        info = model.info()
        with pytest.raises(WeightsError):
            model.weights  # noqa: B018
    assert info["weights"] == "the module Theirs"
    assert info["verification"]["against"].startswith("the module in PyTorch")
    assert module.training
    assert all(item.training for item in module.modules())


def test_sizes_and_batches(tmp_path):
    module, given = Theirs(), spec(threshold=0.3)
    frames = [picture(seed) for seed in range(3)]
    options = {"spec": given, "device": "cpu", "precision": "fp32", "cache_dir": tmp_path}
    with fai_fast.load(module, im_size=(64, 96), batch_size=2, **options) as model:
        assert (model.size, model.batch_size) == ((64, 96), 2)
        for ours, frame in zip(model.infer_batch(frames), frames, strict=True):
            assert_same(ours, expected(module, given, frame, (64, 96)))
    with fai_fast.load(module, **options) as model:
        assert model._size_is_open
        with model._with_size((32, 64)) as other:
            assert_same(other.infer(frames[0]), expected(module, given, frames[0], (32, 64)))


def test_it_is_made_once_and_pickled_as_what_was_made(tmp_path):
    given, frame = spec(threshold=0.3), picture()
    options = {"spec": given, "device": "cpu", "precision": "fp32", "cache_dir": tmp_path}
    fai_fast.load(Theirs(), **options).close()
    with fai_fast.load(Theirs(), im_size=64, **options) as model:
        assert "from the cache" in model.info()["artefacts"]["graph"]
        words = pickle.dumps(model)
        ours = model.infer(frame)
    assert len(words) < 5000
    with pickle.loads(words) as again:
        assert again.spec == given
        assert np.array_equal(again.infer(frame).confidence, ours.confidence)
        assert pickle.loads(pickle.dumps(again)).size == (64, 64)
    other = Theirs()
    with torch.no_grad():
        other.second.bias += 1
    with fai_fast.load(other, **options) as model:
        assert "built" in model.info()["artefacts"]["graph"]


class _WritesIntoItsImage(Theirs):
    def forward(self, images):
        return super().forward(images.mul_(1.0))


class _ReadsANumber(Theirs):
    def forward(self, images):
        masks, logits = super().forward(images)
        return masks + float(images[0, 0, 0, 0]), logits


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (_WritesIntoItsImage, "Untraceable: the image is written into"),
        (_ReadsANumber, "what it computes depends on values in the image"),
        (Theirs, None),
    ],
)
def test_what_cannot_be_recorded_is_exported_as_it_is_and_said(kind, why, caplog):
    network = foreign.network_of(kind().eval(), spec(), (64, 64))
    assert {item.name for item in network.graph((64, 64), 1).graph.output} == {"mask_logits", "class_logits"}
    said = [text for record in caplog.records if " as it is: " in (text := record.getMessage())]
    assert [text.partition(" as it is: ")[2] for text in said] == ([] if why is None else [why])
    assert all(text.startswith(f"the module {kind.__name__} is ") for text in said)


def test_a_module_whose_code_differs_is_another(tmp_path):
    """The weights alone do not say what a module computes."""
    given, module = spec(), Theirs()
    other = Theirs(lambda masks, logits: (-masks, logits))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    digests = {foreign.network_of(item, given, (64, 64)).sha256 for item in (module, Theirs(), other)}
    assert len(digests) == 2


def test_without_a_graph_there_is_nothing_to_pickle(tmp_path):
    import dataclasses

    with fai_fast.load(Theirs(), spec=spec(), device="cpu", cache_dir=tmp_path) as model:
        model._prepared = dataclasses.replace(model._prepared, graph=None)
        with pytest.raises(FaiFastError, match=r"a model of a module cannot be pickled; fai_fast\.export"):
            pickle.dumps(model)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_is_exported(tmp_path, precision):
    if precision == "fp16":
        pytest.importorskip("onnxruntime")
    module = Theirs(FORMS["dict"])
    report = fai_fast.export(
        module, tmp_path / "a.onnx", spec=spec(), im_size=(64, 96), batch=2, precision=precision
    )
    assert report.verified
    assert (report.size, report.batch, report.precision, report.weights) == (
        (64, 96),
        2,
        precision,
        "the module Theirs",
    )
    with fai_fast.load(
        tmp_path / "a.onnx", device="cpu", engine="onnxruntime" if precision == "fp16" else "auto"
    ) as m:
        assert (m.size, m.batch_size, m.spec.classes) == ((64, 96), 2, NAMES)


def test_a_module_in_float16(tmp_path):
    module, given, frame = Theirs().half(), spec(threshold=0.3), picture()
    with fai_fast.load(module, spec=given, device="cpu", precision="fp32", cache_dir=tmp_path) as model:
        ours = model.infer(frame)
    theirs = expected(Theirs(), given, frame, (64, 64))
    assert np.array_equal(ours.class_id, theirs.class_id)
    assert np.allclose(ours.confidence, theirs.confidence, atol=0.01)


@pytest.mark.parametrize("kind", ["bfloat16", "double"])
def test_other_types_are_refused(kind):
    with pytest.raises(
        ValueError, match=r"the module Theirs has (bfloat16|float64) parameters, expected .*\.float\(\)"
    ):
        fai_fast.load(getattr(Theirs(), kind)(), spec=spec())


def test_outputs_by_name(tmp_path):
    def form(masks, logits):
        return OrderedDict(
            logits=logits, masks=masks, aux=[{"masks": -masks, "logits": -logits}, {"masks": masks}]
        )

    module, frame = Theirs(form), picture()
    with pytest.raises(
        ValueError, match=r"'aux\.0\.masks' float32 \(1, 5, 16, 16\).* could be mask and class logits"
    ):
        fai_fast.load(module, spec=spec(), cache_dir=tmp_path)
    given = spec(mask_logits_name="masks", class_logits_name="logits", threshold=0.3)
    with fai_fast.load(module, spec=given, device="cpu", precision="fp32", cache_dir=tmp_path) as model:
        assert model.spec == given
        assert_same(model.infer(frame), expected(module, given, frame, (64, 64)))


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        (
            Theirs(columns=7),
            ValueError,
            r"the module Theirs has the outputs .*\(1, 5, 7\), expected class_logits",
        ),
        (
            torch.nn.Identity(),
            ValueError,
            r"the module Identity has the outputs '0' float32 \(1, 3, 64, 64\)",
        ),
        (Theirs(lambda masks, logits: None), ValueError, r"the module Theirs has the outputs none, expected"),
        (
            torch.nn.Linear(3, 3),
            ExportError,
            r"the module Linear cannot be traced for images \(1, 3, 64, 64\)",
        ),
    ],
    ids=["columns", "one", "none", "fails"],
)
def test_modules_that_are_none_of_it(module, error, text):
    with pytest.raises(error, match=text):
        fai_fast.load(module, spec=spec())


# Of what PyTorch itself imports for it.
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_compiled_module_is_the_one_that_was_compiled():
    module = Theirs().eval()
    found = foreign.network_of(torch.compile(module), spec(), (64, 64))
    assert found.sha256 == foreign.network_of(module, spec(), (64, 64)).sha256


def test_a_module_without_weights():
    module = torch.nn.Sequential(Theirs()).to("meta")
    with pytest.raises(
        ValueError, match=r"the module Sequential has no values for '0\.first\.weight', which is on"
    ):
        foreign.network_of(module, spec(), (64, 64))


class _HasNoOperator(Theirs):
    def forward(self, images):
        masks, logits = super().forward(images)
        attended = torch.nn.functional.scaled_dot_product_attention
        mask = torch.ones(16, 16, dtype=torch.float64)
        return attended(*[masks.double()] * 3, attn_mask=mask).float(), logits


def test_an_exporter_that_fails_prints_no_graph(capfd):
    with pytest.raises(ExportError, match=r"cannot be traced for images .*attn_mask"):
        foreign.network_of(_HasNoOperator().eval(), spec(), (64, 64))
    assert "graph(" not in "".join(capfd.readouterr())


def test_a_module_needs_a_spec():
    with pytest.raises(ValueError, match=r"spec: got None with a Theirs, expected a fai_fast\.ModelSpec"):
        fai_fast.load(Theirs())
    with pytest.raises(TypeError, match=r"got a Theirs without a spec, .*with spec= any module"):
        fai_fast.export(Theirs(), "a.onnx")
    with pytest.raises(ValueError, match="weights: got some with spec="):
        fai_fast.load(Theirs(), spec=spec(), weights={})


def test_tensors_are_named_by_how_they_are_reached():
    one = torch.zeros(1)
    found = dict(
        _tensors({"a": [one, (one,)], "b": Output(one, None), "c": Pair(one, "x"), 3: {"d": one}}, "")
    )
    assert list(found) == ["a.0", "a.1.0", "b.masks", "c.logits", "3.d"]
    assert list(dict(_tensors(one, ""))) == ["0"]
    deep = [one]
    for _ in range(10):
        deep = [deep]
    assert dict(_tensors(deep, "")) == {}


def test_int8_of_a_module(tmp_path):
    pytest.importorskip("nncf")
    module, given = Theirs(), spec(threshold=0.3)
    pictures = [picture(seed) for seed in range(4)]
    report = fai_fast.quantize(module, pictures, spec=given, cache_dir=tmp_path, progress=False)
    assert (report.spec, report.precision) == (given, "int8")
    with fai_fast.load(module, spec=given, device="cpu", precision="int8", cache_dir=tmp_path) as model:
        assert "from the cache" in model.info()["artefacts"]["quantized"]
        ours = model.infer(pictures[0])
    theirs = expected(module, given, pictures[0], (64, 64))
    assert abs(len(ours) - len(theirs)) <= 1
