"""Writes what the documents generate from the program: the page of the command line, the table of models, the picture.

python tools/docs.py             # after a change of the command line, the registry or the demo's model
python tools/docs.py --check     # exit code 1 where the page or the table is another one
python tools/docs.py --picture   # the picture of README.md, too, as `fai-fast demo` draws it
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import models_table
from fai_fast import cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "command_line.md"
PICTURE = ROOT / "docs" / "images" / "shapes_demo.jpg"

HEAD = """\
# Command line

`fai-fast COMMAND ...`, or `python -m fai_fast COMMAND ...`. Results go to standard output, messages to standard error.
Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted, 143 terminated.

This page is written by `python tools/docs.py` from what `--help` says.
"""


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, in their order."""
    for action in cli._parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the program has commands")


def page() -> str:
    """The page of the command line; argparse's own layout differs between versions of Python."""
    parts = [HEAD]
    for name, parser in commands().items():
        parts.append(f"## {name}\n\n{_paragraphs(parser.description)}\n")
        for group in parser._action_groups:
            shown = [action for action in group._group_actions if action.dest != "help"]
            rows = [_row(parser, action) for action in shown if action.help != argparse.SUPPRESS]
            if rows:
                title = {
                    "positional arguments": "Arguments",
                    "options": "Options",
                    "optional arguments": "Options",
                }
                heading = title.get(group.title or "", (group.title or "").capitalize())
                parts.append(f"**{heading}**\n\n| | |\n| --- | --- |\n" + "\n".join(rows) + "\n")
        parts.append(f"```text\n{(parser.epilog or '').strip()}\n```\n")
    return "\n".join(parts)


def _paragraphs(text: str | None) -> str:
    return re.sub(r"(?<=\S)\n(?=\S)", " ", (text or "").strip()).replace("<", "&lt;")


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    value = " ".join(value) if isinstance(value, tuple) else value
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{value}`"
    if action.option_strings and action.nargs != 0:
        names += f" `{value}`"
    text = parser._get_formatter()._expand_help(action)
    if action.choices is not None and not all(str(choice) in text + value for choice in action.choices):
        text += f" (one of {', '.join(map(str, action.choices))})"
    names, text = (re.sub(r"\s*\n\s*", " ", part).replace("|", "\\|") for part in (names, text))
    return f"| {names} | {text.replace('<', '&lt;')} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing")
    what.add_argument("--picture", action="store_true", help="draw the picture, too")
    args = parser.parse_args()
    code = models_table.refresh(check=args.check)
    before, new = PAGE.read_text("utf-8"), page()
    if new != before:
        if args.check:
            print(
                f"{PAGE.relative_to(ROOT)}: not what --help says; run python tools/docs.py", file=sys.stderr
            )
            code = 1
        else:
            PAGE.write_text(new, "utf-8")
    if args.picture:
        command = [sys.executable, "-m", "fai_fast", "demo", "--output", str(PICTURE)]
        subprocess.run(command, check=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
