"""A job on a simulated cluster: root, workers, ranks and faults in virtual time.

Every delay is drawn from one seeded generator, so a seed replays exactly. A link between a
machine and the root is like a TCP connection: it delays, keeps the order, and loses what is
under way when it breaks.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twinckpt.core import messages as m
from twinckpt.core import worker as w
from twinckpt.core.root import Action, Disconnect, Log, Root, RootConfig, Send
from twinckpt.simulation.machine import SimulatedMachine, SimulatedRank

_HEARTBEAT_S = 0.1
_TICK_S = 0.2
_RECONNECT_S = 0.3


@dataclass(frozen=True, slots=True)
class Job:
    """What is simulated: machines of one rank each, and how often things fail."""

    num_machines: int
    root: RootConfig
    step_s: float = 0.3


class SimulatedCluster:
    """Root and machines of one job; `after_event` is called after each event."""

    def __init__(
        self, job: Job, seed: int, after_event: Callable[["SimulatedCluster"], None]
    ) -> None:
        self.job = job
        self.random = random.Random(seed)
        self.root = Root(job.root)
        self.machines: dict[str, SimulatedMachine] = {}
        self.now_s = 0.0
        self.trace: list[str] = []
        self.log: list[Log] = []
        self._after_event = after_event
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.num_events = 0
        self._link_free_s: dict[tuple[str, str], float] = {}
        for _ in range(job.num_machines):
            self.add_machine()
        self._every(_TICK_S, lambda: self._act_root(self.root.tick(self.now_s)))

    # Time.

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run `action` once this much virtual time has passed."""
        self.num_events += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self.num_events, action))

    def run_until(self, end_s: float) -> None:
        """Process events up to a time."""
        while self._queue and self._queue[0][0] <= end_s:
            self.now_s, _, action = heapq.heappop(self._queue)
            action()
            self._after_event(self)
        self.now_s = end_s

    def _every(self, interval_s: float, action: Callable[[], None]) -> None:
        def again() -> None:
            action()
            self.after(interval_s, again)

        self.after(interval_s, again)

    def _delay_s(self, scale_s: float) -> float:
        return self.random.expovariate(1 / scale_s)

    def note(self, text: str) -> None:
        """Add a line to the trace of this run."""
        self.trace.append(f"{self.now_s:9.3f} {text}")

    # Machines.

    def add_machine(self) -> None:
        """A machine starts: its agent connects, its launcher joins."""
        machine = SimulatedMachine(f"m{len(self.machines)}", self.job.root.num_slots)
        self.machines[machine.name] = machine
        self._every(_HEARTBEAT_S, lambda: self._send_root(machine, m.Heartbeat()))
        self.after(self._delay_s(0.1), lambda: self._connect(machine, join=True))

    def kill_machine(self, name: str, *, silently: bool = False) -> None:
        """A machine dies with its memory; silently: the root learns it from missing heartbeats."""
        machine = self.machines[name]
        if not machine.is_alive:
            return
        self.note(f"FAULT {name} dies{' silently' if silently else ''}")
        machine.is_alive = False
        if not silently:
            self._break_link(machine)
        self.after(self._delay_s(1.0), self.add_machine)

    def cut_link(self, name: str) -> None:
        """The connection between a machine and the root breaks; both live on."""
        machine = self.machines[name]
        if machine.is_alive and machine.is_connected:
            self.note(f"FAULT link of {name} breaks")
            self._break_link(machine)
            self._act_worker(machine, machine.worker.root_lost())
            self._reconnect(machine)

    def kill_rank(self, name: str) -> None:
        """A training process dies; its machine's memory stays."""
        machine = self.machines[name]
        for rank in list(machine.ranks):
            self.note(f"FAULT rank {rank} dies")
            del machine.ranks[rank]
            self._act_worker(machine, machine.worker.rank_lost(rank))

    def damage(self, name: str) -> None:
        """Bits flip in one sealed copy."""
        machine = self.machines[name]
        holdings = machine.slots.holdings()
        if machine.is_alive and holdings:
            chosen = self.random.choice(holdings)
            self.note(f"FAULT {name}: copy of rank {chosen.rank}, ticket {chosen.ticket} rots")
            machine.slots.damaged.add((chosen.rank, chosen.ticket))
            machine.slots.ever_damaged.add((chosen.rank, chosen.ticket))

    def _connect(self, machine: SimulatedMachine, *, join: bool) -> None:
        if not machine.is_alive or machine.is_connected:
            return
        machine.is_connected = True
        hello = m.Hello(machine.address, machine.worker.generation, tuple(machine.slots.holdings()))
        self._send_root(machine, hello)
        if join or machine.worker.formed is None:
            self._join(machine)

    def _reconnect(self, machine: SimulatedMachine) -> None:
        self.after(_RECONNECT_S, lambda: self._connect(machine, join=False))

    def _join(self, machine: SimulatedMachine) -> None:
        size = self.job.num_machines
        self._send_root(machine, m.Join(machine.worker.generation, machine.name, None, size, size))

    def _break_link(self, machine: SimulatedMachine) -> None:
        if machine.is_connected:
            machine.is_connected = False
            machine.incarnation += 1
            name = machine.name
            self.after(
                self._delay_s(0.005),
                lambda: self._act_root(self.root.connection_lost(name, self.now_s)),
            )

    # Links: delayed, in order, lost when they break.

    def _deliver(self, key: tuple[str, str], action: Callable[[], None]) -> None:
        arrival_s = max(self.now_s + self._delay_s(0.003), self._link_free_s.get(key, 0.0) + 1e-9)
        self._link_free_s[key] = arrival_s
        self.after(arrival_s - self.now_s, action)

    def _send_root(self, machine: SimulatedMachine, message: m.ToRoot) -> None:
        if not (machine.is_alive and machine.is_connected):
            return
        incarnation = machine.incarnation

        def arrive() -> None:
            if machine.incarnation == incarnation:
                self._act_root(self.root.receive(machine.name, message, self.now_s))

        self._deliver((machine.name, "root"), arrive)

    def _act_root(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(name, message):
                    self._send_worker(self.machines[name], message)
                case Log():
                    self.note(f"root {action.event} {dict(action.fields)}")
                    self.log.append(action)
                case Disconnect(name):
                    machine = self.machines[name]
                    machine.incarnation += 1
                    machine.is_connected = False
                    if machine.is_alive:
                        self._act_worker(machine, machine.worker.root_lost())
                        self._reconnect(machine)

    def _send_worker(self, machine: SimulatedMachine, message: m.ToWorker) -> None:
        incarnation = machine.incarnation

        def arrive() -> None:
            if machine.is_alive and machine.incarnation == incarnation:
                before = machine.worker.formed
                self._act_worker(machine, machine.worker.receive(message))
                if machine.worker.formed is not None and machine.worker.formed is not before:
                    self._start_rank(machine)

        self._deliver(("root", machine.name), arrive)

    # What workers want done.

    def _act_worker(self, machine: SimulatedMachine, actions: list[w.Action]) -> None:
        for action in actions:
            match action:
                case w.ToRootAgent(message):
                    self._send_root(machine, message)
                case w.GrantSlot(rank, ticket, not_before_step, _):
                    if rank in machine.ranks:
                        machine.ranks[rank].grants.append((ticket, not_before_step))
                case w.TellResolved(rank, ticket, _, _):
                    if rank in machine.ranks:
                        grants = machine.ranks[rank].grants
                        grants[:] = [grant for grant in grants if grant[0] != ticket]
                case w.StartFetch():
                    self._fetch(machine, action)
                case w.ServeRestore(rank, ticket, _):
                    self._restore(machine, rank, ticket)
                case w.BreakGeneration():
                    machine.ranks.clear()
                    self.after(self._delay_s(0.05), lambda: self._join(machine))

    def _fetch(self, machine: SimulatedMachine, fetch: w.StartFetch) -> None:
        """Copy from the first source that has the shard intact, from begin to end."""
        state = machine.slots.tables[fetch.rank].slots[fetch.slot]
        state.num_pins += 1

        def end() -> None:
            state.num_pins -= 1
            if not machine.is_alive:
                return
            damaged = []
            for name in fetch.sources:
                source = self.machines[name]
                holding = source.slots.holding(fetch.rank, fetch.ticket)
                if not source.is_alive:
                    continue
                if not source.slots.intact(fetch.rank, fetch.ticket):
                    damaged.append(name)
                    continue
                if machine.slots.find(fetch.rank, fetch.ticket) == fetch.slot and holding:
                    machine.slots.seal(holding)
                    self._act_worker(machine, machine.worker.fetched(fetch, holding))
                    return
            failed = machine.worker.fetched(fetch, None, "no intact source", tuple(damaged))
            self._act_worker(machine, failed)

        self.after(self._delay_s(0.1), end)

    # Ranks: restore, then train in lockstep.

    def _start_rank(self, machine: SimulatedMachine) -> None:
        formed = machine.worker.formed
        assert formed is not None
        rank = SimulatedRank(formed.index)
        machine.ranks = {rank.rank: rank}

        def restore() -> None:
            if machine.is_alive and machine.ranks.get(rank.rank) is rank:
                self._act_worker(machine, machine.worker.restore(rank.rank))

        self.after(self._delay_s(0.2), restore)

    def _restore(self, machine: SimulatedMachine, rank: int, ticket: int) -> None:
        process = machine.ranks.get(rank)
        if process is None:
            return
        if ticket and not machine.slots.intact(rank, ticket):
            self._act_worker(machine, machine.worker.damaged(rank, ticket, "checksum"))
            return
        holding = machine.slots.holding(rank, ticket) if ticket else None
        process.step = holding.step if holding else 0
        self.note(f"rank {rank} on {machine.name} restored step {process.step}")
        if self._all_ready(machine.worker.generation):
            self._train(machine.worker.generation)

    def _members(self, generation: int) -> list[SimulatedMachine]:
        return [
            machine
            for machine in self.machines.values()
            if machine.is_alive
            and machine.worker.formed
            and machine.worker.generation == generation
        ]

    def _all_ready(self, generation: int) -> bool:
        members = self._members(generation)
        processes = [process for machine in members for process in machine.ranks.values()]
        return len(processes) == self.job.num_machines and all(
            process.step is not None for process in processes
        )

    def _train(self, generation: int) -> None:
        """Finish one step on all ranks at nearly the same time, then the next one."""
        if not self._all_ready(generation):
            return
        for machine in self._members(generation):
            for process in machine.ranks.values():
                self.after(self._delay_s(0.01), partial(self._end_step, machine, process))
        self.after(self.job.step_s + 0.1, lambda: self._train(generation))

    def _end_step(self, machine: SimulatedMachine, process: SimulatedRank) -> None:
        if not machine.is_alive or machine.ranks.get(process.rank) is not process:
            return
        assert process.step is not None
        process.step += 1
        if not process.attached:
            process.attached = True
            attach = machine.worker.attach(process.rank, self.job.num_machines, 1)
            self._act_worker(machine, attach)
        elif process.grants and process.grants[0][1] <= process.step and not process.is_staging:
            self._stage(machine, process, process.grants.pop(0)[0], process.step)

    def _stage(
        self, machine: SimulatedMachine, process: SimulatedRank, ticket: int, step: int
    ) -> None:
        process.is_staging = True
        formed = machine.worker.formed
        if formed is None:
            return

        def end() -> None:
            process.is_staging = False
            alive = machine.is_alive and machine.ranks.get(process.rank) is process
            if alive and machine.slots.find(process.rank, ticket) is not None:
                size = self.job.num_machines
                digest = f"{process.rank}/{ticket}/{step}"
                holding = m.Holding(process.rank, ticket, step, formed.index, size, 1, digest)
                machine.slots.seal(holding)
                self._act_worker(machine, machine.worker.staged(holding))

        self.after(self._delay_s(0.05), end)
