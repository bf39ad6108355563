"""Hooks that run the fence before every optimizer's step, also of those that come later."""

from collections.abc import Callable, Iterable

import torch
from torch.utils.hooks import RemovableHandle


class Fences:
    """Calls `fence` before each step of the optimizers that it covers."""

    def __init__(self, fence: Callable[[], None]) -> None:
        self._fence = fence
        self._hooks: list[tuple[torch.optim.Optimizer, RemovableHandle]] = []

    def cover(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Cover those that are not yet; called at each save, as a state may get new ones."""
        for optimizer in optimizers:
            if not any(covered is optimizer for covered, _ in self._hooks):
                hook = optimizer.register_step_pre_hook(lambda *_: self._fence())
                self._hooks.append((optimizer, hook))

    def remove(self) -> None:
        """Leave all optimizers as they were."""
        for _, hook in self._hooks:
            hook.remove()
        self._hooks = []
