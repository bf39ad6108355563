"""Rank 0 ends at once, rank 1 goes on for a while; neither closes its Checkpointer."""

import os
import sys
from pathlib import Path

import torch

from twinckpt import Checkpointer

checkpointer = Checkpointer({"weights": torch.zeros(4)})
checkpointer.save(1, block=True)
fifo = Path(sys.argv[1]) / "end-of-rank-0"
if os.environ["RANK"] == "0":
    os.open(fifo, os.O_WRONLY)  # until this process is gone
else:
    fifo.open("rb").read()
    assert checkpointer.committed_step == 1
    checkpointer.save(2).wait("staged")
    assert checkpointer.num_failed == 0
