"""Slots, tickets, placement and recovery against models that anybody can check by eye.

Hypothesis draws sequences of events; after each, the code and a plain set or dictionary must
agree. The sequences are the same in every run.
"""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from twinckpt.core.commit import CommitLog
from twinckpt.core.copies import Copies
from twinckpt.core.messages import Holding
from twinckpt.core.placement import make_placement
from twinckpt.core.recovery import Recovery, newest_recoverable, plan_recovery
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


class CommitLogModel(RuleBasedStateMachine):
    """Tickets of several generations beside a list of what became of each."""

    @initialize(window=st.integers(1, 3))
    def begin_job(self, window: int) -> None:
        """Nothing was issued."""
        self.log = CommitLog(window)
        self.generation = 1
        self.log.restart(None, 1)
        self.open: dict[int, int | None] = {}  # ticket in flight → step, once it is known
        self.resumed = 0
        self.committed: list[int] = []
        self.ever_issued: set[int] = set()
        self.newest_step = 0
        self.not_before_step = 0

    @rule()
    def issue(self) -> None:
        """Numbers are new for ever, no more are open than slots, none begins too early."""
        issued = self.log.issue()
        for ticket, not_before_step in issued:
            assert ticket not in self.ever_issued
            assert not_before_step == self.not_before_step
            self.ever_issued.add(ticket)
            self.open[ticket] = None
        assert len(self.open) == self.log.window

    @precondition(lambda self: self.open)
    @rule(data=st.data(), step=st.integers(0, 9))
    def use(self, data, step: int) -> None:
        """A rank used a ticket: the first one decides the step, others agree or conflict."""
        ticket = data.draw(st.sampled_from(sorted(self.open)))
        step += self.newest_step
        expected = self.open[ticket]
        assert self.log.conflicts(ticket, step) == (expected is not None and expected != step)
        self.open[ticket] = step if expected is None else expected
        self.newest_step = max(self.newest_step, step)

    @rule(data=st.data())
    def commit(self, data) -> None:
        """The oldest ones that were used commit in order; once."""
        newest = self.committed[-1] if self.committed else 0
        used = [t for t, step in self.open.items() if step is not None and t > newest]
        if used:
            ticket = data.draw(st.sampled_from(sorted(used)))
            step, is_new = self.log.commit(ticket)
            assert step == self.open.pop(ticket)
            assert is_new == (ticket != self.resumed)
            self.committed.append(ticket)
            assert self.log.committed_step == step

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abandon(self, data) -> None:
        """The next ticket begins after every step that any rank has got to."""
        ticket = data.draw(st.sampled_from(sorted(self.open)))
        if ticket == self.resumed:
            return
        assert self.log.abandon(ticket) == (self.open.pop(ticket) or 0)
        self.not_before_step = self.newest_step + 2
        assert self.log.is_abandoned(ticket)

    @rule(is_known=st.booleans())
    def begin_generation(self, is_known: bool) -> None:
        """It resumes the last commit from memory, or an old step from storage, or nothing."""
        self.generation += 1
        resumable = self.log.resumable_ticket
        if is_known and resumable:
            recovery = Recovery(step=self.newest_step, ticket=resumable)
            self.open = {resumable: self.newest_step}
        else:
            recovery = Recovery(step=self.newest_step, drained=True) if is_known else None
            self.open = {}
        self.resumed = recovery.ticket if recovery else 0
        self.newest_step = recovery.step if recovery else 0
        self.not_before_step = 0
        self.log.restart(recovery, self.generation)
        self.committed = []

    @invariant()
    def it_knows_what_is_open(self) -> None:
        """In flight: issued or resumed, and not decided yet."""
        assert self.log.undecided() == sorted(self.open)
        used = sorted(t for t, step in self.open.items() if step is not None)
        assert self.log.pending() == used
        assert self.log.steps_in_flight() == sorted(self.open[t] for t in used)
        assert self.log.is_restoring == (self.resumed in self.open and self.resumed > 0)

    @invariant()
    def commits_are_monotonic(self) -> None:
        """Within a generation, and what a failure resumes from is the last one."""
        assert self.committed == sorted(set(self.committed))
        newest = self.committed[-1] if self.committed else 0
        assert self.log.committed_ticket == newest
        assert self.log.resumable_ticket == (newest or self.resumed)


class ClusterModel(RuleBasedStateMachine):
    """Placement, copies, commits and recoveries of one job, beside a set of who holds what.

    Every machine has one rank. Whoever is lost is replaced by an empty machine.
    """

    @initialize(
        kind=st.sampled_from(["ring", "mixed"]),
        num_machines=st.integers(1, 5),
        num_replicas=st.integers(1, 3),
        window=st.integers(1, 2),
    )
    def begin_job(self, kind: str, num_machines: int, num_replicas: int, window: int) -> None:
        """Machines without any copy."""
        self.num_replicas = min(num_replicas, num_machines)
        self.holders = make_placement(kind, num_machines, self.num_replicas).holders
        self.names = [f"machine-{place}" for place in range(num_machines)]
        self.num_started = num_machines
        self.copies, self.log = Copies(), CommitLog(window)
        for name in self.names:
            self.copies.add_machine(name, ())
        self.held: set[tuple[str, int, int]] = set()  # machine, rank, ticket
        self.generation, self.step = 0, 0
        self.step_of: dict[int, int] = {}
        self.safe_ticket, self.lost_since = 0, set()
        self._begin_generation(None)

    def _begin_generation(self, recovery: Recovery | None) -> None:
        self.generation += 1
        self.copies.place({name: i for i, name in enumerate(self.names)}, self.holders)
        self.log.restart(recovery, self.generation)
        resumed = recovery.ticket if recovery else 0
        self.step = recovery.step if recovery else 0
        self._drop(lambda ticket: ticket > resumed)

    def _drop(self, is_dropped) -> None:
        self.copies.remove_tickets([t for t in self.copies.tickets() if is_dropped(t)])
        self.held = {copy for copy in self.held if not is_dropped(copy[2])}

    def _hold(self, machine: str, rank: int, ticket: int) -> None:
        step, num_ranks = self.step_of[ticket], len(self.names)
        self.copies.add(machine, Holding(rank, ticket, step, rank, num_ranks, 1, f"{rank}"))
        self.held.add((machine, rank, ticket))

    def _is_redundant(self, ticket: int) -> bool:
        return all(
            (self.names[holder], rank, ticket) in self.held
            for rank, row in enumerate(self.holders)
            for holder in row
        )

    @precondition(lambda self: not self.log.is_restoring)
    @rule()
    def train(self) -> None:
        """One more step; whoever gets a ticket uses it there."""
        self.step += 1
        for ticket, _ in self.log.issue():
            self.step_of[ticket] = self.step
            self.log.conflicts(ticket, self.step)
            self.step += 1

    @precondition(lambda self: self.log.undecided())
    @rule(data=st.data(), all_ranks=st.booleans())
    def stage(self, data, all_ranks: bool) -> None:
        """Ranks seal their shards of a ticket."""
        new = [t for t in self.log.undecided() if t > self.log.resumable_ticket]
        if new:
            ticket = data.draw(st.sampled_from(new))
            rank = data.draw(st.integers(0, len(self.names) - 1))
            for r in range(len(self.names)) if all_ranks else [rank]:
                self._hold(self.names[r], r, ticket)

    @rule(data=st.data(), everything=st.booleans())
    def replicate(self, data, everything: bool) -> None:
        """A copy reaches another machine of its replica group, or all of them do."""
        under_way = sorted(
            (self.names[holder], rank, ticket)
            for _, rank, ticket in self.held
            for holder in self.holders[rank]
            if (self.names[holder], rank, ticket) not in self.held
        )
        if under_way:
            one = data.draw(st.sampled_from(under_way))
            for copy in under_way if everything else [one]:
                self._hold(*copy)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def tell_twice(self, data) -> None:
        """News of a copy comes again."""
        self._hold(*data.draw(st.sampled_from(sorted(self.held))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def damage(self, data) -> None:
        """One copy is found damaged, and counts as lost."""
        copy = data.draw(st.sampled_from(sorted(self.held)))
        self.copies.remove(*copy)
        self.held.discard(copy)
        self.lost_since.add(self.names.index(copy[0]))

    @rule()
    def commit(self) -> None:
        """What is on all machines of its groups commits; then older versions are not needed."""
        for ticket in self.log.pending():
            assert self.copies.is_redundant(ticket) == self._is_redundant(ticket)
            if self._is_redundant(ticket):
                self.log.commit(ticket)
                for older in [t for t in self.log.undecided() if t < ticket]:
                    self.log.abandon(older)
                self._drop(lambda t, newest=ticket: t < newest)
                self.safe_ticket, self.lost_since = ticket, set()
                return

    @rule(data=st.data())
    def lose(self, data) -> None:
        """Machines are lost at once and replaced; the newest complete step is resumed."""
        places = data.draw(st.sets(st.integers(0, len(self.names) - 1), min_size=1, max_size=3))
        for place in places:
            self.copies.remove_machine(self.names[place])
            self.held = {copy for copy in self.held if copy[0] != self.names[place]}
            self.names[place] = f"machine-{self.num_started}"
            self.num_started += 1
            self.copies.add_machine(self.names[place], ())
        self.lost_since |= places
        self._begin_generation(self._recover())
        if not self.step:
            self.safe_ticket, self.lost_since = 0, set()

    def _recover(self) -> Recovery | None:
        """Compare the plan with the set of what is held; and with what was promised."""
        holdings = {name: self.copies.of_machine(name) for name in self.names}
        plan = plan_recovery(holdings, dict(enumerate(self.names)))
        ranks = set(range(len(self.names)))
        complete = [
            ticket
            for ticket in {copy[2] for copy in self.held}
            if {rank for _, rank, t in self.held if t == ticket} == ranks
        ]
        newest = max(complete, default=0)
        assert (plan.ticket if plan else 0) == newest
        found = newest_recoverable(holdings)
        assert (found.ticket, found.num_machines) == (newest, len(ranks) if newest else 0)
        if all(not set(row) <= self.lost_since for row in self.holders):
            assert newest >= self.safe_ticket  # some machine of every group has been there since
        if plan:
            assert plan.step == self.step_of[newest]
            for rank in ranks:
                having = {name for name, r, t in self.held if (r, t) == (rank, newest)}
                assert set(plan.sources[rank]) == having
                assert (plan.sources[rank][0] == self.names[rank]) == (self.names[rank] in having)
        return plan

    @invariant()
    def the_index_holds_what_the_set_holds(self) -> None:
        """By machine and by shard."""
        by_machine = {
            (name, copy.rank, copy.ticket)
            for name in self.names
            for copy in self.copies.of_machine(name)
        }
        assert by_machine == self.held
        assert set(self.copies.tickets()) == {ticket for _, _, ticket in self.held}
        for name, rank, ticket in self.held:
            assert name in self.copies.of_shard(rank, ticket)
            assert self.copies.has(name, rank, ticket)


TestSlotTable = SlotTableModel.TestCase
TestCommitLog = CommitLogModel.TestCase
TestCluster = ClusterModel.TestCase
TestSlotTable.settings = TestCommitLog.settings = TestCluster.settings = SETTINGS
