"""The command `warmgap`: one subcommand a module of `warmgap.lab.commands`."""

import argparse
import errno
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol, cast

from warmgap import __version__
from warmgap.lab.errors import UserError
from warmgap.lab.options import Parser

COMMANDS = ("train", "sweep", "bench", "report", "smoothness", "theory", "demo")
"""The subcommands, each a module of `warmgap.lab.commands` that is a `Command`."""

USER_ERROR = 2
INTERRUPTED = 130


class Command(Protocol):
    """What a module of `warmgap.lab.commands` offers. Importing it must be quick: heavy imports belong inside `run`."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; return the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0 done, 2 a mistake of the user's, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        parsed = _parser().parse_args(words)
        run = cast("Command", importlib.import_module(f"warmgap.lab.commands.{parsed.command}")).run
        return run(parsed)
    except UserError as error:
        return _fail(str(error), debug=debug)
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        return _fail(f"This command needs the package {package}: pip install 'warmgap[lab]'.", debug=debug)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(
                f"The disk is full{where}: make room and run again with --resume; the last checkpoint is whole.",
                debug=debug,
            )
        return _fail(f"{error.strerror or error}{where}.", debug=debug)


def _parser() -> Parser:
    parser = Parser(prog="warmgap", description="Learning-rate warm-up that ends itself: train, compare, and see.")
    parser.add_argument("--version", action="version", version=f"warmgap {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name in COMMANDS:
        command = cast("Command", importlib.import_module(f"warmgap.lab.commands.{name}"))
        sub = subparsers.add_parser(
            name, help=command.HELP, description=command.HELP, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_arguments(sub)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _fail(sentence: str, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"warmgap: {sentence}", file=sys.stderr)  # noqa: T201
    return USER_ERROR
