"""Train with a ZeRO-1 optimizer; go back a step and take it again with the very same result."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from twinckpt import Checkpointer, RngState


def main() -> None:
    """Each rank prints `same` if it is."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    )
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.1)

    def train() -> list[torch.Tensor]:
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        own = [value for state in optimizer.optim.state.values() for value in state.values()]
        return [tensor.detach().clone() for tensor in (*model.parameters(), *own)]

    state = {"model": model, "optimizer": optimizer, "rng": RngState()}
    with Checkpointer(state, drain_directory=sys.argv[1], drain_every_commits=1) as twin:
        assert (twin.restore() or 0) == 0
        train()
        optimizer.param_groups[0]["lr"] = 0.01
        twin.save(1, block=True)
        first = train()
        optimizer.param_groups[0]["lr"] = 0.5
        assert twin.restore() == 1
        again = train()
        assert all(map(torch.equal, first, again))
        print("same", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
