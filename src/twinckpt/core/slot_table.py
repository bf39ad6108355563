"""The slots of one shard: which version lies where, and which may be overwritten.

Pure bookkeeping. The rule it keeps: a slot is reused only when the root has resolved its
ticket, as abandoned, or as committed and then superseded by a newer commit.
"""

from dataclasses import dataclass

from twinckpt.core.messages import Holding


@dataclass(slots=True)
class SlotState:
    """One slot: empty, being filled for `ticket`, or sealed with `holding`.

    A pin is a transfer that reads or writes the bytes; a pinned slot is not reused.
    """

    ticket: int = 0
    holding: Holding | None = None
    num_pins: int = 0


class SlotTable:
    """Slots of one rank's shard on one machine."""

    def __init__(self, num_slots: int) -> None:
        if num_slots < 2:
            raise ValueError(
                f"num_slots={num_slots}: at least 2 are needed, the committed step and the next"
            )
        self.slots = [SlotState() for _ in range(num_slots)]

    def begin(self, ticket: int) -> int | None:
        """Take a free slot for `ticket`, which is not here yet; None if there is none."""
        assert self.find(ticket) is None
        for index, slot in enumerate(self.slots):
            if slot.ticket == 0 and slot.num_pins == 0:
                slot.ticket = ticket
                return index
        return None

    def seal(self, holding: Holding) -> int:
        """Mark the slot of this ticket as complete and immutable; return its index."""
        index = self.find(holding.ticket)
        if index is None:
            raise ValueError(f"no slot was begun for ticket {holding.ticket} of {holding.rank}")
        self.slots[index].holding = holding
        return index

    def find(self, ticket: int) -> int | None:
        """Return the slot that holds or is being filled with `ticket`."""
        for index, slot in enumerate(self.slots):
            if slot.ticket == ticket:
                return index
        return None

    def drop(self, ticket: int) -> None:
        """Free the slot of `ticket`, if there is one."""
        index = self.find(ticket)
        if index is not None:
            slot = self.slots[index]
            slot.ticket, slot.holding = 0, None

    def drop_where(self, *, older_than: int | None = None, newer_than: int | None = None) -> None:
        """Free every slot with a ticket below `older_than` or above `newer_than`."""
        for slot in self.slots:
            too_old = older_than is not None and slot.ticket < older_than
            too_new = newer_than is not None and slot.ticket > newer_than
            if slot.ticket and (too_old or too_new):
                slot.ticket, slot.holding = 0, None

    def drop_oldest(self, *, older_than: int) -> None:
        """Free the oldest version below a ticket, if there is one."""
        older = [slot.ticket for slot in self.slots if 0 < slot.ticket < older_than]
        if older:
            self.drop(min(older))

    def holdings(self) -> list[Holding]:
        """Return what is sealed here, oldest first."""
        sealed = [slot.holding for slot in self.slots if slot.holding is not None]
        return sorted(sealed, key=lambda holding: holding.ticket)
