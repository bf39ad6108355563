"""What the commands on drained checkpoints share: which step of which directory is meant."""

import argparse
import sys

from twinckpt.memory.drained import drained_steps, location


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the directory and the step."""
    parser.add_argument("directory", type=location, help="where the job drains to")
    parser.add_argument("--step", type=int, help="default: the newest complete one")


def chosen_step(args: argparse.Namespace) -> int | None:
    """Return the step that is meant; None, after one line that says why, if there is none."""
    steps = drained_steps(args.directory) if args.directory.is_dir() else ()
    if not steps:
        print(f"twinckpt: {args.directory} holds no complete checkpoint", file=sys.stderr)
        return None
    if args.step is None:
        return steps[-1]
    if args.step not in steps:
        print(f"twinckpt: no complete step {args.step} in {args.directory}; there are "
              f"{', '.join(map(str, steps))}", file=sys.stderr)  # fmt: skip
        return None
    return int(args.step)
