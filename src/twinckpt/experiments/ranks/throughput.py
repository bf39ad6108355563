"""One rank of `throughput`: blocks of steps that alternate between no checkpoints, disk and RAM."""

import os
import time
from pathlib import Path

import torch.distributed as dist

from twinckpt.checkpointer import Checkpointer, SaveHandle
from twinckpt.experiments.ranks.measuring import meet, start
from twinckpt.training.disk import DiskCheckpoint
from twinckpt.training.setup import Training

METHODS = ("none", "disk", "ram", "none_again")
BLOCK_STEPS_VARIABLE = "TWINCKPT_BLOCK_STEPS"
COMMIT_TIMEOUT_S = 120.0


class Loop:
    """The training, with both ways to checkpoint it."""

    def __init__(
        self, training: Training, checkpointer: Checkpointer, disk: DiskCheckpoint
    ) -> None:
        self._training = training
        self._checkpointer = checkpointer
        self._disk = disk
        self._step = 0
        self._handles: list[SaveHandle] = []
        self._disk_s = 0.0

    def block(self, method: str, num_steps: int) -> dict[str, float | None]:
        """Time some steps; return their rate, the share of stalls, and that of commits (or None).

        The clock starts and stops in the same situation: the state may change again, and the last
        checkpoint is being replicated.
        """
        self._run(method, self._training.config.checkpoint_every)
        self._handles, self._disk_s = [], 0.0
        stalled_s, started_s = self._checkpointer.stall_s, time.monotonic()
        self._run(method, num_steps)
        took_s = time.monotonic() - started_s
        stall_s = self._checkpointer.stall_s - stalled_s + self._disk_s
        handles = self._handles
        if handles and not handles[-1].is_final:
            handles[-1].wait(timeout_s=COMMIT_TIMEOUT_S)
        committed = sum(handle.status == "committed" for handle in handles)
        return {
            "iterations_per_s": num_steps / took_s,
            "stall_share": stall_s / took_s,
            "committed_share": committed / len(handles) if handles else None,
        }

    def _run(self, method: str, num_steps: int) -> None:
        for _ in range(num_steps):
            self._training.step()
            self._step += 1
            if self._step % self._training.config.checkpoint_every:
                continue
            if method == "ram":
                self._handles.append(self._checkpointer.save(self._step))
            elif method == "disk":
                saved_s = time.monotonic()
                self._disk.save(self._step)
                self._disk_s += time.monotonic() - saved_s
        self._checkpointer.fence()
        meet(self._training.device)


def main() -> None:
    """Train `steps` steps in blocks; `none_again` shows how much two equal blocks differ."""
    training, log = start()
    block_steps = int(os.environ[BLOCK_STEPS_VARIABLE])
    training.step()
    state = training.state()
    disk = DiskCheckpoint(Path(training.config.disk_directory), state)
    with Checkpointer(state) as checkpointer:
        checkpointer.save(0).wait(timeout_s=COMMIT_TIMEOUT_S)
        loop = Loop(training, checkpointer, disk)
        for block in range(training.config.steps // block_steps):
            for method in METHODS:
                log.write("block", method=method, block=block, **loop.block(method, block_steps))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
