"""Makers of the rivals of `peers`. A maker raises if its rival cannot run here."""

from collections.abc import Callable
from pathlib import Path

from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from twinckpt.experiments.ranks.rank import Rank
from twinckpt.experiments.ranks.rivals import (
    Dcp,
    LmResiliency,
    Plain,
    Rival,
    Torchft,
    TorchSave,
)

# Rivals whose copies survive the loss of a rank but not of its machine: they cannot restore it.
RANK_ONLY = ("dlrover",)


def makers(rank: Rank, disk: Path, memory: Path) -> dict[str, Callable[[], Rival]]:
    """Return the makers; `disk` and `memory` are directories on a disk and in memory."""

    def torchsnapshot() -> Rival:
        from twinckpt.experiments.ranks.rival_torchsnapshot import Torchsnapshot

        return Torchsnapshot(rank, disk / "torchsnapshot")

    def nv_resiliency() -> Rival:
        from twinckpt.experiments.ranks.rival_nvrx import NvResiliency

        return NvResiliency(rank, memory / "nv_resiliency")

    def dlrover() -> Rival:
        from twinckpt.experiments.ranks.rival_dlrover import DLRover

        return DLRover(rank, memory, disk / "dlrover")

    return {
        "plain": lambda: Plain(rank),
        "torch_save": lambda: TorchSave(rank, disk / "torch_save"),
        "dcp_sync": lambda: Dcp(rank, disk / "dcp_sync"),
        "dcp_thread": lambda: Dcp(rank, disk / "dcp_thread", AsyncCheckpointerType.THREAD),
        "dcp_process": lambda: Dcp(rank, disk / "dcp_process", AsyncCheckpointerType.PROCESS),
        "torchsnapshot": torchsnapshot,
        "lm_resiliency": lambda: LmResiliency(rank, disk / "lm_resiliency"),
        "nv_resiliency": nv_resiliency,
        "dlrover": dlrover,
        "torchft": lambda: Torchft(rank),
    }
