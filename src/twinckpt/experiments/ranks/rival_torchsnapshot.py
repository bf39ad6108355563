"""torchsnapshot's asynchronous snapshots, behind the verbs of `rivals`."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torchsnapshot import Snapshot, StateDict

from twinckpt.experiments.ranks.rank import Rank
from twinckpt.experiments.ranks.rivals import Rival

# Without it, torchsnapshot asks all ranks how many share a host, even if one alone restores.
_BUDGET_VARIABLE = "TORCHSNAPSHOT_PER_RANK_MEMORY_BUDGET_BYTES"
_BUDGET_BYTES = 1 << 30


class Torchsnapshot(Rival):
    """`Snapshot.async_take` to files; it does not fsync them, so `finish` does."""

    def __init__(self, rank: Rank, directory: Path) -> None:
        os.environ[_BUDGET_VARIABLE] = str(_BUDGET_BYTES)
        named = {str(index): tensor for index, tensor in enumerate(rank.tensors)}
        self._state = {"state": StateDict(**named)}
        self._directory = directory
        self._pending: Any = None
        self._taken: list[Path] = []

    def save(self, step: int) -> None:
        self.finish()
        path = self._directory / f"step-{step}-{len(self._taken)}"
        self._taken.append(path)
        self._pending = Snapshot.async_take(str(path), self._state)

    def finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        pending.wait()
        newest, number = self._taken[-1], dist.get_rank()
        for path in (newest / str(number)).rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if len(self._taken) > 1:  # it keeps what it has taken; others keep one or two
            shutil.rmtree(self._taken[-2] / str(number), ignore_errors=True)

    def restore(self, loser: int) -> None:
        # All ranks have to call it; those that have lost nothing ask for nothing.
        wanted = self._state if dist.get_rank() == loser else {}
        Snapshot(str(self._taken[-1])).restore(wanted)
