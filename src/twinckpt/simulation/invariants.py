"""What must hold after every event of a simulated cluster, against its ground truth.

The rules speak of what machines really hold and really did, not of what the root believes.
"""

from dataclasses import dataclass

from twinckpt.core import messages as m
from twinckpt.core.commit import generation_of
from twinckpt.core.recovery import Recovery
from twinckpt.core.root import Log, Root
from twinckpt.simulation.cluster import SimulatedCluster
from twinckpt.simulation.machine import SimulatedMachine


class InvariantViolation(AssertionError):
    """A rule is broken; `rule` names it, the message ends with the story that led there."""

    def __init__(self, rule: str, what: str, story: str) -> None:
        super().__init__(f"{rule}: {what}\n{story}")
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed or resumed checkpoint: rank r's shard is sealed on machines `holders[r]`.

    An agent that was started again counts as another machine: it begins empty.
    """

    ticket: int
    step: int
    holders: tuple[tuple[SimulatedMachine, ...], ...]


@dataclass(slots=True)
class _Kept:
    """The shards of a checkpoint that a machine has to keep.

    `at_change` is the `num_changes` of its slots when they were last checked.
    """

    machine: SimulatedMachine
    ranks: list[int]
    at_change: int = -1


class Invariants:
    """Watches one cluster; call it after each event that changed something.

    committed step kept: a recovery resumes the newest commit, or a later step, while an intact
        copy of each of its shards is on a connected machine.
    one generation: connected machines agree on who belongs to a generation, each goes only
        forward, and a message of another generation changes nothing.
    needed slot kept: the newest commit, or what a recovery resumes instead, stays on each of
        its holders that lives, until a newer commit.
    plan names intact copies: all sources of a recovery hold sealed copies of that step, of one
        world size and with one digest per shard; ranks restore exactly that step; a drained step
        is complete in storage when it is planned with, and when the root takes it for drained.
    commit monotonic: tickets of new commits always grow, and so do their steps within a
        generation; but a successor may decide anew what its predecessor told no machine.
    commit real: a commit is sealed on all machines of every replica group, all of one step.

    That the job becomes healthy once faults have ended is checked by `schedule`.
    """

    def __init__(self) -> None:
        self.newest_commit_ticket = 0
        self._committed: Committed | None = None
        self._kept: list[_Kept] = []
        self._newest_step = 0
        self._committed_by: Root | None = None
        self._step_of: dict[int, int] = {}  # of each ticket committed
        self._resumed_step = 0
        self._num_logs = self._num_formed = self._num_restores = 0
        self._generation_of: dict[str, int] = {}

    @property
    def num_commits(self) -> int:
        """Return how many checkpoints were committed."""
        return len(self._step_of)

    def __call__(self, cluster: SimulatedCluster) -> None:
        """Check all rules after an event; raises InvariantViolation."""
        if cluster.stale_accepted:
            self._fail(cluster, "one generation", cluster.stale_accepted[0])
        for log in cluster.log[self._num_logs :]:
            if log.event in ("committed", "redundancy_restored"):
                self._on_commit(cluster, log, is_new=log.event == "committed")
            elif log.event == "generation_formed":
                self._on_planned(cluster)
            elif log.event == "drained":
                self._on_drained(cluster)
        self._num_logs = len(cluster.log)
        for name, formed in cluster.formed[self._num_formed :]:
            self._on_formed(cluster, name, formed)
        self._num_formed = len(cluster.formed)
        for rank, step, recovery in cluster.training.restores[self._num_restores :]:
            if step != (recovery.step if recovery else 0):
                what = f"rank {rank} restored step {step} instead of {recovery}"
                self._fail(cluster, "plan names intact copies", what)
        self._num_restores = len(cluster.training.restores)
        self._check_kept(cluster)

    def _on_commit(self, cluster: SimulatedCluster, log: Log, *, is_new: bool) -> None:
        ticket, step = log.fields["ticket"], log.fields["step"]
        if self._committed_by is not cluster.last_root:
            self._committed_by = cluster.last_root
            if generation_of(ticket) == generation_of(self.newest_commit_ticket):
                self._forget_what_nobody_was_told(cluster)
        if is_new:
            if ticket <= self.newest_commit_ticket or step <= self._newest_step:
                what = f"ticket {ticket}, step {step} after {self.newest_commit_ticket}"
                self._fail(cluster, "commit monotonic", f"{what}, step {self._newest_step}")
            self.newest_commit_ticket = ticket
            self._step_of[ticket] = step
        self._newest_step = step
        generation = cluster.last_root.newest
        assert generation is not None
        each = cluster.job.ranks_per_machine
        holders = tuple(
            tuple(cluster.heard_by_root(generation.places[holder]) for holder in row)
            for row in generation.holders
            for _ in range(each)
        )
        self._keep(Committed(ticket, step, holders))
        for rank, machines in enumerate(holders):
            for machine in machines:
                holding = machine.slots.holding(rank, ticket)
                is_wrong = holding is None or holding.step != step
                if machine.is_alive and is_wrong and not _was_damaged(machine, rank, ticket):
                    what = f"{machine.name} lacks rank {rank} of committed ticket {ticket}"
                    self._fail(cluster, "commit real", what)

    def _forget_what_nobody_was_told(self, cluster: SimulatedCluster) -> None:
        """Take back the commits that no machine was told of: a successor may decide them anew."""
        running = (machine.worker.running() for machine in cluster.living())
        told = max((now.committed_ticket for now in running if now is not None), default=0)
        self.newest_commit_ticket = min(self.newest_commit_ticket, told)
        self._newest_step = self._step_of.get(self.newest_commit_ticket, self._resumed_step)

    def _keep(self, committed: Committed) -> None:
        """Note that from now on this checkpoint is the one that is needed."""
        self._committed = committed
        kept: dict[int, _Kept] = {}
        for rank, machines in enumerate(committed.holders):
            for machine in machines:
                kept.setdefault(id(machine), _Kept(machine, [])).ranks.append(rank)
        self._kept = list(kept.values())

    def _on_drained(self, cluster: SimulatedCluster) -> None:
        drains = cluster.last_root.drains
        is_taken = not drains.is_busy and drains.newest_step == drains.step
        if is_taken and not cluster.storage.is_complete(drains.step):
            what = f"step {drains.step} is taken for drained, and is not complete in storage"
            self._fail(cluster, "plan names intact copies", what)

    def _check_kept(self, cluster: SimulatedCluster) -> None:
        for kept in self._kept:
            machine = kept.machine
            if kept.at_change == machine.slots.num_changes:
                continue
            kept.at_change = machine.slots.num_changes
            assert self._committed is not None
            ticket = self._committed.ticket
            for rank in kept.ranks:
                is_gone = machine.slots.holding(rank, ticket) is None
                # A copy found damaged is dropped on purpose, to be fetched again.
                if machine.is_alive and is_gone and not _was_damaged(machine, rank, ticket):
                    what = f"{machine.name} overwrote rank {rank} of ticket {ticket}"
                    self._fail(cluster, "needed slot kept", what)

    def _on_planned(self, cluster: SimulatedCluster) -> None:
        """Check the recovery plan of a generation that has formed."""
        root = cluster.last_root
        if root.current is None:
            return
        recovery = root.current.recovery
        self._newest_step = self._resumed_step = recovery.step if recovery else 0
        if recovery is not None and recovery.is_from_storage:
            if not cluster.storage.is_complete(recovery.step):
                what = f"step {recovery.step} is not complete in storage"
                self._fail(cluster, "plan names intact copies", what)
        elif recovery is not None:
            self._check_sources(cluster, recovery)
        resumed = recovery.ticket if recovery else 0
        if self._committed is not None and resumed < self._committed.ticket:
            self._check_lost(cluster, root, self._committed, resumed)
        elif not resumed:
            # The machines that knew of an earlier commit may have died since it was given up.
            left = _newest_ticket_left(cluster, _connected(cluster, root))
            self.newest_commit_ticket = min(self.newest_commit_ticket, left)
        if self._committed is None or resumed != self._committed.ticket:
            sources = recovery.sources if recovery else {}
            holders = tuple(
                tuple(map(cluster.heard_by_root, sources[rank])) for rank in sorted(sources)
            )
            self._keep(Committed(resumed, self._newest_step, holders))

    def _check_lost(
        self, cluster: SimulatedCluster, root: Root, committed: Committed, resumed: int
    ) -> None:
        """Check that a commit is given up only if some shard has no intact copy within reach."""
        connected = _connected(cluster, root)
        survives = all(
            any(machine.is_alive and machine.slots.intact(rank, committed.ticket)
                for machine in connected)
            for rank in range(len(committed.holders))
        )  # fmt: skip
        as_many = len(root.places) * cluster.job.ranks_per_machine == len(committed.holders)
        if survives and as_many:
            what = f"resumed ticket {resumed}, but {committed.ticket} survives"
            self._fail(cluster, "committed step kept", what)
        self.newest_commit_ticket = _newest_ticket_left(cluster, connected)

    def _check_sources(self, cluster: SimulatedCluster, recovery: Recovery) -> None:
        for rank, names in recovery.sources.items():
            digests = set()
            for name in names:
                machine = cluster.heard_by_root(name)
                holding = machine.slots.holding(rank, recovery.ticket)
                if not machine.is_alive or _was_damaged(machine, rank, recovery.ticket):
                    continue
                expected = (recovery.step, len(recovery.sources))
                if holding is None or (holding.step, holding.world_size) != expected:
                    what = f"{name} has no sealed copy of rank {rank} at step {recovery.step}"
                    self._fail(cluster, "plan names intact copies", what)
                else:
                    digests.add(holding.digest)
            if len(digests) > 1 or not names:
                what = f"the copies of rank {rank} contradict each other: {sorted(digests)}"
                self._fail(cluster, "plan names intact copies", what)
        if set(recovery.sources) != set(range(len(recovery.sources))):
            what = f"only ranks {sorted(recovery.sources)} are there"
            self._fail(cluster, "plan names intact copies", what)

    def _on_formed(self, cluster: SimulatedCluster, name: str, formed: m.Formed) -> None:
        number = formed.generation
        for other in cluster.living():
            theirs = other.worker.formed
            if theirs is None or other.connection is None or other.is_frozen:
                continue
            if theirs.generation == number and _differ(other.name == name, theirs, formed):
                what = f"{number} has formed differently on {name} and {other.name}"
                self._fail(cluster, "one generation", what)
        machine = f"{name}/{id(cluster.machines[name])}"
        if number <= self._generation_of.get(machine, 0):
            self._fail(cluster, "one generation", f"{name} went back to {number}")
        self._generation_of[machine] = number

    def _fail(self, cluster: SimulatedCluster, rule: str, what: str) -> None:
        raise InvariantViolation(rule, what, cluster.time.story())


def _differ(is_same_machine: bool, theirs: m.Formed, formed: m.Formed) -> bool:
    """Return whether two machines cannot be in one and the same generation."""
    told = (theirs.num_machines, theirs.master_endpoint, theirs.resume)
    if told != (formed.num_machines, formed.master_endpoint, formed.resume):
        return True
    return (theirs.index == formed.index) != is_same_machine


def _connected(cluster: SimulatedCluster, root: Root) -> list[SimulatedMachine]:
    return [cluster.heard_by_root(name) for name in root.membership.machines]


def _newest_ticket_left(cluster: SimulatedCluster, connected: list[SimulatedMachine]) -> int:
    """Return the newest ticket left in storage or on connected machines, 0 if there is none."""
    held = [holding.ticket for machine in connected for holding in machine.slots.holdings()]
    return max([cluster.storage.newest_ticket(), *held])


def _was_damaged(machine: SimulatedMachine, rank: int, ticket: int) -> bool:
    return (rank, ticket) in machine.slots.ever_damaged
