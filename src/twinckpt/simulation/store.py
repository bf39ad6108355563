"""A machine's slots without bytes: what `core.Worker` needs of memory, for the simulator."""

from twinckpt.core.messages import Holding
from twinckpt.core.slot_table import SlotTable


class BookkeptSlots:
    """Slot tables of all ranks on one machine.

    `damaged` marks copies whose bits flipped, `ever_damaged` also those replaced since.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self.tables: dict[int, SlotTable] = {}
        self.damaged: set[tuple[int, int]] = set()
        self.ever_damaged: set[tuple[int, int]] = set()

    def reserve(self, rank: int, slot_bytes: int) -> None:
        """Make slots for a rank."""
        self.tables.setdefault(rank, SlotTable(self._num_slots))

    def begin(self, rank: int, ticket: int) -> int | None:
        """Take a free slot."""
        self.damaged.discard((rank, ticket))
        return self.tables[rank].begin(ticket)

    def seal(self, holding: Holding) -> None:
        """Make a begun slot immutable."""
        self.tables[holding.rank].seal(holding)

    def find(self, rank: int, ticket: int) -> int | None:
        """Return the slot of a version."""
        return self.tables[rank].find(ticket) if rank in self.tables else None

    def holding(self, rank: int, ticket: int) -> Holding | None:
        """Return the sealed copy of a version."""
        index = self.find(rank, ticket)
        return None if index is None else self.tables[rank].slots[index].holding

    def intact(self, rank: int, ticket: int) -> bool:
        """Return whether a sealed copy is here and its bits are right."""
        return self.holding(rank, ticket) is not None and (rank, ticket) not in self.damaged

    def drop(self, rank: int, ticket: int) -> None:
        """Free the slot of one version."""
        if rank in self.tables:
            self.tables[rank].drop(ticket)

    def drop_where(self, *, older_than: int | None = None, newer_than: int | None = None) -> None:
        """Free the slots of versions outside a range of tickets."""
        for table in self.tables.values():
            table.drop_where(older_than=older_than, newer_than=newer_than)

    def drop_oldest(self, rank: int, *, older_than: int) -> None:
        """Free the slot of the oldest version of a rank below a ticket."""
        self.tables[rank].drop_oldest(older_than=older_than)

    def holdings(self) -> list[Holding]:
        """Return all sealed copies."""
        return [holding for table in self.tables.values() for holding in table.holdings()]
