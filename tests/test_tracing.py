"""PyTorch functions as graphs of one size: the same values, without mutations, and without what no image changes."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fai_fast.networks import tracing  # noqa: E402
from fai_fast.networks.tracing import Untraceable, traced  # noqa: E402

WEIGHT = torch.linspace(-1, 1, 12).reshape(3, 4)


def image(seed: int = 0) -> Any:
    return torch.randn((1, 3, 4, 4), generator=torch.Generator().manual_seed(seed))


def called(graph: Any) -> list[str]:
    return [str(node.target).split(".")[1] for node in graph.graph.nodes if node.op == "call_function"]


def same(function: Any) -> list[str]:
    """The operations of what was traced, after it gave on other images what the function gives."""
    graph = traced(function, image())
    for seed in range(3):
        for one, other in zip(graph(image(seed)), function(image(seed)), strict=True):
            assert torch.equal(one, other)
    names = called(graph)
    assert not [name for name in names if name.endswith("_")]
    return names


def test_what_no_image_changes_is_computed_once():
    def function(images):
        positions = torch.arange(4, dtype=torch.float32).sin() @ WEIGHT.t()
        return (images * (positions + images.shape[-1])[:, None, None],)

    assert same(function) == ["mul"]


def test_large_constants_are_left_to_the_graph(monkeypatch):
    monkeypatch.setattr(tracing, "LARGEST_CONSTANT", 16)

    def function(images):
        return (images + torch.ones(1).expand(1, 3, 4, 4).contiguous().exp(),)

    assert "exp" in same(function)


def test_a_part_that_is_written_is_put_together():
    def function(images):
        mask = torch.ones(1, 3, 4, 4, dtype=torch.bool)
        mask[:, 1:, :2] = (images > 0)[:, 1:, :2]
        return (images.masked_fill(mask, 0.0),)

    names = same(function)
    assert "cat" in names
    assert "ones" not in names


def test_whole_tensors_that_are_written_are_replaced():
    def function(images):
        place = torch.empty(1, 3, 4, 4)
        place[:] = images.double()
        place.mul_(2).add_(1)
        return (place.relu_(), place)

    assert set(same(function)) == {"to", "mul", "add", "relu"}


def test_rows_where_a_condition_holds_are_chosen_without_a_list():
    def function(images):
        mask = images > 0
        full = mask.all(-1)
        mask[torch.where(full)] = False
        images = images.clone()
        images[torch.where(full)] = 7.0
        return (mask.float(), images)

    names = same(function)
    assert "index_put" not in names
    assert "nonzero" not in names


def test_a_view_of_what_is_written_is_refused():
    def function(images):
        place = torch.zeros(1, 3, 4, 4)
        before = place.transpose(2, 3)
        place[:, :1] = images[:, :1]
        return (before + 0, place)

    with pytest.raises(Untraceable, match="read by way of"):
        traced(function, image())


def test_the_image_is_not_written_into():
    with pytest.raises(Untraceable, match="the image is written into"):
        traced(lambda images: (images.add_(1),), image())


@pytest.mark.parametrize(
    "function",
    [
        lambda images: (images + torch.rand(1, 3, 4, 4),),
        lambda images: (torch.nn.functional.dropout(images, 0.5, training=True),),
    ],
)
def test_chance_is_refused(function):
    with pytest.raises(Untraceable):
        traced(function, image())


def test_attention_that_drops_nothing_is_sure():
    def function(images):
        attended = torch.nn.functional.scaled_dot_product_attention(WEIGHT[None], WEIGHT[None], WEIGHT[None])
        return (images + attended.sum(),)

    assert same(function) == ["add"]
