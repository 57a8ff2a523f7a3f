"""A PyTorch module as a list of operations on an image of one size, with nothing in it that is the same for all images.

What ``torch.onnx`` makes of a module as it is computes shapes, positions and masks anew for every image, in thousands
of small nodes, some in float64. So the module is run once with its operations recorded (``make_fx``, each with the
shapes that it has here), mutations are written as new values, what does not depend on the image is computed now, and
the rest is what is exported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx

__all__ = ["Untraceable", "traced"]

LARGEST_CONSTANT = 1 << 23
"""Bytes of a value that is computed now, unless what it is made of takes as many: larger ones are cheaper to make than
to keep and to read."""
# What gives its input as it is, at least where nothing is trained or mutated.
_NOTHING = ("alias", "clone", "contiguous", "detach", "dropout", "lift_fresh_copy")
_VIEWS = (
    "alias", "chunk", "detach", "diagonal", "expand", "flatten", "narrow", "permute", "reshape", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
)  # fmt: skip


class Untraceable(Exception):
    """The module does what cannot be recorded."""


def traced(
    function: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], example: torch.Tensor
) -> fx.GraphModule:
    """The function as a graph of PyTorch's own operations, for inputs like `example`.

    Raises:
        Untraceable: it does what cannot be recorded, or mutates values in a way that is not understood.
        Whatever `function` raises.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        # Numbers that are read off tensors become constants: whoever calls compares on other images.
        recorded = make_fx(function, pre_dispatch=True, _error_on_data_dependent_ops=False)(example)
        _note_shapes(recorded, example)
        _Mutations(recorded).write_out()
        _fill_by_mask(recorded)
        _drop_what_does_nothing(recorded)
        _fold(recorded)
    # Attention counts as random there, and would stay.
    recorded.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    recorded.recompile()
    return recorded


def _operation(node: Any) -> str:
    """The name of a recorded call in ``aten``, or ""."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.removeprefix("aten::")


def _note_shapes(module: Any, example: torch.Tensor) -> None:
    """The shape and element type of each value, as ``meta["said"]``."""
    import torch
    from torch.fx import Interpreter

    class Noting(Interpreter):
        def run_node(self, node: Any) -> Any:
            value = super().run_node(node)
            if isinstance(value, torch.Tensor):
                node.meta["said"] = (tuple(value.shape), value.dtype)
            return value

    Noting(module).run(example)


class _Mutations:
    """Operations that write into a tensor, as operations that give a new one.

    Whoever reads the tensor afterwards, or the one that it is a part of, reads the new one.
    """

    def __init__(self, module: Any) -> None:
        self._graph = module.graph
        self._place = {node: index for index, node in enumerate(self._graph.nodes)}

    def write_out(self) -> None:
        for node in list(self._graph.nodes):
            schema = getattr(node.target, "_schema", None)
            if node.op != "call_function" or schema is None or not schema.is_mutable:
                continue
            if not _operation(node).endswith("_") or not node.args:
                raise Untraceable(f"{node.target} mutates its arguments")
            target = node.args[0]
            with self._graph.inserting_before(node):
                new = self._new_value(node, target)
                self._replace(target, new, node, node)
            node.replace_all_uses_with(new)
            self._graph.erase_node(node)

    def _new_value(self, node: Any, target: Any) -> Any:
        import torch

        aten = torch.ops.aten
        if _operation(node) == "copy_":
            value = node.args[1]
            (shape, kind), (given, given_kind) = target.meta["said"], value.meta["said"]
            if kind != given_kind:
                value = self._call(aten.to.dtype, node, value, kind)
            if shape != given:
                value = self._call(aten.expand.default, node, value, list(shape))
            value.meta["said"] = (shape, kind)
            return value
        functional = getattr(getattr(aten, _operation(node)[:-1], None), node.target._overloadname, None)
        if functional is None:
            raise Untraceable(f"{node.target} has no form that gives a new value")
        new = self._call(functional, node, *node.args, **node.kwargs)
        new.meta["said"] = target.meta.get("said")
        return new

    def _call(self, function: Any, at: Any, *args: Any, **kwargs: Any) -> Any:
        node = self._graph.call_function(function, args, kwargs)
        self._place[node] = self._place[at]
        return node

    def _replace(self, old: Any, new: Any, at: Any, child: Any) -> None:
        """`new` in place of `old` wherever that is read after `at`; `child` is the part of it that was written."""
        import torch

        aten = torch.ops.aten
        if old.op == "placeholder":
            raise Untraceable("the image is written into")
        for user in list(old.users):
            if user is new or user is child or user is at:
                continue
            if self._place[user] > self._place[at]:
                user.replace_input_with(old, new)
            elif _is_view(user) and any(self._place[later] > self._place[at] for later in user.users):
                raise Untraceable(f"{old} is written into, and read by way of {user} afterwards")
        if not _is_view(old):
            return
        base = old.args[0]
        if _operation(old) == "slice" and old.meta.get("said") and base.meta.get("said"):
            shape = base.meta["said"][0]
            given: list[Any] = list(old.args[1:])
            dim, start, stop, step = given + [0, None, None, 1][len(given) :]
            start, stop, step = slice(start, stop, step).indices(shape[dim])
            if step != 1:
                raise Untraceable(f"{old} is written into with a step of {step}")
            parts = [new]
            if start > 0:
                parts.insert(0, self._call(aten.slice.Tensor, at, base, dim, 0, start))
            if stop < shape[dim]:
                parts.append(self._call(aten.slice.Tensor, at, base, dim, stop, shape[dim]))
            whole = new if len(parts) == 1 else self._call(aten.cat.default, at, parts, dim)
            whole.meta["said"] = base.meta["said"]
            self._replace(base, whole, at, old)
        elif any(self._place[user] > self._place[at] for user in base.users if user is not at):
            raise Untraceable(f"{base} is read after it was written into by way of {old}")


def _is_view(node: Any) -> bool:
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        return bool(node.args) and _is_view(node.args[0])
    return _operation(node) in _VIEWS


def _fill_by_mask(module: Any) -> None:
    """Rows that are put where a condition holds, as a choice for each row: without a list of unknown length."""
    import torch

    graph = module.graph
    for node in list(graph.nodes):
        if _operation(node) != "index_put" or len(node.args) != 3:
            continue
        target, places, value = node.args
        lists: list[Any] = [place for place in places if isinstance(place, torch.fx.Node)]
        wheres: set[Any] = {
            place.args[0] for place in lists if getattr(place.target, "__name__", "") == "getitem"
        }
        if len(wheres) != 1 or [place.args[1] for place in lists] != list(range(len(places))):
            continue
        where = wheres.pop()
        if _operation(where) != "where" or len(where.args) != 1 or value.meta.get("said", ((1,),))[0] != ():
            continue
        condition: Any = where.args[0]
        with graph.inserting_before(node):
            for _ in range(len(target.meta["said"][0]) - len(condition.meta["said"][0])):
                condition = graph.call_function(torch.ops.aten.unsqueeze.default, (condition, -1))
            chosen = _choice(graph, condition, value, target)
        chosen.meta["said"] = target.meta["said"]
        node.replace_all_uses_with(chosen)
        graph.erase_node(node)


def _choice(graph: Any, condition: Any, value: Any, other: Any) -> Any:
    """`value` where the condition holds, `other` elsewhere."""
    import torch

    aten = torch.ops.aten
    if other.meta["said"][1] != torch.bool:
        return graph.call_function(aten.where.self, (condition, value, other))
    # ONNX Runtime has no choice between booleans.
    outside = graph.call_function(aten.logical_not.default, (condition,))
    kept = graph.call_function(aten.logical_and.default, (outside, other))
    put = graph.call_function(aten.logical_and.default, (condition, value))
    return graph.call_function(aten.logical_or.default, (kept, put))


def _drop_what_does_nothing(module: Any) -> None:
    import torch

    for node in list(module.graph.nodes):
        name = _operation(node)
        if name == "view" and node.target is torch.ops.aten.view.default:
            # A view asks for an order in memory that is none of the graph's business.
            node.target = torch.ops.aten.reshape.default
        if name == "dropout" and len(node.args) > 2 and node.args[2]:
            raise Untraceable("something is dropped at random; call eval() on the module")
        same = name == "to" and node.meta.get("said") == node.args[0].meta.get("said")
        if (name in _NOTHING and node.args) or same:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _is_sure(node: Any) -> bool:
    """Whether attention drops nothing at random, as it may."""
    dropout = node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0)
    return bool(_operation(node) == "scaled_dot_product_attention" and dropout == 0.0)


def _bytes(value: Any) -> int:
    import torch

    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _fold(module: Any) -> None:
    """Computes now what depends on no image."""
    import torch

    graph = module.graph
    known: dict[Any, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            known[node] = value
        elif node.op == "call_function" and all(item in known for item in node.all_input_nodes):
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _is_sure(node):
                raise Untraceable(f"{node.target} is different in each run")
            args = torch.fx.map_arg(node.args, known.__getitem__)
            kwargs = torch.fx.map_arg(node.kwargs, known.__getitem__)
            value = node.target(*args, **kwargs)
            parts = sum(_bytes(known[item]) for item in node.all_input_nodes)
            if _bytes(value) <= max(LARGEST_CONSTANT, parts):
                known[node] = value
    count = 0
    for node in list(graph.nodes):
        if node.op == "get_attr" or not isinstance(known.get(node), torch.Tensor):
            continue
        if all(user in known for user in node.users):
            continue
        name = f"_known{count}"
        count += 1
        module.register_buffer(name, known[node].detach().clone().contiguous())
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        node.replace_all_uses_with(constant)
