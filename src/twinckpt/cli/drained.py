"""What the commands on drained checkpoints share: which step of which directory is meant."""

import argparse
from pathlib import Path

from twinckpt.cli import CommandError
from twinckpt.errors import ConfigurationError
from twinckpt.memory.drained import drained_steps, is_filled, location


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the directory and the step."""
    parser.add_argument("directory", type=place, help="where the job drains to")
    parser.add_argument("--step", type=int, help="default: the newest complete one")


def place(directory: str) -> Path:
    """Return where an argument points; raises ArgumentTypeError, whose reason argparse shows."""
    try:
        return location(directory)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def chosen_step(args: argparse.Namespace) -> int:
    """Return the step that is meant; raises CommandError if there is none."""
    steps = drained_steps(args.directory) if is_filled(args.directory) else ()
    if not steps:
        raise CommandError(f"{args.directory} holds no complete checkpoint")
    if args.step is None:
        return steps[-1]
    if args.step not in steps:
        there = ", ".join(map(str, steps))
        raise CommandError(f"no complete step {args.step} in {args.directory}; there are {there}")
    return int(args.step)
