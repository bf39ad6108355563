"""Hooks that run the fence before every optimizer's step, also of those that come later."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class Fences:
    """Calls `fence` before each step of the optimizers that it covers, and of those unknown to it.

    An optimizer may step what is in the state without being there itself, and a fused one leaves
    no trace in the version counters.
    """

    def __init__(self, fence: Callable[[], None]) -> None:
        self._fence = fence
        self._hooks: list[tuple[torch.optim.Optimizer, RemovableHandle]] = []
        self._others = register_optimizer_step_pre_hook(self._fence_other)

    def _fence_other(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not any(covered is optimizer for covered, _ in self._hooks):
            self._fence()

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
        self._others.remove()
