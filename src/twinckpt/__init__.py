"""A twin of every rank's training state in a peer machine's RAM.

    from twinckpt import Checkpointer

General layout, with each layer importing only earlier ones: `core` decides (pure), `memory`
holds bytes, `net` moves them, `agents` are the processes, `checkpointer` is what a training
loop imports; around them are `simulation`, `training`, `experiments` and `analysis`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from twinckpt.errors import TwinckptError

if TYPE_CHECKING:
    from twinckpt.agents.job_settings import JobSettings
    from twinckpt.checkpointer import Checkpointer, SaveHandle
    from twinckpt.checkpointer.rng import RngState

__all__ = ["Checkpointer", "JobSettings", "RngState", "SaveHandle", "TwinckptError"]

_HOMES = {
    "Checkpointer": "twinckpt.checkpointer",
    "JobSettings": "twinckpt.agents.job_settings",
    "RngState": "twinckpt.checkpointer.rng",
    "SaveHandle": "twinckpt.checkpointer",
}


def __getattr__(name: str) -> Any:
    # Agents import this package and must start without torch.
    if name in _HOMES:
        globals()[name] = value = getattr(import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'twinckpt' has no attribute {name!r}")
