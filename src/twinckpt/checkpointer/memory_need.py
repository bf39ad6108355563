"""What checkpoints take of a machine's memory, told before training starts.

The slots themselves are made at the first save, when the state is complete: most optimizers
make theirs in their first step. Until then a step on the meta device tells how large it will be.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from twinckpt.checkpointer.agent_client import AgentClient
from twinckpt.checkpointer.layout import Layout
from twinckpt.checkpointer.state import TrainingState
from twinckpt.checkpointer.tree import local_tensor

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Slots of one machine; all ranks are taken to hold as much as this one, `shard_bytes`."""

    shard_bytes: int
    replicas: int
    num_slots: int
    ranks_per_machine: int
    is_complete: bool = True

    @classmethod
    def of_job(
        cls,
        shard_bytes: int,
        replicas: int,
        num_slots: int,
        client: AgentClient,
        is_complete: bool,
    ) -> "MemoryNeed":
        """Return the need of each machine of a job; fewer machines hold fewer replicas."""
        replicas = min(replicas, client.num_machines)
        ranks = math.ceil(client.world_size / client.num_machines)
        return cls(shard_bytes, replicas, num_slots, ranks, is_complete)

    @property
    def total_bytes(self) -> int:
        """Memory of all slots of a machine."""
        return self.replicas * self.num_slots * self.ranks_per_machine * self.shard_bytes

    def __str__(self) -> str:
        and_more = "" if self.is_complete else ", and what the optimizers add in their first step"
        return (
            f"{self.total_bytes / _MIB:,.1f} MiB of each machine's memory: {self.replicas} "
            f"replicas x {self.num_slots} slots x {self.ranks_per_machine} ranks x "
            f"{self.shard_bytes / _MIB:,.1f} MiB of state{and_more}"
        )


def tell_need(
    state: TrainingState, need: Callable[[int, bool], MemoryNeed], *, is_teller: bool
) -> None:
    """Print, on one rank, what checkpoints of `state` will take; called on all of them.

    All ranks take part, since some states are put together by all of them. What cannot be known
    yet is told later, by the error of the save that does not fit.
    """
    with contextlib.suppress(Exception):
        to_come_bytes, is_complete = bytes_to_come(state.optimizers)
        shard_bytes = Layout(state.capture_of_torch()).size_bytes + to_come_bytes
        if is_teller:
            print(f"twinckpt: {need(shard_bytes, is_complete)}", file=sys.stderr, flush=True)


def bytes_to_come(optimizers: Iterable[torch.optim.Optimizer]) -> tuple[int, bool]:
    """Return the bytes that the first steps of `optimizers` will add, and whether that is all.

    Only optimizers of torch itself are asked; of another one only its first step can tell.
    """
    sizes = [_first_step_bytes(optimizer) for optimizer in optimizers if not optimizer.state]
    return sum(size or 0 for size in sizes), None not in sizes


@torch.no_grad()
def _first_step_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    if not type(optimizer).__module__.startswith("torch.optim."):
        return None
    groups = [
        {**group, "params": [_on_meta(parameter) for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    try:
        make: Callable[..., torch.optim.Optimizer] = type(optimizer)
        twin = make(groups)
        twin.step()
    except Exception:  # an optimizer that needs values, a closure or a device
        return None
    values = (value for state in twin.state.values() for value in state.values())
    return sum(
        value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor)
    )


def _on_meta(parameter: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(local_tensor(parameter), device="meta")
    made = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
    if parameter.requires_grad:
        made.grad = torch.empty_like(empty)
    return made
