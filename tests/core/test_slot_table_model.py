"""A table of slots against a dictionary from ticket to slot.

Hypothesis draws sequences of events, the same in every run; after each the code and the model must
agree.
"""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from twinckpt.core.messages import Holding
from twinckpt.core.slot_table import SlotTable

SETTINGS = settings(max_examples=50, stateful_step_count=40, deadline=None, derandomize=True)
TICKETS = st.integers(1, 12)


class SlotTableModel(RuleBasedStateMachine):
    """A table of slots beside a dictionary from ticket to slot."""

    @initialize(num_slots=st.integers(2, 4))
    def begin_empty(self, num_slots: int) -> None:
        """No slot is used."""
        self.table = SlotTable(num_slots)
        self.slot_of: dict[int, int] = {}
        self.sealed: set[int] = set()
        self.pins: Counter[int] = Counter()

    @rule(ticket=TICKETS)
    def begin(self, ticket: int) -> None:
        """A slot that nobody needs or reads is handed out, if there is one."""
        if ticket in self.slot_of:
            return
        taken = set(self.slot_of.values()) | set(+self.pins)
        slot = self.table.begin(ticket)
        if slot is None:
            assert len(taken) == len(self.table.slots)
        else:
            assert slot not in taken
            self.slot_of[ticket] = slot

    @rule(ticket=TICKETS)
    def seal(self, ticket: int) -> None:
        """What was begun becomes a copy."""
        if ticket in self.slot_of:
            self.table.seal(Holding(0, ticket, ticket, 0, 1, 1, "x"))
            self.sealed.add(ticket)

    @rule(ticket=TICKETS)
    def pin(self, ticket: int) -> None:
        """A transfer begins to read or write a slot."""
        if ticket in self.slot_of:
            self.table.slots[self.slot_of[ticket]].num_pins += 1
            self.pins[self.slot_of[ticket]] += 1

    @rule(slot=st.integers(0, 3))
    def unpin(self, slot: int) -> None:
        """A transfer ends, perhaps long after its version was dropped."""
        if self.pins[slot]:
            self.table.slots[slot].num_pins -= 1
            self.pins[slot] -= 1

    @rule(ticket=TICKETS)
    def drop(self, ticket: int) -> None:
        """One version is not needed."""
        self.table.drop(ticket)
        self._forget(lambda t: t == ticket)

    @rule(low=st.none() | TICKETS, high=st.none() | TICKETS)
    def drop_where(self, low: int | None, high: int | None) -> None:
        """All versions outside a range are not needed."""
        self.table.drop_where(older_than=low, newer_than=high)
        self._forget(lambda t: (low is not None and t < low) or (high is not None and t > high))

    @rule(ticket=TICKETS)
    def drop_oldest(self, ticket: int) -> None:
        """The oldest version makes room."""
        self.table.drop_oldest(older_than=ticket)
        oldest = min(self.slot_of, default=ticket)
        self._forget(lambda t: t == oldest < ticket)

    def _forget(self, is_dropped) -> None:
        self.slot_of = {t: slot for t, slot in self.slot_of.items() if not is_dropped(t)}
        self.sealed &= self.slot_of.keys()

    @invariant()
    def each_version_is_where_the_model_has_it(self) -> None:
        """Sealed or not; and no slot holds two."""
        for ticket in range(1, 13):
            assert self.table.find(ticket) == self.slot_of.get(ticket)
        assert [held.ticket for held in self.table.holdings()] == sorted(self.sealed)
        assert len(set(self.slot_of.values())) == len(self.slot_of)


TestSlotTable = SlotTableModel.TestCase
TestSlotTable.settings = SETTINGS
