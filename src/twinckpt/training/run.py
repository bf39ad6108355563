"""`python -m twinckpt.training.run CONFIG.json`: one rank of a training run, under torchrun.

Logs to `$TWINCKPT_RUN_DIR/ranks/rank-R.jsonl` when imports were done, the process group formed and
the state restored, the loss and times of every step, and at the end a fingerprint of all state.
"""

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from twinckpt.checkpointer import Checkpointer
from twinckpt.results.jsonl import JsonLines, rank_log
from twinckpt.training.config import TrainingConfig
from twinckpt.training.disk import DiskCheckpoint
from twinckpt.training.fingerprint import fingerprint
from twinckpt.training.setup import Training, build, join_process_group

COMMIT_TIMEOUT_S = 60.0


def main(path: str) -> None:
    """Train as the configuration in `path` says, resuming from the newest checkpoint."""
    config = TrainingConfig.read(Path(path))
    rank = int(os.environ["RANK"])
    generation = int(os.environ.get("TWINCKPT_GENERATION", "0"))
    log = JsonLines(rank_log(Path(os.environ["TWINCKPT_RUN_DIR"]), rank))
    log.write("imported", generation=generation)
    device = join_process_group(config)
    log.write("grouped", generation=generation)
    training = build(config, device, empty=config.method != "none")
    log.write("built", generation=generation)
    match config.method:
        case "ram":
            _train_with_ram(training, log, generation)
        case "disk":
            _train_with_disk(training, log, generation)
        case _:
            log.write("restored", generation=generation, at_step=0)
            _loop(training, log, generation, 0, lambda step: "none")
    dist.barrier()
    log.write("finished", generation=generation, fingerprint=fingerprint(training.state()))
    dist.destroy_process_group()


def _train_with_ram(training: Training, log: JsonLines, generation: int) -> None:
    with Checkpointer(training.state()) as checkpointer:
        step = checkpointer.restore() or 0
        if not step:
            training.initialise()
        log.write("restored", generation=generation, at_step=step, **checkpointer.restore_report)
        handles = []

        def save(step: int) -> str:
            handles.append(checkpointer.save(step))
            return handles[-1].status

        _loop(training, log, generation, step, save)
        if handles and not handles[-1].is_final:
            handles[-1].wait(timeout_s=COMMIT_TIMEOUT_S)
        log.write(
            "checkpoints",
            generation=generation,
            committed=sum(handle.status == "committed" for handle in handles),
            saves=len(handles),
        )


def _train_with_disk(training: Training, log: JsonLines, generation: int) -> None:
    disk = DiskCheckpoint(Path(training.config.disk_directory), training.state())
    is_cold = disk.cool()
    started_s = time.monotonic()
    step = disk.restore()
    if step is None:
        training.initialise()
    report: dict[str, Any] = {}
    if step is not None:
        retrieve_s = time.monotonic() - started_s
        report = {"source": "disk", "retrieve_s": retrieve_s, "is_cold": is_cold}
    dist.barrier()
    log.write("restored", generation=generation, at_step=step or 0, **report)

    def save(step: int) -> str:
        disk.save(step)
        return "written"

    _loop(training, log, generation, step or 0, save)


def _loop(training: Training, log: JsonLines, generation: int, step: int, save: Any) -> None:
    """Train to the last step, checkpointing as configured, and log each step."""
    config = training.config
    while step < config.steps:
        started_s = time.monotonic()
        loss = training.step()
        trained_s = time.monotonic()
        step += 1
        status = save(step) if step % config.checkpoint_every == 0 else ""
        ended_s = time.monotonic()
        dist.all_reduce(loss)
        mean = loss.item() / dist.get_world_size()
        log.write(
            "step",
            generation=generation,
            step=step,
            loss=mean,
            bits_per_byte=mean / math.log(2),
            step_s=trained_s - started_s,
            stall_s=ended_s - trained_s,
            save=status,
        )
        if config.fingerprint_every and step % config.fingerprint_every == 0:
            hashed = fingerprint(training.state())
            log.write("fingerprint", generation=generation, step=step, fingerprint=hashed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
