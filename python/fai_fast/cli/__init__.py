"""The command line ``fai-fast``: one module a command, which adds its options and runs.

Data goes to stdout, everything else to stderr, as lines that begin with ``fai-fast:``. Exit codes: 0, 1 for work that
failed, 2 for wrong usage, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 141 where whoever reads stdout has
gone.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType

from fai_fast._core import __version__
from fai_fast._foreign import from_signal_handler
from fai_fast.cli import bench, cache, demo, doctor, evaluate, export, models, predict, quantize, stream
from fai_fast.cli.interrupts import Interrupt
from fai_fast.cli.messages import UsageError, complain, given, said_by_the_library, sentence, without_secrets
from fai_fast.cli.parser import USAGE, Parser
from fai_fast.cli.words import words, words_of

__all__ = ["main"]

OK, FAILED, BROKEN_PIPE = 0, 1, 141
COMMANDS = (demo, predict, stream, models, export, quantize, bench, evaluate, doctor, cache)

DESCRIPTION = """\
Finds objects in pictures and video, with a mask for each, as fast as the machine allows.

Try it on a picture that comes with the package:
  fai-fast demo
"""
EPILOG = """\
examples:
  fai-fast models                                     what there is
  fai-fast predict bisenetformer-m-ade street.jpg     masks, boxes, and a drawn picture; of a video a drawn video
  fai-fast stream fai-mf-s-coco-ins 0 --show          a camera, live, in a window
  fai-fast eval fai-mf-n-shapes --images val --coco val.json
  fai-fast bench fai-mf-m-coco-ins --im-size 640 --weights random
  fai-fast COMMAND --help                             more, with examples

exit codes: 0 done, 1 something failed, 2 wrong usage, 129 hung up, 130 interrupted, 143 terminated
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: what follows the program's name; None for the process's own.

    Returns:
        The exit code.

    Raises:
        What a signal handler of the program's raises, and nothing else.
    """
    if argv is None:
        argv = sys.argv[1:]
        if hasattr(sys.stdout, "reconfigure"):
            # File and class names that the terminal's encoding lacks must not end the run.
            sys.stdout.reconfigure(errors="backslashreplace")
    before, said = given.set(tuple(argv)), words.set(None)
    try:
        return _main(argv)
    finally:
        words.reset(said)
        given.reset(before)


def _main(argv: Sequence[str]) -> int:
    show_traceback = "--traceback" in argv or os.environ.get("FAI_FAST_TRACEBACK", "0") not in ("", "0")
    interrupt = Interrupt()
    try:
        with interrupt:
            code = _run(argv, interrupt)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _abandon_stdout()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        complain("interrupted")
        return interrupt.code
    except Exception as error:  # a user reads one sentence, whatever it was
        if from_signal_handler(error) is not None:
            raise
        if show_traceback:
            sys.stderr.write(without_secrets(traceback.format_exc()))
        complain(sentence(error))
        return USAGE if isinstance(error, UsageError) else FAILED


def _run(argv: Sequence[str], interrupt: Interrupt) -> int:
    try:
        parser = _parser()
        parser.refuse_unknown_command(argv, [_name(command) for command in COMMANDS])
        args = parser.parse_args(
            argv, argparse.Namespace(quiet=False, verbose=False, traceback=False, interrupt=interrupt)
        )
    except SystemExit as done:  # argparse has printed help, the version, or what is wrong
        return int(done.code or OK)
    words.set(args.words)
    with said_by_the_library(
        quiet=args.quiet, verbose=args.verbose, level=getattr(args, "level", logging.INFO)
    ):
        code: int = args.run(args)
    return code


def _name(command: ModuleType) -> str:
    """A command may be called what a module may not."""
    return str(getattr(command, "NAME", command.__name__.rpartition(".")[2]))


def _parser() -> Parser:
    common = Parser(add_help=False)
    group = common.add_argument_group("messages")
    # Suppressed, so that a command's default does not undo what stands before the command.
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=argparse.SUPPRESS,
        help="no messages but errors on stderr",
    )
    loudness.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="every message: what is built and kept, and which precisions and engines were passed over",
    )
    group.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,
        help="with an error, show where it came from; FAI_FAST_TRACEBACK=1 does the same",
    )
    parser = Parser(
        prog="fai-fast",
        description=DESCRIPTION,
        epilog=EPILOG,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fai-fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for command in COMMANDS:
        added = commands.add_parser(
            _name(command),
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog=command.EPILOG,
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(added)
        added.set_defaults(run=command.run, words=words_of(added))
    return parser


def _abandon_stdout() -> None:
    """Nobody reads it any more; without this the interpreter complains when it flushes at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
