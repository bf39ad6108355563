"""The command `twinckpt`: one module a subcommand, with `add_parser(subparsers)` and `run(args)`.

`run` returns the exit status: 0, 1 for a check that failed, 2 for bad usage with one line that
says what is wrong. A module imports what is heavy in its `run`, so that `--help` is instant.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="twinckpt", description="Checkpoints in the RAM of peer machines."
    )
    parser.add_argument("--version", action="version", version=f"twinckpt {version('twinckpt')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"twinckpt.cli.{name}").add_parser(subparsers)
    args = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an arrow in ASCII, or a name that is no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = int(args.run(args))
        if sys.stdout is not None:  # closed (`>&-`)
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:  # no permission, for example
        print(f"twinckpt: {error}", file=sys.stderr)
        return 2
    return status
