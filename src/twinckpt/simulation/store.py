"""A machine's slots without bytes: what `core.Worker` needs of memory, for the simulator."""

from twinckpt.core.messages import Holding
from twinckpt.core.slot_table import SlotState, SlotTable


class BookkeptSlots:
    """Slot tables of all ranks on one machine.

    `damaged` marks copies whose bits flipped, `ever_damaged` also those replaced since;
    `num_changes` grows with every change, for the invariants.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self.tables: dict[int, SlotTable] = {}
        self.damaged: set[tuple[int, int]] = set()
        self.ever_damaged: set[tuple[int, int]] = set()
        self.num_changes = 0
        self._needed: set[int] = set()

    def begin_generation(self) -> None:
        """Note that from now on only shards that are reserved again are needed here."""
        self._needed.clear()

    def give_back(self) -> None:
        """Delete the slots of shards that are not needed here any more, if all are free."""
        for rank in self.tables.keys() - self._needed:
            if not any(slot.ticket or slot.num_pins for slot in self.tables[rank].slots):
                del self.tables[rank]

    def reserve(self, rank: int, slot_bytes: int) -> None:
        """Make slots for a rank, unless it has some."""
        self._needed.add(rank)
        if rank not in self.tables:
            self.tables[rank] = SlotTable(self._num_slots)

    def begin(self, rank: int, ticket: int) -> int | None:
        """Take a free slot for a version and return its index; None if no slot is free."""
        index = self.tables[rank].begin(ticket)
        if index is not None:
            self.num_changes += 1
            self.damaged.discard((rank, ticket))
        return index

    def seal(self, holding: Holding) -> None:
        """Seal the slot that was begun for this copy: from now on it is immutable."""
        self.num_changes += 1
        self.tables[holding.rank].seal(holding)

    def state(self, rank: int, slot: int) -> SlotState:
        """Return the state of one slot."""
        return self.tables[rank].slots[slot]

    def damage(self, holding: Holding) -> None:
        """Flip bits of a sealed copy."""
        self.damaged.add((holding.rank, holding.ticket))
        self.ever_damaged.add((holding.rank, holding.ticket))

    def find(self, rank: int, ticket: int) -> int | None:
        """Return the index of a version's slot; None if it has none."""
        table = self.tables.get(rank)
        return None if table is None else table.find(ticket)

    def holding(self, rank: int, ticket: int) -> Holding | None:
        """Return the sealed copy of a version; None if there is none."""
        table = self.tables.get(rank)
        index = None if table is None else table.find(ticket)
        return None if table is None or index is None else table.slots[index].holding

    def intact(self, rank: int, ticket: int) -> bool:
        """Return whether a sealed copy is here and its bits are right."""
        return (rank, ticket) not in self.damaged and self.holding(rank, ticket) is not None

    def drop(self, rank: int, ticket: int) -> None:
        """Free the slot of one version."""
        if rank in self.tables:
            self.num_changes += 1
            self.tables[rank].drop(ticket)

    def drop_where(self, *, older_than: int | None = None, newer_than: int | None = None) -> None:
        """Free the slots of versions outside a range of tickets."""
        self.num_changes += 1
        for table in self.tables.values():
            table.drop_where(older_than=older_than, newer_than=newer_than)

    def drop_oldest(self, rank: int, *, older_than: int) -> None:
        """Free the slot of the oldest version of a rank below a ticket."""
        self.num_changes += 1
        self.tables[rank].drop_oldest(older_than=older_than)

    def holdings(self) -> list[Holding]:
        """Return all sealed copies."""
        return [holding for table in self.tables.values() for holding in table.holdings()]
