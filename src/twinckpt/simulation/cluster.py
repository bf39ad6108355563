"""A job on a simulated cluster: root, workers and ranks in virtual time, replayed from a seed.

This module carries out what the state machines of root and workers decide; `training` plays
the ranks, and `faults` decides what fails.
"""

from collections.abc import Callable
from dataclasses import dataclass

from twinckpt.core import messages as m
from twinckpt.core import worker_actions as act
from twinckpt.core.adoption import GenerationRecord
from twinckpt.core.root import Action, Disconnect, Log, Root, RootConfig, Send
from twinckpt.simulation.events import Timeline
from twinckpt.simulation.link import Connection
from twinckpt.simulation.machine import SimulatedMachine
from twinckpt.simulation.storage import SimulatedStorage
from twinckpt.simulation.training import SimulatedTraining
from twinckpt.simulation.transfers import Transfers

GHOSTS, GHOST_S = 0.005, 1.5  # share of messages that arrive again, this much later on average
HEARTBEAT_S, TICK_S, RECONNECT_S, REJOIN_S = 0.15, 0.1, 0.1, 0.03
PATIENCE_S, RECORD_S = 5.0, 0.01
_DECISIONS = (m.Formed, m.Resolve, m.Broken)


@dataclass(frozen=True, slots=True)
class Job:
    """The simulated job. It waits while there are fewer than `min_machines` machines (0: all).

    Each machine is in one of `num_racks` failure domains; with 0 racks the domains are unknown. If
    the job `elects_root`, a control store elects a root's successor and keeps the record of the
    generation, and ranks go on meanwhile; otherwise the loss of the root ends the generation. If
    the job `runs_freely`, no rank waits for another one.
    """

    num_machines: int
    root: RootConfig
    min_machines: int = 0
    ranks_per_machine: int = 1
    num_racks: int = 0
    elects_root: bool = False
    runs_freely: bool = False


class SimulatedCluster:
    """Root, machines and storage of one job.

    `root` is the living root or None, `last_root` the most recent one, living or dead.
    `after_event` is called after each event that changed something the invariants look at: slots,
    the root's log, which machines live. `stale_accepted` notes what a stale message has changed.
    """

    def __init__(
        self, job: Job, seed: int, after_event: Callable[["SimulatedCluster"], None]
    ) -> None:
        self.job = job
        self.time = Timeline(seed)
        self.machines: dict[str, SimulatedMachine] = {}
        self.storage = SimulatedStorage()
        self.log: list[Log] = []
        self.formed: list[tuple[str, m.Formed]] = []
        self.stale_accepted: list[str] = []
        self.is_touched = False
        self.training = SimulatedTraining(self)
        self._transfers = Transfers(self)
        self._after_event = after_event
        self._connections: dict[str, Connection] = {}
        self._num_started = 0
        self._newest_generation = 0
        self._record: GenerationRecord | None = None
        self._end_midway: Callable[[], None] | None = None
        self.root: Root | None = None
        self.last_root = self.start_root()
        for _ in range(job.num_machines):
            self.add_machine()

    # Time.

    def run_until(self, end_s: float, is_done: Callable[[], bool] = lambda: False) -> None:
        """Process events up to a time, or until `is_done`."""
        self.time.run_until(end_s, self._check, is_done)

    def _check(self) -> None:
        if self.is_touched:
            self.is_touched = False
            self._after_event(self)

    def living(self) -> list[SimulatedMachine]:
        """Return the machines that have not died."""
        return [machine for machine in self.machines.values() if machine.is_alive]

    # Machines.

    def add_machine(self, name: str = "") -> None:
        """Start a machine: its agent connects, its launcher joins; its clock has its own rate."""
        self._num_started += 1
        rate = self.time.random.uniform(0.8, 1.25)
        rack = self._num_started % self.job.num_racks if self.job.num_racks else None
        machine = SimulatedMachine(
            name or f"m{self._num_started}",
            self.job.root.num_slots,
            rate,
            "" if rack is None else f"rack-{rack}",
        )
        self.machines[machine.name] = machine
        self.is_touched = True
        self._rejoin(machine)
        self.time.after(self.time.draw_s(RECONNECT_S), self._keep_connected, machine)
        self.time.after(HEARTBEAT_S, self._beat, machine)

    def end_machine(self, machine: SimulatedMachine, *, silently: bool) -> None:
        """Let a machine die with its memory; its kernel tells the root, unless it dies silently."""
        machine.is_alive = False
        self.is_touched = True
        connection, machine.connection = machine.connection, None
        if connection is not None and not silently:
            connection.send_to_root(lambda: self._end_at_root(connection))

    def lose_connection(self, machine: SimulatedMachine) -> None:
        """Break the connection of a machine to the root; messages under way are lost."""
        connection = machine.connection
        if connection is not None:
            self._reset(connection)
            self.time.after(
                self.time.draw_s(0.005), machine.do, lambda: self.end_at_worker(connection)
            )

    def _keep_connected(self, machine: SimulatedMachine) -> None:
        if machine.is_alive:
            if machine.connection is None and machine.is_reachable and self.root is not None:
                self._connect(machine)
            self.time.after(RECONNECT_S * machine.clock_rate, self._keep_connected, machine)

    def _connect(self, machine: SimulatedMachine) -> None:
        machine.connection = machine.last_connection = Connection(self.time, machine)
        hello = m.Hello(
            machine.address,
            machine.worker.generation,
            tuple(machine.slots.holdings()),
            self.storage.complete_steps(),
            self.storage.newest_ticket(),
            machine.domain,
            tuple(machine.worker.fetching),
            machine.worker.running(),
        )
        self.tell_root(machine, hello)
        for report in machine.worker.unheard():
            self.tell_root(machine, report)
        if machine.pending_join is not None:
            self.tell_root(machine, machine.pending_join)

    def _beat(self, machine: SimulatedMachine) -> None:
        if machine.is_alive:
            if not machine.is_frozen:
                self.tell_root(machine, m.Heartbeat())
            self.time.after(HEARTBEAT_S * machine.clock_rate, self._beat, machine)

    def _rejoin(self, machine: SimulatedMachine) -> None:
        least = self.job.min_machines or self.job.num_machines
        limits = (least, self.job.num_machines)
        machine.pending_join = m.Join(machine.worker.generation, machine.name, None, *limits)
        self.tell_root(machine, machine.pending_join)

    # The root.

    def start_root(self) -> Root:
        """Start a root with a clock of its own; it knows the newest generation's number or 0."""
        known = self.time.random.choice((0, self._newest_generation))
        offset_s, rate = self.time.random.uniform(0, 1e6), self.time.random.uniform(0.8, 1.25)
        self.root_now_s = lambda: offset_s + rate * self.time.now_s
        root = Root(self.job.root, known, self._record, self.root_now_s())
        self.root = root
        self.last_root = root
        self._tick(root)
        return root

    def end_root(self) -> None:
        """Let the root's process die, with all that it knew; its kernel closes the connections.

        Messages that it has sent are lost on all connections, or on some if roots are elected.
        """
        self.root = None
        self._connections = {}
        for machine in self.living():
            connection = machine.connection
            is_sent = self.job.elects_root and self.time.random.random() < 0.5
            if connection is not None and is_sent:
                connection.close_at_root()
                self._tell_closed(connection)
            else:
                self.lose_connection(machine)

    def end_root_midway(self, ended: Callable[[], None]) -> None:
        """Let the root die while it sends its next decision, then call `ended`."""
        self._end_midway = ended

    def _tick(self, root: Root) -> None:
        if self.root is root:
            self._act_root(root, root.tick(self.root_now_s()))
            self.time.after(TICK_S, self._tick, root)

    def _end_at_root(self, connection: Connection) -> None:
        name = connection.machine.name
        connection.close_at_root()
        if self.root is not None and self._connections.get(name) is connection:
            del self._connections[name]
            self._act_root(self.root, self.root.connection_lost(name, self.root_now_s()))

    def _reset(self, connection: Connection) -> None:
        """Break a connection: nothing arrives any more, and the root notices a little later."""
        connection.close_at_root()
        connection.close_at_worker()
        self.time.after(self.time.draw_s(0.005), self._end_at_root, connection)

    def end_at_worker(self, connection: Connection) -> None:
        """Let the worker notice that its connection ended."""
        machine = connection.machine
        connection.close_at_worker()
        if machine.connection is connection:
            machine.connection = None
            if self.job.elects_root:
                patience_s = self.time.draw_s(PATIENCE_S)
                self.time.after(
                    patience_s, machine.do, lambda: self._give_up_root(machine, connection)
                )
            else:
                self._give_up_root(machine, connection)

    def _give_up_root(self, machine: SimulatedMachine, last: Connection) -> None:
        if machine.last_connection is last:
            self.act_worker(machine, machine.worker.root_lost())

    def _leave_record(self, root: Root, record: GenerationRecord | None) -> None:
        if self.root is root:
            self._record = record

    def tell_root(self, machine: SimulatedMachine, message: m.ToRoot) -> None:
        """Send from a worker to the root, if they are connected."""
        connection, root = machine.connection, self.root
        if connection is not None and root is not None:
            connection.send_to_root(lambda: self._at_root(root, connection, message))
            if self.time.random.random() < GHOSTS:
                delay_s = self.time.draw_s(GHOST_S)
                self.time.after(delay_s, self._ghost_at_root, machine.name, message)

    def _at_root(self, root: Root, connection: Connection, message: m.ToRoot) -> None:
        if self.root is not root:
            return
        name = connection.machine.name
        if isinstance(message, m.Hello):
            former = self._connections.get(name)
            if former is not None and former is not connection:
                former.close_at_root()
            self._connections[name] = connection
        elif self._connections.get(name) is not connection:
            return
        if self._is_stale_at(root, name, message):
            self._ghost_at_root(name, message)
        else:
            self._act_root(root, root.receive(name, message, self.root_now_s()))

    def _is_stale_at(self, root: Root, name: str, message: m.ToRoot) -> bool:
        number = root.record.number if root.record else None
        return _is_stale(message, number) and not root.awaits(name, message)

    def _ghost_at_root(self, name: str, message: m.ToRoot) -> None:
        """Deliver a late message to the root: one of another generation must change nothing."""
        root = self.root
        if root is None or not self._is_stale_at(root, name, message):
            return
        before = list(root.copies.of_machine(name))
        actions = root.receive(name, message, self.root_now_s())
        if actions or list(root.copies.of_machine(name)) != before:
            self.stale_accepted.append(f"the root accepted {message} in {root.generation}")
            self.is_touched = True
        self._act_root(root, actions)

    def _act_root(self, root: Root, actions: list[Action]) -> None:
        decides = any(isinstance(a, Send) and isinstance(a.message, _DECISIONS) for a in actions)
        ended = self._end_midway if decides else None
        if ended is not None:
            self._end_midway = None
            num_done = self.time.random.randint(1, len(actions))
            # The log keeps all that the root decided, whichever machines were told of it.
            actions = actions[:num_done] + [a for a in actions[num_done:] if isinstance(a, Log)]
        self._carry_out(root, actions)
        if ended is not None:
            self.end_root()
            ended()

    def _carry_out(self, root: Root, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(name, message):
                    self._send_worker(name, message)
                case Log():
                    self.time.note("root %s %s", action.event, action.fields)
                    self.log.append(action)
                    self._newest_generation = max(self._newest_generation, root.generation)
                    if self.job.elects_root and action.event == "generation_formed":
                        delay_s = self.time.draw_s(RECORD_S)
                        self.time.after(delay_s, self._leave_record, root, root.record)
                    self.is_touched = True
                case Disconnect(name):
                    connection = self._connections.pop(name, None)
                    if connection is not None:
                        connection.close_at_root()
                        self._tell_closed(connection)

    def heard_by_root(self, name: str) -> SimulatedMachine:
        """Return the machine whose messages the root gets under this name.

        It may have died, and another machine of the same name may have started.
        """
        connection = self._connections.get(name)
        return connection.machine if connection is not None else self.machines[name]

    def _tell_closed(self, connection: Connection) -> None:
        machine = connection.machine
        connection.send_to_worker(lambda: machine.do(lambda: self.end_at_worker(connection)))

    # Workers.

    def _send_worker(self, name: str, message: m.ToWorker) -> None:
        connection = self._connections.get(name)
        if connection is not None:
            machine = connection.machine
            connection.send_to_worker(
                lambda: machine.do(lambda: self._at_worker(connection, message))
            )
            if self.time.random.random() < GHOSTS:
                delay_s = self.time.draw_s(GHOST_S)
                self.time.after(
                    delay_s, machine.do, lambda: self._ghost_at_worker(machine, message)
                )

    def _at_worker(self, connection: Connection, message: m.ToWorker) -> None:
        machine = connection.machine
        if machine.connection is not connection:
            return
        worker = machine.worker
        if _is_stale(message, worker.generation):
            self._ghost_at_worker(machine, message)
            return
        formed, before = worker.formed, machine.slots.num_changes
        self.act_worker(machine, worker.receive(message))
        self.is_touched = self.is_touched or machine.slots.num_changes != before
        if isinstance(message, m.Formed) and worker.formed is message and formed is not message:
            self.formed.append((machine.name, message))
            self.is_touched = True
            machine.pending_join = None
            self.training.start(machine, message)

    def _ghost_at_worker(self, machine: SimulatedMachine, message: m.ToWorker) -> None:
        """Deliver a late message to a worker: one of another generation must change nothing."""
        worker = machine.worker
        if not _is_stale(message, worker.generation):
            return
        before = (machine.slots.num_changes, worker.formed)
        actions = worker.receive(message)
        if actions or (machine.slots.num_changes, worker.formed) != before:
            self.stale_accepted.append(f"{machine.name} accepted {message} in {worker.generation}")
            self.is_touched = True
        self.act_worker(machine, actions)

    def act_worker(self, machine: SimulatedMachine, actions: list[act.Action]) -> None:
        """Carry out what a worker decided."""
        for action in actions:
            match action:
                case act.ToRootAgent(message):
                    self.tell_root(machine, message)
                case act.GrantSlot(rank, ticket, not_before_step, _):
                    self.is_touched = True
                    self.training.grant(machine, rank, ticket, not_before_step)
                case act.TellResolved(rank, ticket, _, _):
                    self.training.resolve(machine, rank, ticket)
                case act.StartFetch():
                    self._transfers.fetch(machine, action)
                case act.StartDrain():
                    self._transfers.drain(machine, action)
                case act.ServeRestore():
                    self.training.restored(machine, action)
                case act.BreakGeneration():
                    machine.ranks.clear()
                    delay_s = self.time.draw_s(REJOIN_S)
                    self.time.after(delay_s, machine.do, lambda: self._rejoin(machine))


def _is_stale(message: m.ToRoot | m.ToWorker, generation: int | None) -> bool:
    """Return whether a message belongs to another generation than its receiver."""
    if isinstance(message, m.Hello | m.Join | m.Heartbeat | m.Leave):
        return False
    if isinstance(message, m.Formed):
        return generation is not None and message.generation <= generation
    return message.generation != generation
