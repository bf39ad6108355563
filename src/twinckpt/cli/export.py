"""`twinckpt export`: a drained checkpoint as one `torch.load` file, or as a DCP checkpoint.

Sharded tensors are put together, so that any number of ranks can load either of them.
"""

import argparse
import contextlib
import pickle
import shutil
from pathlib import Path
from typing import Any

from twinckpt.cli import CommandError, drained
from twinckpt.cli.importing import reason_of


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser("export", help="make a torch.load file, or a DCP checkpoint")
    drained.add_arguments(parser)
    parser.add_argument("output", type=Path, help="file (torch) or directory (dcp) to make")
    parser.add_argument("--format", choices=("torch", "dcp"), default="torch")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export one step; raises CommandError, of status 1 if it cannot be put together."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from twinckpt.checkpointer.assemble import full_state
    from twinckpt.errors import TwinckptError

    step = drained.chosen_step(args)
    if args.output.exists():
        raise CommandError(f"{args.output} exists; name another output")
    try:
        full = full_state(args.directory, step)
        state = without_arrays(full.state)
    except TwinckptError as error:
        raise CommandError(str(error), status=1) from error
    draft = args.output.with_name(f".{args.output.name}.draft")
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        if args.format == "torch":
            torch.save(state, draft)
        else:
            dcp.save(state, checkpoint_id=draft, no_dist=True)
        draft.rename(args.output)
    except (OSError, RuntimeError, KeyError, CheckpointException) as error:  # a full disk, too
        _discard(draft)
        cause = error.failures[0][0] if isinstance(error, CheckpointException) else error
        reason = str(cause).strip().splitlines()[0]
        raise CommandError(f"{args.output} cannot be written: {reason}", status=1) from error
    print(f"step {step} of {full.world_size} ranks → {args.output}")
    if args.format == "torch" and (reason := refusal(args.output)):
        print(f"torch.load takes it with weights_only=False only: {reason}")
    for name in full.differing:
        print(f"{name}: the ranks differ in what is not sharded; rank 0's was taken")
    return 0


def refusal(path: Path) -> str:
    """Return why `torch.load(weights_only=True)` does not take a file; "" if it does."""
    import torch

    try:
        torch.load(path, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        return reason_of(error)
    return ""


def without_arrays(value: Any) -> Any:
    """Return a state with NumPy's arrays as tensors, and its numbers as Python's.

    Those are what `torch.load(weights_only=True)` takes. Dictionaries are changed in place.
    """
    import numpy as np
    import torch

    if isinstance(value, dict):
        for key, part in value.items():  # in place: some know their order, or a default
            value[key] = without_arrays(part)
    if type(value) in (list, tuple):
        return type(value)(map(without_arrays, value))
    if isinstance(value, np.ndarray):
        with contextlib.suppress(TypeError):  # of dates or texts, say: no tensor can be made
            made = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=False))
            return made if made.numel() else made.clone()  # empty ones may share one address
    if isinstance(value, np.number | np.bool):
        plain = value.item()
        return plain if isinstance(plain, int | float | complex) else value
    return value


def _discard(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
