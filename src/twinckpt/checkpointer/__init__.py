"""What a training loop imports: staging from tensors, the fence, restore."""

from twinckpt.checkpointer.checkpointer import Checkpointer
from twinckpt.checkpointer.handle import SaveHandle

__all__ = ["Checkpointer", "SaveHandle"]
