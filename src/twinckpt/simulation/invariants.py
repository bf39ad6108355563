"""What must hold after every event of a simulated cluster, against its ground truth."""

from twinckpt.simulation.cluster import SimulatedCluster


class InvariantViolation(AssertionError):
    """A rule is broken; the message ends with the trace that led there."""


class Invariants:
    """Watches one cluster; call it after each event.

    1. A committed step is kept: each of its holders that lives has it, until a newer commit.
    2. Commits are monotonic in ticket.
    3. A commit is real: every shard is on every machine of its group, all of one step.
    4. A recovery resumes the newest commit, or later, while an intact copy of each of its
       shards lives.
    """

    def __init__(self) -> None:
        self.num_commits = 0
        self._committed: tuple[int, int, dict[str, list[int]]] | None = None
        self._num_seen = 0

    def __call__(self, cluster: SimulatedCluster) -> None:
        """Check all rules; raises InvariantViolation."""
        for log in cluster.log[self._num_seen :]:
            if log.event in ("committed", "redundancy_restored"):
                self._on_commit(cluster, log.fields["ticket"], log.fields["step"])
                self.num_commits += log.event == "committed"
            elif log.event == "generation_formed":
                self._on_formed(cluster)
        self._num_seen = len(cluster.log)
        self._committed_is_kept(cluster)

    def _on_commit(self, cluster: SimulatedCluster, ticket: int, step: int) -> None:
        if self._committed and ticket < self._committed[0]:
            self._fail(cluster, f"ticket {ticket} committed after {self._committed[0]}")
        current = cluster.root.current
        holders_of = current.holders if current else ()
        holders: dict[str, list[int]] = {}
        for rank in range(cluster.job.num_machines):
            for holder in holders_of[rank]:
                holders.setdefault(cluster.root.places[holder], []).append(rank)
        for name, ranks in holders.items():
            machine = cluster.machines[name]
            for rank in ranks:
                holding = machine.slots.holding(rank, ticket)
                if machine.is_alive and (holding is None or holding.step != step):
                    self._fail(cluster, f"{name} lacks rank {rank} of committed ticket {ticket}")
        self._committed = (ticket, step, holders)

    def _committed_is_kept(self, cluster: SimulatedCluster) -> None:
        if self._committed is None:
            return
        ticket, _, holders = self._committed
        for name, ranks in holders.items():
            machine = cluster.machines[name]
            for rank in ranks:
                gone = machine.slots.find(rank, ticket) is None
                # A copy found damaged is dropped on purpose, to be fetched again.
                if machine.is_alive and gone and (rank, ticket) not in machine.slots.ever_damaged:
                    self._fail(cluster, f"{name} overwrote rank {rank} of ticket {ticket}")

    def _on_formed(self, cluster: SimulatedCluster) -> None:
        if self._committed is None:
            return
        ticket, step, _ = self._committed
        members = [cluster.machines[name] for name in cluster.root.places]
        survives = all(
            any(machine.is_alive and machine.slots.intact(rank, ticket) for machine in members)
            for rank in range(cluster.job.num_machines)
        )
        current = cluster.root.current
        recovery = current.recovery if current else None
        resumed = recovery.ticket if recovery else 0
        if survives and resumed < ticket:
            self._fail(cluster, f"resumed ticket {resumed}, but {ticket} (step {step}) survives")
        if resumed < ticket:
            self._committed = None  # more was lost than replicas can bear

    def _fail(self, cluster: SimulatedCluster, what: str) -> None:
        raise InvariantViolation("\n".join([what, *cluster.trace[-60:]]))
