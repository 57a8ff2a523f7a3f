"""What is made cheaper in somebody's graph without changing what it computes."""

from __future__ import annotations

import numpy as np
import pytest
from fai_fast.networks.constants import with_small_constants
from fai_fast.networks.deploy import drop_unused
from fai_fast.networks.masks import smaller_first
from fai_fast.networks.ports import inferred

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

BATCH, QUERIES, CHANNELS, HEIGHT, WIDTH = 2, 5, 3, 12, 16
MASKS = {"queries": (BATCH, QUERIES, CHANNELS), "features": (BATCH, CHANNELS, HEIGHT, WIDTH)}


def model_of(nodes, inputs, outputs, constants=()):
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    return inferred(made)


def run(model, seed=0):
    rng = np.random.default_rng(seed)
    given = {
        item.name: rng.standard_normal([side.dim_value for side in item.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for item in model.graph.input
    }
    return ReferenceEvaluator(model).run(None, given)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def held(model):
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def checked(model):
    del model.graph.value_info[:]
    drop_unused(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def resize(name, size, channels=QUERIES, mode="linear", **more):
    constants = {f"{name}.sizes": np.array((BATCH, channels, *size), np.int64)}
    node = helper.make_node(
        "Resize",
        ["masks", "", "", f"{name}.sizes"],
        [name],
        mode=mode,
        coordinate_transformation_mode="half_pixel",
        **more,
    )
    return node, constants


def product(first="queries", second="features", equation="bqc, bchw -> bqhw", result="masks"):
    return helper.make_node("Einsum", [first, second], [result], equation=equation)


# Masks for attention


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_features_are_made_smaller_once_for_all_layers(mode):
    nodes, constants = [], {}
    for layer, size in enumerate([(6, 8), (3, 4), (6, 8)]):
        made, sizes = resize(f"small{layer}", size, mode=mode)
        made.input[0] = f"masks{layer}"
        # The second layer's masks are made before the first one's are resized.
        nodes.insert(layer, product(result=f"masks{layer}"))
        nodes.append(made)
        constants |= sizes
    model = model_of(nodes, MASKS, ["small0", "small1", "small2"], constants)
    expected = run(model)
    assert smaller_first(model) == 3
    assert kinds(checked(model)) == ["Resize", "Resize", "Einsum", "Einsum", "Einsum"]
    for found, wanted in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_operands_in_another_order():
    made, constants = resize("small", (6, 8))
    nodes = [product("features", "queries", "xyzw,xqy->xqzw"), made]
    model = model_of(nodes, MASKS, ["small"], constants)
    expected = run(model)
    assert smaller_first(model) == 1
    assert kinds(checked(model)) == ["Resize", "Einsum"]
    np.testing.assert_allclose(run(model)[0], expected[0], rtol=1e-5, atol=1e-5)


def test_features_that_a_node_makes():
    made, constants = resize("small", (6, 8))
    nodes = [helper.make_node("Relu", ["given"], ["features"]), product(), made]
    inputs = {"queries": MASKS["queries"], "given": MASKS["features"]}
    model = model_of(nodes, inputs, ["small"], constants)
    expected = run(model)
    assert smaller_first(model) == 1
    assert kinds(checked(model)) == ["Relu", "Resize", "Einsum"]
    np.testing.assert_allclose(run(model)[0], expected[0], rtol=1e-5, atol=1e-5)


def test_what_would_cost_more_or_is_not_the_same_stays():
    larger, constants = resize("small", (24, 32))
    cases = [
        model_of([product(), larger], MASKS, ["small"], constants),
        # Cubic: linear too, but its weights are cut at borders in ways that engines differ in.
        model_of([product(), resize("small", (6, 8), mode="cubic")[0]], MASKS, ["small"], resize("small", (6, 8))[1]),
        # The masks themselves are wanted.
        model_of(
            [product(), resize("small", (6, 8))[0]], MASKS, ["small", "masks"], resize("small", (6, 8))[1]
        ),
        # Channels are not what the product sums.
        model_of(
            [product(equation="bqc,bqhw->bqhw", first="queries", second="more"), resize("small", (6, 8))[0]],
            {"queries": MASKS["queries"], "more": (BATCH, QUERIES, HEIGHT, WIDTH)},
            ["small"],
            resize("small", (6, 8))[1],
        ),
    ]  # fmt: skip
    moved = [smaller_first(model) for model in cases]
    assert moved[:3] == [0, 0, 0]
    # The last one may be moved, as it is linear in its pixels too; then it is the same.
    reference = model_of(
        [product(equation="bqc,bqhw->bqhw", first="queries", second="more"), resize("small", (6, 8))[0]],
        {"queries": MASKS["queries"], "more": (BATCH, QUERIES, HEIGHT, WIDTH)},
        ["small"],
        resize("small", (6, 8))[1],
    )
    np.testing.assert_allclose(run(cases[3])[0], run(reference)[0], rtol=1e-5, atol=1e-5)


def test_a_part_of_masks_and_masks_that_a_branch_takes_stay():
    part, constants = resize("small", (6, 8))
    [how] = [item for item in part.attribute if item.name == "coordinate_transformation_mode"]
    how.s = b"tf_crop_and_resize"
    part.input[1] = "part"
    whole, _ = resize("small", (6, 8))
    branches = [
        helper.make_graph([helper.make_node(kind, ["masks"], ["one"])], "branch", [], [_open("one")])
        for kind in ("Neg", "Abs")
    ]
    chosen = helper.make_node("If", ["yes"], ["chosen"], then_branch=branches[0], else_branch=branches[1])
    constants |= {"part": np.array([0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8], np.float32), "yes": np.array(True)}
    for nodes, outputs in (([part], ["small"]), ([whole, chosen], ["small", "chosen"])):
        model = model_of([product(), *nodes], MASKS, outputs, constants)
        before = model.SerializeToString(deterministic=True)
        assert smaller_first(model) == 0
        assert model.SerializeToString(deterministic=True) == before


def _open(name):
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)


# Constants

TABLE = (4, 100, 30)


def test_a_table_of_one_number_is_one_number():
    nodes = [
        helper.make_node("Less", ["x", "limit"], ["where"]),
        helper.make_node("Where", ["where", "low", "zeros"], ["y"]),
    ]
    constants = {
        "limit": np.float32(0.5),
        "low": np.full((1,), -1e4, np.float32),
        "zeros": np.zeros(TABLE, np.float32),
    }
    model = model_of(nodes, {"x": TABLE}, ["y"], constants)
    expected = run(model)
    with_small_constants(model)
    assert max(value.size for value in held(checked(model)).values()) == 1
    np.testing.assert_array_equal(run(model)[0], expected[0])


def test_a_table_that_makes_the_shape_stays():
    model = model_of(
        [helper.make_node("Add", ["x", "ones"], ["y"])],
        {"x": (1, 100, 1)},
        ["y"],
        {"ones": np.ones(TABLE, np.float32)},
    )
    with_small_constants(model)
    assert held(checked(model))["ones"].shape == TABLE


def test_a_table_of_several_numbers_stays():
    """Zeros of both signs are several."""
    table = np.zeros(TABLE, np.float32)
    table[0, 0, 0] = -0.0
    model = model_of([helper.make_node("Mul", ["x", "t"], ["y"])], {"x": TABLE}, ["y"], {"t": table})
    with_small_constants(model)
    assert held(checked(model))["t"].shape == TABLE


def test_a_choice_that_is_made_already():
    """And one whose result is larger than what is chosen stays."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Where", ["never", "zero", "a"], ["b"]),
        helper.make_node("Where", ["always", "b", "zero"], ["c"]),
        helper.make_node("Where", ["always", "zero", "c"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    constants = {
        "never": np.zeros((4, 100, 1), bool),
        "always": np.ones((1, 100, 30), bool),
        "zero": np.float32(0),
    }
    model = model_of(nodes, {"x": TABLE}, ["y"], constants)
    expected = run(model)
    with_small_constants(model)
    assert kinds(checked(model)) == ["Relu", "Where", "Add"]
    np.testing.assert_array_equal(run(model)[0], expected[0])


def test_equal_tables_are_kept_once():
    rng = np.random.default_rng(0)
    table = rng.standard_normal(TABLE).astype(np.float32)
    nodes = [
        helper.make_node("Add", ["x", "one"], ["a"]),
        helper.make_node("Add", ["a", "two"], ["b"]),
        helper.make_node("Add", ["b", "other"], ["y"]),
    ]
    constants = {"one": table, "two": table.copy(), "other": table[::-1].copy()}
    model = model_of(nodes, {"x": TABLE}, ["y"], constants)
    expected = run(model)
    with_small_constants(model)
    assert sorted(held(checked(model))) == ["one", "other"]
    np.testing.assert_array_equal(run(model)[0], expected[0])
