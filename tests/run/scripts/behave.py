"""A training script that does one thing which launchers are known to get wrong; see BEHAVIOURS."""

import argparse
import atexit
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import DataLoader, Dataset

from twinckpt import Checkpointer

faulthandler.enable()


class Squares(Dataset):
    """Defined in `__main__`: a spawned worker must find it there."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor(index * index)


def square(number):
    return number * number


def loads_data(folder):
    for method in ("fork", "spawn", "forkserver"):
        loader = DataLoader(Squares(), 4, num_workers=2, multiprocessing_context=method)
        assert torch.cat(list(loader)).tolist() == [i * i for i in range(8)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(square, [2, 3]) == [4, 9]


def pickles_itself(folder):
    assert type(pickle.loads(pickle.dumps(Squares()))) is Squares
    assert sys.modules["__main__"].Squares is Squares


def ends_properly(folder):
    atexit.register(lambda: (folder / "atexit").write_text("done"))
    thread = threading.Thread(target=lambda: (time.sleep(0.5), (folder / "thread").touch()))
    thread.start()


def has_handler(folder):
    """Its own SIGTERM handler takes a while, and chooses the exit status."""

    def stop(number, frame):
        time.sleep(1)
        (folder / "stopped").write_text(str(number))
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    (folder / "ready").touch()
    time.sleep(60)


def waits(folder):
    (folder / "ready").touch()
    time.sleep(60)


def raises(folder):
    with (folder / "tries").open("a") as tries:
        tries.write("x")
    raise RuntimeError("the script's own fault")


def is_not_forked(folder):
    assert "torch.distributed.run" in Path(f"/proc/{os.getppid()}/cmdline").read_text()


def exits(folder):
    sys.exit(7)


def crashes(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def loses_a_rank(folder):
    """Killed with workers of a data loader alive; it resumes, and they are gone."""
    weight, progress = torch.zeros(3), {"step": 0}
    with Checkpointer({"weight": weight, "progress": progress}) as checkpointer:
        step = checkpointer.restore() or 0
        loader = DataLoader(Squares(), 1, num_workers=2, persistent_workers=True)
        while step < 6:
            for _ in loader:
                pass
            step += 1
            weight += 1
            checkpointer.save(step, block=True)
            if step == 3 and not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
    assert weight.tolist() == [6, 6, 6]
    (folder / "resumed").touch()


@record
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour")
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    assert Path(sys.argv[0]).name == "behave.py"
    assert sys.path[0] == str(Path(__file__).resolve().parent)
    dist.init_process_group("gloo")
    dist.barrier()
    dist.destroy_process_group()
    globals()[arguments.behaviour](arguments.folder)
    print("end of", arguments.behaviour, "as", __name__)


if __name__ == "__main__":
    main()
