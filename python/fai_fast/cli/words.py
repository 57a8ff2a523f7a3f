"""The command line's own words in errors that the library wrote for Python: ``--max-pixels``, not ``max_pixels=``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import NamedTuple

__all__ = ["Words", "in_own_words", "words", "words_of"]

# What the library's arguments are called here, where it is not the option of their name.
_ARGUMENTS = {
    "name_or_path": "MODEL",
    "model": "MODEL",
    "name": "MODEL",
    "source": "SOURCE",
    "options": "--option",
    "num_threads": "--threads",
    "path": "MODEL",
}


class Words(NamedTuple):
    """How a command calls what the library calls otherwise.

    Attributes:
        command: as it is typed, such as "fai-fast predict".
        names: an option or a place of its usage for each argument of the library's.
    """

    command: str
    names: Mapping[str, str]


# Of the command that runs; None where none does.
words: ContextVar[Words | None] = ContextVar("words", default=None)


def words_of(parser: argparse.ArgumentParser) -> Words:
    """The words of the command that a parser is of."""
    names = dict(_ARGUMENTS)
    for action in parser._actions:
        long = [option for option in action.option_strings if option.startswith("--")]
        if long and action.help != argparse.SUPPRESS:
            names[action.dest] = long[0]
        elif action.metavar == "OUT":
            names["path"] = "OUT"
    for name, other in (("images", "pictures"), ("coco", "annotations")):
        if name in names:
            names.setdefault(other, names[name])
    return Words(parser.prog, names)


def in_own_words(text: str) -> str:
    """A text of the library's for those who have typed a command."""
    own = words.get()
    if own is None:
        return text
    names = "|".join(map(re.escape, own.names))
    # An example of a call becomes the command.
    text = re.sub(
        r"\b(?:fai_fast\.)?load\(([^,()]+), weights=([^()]+?)\)", rf"{own.command} \1 --weights \2", text
    )
    # What the error is about stands in front; of a frame, its number does.
    text = re.sub(r"^(frame \d+: )(?:source|image): ", r"\1", text)
    text = re.sub(rf"^({names}): ", lambda match: f"{own.names[match[1]]}: ", text)
    # And what to do about it further on: raise max_pixels= for one that you trust.
    return re.sub(
        rf"(?<![\w.?&/:=-])({names})=(?=(\S?))",
        lambda match: own.names[match[1]] + (" " if re.match(r"[\w'\"/{(\[]", match[2]) else ""),
        text,
    )
