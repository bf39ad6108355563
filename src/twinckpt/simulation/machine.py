"""One simulated machine: its worker, its slots, and its ranks as the worker sees them."""

from dataclasses import dataclass, field

from twinckpt.core import messages as m
from twinckpt.core.worker import Worker
from twinckpt.simulation.store import BookkeptSlots


@dataclass(slots=True)
class SimulatedRank:
    """A training process: the step it has reached, and the slots it was granted."""

    rank: int
    step: int | None = None
    grants: list[tuple[int, int]] = field(default_factory=list)
    is_staging: bool = False
    attached: bool = False


class SimulatedMachine:
    """A failure domain; `incarnation` counts its generations, so that old events are ignored."""

    def __init__(self, name: str, num_slots: int) -> None:
        self.name = name
        self.slots = BookkeptSlots(num_slots)
        self.worker = Worker(self.slots)
        self.ranks: dict[int, SimulatedRank] = {}
        self.is_alive = True
        self.is_connected = False
        self.incarnation = 0

    @property
    def address(self) -> m.Address:
        """Where peers would reach it."""
        return m.Address(self.name, self.name, 0)
