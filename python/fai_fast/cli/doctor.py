"""``fai-fast doctor``: what is installed, what is used, and why not the rest."""

from __future__ import annotations

import argparse

from fai_fast.cli.messages import STDOUT, write_json, write_line

HELP = "show what is installed, what is used, and why not the rest"
DESCRIPTION = """\
Everything that decides how fai-fast runs on this machine: instruction set, packages, engines and why each is used or
not, precisions, the cache, the GPU. Add its output to a bug report.
"""
EPILOG = """\
examples:
  fai-fast doctor
  fai-fast doctor --json > machine.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from fai_fast import doctor

    if args.json:
        write_json(STDOUT, doctor.report())
    else:
        write_line(doctor.text())
    return 0
