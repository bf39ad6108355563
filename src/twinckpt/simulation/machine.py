"""One simulated machine: its worker, its slots, its ranks, its clock, its ways to fail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twinckpt.core import messages as m
from twinckpt.core.worker import Worker
from twinckpt.simulation.store import BookkeptSlots

if TYPE_CHECKING:
    from twinckpt.simulation.link import Connection


@dataclass(slots=True, eq=False)
class SimulatedRank:
    """A training process: the step it has reached, and the slots it was granted."""

    rank: int
    step: int | None = None
    grants: list[tuple[int, int]] = field(default_factory=list)
    is_staging: bool = False
    attached: bool = False


class SimulatedMachine:
    """A machine, which fails as a whole. Actions on it wait until it thaws while it is frozen."""

    def __init__(self, name: str, num_slots: int, clock_rate: float, domain: str = "") -> None:
        self.name = name
        self.domain = domain
        self.address = m.Address(name, name, 0)
        self.slots = BookkeptSlots(num_slots)
        self.worker = Worker(self.slots)
        self.ranks: dict[int, SimulatedRank] = {}
        self.is_alive = True
        self.is_frozen = False
        self.is_deaf = False  # nothing reaches it
        self.is_mute = False  # nothing that it sends arrives
        self.clock_rate = clock_rate
        self.connection: Connection | None = None
        self.last_connection: Connection | None = None
        self.pending_join: m.Join | None = None
        self.deferred: list[Callable[[], None]] = []

    @property
    def is_reachable(self) -> bool:
        """Return whether a connection to it would work now."""
        return self.is_alive and not (self.is_frozen or self.is_deaf or self.is_mute)

    def do(self, action: Callable[[], None]) -> None:
        """Do something on this machine: now, when it thaws, or never."""
        if self.is_frozen:
            self.deferred.append(action)
        elif self.is_alive:
            action()
