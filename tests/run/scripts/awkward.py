"""A training script with all that makes a restart hard, and a state that is known at each step.

Data loaders with processes, threads, signal handlers and a wake-up descriptor of its own, another
directory and environment, child processes. It ends when the file `stop` is there, on all ranks at
the same step, and says so in `ended-RANK`.
"""

import argparse
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from twinckpt import Checkpointer

NUM_SAMPLES = 8


class Squares(Dataset):
    """The integers squared, shifted by the epoch."""

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        return torch.tensor(float(index * index))


def expected(step: int) -> float:
    """What every weight is after so many steps of two ranks, exactly."""
    return float(2 * step * sum(index * index for index in range(NUM_SAMPLES)))


def train(folder: Path) -> int:
    """Return the step at which it was told to stop."""
    weight, progress = torch.zeros(1000), {"epochs": 0}
    loader = DataLoader(
        Squares(), 2, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
    )
    with Checkpointer({"weight": weight, "progress": progress}) as checkpointer:
        step = checkpointer.restore() or 0
        while True:
            gradient = sum(batch.sum() for batch in loader).reshape(1)
            stop = torch.tensor([float((folder / "stop").exists())])
            dist.all_reduce(gradient)
            dist.all_reduce(stop)
            weight += gradient
            step += 1
            progress["epochs"] += 1
            checkpointer.save(step, block=bool(stop))
            assert weight.unique().tolist() == [expected(step)], (step, weight.unique())
            assert progress["epochs"] == step
            if stop:
                return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    faulthandler.enable()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    wake_up = socket.socketpair()
    wake_up[1].setblocking(False)
    signal.set_wakeup_fd(wake_up[1].fileno(), warn_on_full_buffer=False)
    assert "AWKWARD" not in os.environ  # nothing of the process before this one is left
    os.environ["AWKWARD"] = "yes"
    os.chdir("/")
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    dist.init_process_group("gloo")
    step = train(folder)
    (folder / f"ended-{os.environ['RANK']}").write_text(str(step))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
