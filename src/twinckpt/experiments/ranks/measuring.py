"""Shared by the measuring rank programs: a built training, a log, clocks that start together."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from twinckpt.checkpointer import Checkpointer, SaveHandle
from twinckpt.results.jsonl import JsonLines, rank_log
from twinckpt.training.config import TrainingConfig
from twinckpt.training.setup import Training, build, join_process_group

UNDECIDED_TIMEOUT_S = 5.0
KILL_TIMEOUT_S = 120.0
STEPS_AFTER_A_CONFLICT = 1000  # no ticket is valid earlier


def start() -> tuple[Training, JsonLines]:
    """Build the training that the file in the first argument configures; return it and a log."""
    torch.set_num_threads(1)
    config = TrainingConfig.read(Path(sys.argv[1]))
    device = join_process_group(config)
    log = open_log()
    return build(config, device), log


def open_log() -> JsonLines:
    """Open this rank's log; the process group must exist."""
    return JsonLines(rank_log(Path(os.environ["TWINCKPT_RUN_DIR"]), dist.get_rank()))


def meet(device: torch.device | None = None) -> None:
    """Wait for this rank's device, then for all ranks, so that clocks start on idle machines."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


def settle() -> None:
    """Wait until all ranks are here and their machines are idle."""
    meet()
    time.sleep(0.02)
    meet()


def clocked(action: Callable[[], object]) -> tuple[float, float]:
    """Run an action on all ranks at once; return its wall time and this process's CPU time."""
    meet()
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    action()
    return time.monotonic() - started_s, time.process_time() - started_cpu_s


def is_committed(handle: SaveHandle) -> bool:
    """Wait for a checkpoint's end; return whether it is committed.

    If another rank skipped it, it stays undecided, and the wait ends after some seconds.
    """
    try:
        return handle.wait(timeout_s=UNDECIDED_TIMEOUT_S) == "committed"
    except TimeoutError:
        return False


def require_committed(handle: SaveHandle) -> None:
    """Raise RuntimeError unless a checkpoint commits: otherwise its time would mean nothing."""
    if not is_committed(handle):
        raise RuntimeError(f"the checkpoint of step {handle.step} is {handle.status}")


class Saved(NamedTuple):
    """Seconds since the call of one `save`, with the loop doing nothing else meanwhile.

    `stall_s`: the state may change · `staged_s`: sealed in this machine's RAM · `replicated_s`:
    sealed on all machines of its replica group · `committed_s`: so is every rank's shard.
    """

    stall_s: float
    staged_s: float
    replicated_s: float
    committed_s: float


def save_to_memory(checkpointer: Checkpointer, step: int) -> Saved:
    """Save, wait for each state in turn, return the times; RuntimeError if it does not commit."""
    started_s = time.monotonic()
    handle = checkpointer.save(step)
    checkpointer.fence()
    stall_s = time.monotonic() - started_s
    handle.wait("staged")
    staged_s = time.monotonic() - started_s
    handle.wait("replicated")
    replicated_s = time.monotonic() - started_s
    require_committed(handle)
    return Saved(stall_s, staged_s, replicated_s, time.monotonic() - started_s)


def lose_and_restore(checkpointer: Checkpointer) -> int | None:
    """Drop the machine's own copy, then restore from a peer's; return the restored step."""
    ticket = checkpointer.restore_report["ticket"]
    client = checkpointer._client
    return checkpointer._restorer.restore_from(
        lambda timeout_s: client.report_damage(ticket, "dropped to measure", timeout_s)
    )
