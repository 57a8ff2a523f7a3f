"""``fai-fast cache``: the weights, graphs and compiled engines that are kept."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fai_fast.cli.messages import UsageError, counted, table, write_line

if TYPE_CHECKING:
    from fai_fast.cache import Kept

HELP = "list or remove the weights, graphs and compiled engines that are kept"
DESCRIPTION = """\
Weights are fetched once, and the graphs and engines that are made of them are kept, so that a model starts at once. All
of it can be removed at any time; it is fetched and made again when it is needed. Weights that were put there by hand
stay, and so does whatever else lies in the folder.
"""
EPILOG = """\
examples:
  fai-fast cache                 list what is there
  fai-fast cache path            print the folder
  fai-fast cache clear           remove all of it, after a question
  fai-fast cache clear --yes     without one
  FAI_FAST_CACHE=/data/cache fai-fast cache     of another folder
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "clear", "path"),
        metavar="list|clear|path",
        help="default: list",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="clear without asking")
    parser.add_argument(
        "--cache-dir", metavar="DIR", help="default: FAI_FAST_CACHE, else the platform's usual place"
    )


def run(args: argparse.Namespace) -> int:
    from fai_fast.cache import cache_folder, forget_hashes, list_artefacts, remove

    folder = cache_folder(args.cache_dir)
    if args.action == "path":
        write_line(str(folder))
        return 0
    kept = list_artefacts(folder)
    own: list[Kept] = []
    if args.action == "clear":
        # What somebody has put there cannot be fetched again.
        own = [item for item in kept if item.info.get("by_hand")]
        kept = [item for item in kept if not item.info.get("by_hand")]
    total = f"{counted(len(kept), 'file')}, {_megabytes(sum(item.size for item in kept))}, in {folder}"
    if args.action == "list":
        if kept:
            rows = [_row(item, str(item.path.relative_to(folder))) for item in kept]
            write_line(table(("file", "made", "size"), rows, left=2))
        write_line(total)
        return 0
    if kept and not args.yes and not _agreed(total):
        write_line("nothing removed")
        return 1
    freed = sum(remove(item.path) for item in kept)
    forget_hashes(folder)
    write_line(f"removed {counted(len(kept), 'file')}, {_megabytes(freed)}, from {folder}")
    for item in own:
        write_line(f"left {item.path}, which was put there by hand")
    return 0


def _row(item: Kept, name: str) -> tuple[str, str, str]:
    made = "not complete" if not item.complete else (item.created or "")[:10]
    return name, made, _megabytes(item.size)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _agreed(total: str) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("cache clear: there is nobody to ask; add --yes to remove everything")
    sys.stderr.write(f"Remove {total}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
