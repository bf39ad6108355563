"""Train until told to end; say on which host each life of a rank begins, and from where."""

import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from twinckpt import Checkpointer

FIRST_STEPS = 3


def main() -> None:
    """Append to `lives`; rank 0 makes `trains` after some steps, and ends them with `end`."""
    folder = Path(sys.argv[1])
    assert sys.argv[2:] == ["two  words", '$HOME "q"']
    dist.init_process_group("gloo")
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters())
    with Checkpointer({"model": model, "optimizer": optimizer}) as twin:
        step = twin.restore() or 0
        with (folder / "lives").open("a") as lives:
            source = twin.restore_report.get("source") if step else "nothing"
            lives.write(f"{socket.gethostname()} {source}\n")
        is_over = torch.zeros(1)
        while not is_over:
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            step += 1
            twin.save(step, block=True)
            if dist.get_rank() == 0 and step == FIRST_STEPS:
                (folder / "trains").touch()
            is_over.fill_((folder / "end").exists())
            dist.broadcast(is_over, 0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
