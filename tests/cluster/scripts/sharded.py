"""Train under FSDP2, drain every commit, and leave torch's own full state dict beside it."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.fsdp import fully_shard

from twinckpt import Checkpointer

STEPS = 3


def main() -> None:
    """Rank 0 writes `full-<step>.pt`."""
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    # 7 rows do not divide among the ranks: shards differ in size.
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters())
    progress = {"step": 0, "rank": dist.get_rank()}
    state = {"model": model, "optimizer": optimizer, "progress": progress}
    with Checkpointer(state) as twin:
        begun = twin.restore() or 0
        full = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
        if dist.get_rank() == 0:
            torch.save({"step": begun, "state": full}, folder / f"begun-{dist.get_world_size()}.pt")
        (folder / f"progress-{dist.get_world_size()}-{dist.get_rank()}").write_text(str(progress))
        for step in range(begun + 1, STEPS + 1):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
            progress["step"] = step
            full = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
            if dist.get_rank() == 0:
                torch.save(full, folder / f"full-{step}.pt")
            twin.save(step, block=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
