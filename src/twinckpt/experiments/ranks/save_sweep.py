"""One rank of `save_cost`'s sweep: files, DCP and RAM in alternation on a state of a given size."""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from twinckpt.checkpointer import Checkpointer
from twinckpt.experiments.ranks.measuring import meet, open_log, save_to_memory
from twinckpt.experiments.ranks.rank import Rank
from twinckpt.experiments.ranks.rivals import Dcp, Rival, TorchSave


def to_files(rival: Rival, step: int) -> dict[str, float]:
    """Save with a rival while nothing else is done; return seconds since the call, by metric."""
    started_s = time.monotonic()
    rival.save(step)
    rival.fence()
    stalled_s = time.monotonic()
    rival.finish()
    return {"sweep_stall_s": stalled_s - started_s, "sweep_done_s": time.monotonic() - started_s}


def main() -> None:
    """`save_sweep SIZE_MIB NUM_TENSORS ROUNDS PLACEMENT DISK`; files only with `ring`."""
    size_mib, num_tensors, rounds = map(int, sys.argv[1:4])
    placement, disk = sys.argv[4], Path(sys.argv[5])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    log = open_log()
    rank = Rank(size_mib, num_tensors)
    rivals: dict[str, Rival] = {}
    if placement == "ring":
        rivals = {
            "disk": TorchSave(rank, disk / "disk"),
            "dcp_sync": Dcp(rank, disk / "dcp_sync"),
            "dcp_thread": Dcp(rank, disk / "dcp_thread", AsyncCheckpointerType.THREAD),
        }
    with Checkpointer(rank.state) as checkpointer:
        checkpointer.save(0, block=True)
        for repeat in range(rounds):
            found = {}
            for name, rival in rivals.items():
                meet()
                found[name] = to_files(rival, repeat + 1)
            meet()
            saved = save_to_memory(checkpointer, repeat + 1)
            found[f"ram_{placement}"] = {
                "sweep_stall_s": saved.stall_s,
                "sweep_replicated_s": saved.replicated_s,
                "sweep_done_s": saved.committed_s,
            }
            if placement == "ring":
                found["ram"] = {"sweep_stall_s": saved.stall_s, "sweep_done_s": saved.staged_s}
            for method, metrics in found.items():
                log.write("sample", repeat=repeat, method=method, **metrics)
        for rival in rivals.values():
            rival.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
