"""Pictures by their shape: which sizes of the network's input a set of them gets, and what that changes."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from fai_fast._arguments import check_int
from fai_fast._sizes import aspects_differ, fit_size, size_text
from fai_fast.evaluate.report import SizeEffect
from fai_fast.evaluate.running import Found, MeasureOptions, Submit, _bar, _infer
from fai_fast.images import check_max_pixels
from fai_fast.model import Model

BUCKETS = 4
"""Sizes of the network's input that one evaluation makes at most."""
COMPARED = 200
"""Pictures that are run in the model's own size too, to tell what the others change."""

_log = logging.getLogger("fai_fast")

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


class _Passes:
    """The passes of an evaluation: all pictures, each in the size of its bucket, then a sample in the model's own size.

    Attributes:
        sample: places of the pictures of which the two are compared; none where no size differs, or none is asked for.
        done: places of the pictures of the first pass, so far.
    """

    def __init__(
        self,
        model: Model,
        paths: Sequence[Path],
        sizes: Callable[[], Sequence[Size | None]],
        options: MeasureOptions,
    ) -> None:
        most, compared = _check_buckets(
            options.get("buckets", BUCKETS), options.get("compare_sizes", COMPARED)
        )
        self._model = model
        self._paths = paths
        self._progress = options.get("progress", False)
        self._max_pixels = check_max_pixels(options.get("max_pixels"))
        self._stop = options.get("stop")
        self._plan = _plan(model, sizes, len(paths), most)
        self._is_shaped = any(bucket.size != model.size for bucket in self._plan)
        if self._is_shaped:
            _log.info(
                "%s: the network's input (height x width) is %s pictures", model.spec.name, _told(self._plan)
            )
        sample, self._others = _sample(self._plan, model.size, len(paths), compared)
        self.sample = frozenset(sample if compared and self._others.pictures else ())
        self.done: list[int] = []
        self._again = 0

    def first(self, submit: Submit[Found]) -> Iterator[tuple[int, Found]]:
        """The place of each picture, and what was found in it."""
        for index, found in self._infer(self._plan, submit):
            self.done.append(index)
            yield index, found

    def again(self, submit: Submit[Found]) -> Iterator[tuple[int, Found]]:
        """The same of the sample's pictures that had another size; nothing where pictures were left out."""
        if self.sample and len(self.done) == len(self._paths):
            for index, found in self._infer([self._others], submit):
                self._again += 1
                yield index, found

    def is_run_again(self, index: int) -> bool:
        """Whether a picture of the sample had another size than the model's own."""
        return index in self._others.pictures

    @property
    def is_compared(self) -> bool:
        """Whether all of the sample was run again that had to be."""
        return bool(self.sample) and self._again == len(self._others.pictures)

    def effect(self, shaped: float | None, own: float | None) -> SizeEffect:
        """What the sizes changed, by the headline of the sample in either way."""
        return SizeEffect(len(self.sample), self._model.size, shaped, own)

    @property
    def sizes(self) -> tuple[tuple[Size, int], ...]:
        """The sizes, and how many of the pictures that are done had each; () where all had the model's own."""
        if not self._is_shaped:
            return ()
        finished = set(self.done)
        counts = Counter({bucket.size: len(finished.intersection(bucket.pictures)) for bucket in self._plan})
        return tuple((size, number) for size, number in counts.items() if number)

    def _infer(self, plan: Sequence[_Bucket], submit: Submit[Found]) -> Iterator[tuple[int, Found]]:
        return _infer_buckets(
            self._model, plan, self._paths, submit, self._progress, self._max_pixels, self._stop
        )


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


def _told(plan: Sequence[_Bucket]) -> str:
    return ", ".join(f"{size_text(bucket.size)} for {len(bucket.pictures)}" for bucket in plan)
