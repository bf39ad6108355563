"""Save every kind of state in one checkpoint, again and again, until rank 0 is killed.

The ranks never wait for each other, and so they save different steps; some commit nevertheless.
The second life builds the same kinds with other values, restores, and compares bit for bit.
"""

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "checkpointer"))
from catalogue import CARRIED, assert_same

from twinckpt import Checkpointer

FIRST_STEP = 1  # after step 0, for which all wait, they may still be in step
KILL_AFTER_S = (0.0, 0.5)


def build(seed: int) -> dict:
    """All states of the catalogue, each under its name."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return {name: make() for name, make in CARRIED.items()}


def main() -> None:
    """Write what was restored to `restored-RANK`."""
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    is_first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    progress = {"step": 0, "filled": torch.zeros(100_000)}
    state = build(rank if is_first_life else 10 + rank)
    with Checkpointer({"catalogue": state, "progress": progress}) as checkpointer:
        step = checkpointer.restore() or 0
        if step:
            assert_same(build(rank), state)
            assert progress["step"] == step
            assert bool((progress["filled"] == step).all())
            (folder / f"restored-{rank}").write_text(str(step))
            dist.destroy_process_group()
            return
        checkpointer.save(0, block=True)
        kill_after_s = random.SystemRandom().uniform(*KILL_AFTER_S) if rank == 0 else None
        while True:
            if kill_after_s is not None and checkpointer.committed_step > FIRST_STEP:
                signal.setitimer(signal.ITIMER_REAL, kill_after_s)
                kill_after_s = None
            step += 1
            progress["step"] = step
            progress["filled"].fill_(step)
            checkpointer.save(step)
            progress["filled"].fill_(-1)


if __name__ == "__main__":
    main()
