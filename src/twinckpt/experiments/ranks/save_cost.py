"""One rank of `save_cost`: disk, RAM, and RAM with replicas, alternating on the same state."""

import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from twinckpt.checkpointer import Checkpointer
from twinckpt.experiments.ranks.measuring import meet, save_to_memory, start
from twinckpt.training.disk import DiskCheckpoint


def main() -> None:
    """Measure `steps` rounds of all methods; the experiment leaves out those of the warm-up."""
    training, log = start()
    training.step()  # Adam's moments exist from the first step on
    state = training.state()
    disk = DiskCheckpoint(Path(training.config.disk_directory), state)
    with Checkpointer(state) as checkpointer:

        def on_disk(step: int) -> tuple[float, float, int]:
            started_s = time.monotonic()
            num_bytes = disk.save(step)
            took_s = time.monotonic() - started_s
            return took_s, took_s, num_bytes

        def in_ram(step: int) -> tuple[float, float, int]:
            saved = save_to_memory(checkpointer, step)
            return saved.stall_s, saved.staged_s, checkpointer.shard_bytes

        def replicated(step: int) -> tuple[float, float, int]:
            saved = save_to_memory(checkpointer, step)
            return saved.stall_s, saved.committed_s, checkpointer.shard_bytes

        methods: dict[str, Callable[[int], tuple[float, float, int]]] = {
            "disk": on_disk,
            "ram": in_ram,
            "ram_replica": replicated,
        }
        checkpointer.save(0, block=True)  # reserves the slots
        step = 0
        for repeat in range(training.config.steps):
            for method, measure in methods.items():
                step += 1
                meet(training.device)
                stall_s, recoverable_s, num_bytes = measure(step)
                log.write(
                    "sample",
                    method=method,
                    repeat=repeat,
                    stall_s=stall_s,
                    recoverable_s=recoverable_s,
                    bytes=num_bytes,
                )
                # The next method starts on machines that have nothing left to do.
                meet(training.device)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
