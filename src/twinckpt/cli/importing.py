"""`twinckpt import`: a DCP checkpoint, or a `torch.save` file, as a drained checkpoint.

A job that drains to that directory then resumes from it, on any number of ranks.
"""

import argparse
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

from twinckpt.cli import CommandError, drained
from twinckpt.memory.drained import drained_steps, finish_step, newest_ticket, write_shard

MAX_STEP = 2**63 - 1


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser("import", help="make a drained checkpoint of another one")
    parser.add_argument("source", type=Path, help="a DCP directory, or a torch.save file")
    parser.add_argument("directory", type=drained.place, help="where the job will drain to")
    parser.add_argument("--step", type=int, required=True, help="the step that it is of")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import one checkpoint; raises CommandError, of status 1 if it cannot be carried."""
    from twinckpt.checkpointer.assemble import one_shard
    from twinckpt.errors import TwinckptError

    if not args.source.exists():
        raise CommandError(f"{args.source} does not exist")
    if not 0 <= args.step <= MAX_STEP:
        raise CommandError(f"--step {args.step}: a step is at least 0, and below 2^63")
    if args.step in drained_steps(args.directory):
        raise CommandError(f"{args.directory} holds step {args.step} already")
    try:
        state = _load(args.source)
        seal, data = one_shard(state, args.step, newest_ticket(args.directory) + 1)
    except (TwinckptError, ValueError) as error:
        raise CommandError(f"{args.source}: {error}", status=1) from error
    try:
        write_shard(args.directory, seal, data)
        finish_step(args.directory, seal.step, seal.ticket, seal.world_size)
    except OSError as error:
        reason = f"{args.directory} cannot be written to: {error}"
        raise CommandError(reason, status=1) from error
    print(f"{args.source} → step {args.step} in {args.directory}, of {', '.join(sorted(state))}")
    return 0


def _load(source: Path) -> dict[str, Any]:
    """Return a whole state; raises ValueError for what is no checkpoint of plain values."""
    import torch
    from torch.distributed.checkpoint import CheckpointException
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    from twinckpt.checkpointer.tree import is_plain_key

    if source.is_dir() and not (source / ".metadata").exists():
        raise ValueError("no DCP checkpoint: there is no .metadata in it")
    with tempfile.TemporaryDirectory() as folder:
        path = source
        try:
            if source.is_dir():
                path = Path(folder) / "whole.pt"
                dcp_to_torch_save(source, path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (Exception, CheckpointException) as error:  # torch raises anything, given anything
            reason = reason_of(error)
            raise ValueError(f"no checkpoint of tensors and plain values: {reason}") from error
    if not isinstance(state, dict) or not all(map(is_plain_key, state)):
        raise ValueError("not a mapping of names, as a Checkpointer's state is")
    if not state:
        raise ValueError("there is nothing in it")
    return {name: _numbered(part) for name, part in state.items()}


def reason_of(error: BaseException) -> str:
    """Return in one line what torch met; what it advises is no option of this command."""
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError | EOFError):
        foreign = re.search(r"GLOBAL (\S+)", text)
        if foreign:
            return f"there is a {foreign[1]} in it"
        return "it is no torch.save file, or holds more than those"
    return f"{type(error).__name__}: {text}".splitlines()[0]


def _numbered(part: Any) -> Any:
    """Number an optimizer's parameters again: DCP turns all keys into strings."""
    if isinstance(part, dict) and "param_groups" in part and isinstance(part.get("state"), dict):
        states = part["state"].items()
        numbered = {int(k) if str(k).isdecimal() else k: value for k, value in states}
        return {**part, "state": numbered}
    return part
