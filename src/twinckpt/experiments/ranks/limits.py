"""One rank of `limits`: each operation of the library beside a plain copy of its bytes.

For a state in CPU memory the plain copy is a memcpy; for one on a GPU, a copy through PCIe from
or to pinned memory.

The first generation measures saving. Its ranks are killed, and the next generation restores what
the first saved, again and again, from its own machine's RAM and from a peer's.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from twinckpt.checkpointer import Checkpointer, SaveHandle
from twinckpt.experiments.ranks.busy_step import BusyStep
from twinckpt.experiments.ranks.loopback import LoopbackRing
from twinckpt.experiments.ranks.measuring import (
    KILL_TIMEOUT_S,
    STEPS_AFTER_A_CONFLICT,
    clocked,
    is_committed,
    lose_and_restore,
    meet,
    open_log,
    require_committed,
    settle,
)
from twinckpt.experiments.ranks.rank import Rank
from twinckpt.results.jsonl import JsonLines
from twinckpt.training.setup import gpu_and_backend

BLOCK_STEPS = 2


class Saving:
    """Measures what a checkpoint takes: blocking, beside a waiting host, beside a busy one."""

    def __init__(self, rank: Rank, checkpointer: Checkpointer, log: JsonLines) -> None:
        self._rank = rank
        self._checkpointer = checkpointer
        self._log = log
        self._ring = LoopbackRing(rank.num_bytes)
        self._step = 0
        self._idle_s = 0.0
        self._busy_step = BusyStep(rank.device)

    def round(self, repeat: int) -> None:
        """Measure each operation once, one after another."""
        rank, log = self._rank, self._log
        copy_s, copy_cpu_s = clocked(rank.copy_out)
        ring_s, ring_cpu_s = clocked(self._ring.transfer)
        log.write("sample", repeat=repeat, metric="memcpy_s", value=copy_s)
        log.write("sample", repeat=repeat, metric="loopback_s", value=ring_s)
        log.write("sample", repeat=repeat, metric="floor_cpu_s", value=copy_cpu_s + ring_cpu_s)
        self._blocking(repeat)
        self._beside_waiting_host(repeat)
        if repeat <= 1:
            self._busy_step.calibrate(self._idle_s)  # twice as long as a checkpoint takes
        for method in ("none", "every_step", "none_again"):
            self._busy_block(repeat, method)

    def close(self) -> None:
        """Close the connections for plain transfers."""
        self._ring.close()

    def _save(self) -> SaveHandle:
        self._step += 1
        handle = self._checkpointer.save(self._step)
        if handle.status == "skipped":
            raise RuntimeError(f"step {self._step} was skipped: no slot was free")
        return handle

    def _blocking(self, repeat: int) -> None:
        settle()
        started_s = time.monotonic()
        handle = self._save()
        self._checkpointer.fence()
        self._rank.settle()
        copied_s = time.monotonic()
        handle.wait("staged")
        staged_s = time.monotonic()
        require_committed(handle)
        committed_s = time.monotonic()
        self._log.write("sample", repeat=repeat, metric="staging_s", value=copied_s - started_s)
        self._log.write(
            "sample", repeat=repeat, metric="replication_s", value=committed_s - staged_s
        )
        self._log.write("sample", repeat=repeat, metric="done_s", value=committed_s - started_s)
        if repeat <= 1:
            self._idle_s = 2 * (committed_s - started_s)

    def _beside_waiting_host(self, repeat: int) -> None:
        """Measure the stall if the host waits longer than the copy takes, as it does for a GPU."""
        settle()
        stalled_s = self._checkpointer.stall_s
        handle = self._save()
        time.sleep(self._idle_s)
        self._checkpointer.fence()
        stall_s = self._checkpointer.stall_s - stalled_s
        require_committed(handle)
        self._log.write("sample", repeat=repeat, metric="stall_s", value=stall_s)

    def _busy_block(self, repeat: int, method: str) -> None:
        """Time steps that keep every core or the GPU busy, with or without a checkpoint in each."""
        settle()
        started_s = time.monotonic()
        handles: list[SaveHandle] = []
        for _ in range(BLOCK_STEPS):
            if method == "every_step":
                self._step += 1
                handles.append(self._checkpointer.save(self._step))
            self._busy_step.run()
            self._checkpointer.fence()
            self._rank.settle()  # or the host would run ahead, and save again at once
        num_committed = sum(is_committed(handle) for handle in handles)
        meet()
        took_s = (time.monotonic() - started_s) / BLOCK_STEPS
        self._log.write("sample", repeat=repeat, metric=f"step_{method}_s", value=took_s)
        if method == "every_step":
            share = num_committed / BLOCK_STEPS
            self._log.write("sample", repeat=repeat, metric="committed", value=share)
            self._step += 1
            self._checkpointer.save(self._step, block=True)  # decides a step that one rank skipped
            self._step += STEPS_AFTER_A_CONFLICT


def measure_restoring(rank: Rank, checkpointer: Checkpointer, log: JsonLines, rounds: int) -> None:
    """Time restoring: all ranks from their machines' RAM, then one rank from a peer's."""
    ring = LoopbackRing(rank.num_bytes)
    checkpointer._restorer.wait_until_prepared()
    rank.stage()  # fills the slot for `copy_in_hashed`
    number, size = dist.get_rank(), dist.get_world_size()
    for repeat in range(rounds):
        loser = repeat % size
        rank.overwrite()  # each operation begins with the cache in the same state
        values = {"memcpy_in_s": clocked(rank.copy_in)[0]}
        if rank.device.type == "cpu":
            rank.overwrite()
            values["memcpy_hashed_s"] = clocked(rank.copy_in_hashed)[0]
        values["restore_local_s"] = _restored(rank, checkpointer.restore)
        if size > 1:
            values["loopback_one_s"] = clocked(partial(ring.transfer_to, loser))[0]
            if number == loser:
                values["restore_peer_s"] = _restored(rank, lambda: lose_and_restore(checkpointer))
            else:
                del values["loopback_one_s"]
                clocked(lambda: None)
        for metric, value in values.items():
            log.write("sample", repeat=repeat, metric=metric, value=value)
        meet()
    ring.close()


def _restored(rank: Rank, restore: Callable[[], int | None]) -> float:
    rank.overwrite()
    for counter in rank.counters:
        counter.zero_()
    took_s, _ = clocked(restore)
    if not rank.is_intact() or any(counter.item() != 1 for counter in rank.counters):
        raise RuntimeError("the restored state differs from the saved one")
    return took_s


def main() -> None:
    """`limits SIZE_MIB NUM_TENSORS ROUNDS DEVICE`, the device being `cpu` or `cuda`."""
    size_mib, num_tensors, rounds = map(int, sys.argv[1:4])
    torch.set_num_threads(1)
    device = torch.device(sys.argv[4])
    if device.type == "cuda":
        index, _ = gpu_and_backend(os.environ, torch.cuda.device_count())
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    dist.init_process_group("gloo")
    log = open_log()
    rank = Rank(size_mib, num_tensors, device)
    with Checkpointer(rank.state) as checkpointer:
        if checkpointer.restore() is None:
            saving = Saving(rank, checkpointer, log)
            checkpointer.save(0, block=True)
            for repeat in range(rounds):
                saving.round(repeat)
            saving.close()
            log.write("saved", bytes=rank.num_bytes)
            time.sleep(KILL_TIMEOUT_S)  # to be killed
            raise RuntimeError("nobody killed this rank")
        measure_restoring(rank, checkpointer, log, rounds)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
