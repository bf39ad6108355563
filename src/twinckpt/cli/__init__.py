"""The command `twinckpt`: one module a subcommand, with `add_parser(subparsers)` and `run(args)`.

`run` returns the exit status: 0, or 1 for a check that failed; or raises CommandError. A module
imports what is heavy in its `run`, so that `--help` is instant.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

COMMANDS = ("plan", "doctor", "status", "timeline", "inspect", "verify", "export", "importing")


class CommandError(Exception):
    """Ends a command, with one line that says why: status 2 is for bad usage."""

    def __init__(self, reason: str, status: int = 2) -> None:
        super().__init__(reason)
        self.status = status


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="twinckpt", description="Checkpoints in the RAM of peer machines."
    )
    parser.add_argument("--version", action="version", version=f"twinckpt {version('twinckpt')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name in COMMANDS:
        import_module(f"twinckpt.cli.{name}").add_parser(subparsers)
    args = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an arrow in ASCII, or a name that is no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = int(args.run(args))
        if sys.stdout is not None:  # None where it is closed (`>&-`)
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (CommandError, OSError) as error:  # no permission, for example
        print(f"twinckpt {args.command}: {error}", file=sys.stderr)
        return error.status if isinstance(error, CommandError) else 2
    return status
