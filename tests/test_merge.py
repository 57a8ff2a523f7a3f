"""Steps that are done along with others: each graph against what it was before, by ONNX's own definition."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from fai_fast.networks import fold, merge  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

node = onnx.helper.make_node
RNG = np.random.default_rng(0)
X = (2, 5, 6)
QUERIES = (2, 7, 4)
FEATURES = (2, 3, 5, 4)


def values(*sides: int) -> Any:
    return RNG.uniform(0.5, 2, sides).astype(np.float32)


WEIGHTS = {
    "w": values(6, 4),
    "square": values(4, 4),
    "b": values(4),
    "one": values(1),
    "all": np.float32(0.3),
    "single": np.full((1, 1), 0.3, np.float32),
    "column": values(4),
    "row": values(5, 1),
    "batch": values(2, 1, 1),
    "zero": np.float32(0),
    "huge": np.float32(3e38),
    "heads": np.array([2, 5, 2, 2]),
}
PRODUCT = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["b", "p"], ["s"])]
HEADS = [
    *PRODUCT,
    node("Reshape", ["s", "heads"], ["h"]),
    node("Transpose", ["h"], ["t"], perm=[0, 2, 3, 1]),
]


def checked(
    nodes: list[Any], inputs: dict[str, tuple[int, ...]], outputs: tuple[str, ...] = ("y",)
) -> Counter[str]:
    """The operators after merging, whose results are the same as before."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.NodeProto.FromString(item.SerializeToString()) for item in nodes],
        "g",
        [info(name, 1, sides) for name, sides in inputs.items()],
        [info(name, 1, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in WEIGHTS.items()],
    )
    for index, item in enumerate(graph.node):
        item.name = f"n{index}"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    model = fold.folded(model)
    given = {name: RNG.standard_normal(sides).astype(np.float32) for name, sides in inputs.items()}
    before = ReferenceEvaluator(model).run(None, given)
    result = merge.merged(model, fold.shapes_of(model.graph))
    onnx.checker.check_model(result, full_check=True)
    after = ReferenceEvaluator(result).run(None, given)
    for one, other in zip(before, after, strict=True):
        assert one.shape == other.shape
        assert np.allclose(one, other, rtol=1e-5, atol=1e-5)
    return Counter(item.op_type for item in result.graph.node)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([*PRODUCT, node("Mul", ["s", "all"], ["y"])], id="a number"),
        pytest.param([*PRODUCT, node("Mul", ["single", "s"], ["y"])], id="from the left"),
        pytest.param([*PRODUCT, node("Div", ["s", "all"], ["y"])], id="divided"),
        pytest.param([*PRODUCT, node("Mul", ["s", "column"], ["y"])], id="by column"),
        pytest.param([*PRODUCT, node("Div", ["s", "column"], ["y"])], id="divided by column"),
        pytest.param([PRODUCT[0], node("Mul", ["p", "column"], ["y"])], id="without a bias"),
        pytest.param(
            [PRODUCT[0], node("Add", ["p", "one"], ["s"]), node("Mul", ["s", "column"], ["y"])],
            id="one bias for all",
        ),
        pytest.param([*HEADS, node("Mul", ["t", "all"], ["y"])], id="through heads"),
        pytest.param(
            [*PRODUCT, node("Mul", ["s", "column"], ["z"]), node("Mul", ["z", "all"], ["y"])], id="twice"
        ),
        pytest.param(
            [
                *PRODUCT,
                node("Mul", ["s", "all"], ["q"]),
                node("MatMul", ["x", "w"], ["p2"]),
                node("Sub", ["q", "p2"], ["y"]),
            ],
            id="weights of two",
        ),
    ],
)
def test_weights_take_a_factor(nodes):
    found = checked(nodes, {"x": X})
    assert not found["Mul"]
    assert not found["Div"]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        pytest.param([*PRODUCT, node("Mul", ["s", "row"], ["y"])], ("y",), id="by row"),
        pytest.param([*PRODUCT, node("Mul", ["s", "batch"], ["y"])], ("y",), id="by picture"),
        pytest.param([*PRODUCT, node("Div", ["all", "s"], ["y"])], ("y",), id="its inverse"),
        pytest.param([*PRODUCT, node("Mul", ["s", "huge"], ["y"])], ("y",), id="beyond float32"),
        pytest.param([*PRODUCT, node("Mul", ["s", "all"], ["y"])], ("y", "s"), id="an output too"),
        pytest.param([*PRODUCT, node("Mul", ["s", "all"], ["y"])], ("y", "p"), id="without its bias too"),
        pytest.param([*PRODUCT, node("Mul", ["s", "s"], ["y"])], ("y",), id="squared"),
        pytest.param(
            [*PRODUCT, node("Mul", ["s", "all"], ["z"]), node("Add", ["z", "s"], ["y"])],
            ("y",),
            id="taken twice",
        ),
        pytest.param(
            [
                *PRODUCT,
                node("Transpose", ["s"], ["t"], perm=[1, 0, 2]),
                node("Mul", ["t", "column"], ["y"]),
            ],
            ("y",),
            id="by column of what was moved",
        ),
        pytest.param(
            [*PRODUCT, node("Relu", ["s"], ["r"]), node("Mul", ["r", "all"], ["y"])],
            ("y",),
            id="after a step",
        ),
        pytest.param(
            [PRODUCT[0], node("Add", ["p", "row"], ["s"]), node("Mul", ["s", "all"], ["y"])],
            ("y",),
            id="a bias by row",
        ),
        pytest.param(
            [
                *PRODUCT,
                node("Add", ["s", "b"], ["s2"]),
                node("Mul", ["s2", "all"], ["y"]),
            ],
            ("y",),
            id="two biases",
        ),
    ],
)
def test_a_factor_stays_where_weights_cannot_take_it(nodes, outputs):
    kinds = ("Div", "Mul")
    with np.errstate(over="ignore"):
        found = checked(nodes, {"x": X}, outputs)
    assert sum(found[kind] for kind in kinds) == sum(item.op_type in kinds for item in nodes)


def test_nothing_is_divided_by_zero():
    with np.errstate(divide="ignore"):
        assert checked([*PRODUCT, node("Div", ["s", "zero"], ["y"])], {"x": X})["Div"] == 1


@pytest.mark.parametrize("axis", [-1, 3])
def test_a_normalization_has_three_axes_at_most(axis):
    found = checked([node("LayerNormalization", ["f", "b", "column"], ["y"], axis=axis)], {"f": FEATURES})
    assert found == {"Reshape": 2, "LayerNormalization": 1}


@pytest.mark.parametrize(
    ("sides", "said", "outputs"),
    [(QUERIES, {}, ("y",)), (FEATURES, {}, ("y", "mean")), ((2, 3, 5, 6, 4), {"axis": 4}, ("y",))],
)
def test_other_normalizations(sides, said, outputs):
    found = checked([node("LayerNormalization", ["f", "b"], list(outputs), **said)], {"f": sides}, outputs)
    assert found["Reshape"] == (2 if said else 0)


def test_a_sum_over_products_of_turned_features():
    nodes = [
        node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        node("Einsum", ["q", "t"], ["y"], equation="bqc, bchw -> bqhw"),
    ]
    found = checked(nodes, {"q": QUERIES, "f": FEATURES})
    assert found == {"Reshape": 2, "Transpose": 1, "MatMul": 1}


def test_a_sum_over_products():
    nodes = [node("Einsum", ["q", "f"], ["y"], equation="bqc,bchw->bqhw")]
    assert checked(nodes, {"q": QUERIES, "f": (2, 4, 3, 5)}) == {"Reshape": 2, "MatMul": 1}
    # Turned, but otherwise.
    nodes.insert(0, node("Transpose", ["g"], ["f"], perm=[0, 2, 1, 3]))
    assert checked(nodes, {"q": QUERIES, "g": (2, 3, 4, 5)}) == {"Transpose": 1, "Reshape": 2, "MatMul": 1}


@pytest.mark.parametrize(
    ("equation", "sides"),
    [
        ("bqc,bchw->bhwq", (2, 4, 3, 5)),
        ("bqc,bhwc->bqhw", FEATURES),
        ("bqc,lchw->bqhw", (3, 4, 3, 5)),
        ("bqc,bcqw->bqw", (2, 4, 7, 5)),
        ("bqc,bchw->bqhw", (2, 1, 3, 5)),
    ],
)
def test_other_sums_stay(equation, sides):
    nodes = [node("Einsum", ["q", "f"], ["y"], equation=equation)]
    assert checked(nodes, {"q": QUERIES, "f": sides}) == {"Einsum": 1}
