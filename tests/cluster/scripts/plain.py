"""A training script with the library's five lines; rank 1 is killed once, at step 6."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from twinckpt import Checkpointer

STEPS = 12


def main() -> None:
    """Train; write what each rank restored, and what it ended with."""
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters())
    progress = {"samples": 0}
    with Checkpointer({"model": model, "optimizer": optimizer, "progress": progress}) as twin:
        step = twin.restore() or 0
        with (folder / f"restored-{rank}").open("a") as log:
            log.write(f"{step} {twin.restore_report.get('source')}\n")
        while step < STEPS:
            torch.manual_seed(1000 * rank + step)
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            dist.barrier()
            optimizer.step()
            step += 1
            progress["samples"] = 4 * step
            handle = twin.save(step)
            for status in ("staged", "replicated", "committed"):
                handle.wait(status)
            if rank == 1 and step == 6 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)
    torch.save({"model": model.state_dict(), "progress": progress}, folder / f"end-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
