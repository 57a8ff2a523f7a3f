"""What a request asks for: its query parameters and its header ``Accept``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from fai_fast.ray.serve import words
from fai_fast.ray.serve.http import JSON, PNG, Refusal

__all__ = ["FORMATS", "MASKS", "PAINTED", "Query"]

MASKS = ("rle", "polygons", "png", "none")
"""Of JSON: COCO's run lengths, outlines, a PNG of one bit a pixel for each object, or no masks."""
FORMATS = ("json", "png")
PAINTED = ("picture", "class", "row")
"""What a PNG shows: the picture with what was found drawn on it, or the label of each pixel."""
_TYPES = {"json": JSON, "png": PNG}
_MOST_PARAMETERS = 64


@dataclass(frozen=True)
class Query:
    """What is wanted of a picture.

    Attributes:
        threshold, classes, top_k: see :meth:`fai_fast.Model.infer`; classes as they came: only the model can read them.
        masks: one of :data:`MASKS`.
        format: one of :data:`FORMATS`.
        png: one of :data:`PAINTED`.
    """

    threshold: float | None = None
    classes: tuple[str, ...] | None = None
    top_k: int | None = None
    masks: str = "rle"
    format: str = "json"
    png: str = "picture"

    def asked(self, parameters: Iterable[tuple[str, str]], accept: str | None) -> Query:
        """These wishes, changed by a request's.

        Args:
            parameters: of the query string, in order.
            accept: the header; None where there is none.

        Raises:
            Refusal: 400 for a parameter that is unknown, there twice, or wrong; 406 where neither JSON nor PNG would be
                accepted.
        """
        given: dict[str, Any] = {}
        for number, (name, value) in enumerate(parameters):
            if name not in _READ or number >= _MOST_PARAMETERS:
                raise Refusal(400, f"{name[:40]!r}: no such parameter, expected some of {', '.join(_READ)}")
            if name == "classes":
                given.setdefault(name, []).append(value)
            elif name in given:
                raise Refusal(400, f"{name}: got it twice, expected it once")
            else:
                given[name] = value
        try:
            read = {name: _READ[name](name, value) for name, value in given.items()}
        except (TypeError, ValueError) as wrong:
            raise Refusal(400, str(wrong)) from None
        if "png" in read and read.get("format", "png") != "png":
            raise Refusal(400, f"png: got {read['png']!r} with format=json, expected format=png")
        if "format" not in read:
            if "png" in read:
                read["format"] = "png"
            elif accept is not None:
                read["format"] = _accepted(accept, self.format)
        return replace(self, **read)


_READ: dict[str, Any] = {
    "threshold": words.threshold,
    "classes": words.names,
    "top_k": words.count,
    "masks": lambda name, value: words.choice(name, value, MASKS),
    "format": lambda name, value: words.choice(name, value, FORMATS),
    "png": lambda name, value: words.choice(name, value, PAINTED),
}


def _accepted(header: str, default: str) -> str:
    """The format that a header ``Accept`` likes best; `default` where it likes both as much."""
    liked = {name: _liking(header, media_type) for name, media_type in _TYPES.items()}
    best = max(liked.values())
    if best <= 0:
        raise Refusal(406, f"Accept: got {header[:80]!r}, expected {' or '.join(_TYPES.values())}")
    return default if liked[default] == best else next(name for name in liked if liked[name] == best)


def _liking(header: str, media_type: str) -> float:
    """The weight, 0 to 1, that a header gives a type: that of the range which names it most closely."""
    closest, weight = -1, 0.0
    for item in header.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        if kind == media_type:
            close = 2
        elif kind == f"{media_type.split('/')[0]}/*":
            close = 1
        elif kind in ("*/*", ""):
            close = 0
        else:
            continue
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = words.number("q", value.strip())
                except ValueError:
                    quality = 0.0
        if close > closest:
            closest, weight = close, quality
    return weight
