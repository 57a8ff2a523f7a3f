"""Parsers that say what was meant: near names of options and commands, and the help of the command at hand."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from fai_fast.cli.messages import complain

__all__ = ["Parser", "nearest", "option_names"]

USAGE = 2

# What other tools call it.
_OPTIONS = {
    "--conf": ("--threshold",),
    "--conf-thres": ("--threshold",),
    "--conf-threshold": ("--threshold",),
    "--confidence": ("--threshold",),
    "--score": ("--threshold",),
    "--score-threshold": ("--threshold",),
    "--imgsz": ("--im-size",),
    "--img-size": ("--im-size",),
    "--image-size": ("--im-size",),
    "--input-size": ("--im-size",),
    "--resolution": ("--im-size",),
    "--checkpoint": ("--weights",),
    "--backend": ("--engine",),
    "--provider": ("--engine",),
    "--dtype": ("--precision",),
    "--half": ("--precision",),
    "--fp16": ("--precision",),
    "--workers": ("--threads",),
    "--num-threads": ("--threads",),
    "--gpu": ("--device",),
    "--view": ("--show",),
    "--view-img": ("--show",),
    "--display": ("--show",),
    "--out": ("--output", "--save"),
    "--out-dir": ("--output",),
    "--output-dir": ("--output",),
    "--save-dir": ("--output",),
    "--project": ("--output",),
    "--name": ("--output",),
    "--exist-ok": ("--overwrite",),
    "--force": ("--overwrite",),
    "--save-json": ("--json",),
    "--vid-stride": ("--stride",),
    "--nosave": ("--no-images",),
    "--annotations": ("--coco",),
    "--max-frame": ("--max-frames",),
    "--iterations": ("--runs",),
    "--verbose": ("--verbose",),
}
_COMMANDS = {
    "detect": ("predict",),
    "infer": ("predict",),
    "run": ("predict", "stream"),
    "segment": ("predict",),
    "image": ("predict",),
    "video": ("predict", "stream"),
    "camera": ("stream",),
    "track": ("stream",),
    "live": ("stream",),
    "val": ("eval",),
    "validate": ("eval",),
    "evaluate": ("eval",),
    "test": ("eval",),
    "benchmark": ("bench",),
    "speed": ("bench",),
    "list": ("models",),
    "zoo": ("models",),
    "convert": ("export",),
    "build": ("export",),
    "check": ("doctor",),
    "checks": ("doctor",),
    "info": ("doctor", "models"),
    "env": ("doctor",),
    "version": ("--version",),
    "help": ("--help",),
}


def nearest(word: str, known: Iterable[str], meant: Mapping[str, Sequence[str]]) -> str:
    """`` (did you mean this or that?)``, of what is known; empty where nothing is near.

    Args:
        word: what came.
        known: what there is.
        meant: what other tools' words are here, where `known` has it.
    """
    known = list(known)
    close = [name for name in meant.get(word, ()) if name in known]
    if not close:
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """The long options of a parser, without those that its help does not show."""
    return [
        name
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for name in action.option_strings
        if name.startswith("--")
    ]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, about what it does not know too, and name its own help."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        # A command's parser is asked for what it knows, and the one above would name its own help for the rest.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see {self.prog} --help")
        raise SystemExit(USAGE)

    def refuse_unknown_command(self, argv: Sequence[str], commands: Sequence[str]) -> None:
        """Ends as :meth:`error` where the first word is no command."""
        for word in argv:
            if not word.startswith("-"):
                if word not in commands:
                    near = nearest(word, [*commands, "--version", "--help"], _COMMANDS)
                    self.error(f"{word!r}: no such command{near}")
                return
            if word in ("-h", "--help", "--version"):
                return

    def _unknown(self, words: Sequence[str]) -> str:
        options = [word for word in words if word.startswith("-") and len(word) > 1]
        if not options:
            return f"{words[0]!r}: one argument too many"
        names = option_names(self)
        said = []
        for option in options:
            name = option.partition("=")[0]
            if name in ("--model", "--source"):
                said.append(f"{name}: no such option, as MODEL and what it works on stand without one")
            else:
                said.append(f"{name}: no such option{nearest(name, names, _OPTIONS)}")
        return "; ".join(said)
