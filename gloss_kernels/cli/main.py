"""From the words of a command line to an exit code. The heavy imports of a command wait until it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from gloss_kernels import __version__
from gloss_kernels.cli import graph, info, propagate, terminal
from gloss_kernels.cli.errors import CommandError
from gloss_kernels.finetune import options as finetune

COMMANDS = (finetune, graph, propagate, info)
BROKEN_PIPE = 141  # what a shell says of a program that SIGPIPE ended: 128 + 13


class Parser(argparse.ArgumentParser):
    """argparse without the usage text before each error."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


def parser() -> Parser:
    top = Parser(
        prog="gloss-kernels",
        description="Graph-guided fine-tuning of text encoders (G-Loss).",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"gloss-kernels {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    with terminal.any_character():
        try:
            try:
                return _run(words)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # here, where the error has a handler, and not when Python ends
        except BrokenPipeError:  # whoever reads has enough, as in `gloss-kernels info | head -1`
            terminal.drop_output()
            return BROKEN_PIPE
        except OSError as error:  # stdout is a file on a full disk
            terminal.drop_output()
            print("error:", f"{error.filename or 'stdout'}: {error.strerror or error}", file=sys.stderr)
            return 1


def _run(words: list[str]) -> int:
    try:
        args = parser().parse_args(words)
        if not hasattr(args, "run"):
            parser().print_help()
            return 0
        code: int = args.run(args, words)
        return code
    except CommandError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return error.code
    except (MemoryError, RuntimeError) as error:
        if not terminal.is_out_of_memory(error):
            raise
        print("error: out of memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
