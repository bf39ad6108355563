"""ZeRO-1: each rank checkpoints the optimizer state that it holds, that of its own parameters.

`ZeroRedundancyOptimizer.state_dict` wants all of it on one rank first, which is what a checkpoint
of every rank does not need.
"""

import sys
from typing import Any

import torch

from twinckpt.checkpointer import optimizers
from twinckpt.errors import RestoreError


def is_zero(part: Any) -> bool:
    """Return whether a part is a ZeroRedundancyOptimizer; imports nothing for it."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    return module is not None and isinstance(part, module.ZeroRedundancyOptimizer)


def local_state(part: Any) -> dict[str, Any]:
    """Return the state of this rank's parameters, and how many ranks share the whole."""
    optimizer: torch.optim.Optimizer = part.optim
    state = optimizer.state_dict()
    # What a scheduler sets, it sets in the outer groups; `step` takes it into the inner ones.
    groups = [
        {**local, **_hyperparameters(group)}
        for local, group in zip(state["param_groups"], part.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups, "ranks": part.world_size}


def load_local_state(part: Any, state: dict[str, Any]) -> None:
    """Set what `local_state` returned; raises RestoreError for that of another number of ranks."""
    ranks = state.pop("ranks", None)
    if ranks != part.world_size:
        raise RestoreError(
            f"this state of a ZeRO-1 optimizer is of {ranks} ranks, there are {part.world_size}"
            ": resume on as many, or shard the optimizer with FSDP2"
        )
    optimizers.load(part.optim, state)
    for group, local in zip(part.param_groups, part.optim.param_groups, strict=True):
        group.update(_hyperparameters(local))


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
