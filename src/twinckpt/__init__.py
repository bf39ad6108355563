"""A twin of every rank's training state in a peer machine's RAM.

    from twinckpt import Checkpointer

General layout, each layer importing only those before it: `core` decides (pure), `memory`
holds bytes, `net` moves them, `agents` are the processes, `checkpointer` is what a training
loop imports; around them `simulation`, `training`, `experiments` and `analysis`.
"""

from typing import TYPE_CHECKING, Any

from twinckpt.errors import TwinckptError

if TYPE_CHECKING:
    from twinckpt.checkpointer import Checkpointer
    from twinckpt.checkpointer.rng import RngState

__all__ = ["Checkpointer", "RngState", "TwinckptError"]


def __getattr__(name: str) -> Any:
    # Agents import this package and must start without torch.
    if name == "Checkpointer":
        from twinckpt.checkpointer import Checkpointer

        return Checkpointer
    if name == "RngState":
        from twinckpt.checkpointer.rng import RngState

        return RngState
    raise AttributeError(name)
