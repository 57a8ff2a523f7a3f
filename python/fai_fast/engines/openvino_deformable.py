"""Deformable attention in OpenVINO's graphs, by sums of rows in place of samples of images.

PyTorch has no operator for attention over a few sampled points of several feature maps (Deformable DETR, Zhu et al.
2021, section 4.1), so exported graphs hold what its reference code does: each map is sampled with GridSample, which
gives every channel of every point, all of which are then joined, weighted and summed. Most of that time is memory:
per query, head and point, OpenVINO's GridSample gathers each channel from another place, and 12 points of 32 channels
are written and read three times.

A sample is a weighted sum of four rows of channels, and so is the whole attention of one query and head a weighted sum
of 4 x levels x points rows. That is what EmbeddingBagPackedSum computes: it reads each row where it is and writes the
sum alone.

Where the graph is computed in bfloat16, which has eight bits, a place near 100 would be off by a quarter of a pixel. So
whole pixels are kept apart, and what has to be rounded are a few pixels that the network adds to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NAME", "VERSION", "rewrite_deformable_attention"]

NAME = "deformable_attention"
"""What the names of all new nodes begin with."""
VERSION = 2
"""Of what :func:`rewrite_deformable_attention` makes: what was compiled with another one is not the same."""
# Of a factor that is one but for rounding.
_ONE = 1e-6
_INT32 = np.iinfo(np.int32).max
# Which of the four nodes around a point: across, then down.
_RIGHT = np.array([0, 1, 0, 1], np.float64).reshape(1, 1, 4, 1)
_BELOW = np.array([0, 0, 1, 1], np.float64).reshape(1, 1, 4, 1)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Attention:
    """One deformable attention as it was found.

    B images, S positions of all maps, H heads of C channels, Q queries, L maps, P points on each.

    Attributes:
        values: (B, S, H, C).
        grid: (B, Q, H, L, P, 2), x and y of points, -1 to 1 from edge to edge of a map.
        weights: (B, Q, H, L, P).
        sizes: (height, width) of the maps.
        result: (B, Q, H * C).
    """

    values: Any
    grid: Any
    weights: Any
    sizes: list[tuple[int, int]]
    result: Any


def rewrite_deformable_attention(model: Any, opset: Any) -> int:
    """Replaces the deformable attentions of a graph, in place, where they are of the shape that PyTorch's code has.

    Results are equal up to rounding: the same products in another order. Anything else is left as it is.

    Args:
        model: an ``openvino.Model`` of fixed shapes.
        opset: the module of operations to build with, 13 or newer.

    Returns:
        How many were replaced.
    """
    found = [
        attention
        for node in model.get_ordered_ops()
        if node.get_type_name() == "ReduceSum" and (attention := _attention(node)) is not None
    ]
    there = {node.get_name() for node in model.get_ordered_ops()}
    constants = _Constants(opset)
    for index, attention in enumerate(found):
        summed = _rows_summed(attention, opset, constants)
        _name(summed.get_node(), there, f"{NAME}{index}")
        for user in list(attention.result.get_target_inputs()):
            user.replace_source_output(summed)
    if found:
        model.validate_nodes_and_infer_types()
    return len(found)


# ------------------------------------------------------------------------------------------------ to find


def _attention(node: Any) -> _Attention | None:
    """What ends in this sum over all points; None where it is something else."""
    product = _input(node, "Multiply")
    if product is None or node.get_keep_dims() or not _is(node.input_value(1), [3], [-1]):
        return None
    for samples, weights in ((0, 1), (1, 0)):
        joined = _input(product, "Reshape", samples)
        weighing = _input(product, "Reshape", weights)
        maps = None if joined is None else _input(joined, "Concat")
        if maps is not None and weighing is not None:
            return _of_maps(node, maps, weighing)
    return None


def _of_maps(node: Any, maps: Any, weighing: Any) -> _Attention | None:
    samples = [_sample(maps, index) for index in range(maps.get_input_size())]
    turned: Any = _input(weighing, "Transpose")
    if any(sample is None for sample in samples) or not _turns(turned, [0, 2, 1, 3, 4]):
        return None
    weights = turned.input_value(0)
    values = [level for sample in samples if (level := _level_of_values(sample)) is not None]
    grids = [level for sample in samples if (level := _level_of_grid(sample)) is not None]
    if not len(values) == len(grids) == len(samples):
        return None
    (batch, positions, heads, channels), (_, queries, _, levels, points) = (
        tuple(values[0][0].get_shape()),
        tuple(weights.get_shape()),
    )
    sizes = [tuple(sample.input_value(0).get_shape())[2:] for sample in samples]
    starts = [0, *np.cumsum([height * width for height, width in sizes]).tolist()]
    # One after another, of the same values and points.
    if (
        [start for _, start in values] != starts[:-1]
        or starts[-1] != positions
        or [level for _, level in grids] != list(range(levels))
        or len({_key(value) for value, _ in values}) != 1
        or len({_key(grid) for grid, _ in grids}) != 1
        or tuple(grids[0][0].get_shape()) != (batch, queries, heads, levels, points, 2)
        or tuple(weights.get_shape()) != (batch, queries, heads, levels, points)
        or tuple(maps.get_output_shape(0)) not in _joined(batch * heads, channels, queries, levels, points)
        or tuple(weighing.get_output_shape(0)) != (batch * heads, 1, queries, levels * points)
        or tuple(node.get_output_shape(0)) != (batch * heads, channels, queries)
        or batch * sum((height + 2) * (width + 2) for height, width in sizes) * heads > _INT32
    ):
        return None
    shaped = _only_user(node, "Reshape")
    back: Any = None if shaped is None else _only_user(shaped, "Transpose")
    if not _turns(back, [0, 2, 1]) or tuple(back.get_output_shape(0)) != (batch, queries, heads * channels):
        return None
    return _Attention(values[0][0], grids[0][0], weights, sizes, back.output(0))


def _joined(images: int, channels: int, queries: int, levels: int, points: int) -> list[tuple[int, ...]]:
    """How samples of all maps lie beside each other, map after map."""
    shape = (images, channels, queries)
    return [(*shape, levels, points), (*shape, levels * points)]


def _sample(maps: Any, index: int) -> Any:
    """The GridSample that gives an input of this Concat: bilinear, zero outside, -1 and 1 the edges; or None."""
    node = maps.input_value(index).get_node()
    if node.get_type_name() in ("Unsqueeze", "Reshape"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "GridSample" or node.get_output_partial_shape(0).is_dynamic:
        return None
    said = node.get_attributes()
    expected = {"align_corners": False, "mode": "bilinear", "padding_mode": "zeros"}
    return node if {key: said.get(key) for key in expected} == expected else None


def _level_of_values(sample: Any) -> tuple[Any, int] | None:
    """All maps' values (B, S, H, C), and the position at which the one that is sampled begins."""
    image = sample.input_value(0)
    turned: Any = _input(sample, "Reshape")
    turned = None if turned is None else _input(turned, "Transpose")
    rows = None if not _turns(turned, [0, 2, 1]) else _input(turned, "Reshape")
    if rows is None:
        return None
    part = rows.input_value(0)
    if len(part.get_shape()) != 4:
        return None
    batch, positions, heads, channels = part.get_shape()
    images, _, height, width = image.get_shape()
    if (
        tuple(image.get_shape()) != (batch * heads, channels, height, width)
        or positions != height * width
        or tuple(turned.get_output_shape(0)) != (batch, heads * channels, positions)
        # Several images of several heads: B and H are told apart by the order above.
        or images != batch * heads
    ):
        return None
    node = part.get_node()
    if node.get_type_name() not in ("VariadicSplit", "Split"):
        return (part, 0)
    if not _is(node.input_value(1), [4], [1, -3]):
        return None
    lengths = [int(item.get_shape()[1]) for item in node.outputs()]
    return node.input_value(0), sum(lengths[: part.get_index()])


def _level_of_grid(sample: Any) -> tuple[Any, int] | None:
    """All maps' points (B, Q, H, L, P, 2), and of which map these are."""
    flat: Any = _input(sample, "Reshape", 1)
    turned = None if flat is None else _input(flat, "Transpose")
    chosen = None if not _turns(turned, [0, 2, 1, 3, 4]) else _input(turned, "Gather")
    if chosen is None or len(chosen.input_value(0).get_shape()) != 6:
        return None
    level = _constant(chosen.input_value(1))
    if level is None or level.shape or not _is(chosen.input_value(2), [6], [3, -3]):
        return None
    grid = chosen.input_value(0)
    batch, queries, heads, levels, points, _ = grid.get_shape()
    if tuple(flat.get_output_shape(0)) != (batch * heads, queries, points, 2):
        return None
    return grid, int(level) % levels


def _key(value: Any) -> tuple[str, int]:
    """Of an output: two are the same where this is."""
    return value.get_node().get_name(), value.get_index()


def _input(node: Any, kind: str, index: int = 0) -> Any:
    """The node of this kind that gives an input; None where another kind does."""
    given = node.input_value(index).get_node()
    return given if given.get_type_name() == kind else None


def _only_user(node: Any, kind: str) -> Any:
    users = list(node.output(0).get_target_inputs())
    if len(users) != 1 or users[0].get_node().get_type_name() != kind:
        return None
    return users[0].get_node()


def _turns(node: Any, order: list[int]) -> bool:
    """Whether it is a Transpose by this order."""
    if node is None or node.get_type_name() != "Transpose":
        return False
    said = _constant(node.input_value(1))
    return said is not None and said.tolist() == order


def _constant(value: Any) -> npt.NDArray[Any] | None:
    node = value.get_node()
    return np.asarray(node.get_data()) if node.get_type_name() == "Constant" else None


def _is(value: Any, ranks: list[int], wanted: list[int]) -> bool:
    """Whether it is a constant axis, one of those that are wanted or the same one counted from the front."""
    said = _constant(value)
    if said is None or said.size != 1:
        return False
    axis = int(said.reshape(-1)[0])
    return axis in wanted or any(axis - rank in wanted for rank in ranks)


# ------------------------------------------------------------------------------------------------ to build


class _Constants:
    """Constants of a graph, each once: all layers of an encoder have the same places."""

    def __init__(self, op: Any) -> None:
        self._op = op
        self._made: dict[tuple[Any, ...], Any] = {}

    def number(self, value: Any) -> Any:
        return self._constant(np.array(value, np.float32))

    def whole(self, value: Any) -> Any:
        return self._constant(np.array(value, np.int32))

    def _constant(self, value: npt.NDArray[Any]) -> Any:
        key = (value.dtype.char, value.shape, value.tobytes())
        if key not in self._made:
            self._made[key] = self._op.constant(value)
        return self._made[key]


def _rows_summed(found: _Attention, op: Any, constants: _Constants) -> Any:
    """The same attention as sums of rows: (B, Q, H * C)."""
    number, whole = constants.number, constants.whole
    batch, _, heads, channels = found.values.get_shape()
    _, queries, _, levels, points, _ = found.grid.get_shape()
    every = levels * points
    # What is outside of a map is read from a border of zeros around it.
    sides = [(height + 2, width + 2) for height, width in found.sizes]
    areas = [height * width for height, width in sides]
    positions = sum(areas)
    first = np.repeat(np.cumsum([0, *areas[:-1]]), points).reshape(1, 1, 1, every)
    heights, widths = (
        np.repeat(np.array(lengths, np.int64), points).reshape(1, 1, 1, every)
        for lengths in zip(*found.sizes, strict=True)
    )

    def shaped(value: Any, *shape: int) -> Any:
        return op.reshape(value, whole(shape), False)

    def along(
        place: Any, factor: Array, more: Array, length: npt.NDArray[np.int64]
    ) -> tuple[Any, Any, npt.NDArray[np.int64]]:
        """Of points on one axis, (B * Q, H, 1, L * P): the node before them, how far they are beyond it, and what whole
        number is to be added to that node.
        """
        # From -1..1, edge to edge, to pixels, of which the first one's centre is 0.
        factor, more = factor * (length / 2), (more + 1) * (length / 2) - 0.5
        known = np.floor(more)
        exact = place if (np.abs(factor - 1) < _ONE).all() else op.multiply(place, number(factor))
        exact = op.add(exact, number(more - known))
        # All that is outside is in the border. What is no number becomes one of the two ends.
        exact = op.minimum(op.maximum(exact, number(-1 - known)), number(length - known))
        before = op.floor(exact)
        return before, op.subtract(exact, before), known.astype(np.int64)

    def shares(beyond: Any, step: Array) -> Any:
        """Of the four nodes around: one less what is beyond, or what is beyond."""
        return op.add(op.multiply(beyond, number(2 * step - 1)), number(1 - step))

    inner, factor, more = _affine(found.grid)
    places = _columns_apart(inner, op)
    if places is None:
        flat = shaped(inner, batch * queries, heads, 1, every, 2)
        parts = op.split(op.transpose(flat, whole([4, 0, 1, 2, 3])), whole(0), 2)
    else:
        parts = op.split(shaped(places, batch * queries, 2, heads, 1, every), whole(1), 2)
    x, y = (shaped(parts.output(index), batch * queries, heads, 1, every) for index in range(2))
    shape = (batch, queries, heads, levels, points)
    (factor_x, factor_y), (more_x, more_y) = (_by_axis(part, shape) for part in (factor, more))
    column, right, known_column = along(x, factor_x, more_x, widths)
    row, down, known_row = along(y, factor_y, more_y, heights)
    weights = op.multiply(
        op.multiply(shares(right, _RIGHT), shares(down, _BELOW)),
        shaped(found.weights, batch * queries, heads, 1, every),
    )
    stride = widths + 2
    place = op.add(
        op.multiply(op.convert(row, "i32"), whole(stride * heads)),
        op.multiply(op.convert(column, "i32"), whole(heads)),
    )
    image = np.repeat(np.arange(batch), queries).reshape(-1, 1, 1, 1) * positions
    # Without an axis that is the same for all images, nothing has to be repeated.
    image = image if batch > 1 else np.zeros((1, 1, 1, 1), np.int64)
    known = (first + image + (known_row + 1) * stride + known_column + 1) * heads
    beside = (_BELOW.astype(np.int64) * stride + _RIGHT.astype(np.int64)) * heads
    place = op.add(place, whole(known))
    chosen = op.add(place, whole(beside + np.arange(heads).reshape(1, heads, 1, 1)))
    # Beyond the last corner, without a share: a row that is there.
    chosen = op.minimum(op.maximum(chosen, whole(0)), whole(batch * positions * heads - 1))
    bags = batch * queries * heads
    summed = op.embedding_bag_packed_sum(
        shaped(_bordered(found, op, whole), batch * positions * heads, channels),
        shaped(chosen, bags, 4 * every),
        shaped(weights, bags, 4 * every),
    )
    return shaped(summed, batch, queries, heads * channels).output(0)


def _bordered(found: _Attention, op: Any, whole: Callable[[Any], Any]) -> Any:
    """The values of all maps one after the other, each map with a border of zeros: (B, S', H * C)."""
    batch, positions, heads, channels = found.values.get_shape()
    width_of_all = heads * channels
    rows = op.reshape(found.values, whole([batch, positions, width_of_all]), False)
    parts = op.variadic_split(rows, whole(1), whole([height * width for height, width in found.sizes]))
    border = whole([0, 1, 1, 0])
    maps = []
    for index, (height, width) in enumerate(found.sizes):
        image = op.reshape(parts.output(index), whole([batch, height, width, width_of_all]), False)
        image = op.pad(image, border, border, "constant")
        maps.append(op.reshape(image, whole([batch, (height + 2) * (width + 2), width_of_all]), False))
    return op.concat(maps, 1)


def _affine(value: Any) -> tuple[Any, Array, Array]:
    """What a value is computed from, the factor and the summand: value = factor * inner + summand.

    Points are offsets that a network gives, in units of pixels, on places that are the same for all images.
    """
    factor, summand = np.ones((1,) * 6), np.zeros((1,) * 6)
    while True:
        node = value.get_node()
        kind = node.get_type_name()
        if kind not in ("Add", "Divide", "Multiply", "Subtract"):
            return value, factor, summand
        sides = [_constant(node.input_value(index)) for index in (0, 1)]
        known = next((index for index in (0, 1) if sides[index] is not None), None)
        if known is None or (kind == "Divide" and known == 0):
            return value, factor, summand
        inner, constant = node.input_value(1 - known), np.asarray(sides[known], np.float64)
        if tuple(inner.get_shape()) != tuple(value.get_shape()):
            return value, factor, summand
        if kind == "Multiply":
            factor = factor * constant
        elif kind == "Divide":
            factor = factor / constant
        elif kind == "Add":
            summand = summand + factor * constant
        elif known == 1:
            summand = summand - factor * constant
        else:
            factor, summand = -factor, summand + factor * constant
        value = inner


def _by_axis(part: Array, shape: tuple[int, ...]) -> list[Array]:
    """Of x and of y: what was (B, Q, H, L, P, 2), or 1 in places, as (B * Q, H, 1, L * P), with 1 in places too."""
    batch, queries, _, levels, points = shape
    images = (1, 1) if part.shape[:2] == (1, 1) else (batch, queries)
    heads = part.shape[2]
    full = np.broadcast_to(part, (*images, heads, levels, points, 2))
    return [full[..., axis].reshape(-1, heads, 1, levels * points) for axis in (0, 1)]


def _columns_apart(value: Any, op: Any) -> Any:
    """x of all points and then y, (B, Q, 2 * H * L * P), by weights in another order.

    None where points are not what a product by weights gives and nothing else takes.
    """
    shaped = value.get_node()
    if shaped.get_type_name() != "Reshape" or len(value.get_target_inputs()) != 1:
        return None
    biased = _alone(shaped, 0, "Add")
    if biased is None:
        return None
    for index in (0, 1):
        product, bias = _alone(biased, index, "MatMul"), _constant(biased.input_value(1 - index))
        weights = None if product is None else _constant(product.input_value(1))
        if product is None or weights is None or bias is None or weights.ndim != 2:
            continue
        side = 0 if product.get_attributes()["transpose_b"] else 1
        count = weights.shape[side]
        if (
            bias.size != count
            or tuple(biased.get_output_shape(0))[-1] != count
            or weights.dtype != np.float32
        ):
            return None
        order = np.arange(count).reshape(-1, 2).T.reshape(-1)
        made = op.matmul(
            product.input_value(0),
            op.constant(np.ascontiguousarray(weights.take(order, side))),
            product.get_attributes()["transpose_a"],
            product.get_attributes()["transpose_b"],
        )
        # Quantizing goes by names.
        made.set_friendly_name(product.get_friendly_name())
        bias = np.broadcast_to(bias, (*bias.shape[:-1], count)).take(order, -1)
        return op.add(made, op.constant(np.ascontiguousarray(bias)))
    return None


def _alone(node: Any, index: int, kind: str) -> Any:
    """The node of this kind that gives an input, and gives it to nobody else."""
    given = _input(node, kind, index)
    return given if given is not None and len(given.output(0).get_target_inputs()) == 1 else None


def _name(node: Any, there: set[str], name: str) -> None:
    """Names the nodes that were built, so that who quantizes the graph can leave them alone, all but products."""
    if node.get_name() in there:
        return
    there.add(node.get_name())
    if node.get_type_name() != "MatMul":
        node.set_friendly_name(f"{name}/{node.get_friendly_name()}")
    for index in range(node.get_input_size()):
        _name(node.input_value(index).get_node(), there, name)
