"""Placement, copies, commits and recoveries of a job against a set of who holds what.

Hypothesis draws sequences of events, the same in every run; after each the code and the model must
agree.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from twinckpt.core.commit import CommitLog
from twinckpt.core.copies import Copies
from twinckpt.core.messages import Holding
from twinckpt.core.placement import make_placement
from twinckpt.core.recovery import Recovery, newest_recoverable, plan_recovery

SETTINGS = settings(max_examples=50, stateful_step_count=40, deadline=None, derandomize=True)


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


TestCluster = ClusterModel.TestCase
TestCluster.settings = SETTINGS
