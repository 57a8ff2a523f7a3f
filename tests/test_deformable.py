"""OpenVINO's rewriting of deformable attention: the same numbers, from sums of rows."""

from __future__ import annotations

import importlib
import io
import math
import sys

import numpy as np
import pytest
from fai_fast.engines import openvino, openvino_deformable

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("openvino")

SIZES = [(3, 5), (7, 4), (1, 2)]
HEADS, CHANNELS, POINTS, QUERIES = 2, 4, 3, 11


class Attention(torch.nn.Module):
    """Deformable attention as exported graphs have it, with what may be otherwise."""

    def __init__(self, batch=1, *, align_corners=False, padding_mode="zeros", mode="bilinear", turned=False):
        super().__init__()
        self.sampling = {"align_corners": align_corners, "padding_mode": padding_mode, "mode": mode}
        self.turned, self.batch = turned, batch

    def forward(self, values, points, weights):
        batch = self.batch
        grid = 2 * points - 1
        parts = values.split([height * width for height, width in SIZES], dim=1)
        if self.turned:  # the first map's values for the second one, cut to its size
            parts = [parts[1][:, :15], parts[0].repeat(1, 2, 1, 1)[:, :28], parts[2]]
        samples = []
        for level, ((height, width), part) in enumerate(zip(SIZES, parts, strict=True)):
            rows = part.reshape(batch, height * width, HEADS * CHANNELS).transpose(1, 2)
            image = rows.reshape(batch * HEADS, CHANNELS, height, width)
            places = grid[:, :, :, level].transpose(1, 2).reshape(batch * HEADS, QUERIES, POINTS, 2)
            samples.append(torch.nn.functional.grid_sample(image, places, **self.sampling))
        share = weights.transpose(1, 2).reshape(batch * HEADS, 1, QUERIES, len(SIZES) * POINTS)
        joined = torch.stack(samples, dim=-2)
        summed = (joined.reshape(batch * HEADS, CHANNELS, QUERIES, len(SIZES) * POINTS) * share).sum(-1)
        # What comes after is a product in every network.
        return summed.view(batch, HEADS * CHANNELS, QUERIES).transpose(1, 2).contiguous() * 1.5


class Network(torch.nn.Module):
    """Points as offsets in pixels, which weights make of what is asked for, on places that are always the same."""

    def __init__(self, batch):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.attention, self.batch = Attention(batch), batch
        self.offsets = torch.nn.Linear(6, HEADS * len(SIZES) * POINTS * 2)
        for item in self.offsets.parameters():
            item.data = torch.randn(item.shape, generator=generator)
        self.register_buffer("places", torch.rand((1, QUERIES, 1, len(SIZES), 1, 2), generator=generator))
        sides = torch.tensor([[width, height] for height, width in SIZES], dtype=torch.float32)
        self.register_buffer("sides", sides.reshape(1, 1, 1, len(SIZES), 1, 2))

    def forward(self, values, asked, weights):
        offsets = self.offsets(asked).reshape(self.batch, QUERIES, HEADS, len(SIZES), POINTS, 2)
        return self.attention(values, self.places + offsets / self.sides, weights)


def inputs(batch: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(batch)
    positions = sum(height * width for height, width in SIZES)
    points = rng.uniform(-0.4, 1.4, (batch, QUERIES, HEADS, len(SIZES), POINTS, 2))
    # Edges, centres of pixels, and far outside.
    points[:, 0], points[:, 1], points[:, 2], points[:, 3] = 0, 1, 0.5, -1e6
    points[:, 4, ..., 0] = 1.5 / np.array([[width] for _, width in SIZES])
    weights = rng.random((batch, QUERIES, HEADS, len(SIZES), POINTS))
    values = rng.standard_normal((batch, positions, HEADS, CHANNELS))
    return tuple(array.astype(np.float32) for array in (values, points, weights))


def graph_of(module, given):
    """The graph as OpenVINO reads it, without any rewriting."""
    place = io.BytesIO()
    names = ["values", "points", "weights"]
    torch.onnx.export(
        module.eval(),
        tuple(torch.from_numpy(array) for array in given),
        place,
        input_names=names,
        opset_version=18,
        dynamo=False,
    )
    place.seek(0)
    return openvino.package().Core().read_model(place)


def rewritten(model) -> int:
    return openvino_deformable.rewrite_deformable_attention(
        model, importlib.import_module("openvino.opset13")
    )


def run(model, given) -> np.ndarray:
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    return openvino.package().Core().compile_model(model, "CPU", config)(list(given))[0].copy()


def in_bfloat16(model, given) -> np.ndarray:
    """What the graph gives where the result of every node is rounded to bfloat16.

    No machine rounds more; which nodes OpenVINO computes together, and rounds less, depends on the machine.
    """

    def rounded(value: np.ndarray) -> np.ndarray:
        return torch.from_numpy(np.array(value)).bfloat16().float().numpy()

    def summed(rows, chosen, shares):
        return np.einsum("bkc,bk->bc", rows[chosen], shares)

    def padded(node, value, before, after, *zero):
        return np.pad(value, list(zip(before, after, strict=True)))

    def parts(node, value, axis, lengths=None):
        where = node.get_attributes().get("num_splits") if lengths is None else np.cumsum(lengths)[:-1]
        return np.split(value, where, int(axis))

    def product(node, left, right):
        return left @ (right.T if node.get_attributes()["transpose_b"] else right)

    known = {
        "Add": lambda node, a, b: a + b,
        "Concat": lambda node, *values: np.concatenate(values, node.get_attributes()["axis"]),
        "Convert": lambda node, value: value.astype(np.int64),
        "EmbeddingBagPackedSum": lambda node, *values: summed(*values),
        "Floor": lambda node, value: np.floor(value),
        "MatMul": product,
        "Maximum": lambda node, a, b: np.maximum(a, b),
        "Minimum": lambda node, a, b: np.minimum(a, b),
        "Multiply": lambda node, a, b: a * b,
        "Pad": padded,
        "Reshape": lambda node, value, shape: value.reshape(shape),
        "Result": lambda node, value: value,
        "Split": parts,
        "Subtract": lambda node, a, b: a - b,
        "Transpose": lambda node, value, order: value.transpose(order),
        "VariadicSplit": parts,
    }
    values = {}
    for node, array in zip(model.get_parameters(), given, strict=True):
        values[node.get_name(), 0] = rounded(array)
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Constant":
            values[node.get_name(), 0] = np.array(node.get_data())
        elif kind != "Parameter":
            inputs = [values[one.get_node().get_name(), one.get_index()] for one in node.input_values()]
            found = known[kind](node, *inputs)
            for index, value in enumerate(found if isinstance(found, list) else [found]):
                values[node.get_name(), index] = rounded(value) if value.dtype.kind == "f" else value
    return values[model.get_results()[0].get_name(), 0]


def kinds(model) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("batch", [1, 3])
def test_sums_of_rows_are_what_pytorch_computes(batch):
    given = inputs(batch)
    model = graph_of(Attention(batch), given)
    assert kinds(model).count("GridSample") == len(SIZES)
    assert rewritten(model) == 1
    assert "GridSample" not in kinds(model)
    assert kinds(model).count("EmbeddingBagPackedSum") == 1
    expected = Attention(len(given[0]))(*(torch.from_numpy(array) for array in given)).numpy()
    np.testing.assert_allclose(run(model, given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("batch", [1, 2])
def test_points_that_weights_make_come_apart_by_their_weights(batch):
    """Nothing is turned then; what was there keeps its name, and the product too, as quantizing goes by names."""
    values, _, weights = inputs(batch)
    asked = np.random.default_rng(5).standard_normal((batch, QUERIES, 6)).astype(np.float32)
    given = (values, asked, weights)
    model = graph_of(Network(batch), given)
    before = {node.get_friendly_name() for node in model.get_ordered_ops()}
    assert rewritten(model) == 1
    assert not {"Divide", "Gather", "GridSample", "Transpose"} & set(kinds(model))
    assert kinds(model).count("Concat") == 1  # of the maps in their borders
    new = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    added = {name for name in new.keys() - before if new[name].get_type_name() != "Constant"}
    assert all(name.startswith(openvino_deformable.NAME) for name in added)
    assert [name in before for name, node in new.items() if node.get_type_name() == "MatMul"] == [True]
    expected = Network(batch)(*(torch.from_numpy(array) for array in given)).detach().numpy()
    np.testing.assert_allclose(run(model, given), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_places_on_large_maps_are_sure_in_bfloat16(monkeypatch):
    """Numbers of eight bits: next to 190 there are 189 and 191."""
    monkeypatch.setattr(sys.modules[__name__], "SIZES", [(3, 199), (260, 4), (1, 2)])
    positions = sum(height * width for height, width in SIZES)
    rng = np.random.default_rng(6)
    given = tuple(
        torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).bfloat16().float().numpy()
        for shape in (
            (1, positions, HEADS, CHANNELS),
            (1, QUERIES, 6),
            (1, QUERIES, HEADS, len(SIZES), POINTS),
        )
    )
    model = graph_of(Network(1), given)
    assert rewritten(model) == 1
    expected = Network(1)(*(torch.from_numpy(array) for array in given)).detach().numpy()
    # Neighbors have nothing to do with each other: half a pixel off would be as much as there is.
    assert np.linalg.norm(in_bfloat16(model, given) - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [{"align_corners": True}, {"padding_mode": "border"}, {"mode": "nearest"}, {"turned": True}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_another_sampling_is_left_alone(options):
    """An order of maps that is not that of the values, too."""
    given = inputs(1)
    model = graph_of(Attention(**options), given)
    assert rewritten(model) == 0
    assert kinds(model).count("GridSample") == len(SIZES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_points_that_are_no_numbers_read_nothing_outside():
    values, points, weights = inputs(1)
    model = graph_of(Attention(), (values, points, weights))
    assert rewritten(model) == 1
    for value in (math.nan, math.inf, -math.inf, 3e38):
        points[:, 5] = value
        found = run(model, (values, points, weights))
        # Of the other points nothing is different.
        expected = Attention()(*(torch.from_numpy(array) for array in (values, points, weights))).numpy()
        others = np.delete(np.arange(QUERIES), 5)
        np.testing.assert_allclose(found[:, others], expected[:, others], rtol=1e-5, atol=1e-5)
        assert not found[:, 5].any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_are_read_with_it(tmp_path):
    """And the result is kept apart from what another rewriting made."""
    given = inputs(1)
    torch.onnx.export(
        Attention().eval(),
        tuple(torch.from_numpy(array) for array in given),
        str(tmp_path / "a.onnx"),
        opset_version=18,
        dynamo=False,
    )
    assert "EmbeddingBagPackedSum" in kinds(openvino.read_graph(tmp_path / "a.onnx"))
    assert openvino.depends()["rewriting"] == openvino_deformable.VERSION
