"""The ranks: they restore, train in lockstep or freely, and stage checkpoints into their slots."""

from typing import TYPE_CHECKING

from twinckpt.core import messages as m
from twinckpt.core import worker_actions as act
from twinckpt.simulation.machine import SimulatedMachine, SimulatedRank

if TYPE_CHECKING:
    from twinckpt.simulation.cluster import SimulatedCluster

STEP_S, _START_S, _STAGE_S, _JITTER_S = 0.15, 0.1, 0.02, 0.005


class SimulatedTraining:
    """Training processes of all machines; collectives keep them in step, unless they run freely.

    `restores` lists (rank, restored step, planned recovery), for the invariants.
    """

    def __init__(self, cluster: "SimulatedCluster") -> None:
        self.restores: list[tuple[int, int, m.Resume | None]] = []
        self._cluster = cluster
        self._time = cluster.time
        self._running: set[int] = set()

    def start(self, machine: SimulatedMachine, formed: m.Formed) -> None:
        """Start the ranks of a machine in a new generation, as its launcher would."""
        each = self._cluster.job.ranks_per_machine
        first = formed.index * each
        machine.ranks = {rank: SimulatedRank(rank) for rank in range(first, first + each)}
        for process in machine.ranks.values():
            delay_s = self._time.draw_s(_START_S)
            self._time.after(delay_s, machine.do, lambda p=process: self._ask(machine, p))

    def grant(self, machine: SimulatedMachine, rank: int, ticket: int, not_before: int) -> None:
        """Allow a rank to fill a slot at its first step from `not_before` on."""
        if rank in machine.ranks:
            machine.ranks[rank].grants.append((ticket, not_before))

    def resolve(self, machine: SimulatedMachine, rank: int, ticket: int) -> None:
        """Tell a rank that a ticket is decided, so that it no longer uses its grant."""
        if rank in machine.ranks:
            grants = machine.ranks[rank].grants
            grants[:] = [grant for grant in grants if grant[0] != ticket]

    def restored(self, machine: SimulatedMachine, serve: act.ServeRestore) -> None:
        """Let a rank restore the copy it was given and begin to train; report a damaged copy."""
        process = machine.ranks.get(serve.rank)
        formed = machine.worker.formed
        if process is None or formed is None:
            return
        rank, ticket = serve.rank, serve.ticket
        if ticket and not machine.slots.intact(rank, ticket):
            self._cluster.is_touched = True
            actions = machine.worker.damaged(rank, ticket, "checksum")
            self._cluster.act_worker(machine, actions)
            return
        holding = machine.slots.holding(rank, ticket) if ticket else None
        process.step = holding.step if holding else (serve.drained_step or 0)
        self.restores.append((rank, process.step, formed.resume))
        self._cluster.is_touched = True
        self._time.note("rank %d on %s restored step %d", rank, machine.name, process.step)
        if self._cluster.job.runs_freely:
            pace_s = STEP_S * self._time.random.uniform(0.9, 1.1)
            self._run_freely(machine, process, formed, pace_s)
        elif formed.generation not in self._running:
            self._running.add(formed.generation)
            self._train(formed.generation, formed.num_machines)

    def _ask(self, machine: SimulatedMachine, process: SimulatedRank) -> None:
        if machine.ranks.get(process.rank) is process:
            self._cluster.act_worker(machine, machine.worker.restore(process.rank))

    def _train(self, generation: int, num_machines: int) -> None:
        """Finish one step on all ranks at nearly the same time, if all are there; repeat."""
        members = [
            machine
            for machine in self._cluster.machines.values()
            if machine.is_alive
            and machine.worker.formed is not None
            and machine.worker.generation == generation
        ]
        if not members:
            self._running.discard(generation)
            return
        ranks = [process for machine in members for process in machine.ranks.values()]
        complete = num_machines * self._cluster.job.ranks_per_machine
        is_ready = len(ranks) == complete and all(rank.step is not None for rank in ranks)
        if is_ready and all(machine.is_reachable for machine in members):
            for machine in members:
                delay_s = self._time.draw_s(_JITTER_S)
                self._time.after(
                    delay_s, machine.do, lambda m=machine: self._end_steps(m, generation)
                )
        self._time.after(STEP_S, self._train, generation, num_machines)

    def _run_freely(
        self, machine: SimulatedMachine, process: SimulatedRank, formed: m.Formed, pace_s: float
    ) -> None:
        """Finish one step after another while the generation runs, at the rank's own pace."""

        def go_on() -> None:
            if machine.worker.formed is formed and machine.ranks.get(process.rank) is process:
                self._end_step(machine, process, formed)
                self._run_freely(machine, process, formed, pace_s)

        self._time.after(self._time.draw_s(pace_s), machine.do, go_on)

    def _end_steps(self, machine: SimulatedMachine, generation: int) -> None:
        formed = machine.worker.formed
        if formed is not None and formed.generation == generation:
            for process in machine.ranks.values():
                if process.step is not None:
                    self._end_step(machine, process, formed)

    def _end_step(
        self, machine: SimulatedMachine, process: SimulatedRank, formed: m.Formed
    ) -> None:
        assert process.step is not None
        process.step += 1
        world_size = formed.num_machines * self._cluster.job.ranks_per_machine
        if not process.attached:
            process.attached = True
            attach = machine.worker.attach(process.rank, world_size, 1)
            self._cluster.act_worker(machine, attach)
        elif process.grants and process.grants[0][1] <= process.step and not process.is_staging:
            process.is_staging = True
            ticket = process.grants.pop(0)[0]
            what = (process.rank, ticket, process.step, formed.index, world_size, 1)
            digest = f"{process.rank}/{ticket}/{process.step}/{formed.generation}"
            holding = m.Holding(*what, digest)
            self._time.after(
                self._time.draw_s(_STAGE_S),
                machine.do,
                lambda: self._end_staging(machine, process, holding),
            )

    def _end_staging(
        self, machine: SimulatedMachine, process: SimulatedRank, holding: m.Holding
    ) -> None:
        process.is_staging = False
        is_running = machine.ranks.get(process.rank) is process
        if is_running and machine.slots.find(process.rank, holding.ticket) is not None:
            machine.slots.seal(holding)
            self._cluster.is_touched = True
            self._cluster.act_worker(machine, machine.worker.staged(holding))
