"""One rank of `throughput`: blocks of steps without checkpoints, to disk, to RAM, alternating."""

import os
import time
from pathlib import Path

import torch.distributed as dist

from twinckpt.checkpointer import Checkpointer, SaveHandle
from twinckpt.experiments.ranks.measuring import meet, start
from twinckpt.training.disk import DiskCheckpoint

METHODS = ("none", "disk", "ram", "none_again")
BLOCK_STEPS_VARIABLE = "TWINCKPT_BLOCK_STEPS"
COMMIT_TIMEOUT_S = 120.0


def main() -> None:
    """Train `steps` steps in blocks; `none_again` shows how much two equal blocks differ."""
    training, log = start()
    block_steps = int(os.environ[BLOCK_STEPS_VARIABLE])
    num_blocks = training.config.steps // block_steps
    every = training.config.checkpoint_every
    training.step()
    state = training.state()
    disk = DiskCheckpoint(Path(training.config.disk_directory), state)
    with Checkpointer(state) as checkpointer:
        checkpointer.save(0).wait(timeout_s=COMMIT_TIMEOUT_S)
        step = 0
        for block in range(num_blocks):
            for method in METHODS:
                handles: list[SaveHandle] = []
                disk_s = 0.0
                meet(training.device)
                stalled_s = checkpointer.stall_s
                started_s = time.monotonic()
                for _ in range(block_steps):
                    training.step()
                    step += 1
                    if step % every == 0 and method == "ram":
                        handles.append(checkpointer.save(step))
                    elif step % every == 0 and method == "disk":
                        saved_s = time.monotonic()
                        disk.save(step)
                        disk_s += time.monotonic() - saved_s
                checkpointer.fence()
                meet(training.device)
                took_s = time.monotonic() - started_s
                if handles and not handles[-1].is_final:
                    handles[-1].wait(timeout_s=COMMIT_TIMEOUT_S)
                committed = sum(handle.status == "committed" for handle in handles)
                log.write(
                    "block",
                    method=method,
                    block=block,
                    iterations_per_s=block_steps / took_s,
                    stall_share=(checkpointer.stall_s - stalled_s + disk_s) / took_s,
                    committed_share=committed / len(handles) if handles else None,
                )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
