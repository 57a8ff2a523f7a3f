"""Pictures by their shape: which sizes of the network's input a set of them gets, and what that changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from fai_fast._arguments import check_int
from fai_fast._sizes import aspects_differ, fit_size, size_text
from fai_fast.evaluate.running import Found, Submit, _bar, _infer
from fai_fast.model import Model

BUCKETS = 4
"""Sizes of the network's input that one evaluation makes at most."""
COMPARED = 200
"""Pictures that are run in the model's own size too, to tell what the others change."""

# Of a frame of some aspect, to be given to fit_size(); exact enough for any.
_HEIGHT = 10_000

Size = tuple[int, int]


@dataclass(frozen=True)
class _Bucket:
    """Pictures of about one aspect.

    Attributes:
        size: (h, w) of the network's input for them.
        pictures: their places among all.
    """

    size: Size
    pictures: tuple[int, ...]


def _buckets(sizes: Sequence[Size | None], own: Size, most: int) -> list[_Bucket]:
    """The pictures, divided by their aspects into at most so many buckets, each with its size; the largest first.

    Aspects that are about the input's own stay with that, as do pictures whose size is not known. Where there are more
    shapes than buckets, those neighbors are joined of which the fewest pictures move least, in the logarithm of aspect.

    Args:
        sizes: (H, W) of each picture.
        own: (h, w), the model's own size.
        most: buckets.
    """
    area = own[0] * own[1]
    shape = {item: _fitting(item, own) for item in set(sizes)}
    groups: dict[Size, list[int]] = {}
    for index, item in enumerate(sizes):
        groups.setdefault(shape[item], []).append(index)

    def aspect(index: int) -> float:
        height, width = sizes[index] or own
        return math.log(width / height)

    joined = [(sum(map(aspect, members)) / len(members), members, size) for size, members in groups.items()]
    joined.sort(key=lambda group: group[0])
    while len(joined) > most:
        at = min(range(len(joined) - 1), key=lambda place: _moved(joined[place], joined[place + 1]))
        (low, few, _), (high, others, _) = joined[at : at + 2]
        members = [*few, *others]
        mean = (low * len(few) + high * len(others)) / len(members)
        between = (_HEIGHT, max(1, min(round(_HEIGHT * math.exp(mean)), 32767)))
        size = own if not aspects_differ(between, own) else fit_size(between, area=area)
        joined[at : at + 2] = [(mean, members, size)]
    together: dict[Size, list[int]] = {}
    for _, members, size in joined:
        together.setdefault(size, []).extend(members)
    found = [_Bucket(size, tuple(sorted(members))) for size, members in together.items()]
    return sorted(found, key=lambda bucket: (-len(bucket.pictures), bucket.size))


def _fitting(picture: Size | None, own: Size) -> Size:
    if picture is None or not aspects_differ(picture, own):
        return own
    return fit_size(picture, area=own[0] * own[1])


def _moved(one: tuple[float, list[int], Size], other: tuple[float, list[int], Size]) -> float:
    """What joining two groups moves their pictures by, in squares."""
    return (other[0] - one[0]) ** 2 * len(one[1]) * len(other[1]) / (len(one[1]) + len(other[1]))


def _plan(model: Model, sizes: Callable[[], Sequence[Size | None]], count: int, most: int) -> list[_Bucket]:
    """The buckets for a model; one where its size was asked for, or is its file's. ``sizes`` may have to read heads."""
    # Whatever has a submit() can be measured.
    if most == 1 or not getattr(model, "_size_is_open", False):
        return [_Bucket(model.size, tuple(range(count)))]
    model._tell_no_aspect()
    return _buckets(sizes(), model.size, most)


def _infer_buckets(
    model: Model,
    plan: Iterable[_Bucket],
    paths: Sequence[Path],
    submit: Submit[Found],
    progress: bool | None,
    max_pixels: int | None,
    stop: Callable[[], bool] | None,
) -> Iterator[tuple[int, Found]]:
    """The place of each picture and what was found in it, bucket after bucket; one model beside the own at a time.

    ``stop`` is asked before every picture but the first.
    """
    plan = list(plan)
    done = 0
    with _bar(sum(len(bucket.pictures) for bucket in plan), progress) as bar:
        for bucket in plan:
            if done and stop is not None and stop():
                return
            resized = nullcontext(model) if bucket.size == model.size else model._with_size(bucket.size)
            with resized as one:
                chosen = [paths[index] for index in bucket.pictures]
                found = _infer(one, chosen, submit, bar, max_pixels, stop)
                for result, index in zip(found, bucket.pictures, strict=False):
                    done += 1
                    yield index, result


def _sample(plan: Sequence[_Bucket], own: Size, count: int, most: int) -> tuple[list[int], _Bucket]:
    """Places of at most so many pictures, evenly among all; and those of them whose size was not the model's own."""
    step = -(-count // max(most, 1))
    sample = list(range(0, count, step))
    others = {index for bucket in plan if bucket.size != own for index in bucket.pictures}
    return sample, _Bucket(own, tuple(index for index in sample if index in others))


def _check_buckets(buckets: object, compare_sizes: object) -> tuple[int, int]:
    most, compared = check_int("buckets", buckets), check_int("compare_sizes", compare_sizes)
    if not 1 <= most <= 64:
        raise ValueError(f"buckets: got {most}, expected 1 (the model's own size for all) to 64")
    if compared < 0:
        raise ValueError(f"compare_sizes: got {compared}, expected a number of pictures, or 0 for none")
    return most, compared


def _sizes_of(plan: Iterable[_Bucket], done: Iterable[int]) -> tuple[tuple[Size, int], ...]:
    """The sizes, and how many of the pictures that are done had each."""
    finished = set(done)
    counts = Counter({bucket.size: len(finished.intersection(bucket.pictures)) for bucket in plan})
    return tuple((size, number) for size, number in counts.items() if number)


def _told(plan: Sequence[_Bucket]) -> str:
    return ", ".join(f"{size_text(bucket.size)} for {len(bucket.pictures)}" for bucket in plan)
