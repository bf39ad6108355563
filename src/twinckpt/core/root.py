"""The root agent's decisions: membership, failures, commit, recovery. Pure: no I/O, no clock.

`Root.receive`, `Root.connection_lost` and `Root.tick` take an event and the time, and return
actions; `twinckpt.agents.root` carries them out over sockets, the simulator in virtual time.
The life of a generation:

    machines join → formed (recovery plan) → ranks attach, slots reserved → tickets →
    holdings → commits … → a machine or rank is lost → broken → machines join again
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twinckpt.core import messages as m
from twinckpt.core.commit import CommitLog
from twinckpt.core.placement import make_placement
from twinckpt.core.recovery import plan_recovery


@dataclass(frozen=True, slots=True)
class RootConfig:
    """What the root must know of a job; durations in seconds."""

    replicas: int = 2
    placement: str = "ring"
    num_slots: int = 2
    heartbeat_timeout_s: float = 1.0
    last_call_s: float = 5.0
    drain_every_commits: int = 0
    max_failures_at_a_step: int = 3


@dataclass(frozen=True, slots=True)
class Send:
    """Action: deliver `message` to `machine`."""

    machine: str
    message: m.ToWorker


@dataclass(frozen=True, slots=True)
class Log:
    """Action: append an event to the job's event log."""

    event: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Action: close the connection of a machine that counts as lost."""

    machine: str


Action = Send | Log | Disconnect


@dataclass(slots=True)
class Machine:
    """What the root knows of one connected machine."""

    address: m.Address
    last_heard_s: float
    holdings: dict[tuple[int, int], m.Holding] = field(default_factory=dict)
    drained_steps: tuple[int, ...] = ()
    join: m.Join | None = None
    joined_at_s: float = 0.0
    reserved_bytes: dict[int, int] = field(default_factory=dict)


class Root:
    """State machine of the root agent; one instance a job."""

    def __init__(self, config: RootConfig) -> None:
        self.config = config
        self.generation = 0
        self.running = False
        self.machines: dict[str, Machine] = {}
        self.places: list[str] = []
        self.recovery: m.Recovery | None = None
        self.commits = CommitLog(window=config.num_slots - 1)
        self._slot_bytes: dict[int, int] = {}
        self._home: dict[int, int] = {}
        self._world_size = 0
        self._holders: tuple[tuple[int, ...], ...] = ()
        self._draining: set[str] = set()
        self._num_commits = 0
        self._num_failures = 0
        self._failed_at_step: int | None = None
        self._actions: list[Action] = []

    # Events.

    def receive(self, machine: str, message: m.ToRoot, now_s: float) -> list[Action]:
        """Handle one message; messages of another generation change nothing but liveness."""
        if isinstance(message, m.Hello):
            self._on_hello(machine, message, now_s)
        elif machine in self.machines:
            self.machines[machine].last_heard_s = now_s
            if isinstance(message, m.Join):
                self._on_join(machine, message, now_s)
            elif isinstance(message, m.Leave):
                self._on_leave(machine)
            elif isinstance(message, m.Heartbeat):
                pass
            elif message.generation == self.generation and self.running:
                self._on_current(machine, message)
        return self._flush()

    def connection_lost(self, machine: str, now_s: float) -> list[Action]:
        """The kernel says that a machine's connection ended: it died, or was cut off."""
        self._lose(machine, "connection closed")
        self._form_if_complete(now_s)
        return self._flush()

    def tick(self, now_s: float) -> list[Action]:
        """Let time pass: find silent machines, end the wait for late ones."""
        for machine, state in list(self.machines.items()):
            if now_s - state.last_heard_s > self.config.heartbeat_timeout_s:
                self._lose(machine, f"no heartbeat for {self.config.heartbeat_timeout_s} s")
                self._actions.append(Disconnect(machine))
        self._form_if_complete(now_s)
        return self._flush()

    # Membership.

    def _on_hello(self, machine: str, hello: m.Hello, now_s: float) -> None:
        if machine in self.machines:
            self._lose(machine, "connected again")
        state = Machine(hello.address, now_s, drained_steps=hello.drained_steps)
        for holding in hello.inventory:
            state.holdings[holding.rank, holding.ticket] = holding
            self.commits.skip_past(holding.ticket)
        self.machines[machine] = state
        self.generation = max(self.generation, hello.generation)
        self._log("machine_joined", machine=machine, host=hello.address.host)

    def _on_join(self, machine: str, join: m.Join, now_s: float) -> None:
        state = self.machines[machine]
        state.join, state.joined_at_s = join, now_s
        if self.running and machine in self.places:
            self._break(f"machine {self.places.index(machine)} joins again")
        elif self.running:
            self._log("machine_waiting", machine=machine)
        self._form_if_complete(now_s)

    def _on_leave(self, machine: str) -> None:
        self.machines.pop(machine, None)
        self.running = self.running and machine not in self.places
        self._log("machine_left", machine=machine)

    def _lose(self, machine: str, reason: str) -> None:
        state = self.machines.pop(machine, None)
        if state is None:
            return
        index = self.places.index(machine) if machine in self.places else None
        self._log("machine_lost", machine=machine, index=index, reason=reason)
        if self.running and index is not None:
            self._break(f"machine {index} was lost: {reason}")

    def _break(self, reason: str, *, is_final: bool = False) -> None:
        self.running = False
        self._log("generation_broken", reason=reason)
        for machine in self.places:
            if machine in self.machines:
                self._send(machine, m.Broken(self.generation, reason, is_final))

    def _form_if_complete(self, now_s: float) -> None:
        if self.running:
            return
        waiting = {name: s.join for name, s in self.machines.items() if s.join is not None}
        if not waiting:
            return
        smallest = min(join.min_machines for join in waiting.values())
        largest = max(join.max_machines for join in waiting.values())
        newest_s = max(self.machines[name].joined_at_s for name in waiting)
        if len(waiting) >= largest or (
            len(waiting) >= smallest and now_s - newest_s >= self.config.last_call_s
        ):
            self._form(waiting, largest)

    def _form(self, waiting: Mapping[str, m.Join], largest: int) -> None:
        """Begin the next generation; survivors keep their places, newcomers fill the gaps."""
        size = min(len(waiting), largest)
        self.places = assign_places(waiting, self.places, size)
        self.generation += 1
        self.running = True
        self._slot_bytes, self._home, self._world_size = {}, {}, 0
        self._draining = set()
        replicas = min(self.config.replicas, size)
        self._holders = make_placement(self.config.placement, size, replicas).holders
        home_machine = dict(enumerate(self.places))
        holdings = {name: list(self.machines[name].holdings.values()) for name in self.places}
        self.recovery = plan_recovery(holdings, home_machine) or self._newest_drained()
        self.commits.restart(self.recovery)
        self._forget_newer_than_recovery()
        addresses = tuple(self.machines[name].address for name in self.places)
        meet_at = waiting[self.places[0]].master_endpoint
        for index, name in enumerate(self.places):
            self.machines[name].join = None
            self.machines[name].reserved_bytes = {}
            self._send(name, m.Formed(self.generation, index, addresses, meet_at, self.recovery))
        self._log(
            "generation_formed",
            machines=list(self.places),
            recover_step=self.recovery.step if self.recovery else None,
            drained=bool(self.recovery and self.recovery.drained),
            sources={rank: list(names) for rank, names in self._sources().items()},
        )
        self._fetch_missing()

    def _newest_drained(self) -> m.Recovery | None:
        steps = [step for name in self.places for step in self.machines[name].drained_steps]
        return m.Recovery(step=max(steps), drained=True) if steps else None

    def _forget_newer_than_recovery(self) -> None:
        """Shards newer than the step resumed from belong to a future that is not repeated."""
        newest = self.recovery.ticket if self.recovery else 0
        for machine in self.machines.values():
            for key in [key for key in machine.holdings if key[1] > newest]:
                del machine.holdings[key]

    # Messages of the running generation.

    def _on_current(self, machine: str, message: m.ToRoot) -> None:
        match message:
            case m.Attached():
                self._on_attached(machine, message)
            case m.Reserved():
                self.machines[machine].reserved_bytes[message.rank] = message.slot_bytes
            case m.Holds():
                self._on_holds(machine, message.holding)
            case m.Dropped():
                self._on_dropped(machine, message)
            case m.RankStarted():
                self._log("rank_started", rank=message.rank, pid=message.pid, machine=machine)
            case m.RankLost():
                self._on_rank_lost(machine, message)
            case m.Drained():
                self._on_drained(machine, message)
            case _:
                pass
        if self.running:
            self._commit_complete()
            self._issue_tickets()

    def _on_attached(self, machine: str, attached: m.Attached) -> None:
        home = self.places.index(machine)
        self._home[attached.rank] = home
        self._world_size = attached.world_size
        if self._slot_bytes.get(attached.rank, 0) < attached.slot_bytes:
            self._slot_bytes[attached.rank] = attached.slot_bytes
            self._resolve_abandoned(self.commits.abandon_all())
        self.machines[machine].reserved_bytes[attached.rank] = attached.slot_bytes
        for holder in self._holders[home][1:]:
            reserve = m.Reserve(self.generation, attached.rank, attached.slot_bytes)
            self._send(self.places[holder], reserve)

    def _on_holds(self, machine: str, holding: m.Holding) -> None:
        if self.commits.is_abandoned(holding.ticket):
            return
        self.machines[machine].holdings[holding.rank, holding.ticket] = holding
        if self.commits.conflicts(holding.ticket, holding.step):
            self._resolve_abandoned([holding.ticket])
            return
        if holding.home == self.places.index(machine):
            for holder in self._holders[holding.home][1:]:
                self._fetch(self.places[holder], holding, (machine,))

    def _on_dropped(self, machine: str, dropped: m.Dropped) -> None:
        """A copy is as good as lost: fetch it again, or give the ticket up."""
        key = (dropped.rank, dropped.ticket)
        lacking = [machine]
        self.machines[machine].holdings.pop(key, None)
        for source in dropped.damaged_sources:
            if source in self.machines and key in self.machines[source].holdings:
                del self.machines[source].holdings[key]
                self._send(source, m.Discard(self.generation, *key))
                lacking.append(source)
        self._log(
            "copy_lost",
            machine=machine,
            rank=dropped.rank,
            ticket=dropped.ticket,
            reason=dropped.reason,
        )
        sources = tuple(n for n, other in sorted(self.machines.items()) if key in other.holdings)
        if sources:
            for name in lacking:
                self._fetch(name, self.machines[sources[0]].holdings[key], sources)
        elif self._is_awaited(dropped.rank, dropped.ticket):
            self._break(f"no intact copy of rank {dropped.rank} at ticket {dropped.ticket} is left")
        elif self.commits.in_flight(dropped.ticket):
            self._resolve_abandoned([dropped.ticket])

    def _is_awaited(self, rank: int, ticket: int) -> bool:
        """Return whether a rank has yet to restore this shard; one that attached has done so."""
        is_resumed = self.recovery is not None and self.recovery.ticket == ticket
        return is_resumed and rank not in self._home

    def _on_rank_lost(self, machine: str, lost: m.RankLost) -> None:
        """Start again; but a script that keeps failing at the same step is given up."""
        self._log("rank_lost", rank=lost.rank, machine=machine, exit_code=lost.exit_code)
        failed_itself = lost.exit_code is not None and lost.exit_code > 0
        step = self.commits.committed_step or (self.recovery.step if self.recovery else 0)
        if failed_itself and step == self._failed_at_step:
            self._num_failures += 1
        else:
            self._failed_at_step = step if failed_itself else None
            self._num_failures = int(failed_itself)
        if self._num_failures >= self.config.max_failures_at_a_step:
            self._break(
                f"rank {lost.rank} failed {self._num_failures} times after step {step} with exit "
                f"code {lost.exit_code}; its traceback is in its output",
                is_final=True,
            )
        else:
            self._break(f"rank {lost.rank} was lost (exit code {lost.exit_code})")

    def _on_drained(self, machine: str, drained: m.Drained) -> None:
        self._draining.discard(machine)
        self._log("drained", machine=machine, ticket=drained.ticket, ok=drained.ok)

    # Commit.

    def _commit_complete(self) -> None:
        for ticket in self.commits.pending():
            if not self.commits.in_flight(ticket) or not self._redundant(ticket):
                continue
            step, is_new = self.commits.commit(ticket)
            self._resolve_abandoned([t for t in self.commits.undecided() if t < ticket])
            self._forget_older_than(ticket)
            self._log("committed" if is_new else "redundancy_restored", step=step, ticket=ticket)
            if is_new:
                self._drain_if_due(ticket, step)
            # First the next ticket: whoever waits for a commit may checkpoint right after it.
            self._issue_tickets()
            self._broadcast(m.Resolve(self.generation, ticket, step, committed=True))

    def _redundant(self, ticket: int) -> bool:
        """Every shard of the ticket is sealed on all the machines of its replica group."""
        homes: dict[int, int] = {}
        world_size = 0
        for machine in self.machines.values():
            for (rank, held), holding in machine.holdings.items():
                if held == ticket:
                    homes[rank] = holding.home
                    world_size = holding.world_size
        if not world_size or len(homes) != world_size:
            return False
        return all(
            (rank, ticket) in self.machines[self.places[holder]].holdings
            for rank, home in homes.items()
            for holder in self._holders[home]
        )

    def _forget_older_than(self, ticket: int) -> None:
        for machine in self.machines.values():
            for key in [key for key in machine.holdings if key[1] < ticket]:
                del machine.holdings[key]

    def _drain_if_due(self, ticket: int, step: int) -> None:
        self._num_commits += 1
        every = self.config.drain_every_commits
        if every and self._num_commits % every == 0 and not self._draining:
            self._draining = set(self.places)
            self._broadcast(m.Drain(self.generation, ticket, step, self._world_size))

    def _issue_tickets(self) -> None:
        if self._draining or not self._all_reserved():
            return
        for ticket, not_before_step in self.commits.issue():
            self._broadcast(m.Ticket(self.generation, ticket, not_before_step))

    def _all_reserved(self) -> bool:
        return bool(self._world_size) and all(
            rank in self._home
            and all(
                self.machines[self.places[holder]].reserved_bytes.get(rank, 0)
                >= self._slot_bytes[rank]
                for holder in self._holders[self._home[rank]]
            )
            for rank in range(self._world_size)
        )

    def _resolve_abandoned(self, tickets: list[int]) -> None:
        for ticket in tickets:
            step = self.commits.abandon(ticket)
            for machine in self.machines.values():
                for key in [key for key in machine.holdings if key[1] == ticket]:
                    del machine.holdings[key]
            self._broadcast(m.Resolve(self.generation, ticket, step, committed=False))
            self._log("abandoned", step=step, ticket=ticket)

    # Copies.

    def _fetch_missing(self) -> None:
        """Restore what each machine should hold of the step resumed from, own ranks first."""
        ticket = self.recovery.ticket if self.recovery else 0
        shards = {
            rank: holding
            for machine in self.machines.values()
            for (rank, held), holding in machine.holdings.items()
            if held == ticket
        }
        for position in range(len(self._holders[0])):
            for rank, sources in self._sources().items():
                target = self.places[self._holders[shards[rank].home][position]]
                if target not in sources:
                    self._fetch(target, shards[rank], sources)

    def _sources(self) -> dict[int, tuple[str, ...]]:
        return self.recovery.sources if self.recovery else {}

    def _fetch(self, machine: str, holding: m.Holding, sources: tuple[str, ...]) -> None:
        fetch = (self.generation, holding.rank, holding.ticket, holding.size_bytes, sources)
        self._send(machine, m.Fetch(*fetch))

    # Actions.

    def _send(self, machine: str, message: m.ToWorker) -> None:
        self._actions.append(Send(machine, message))

    def _broadcast(self, message: m.ToWorker) -> None:
        for machine in self.places:
            if machine in self.machines:
                self._send(machine, message)

    def _log(self, event: str, **fields: Any) -> None:
        self._actions.append(Log(event, {"generation": self.generation, **fields}))

    def _flush(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


def assign_places(waiting: Mapping[str, m.Join], previous: list[str], size: int) -> list[str]:
    """Return the machine of each index: hints first, then former places, then join order."""
    places: list[str | None] = [None] * size
    unplaced = []
    for name, join in waiting.items():
        hint = join.index_hint
        if hint is None and name in previous:
            hint = previous.index(name)
        if hint is not None and hint < size and places[hint] is None:
            places[hint] = name
        else:
            unplaced.append(name)
    newcomers = iter(unplaced)
    return [name if name is not None else next(newcomers) for name in places]
