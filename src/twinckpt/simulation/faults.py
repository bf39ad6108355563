"""Faults of a simulated cluster: each strikes a random machine, and ends after some time."""

import random
from collections.abc import Callable
from functools import partial

from twinckpt.simulation.cluster import SimulatedCluster
from twinckpt.simulation.machine import SimulatedMachine

USER_TIMEOUT_S = 1.0  # how long a kernel waits for acknowledgement before it gives up
_REPLACED_S, _LATE_S, _NEVER_S = 0.4, 4.0, 1e9


class Faults:
    """Draws faults, applies them, and ends those that last."""

    def __init__(self, cluster: SimulatedCluster, draw: random.Random) -> None:
        self._cluster = cluster
        self._draw = draw
        self._has_ended = False

    def strike(self) -> None:
        """Let one random fault happen now."""
        elects_root = self._cluster.job.elects_root
        kind = self._draw.choice(KINDS + ELECTION_KINDS if elects_root else KINDS)
        living = self._cluster.living()
        if living:
            kind(self, self._draw.choice(living))

    def end(self) -> None:
        """End all lasting faults: thaw, heal, free the disk, replace root and missing machines."""
        self._has_ended = True
        self._cluster.storage.is_full = False
        for machine in self._cluster.living():
            self._thaw(machine)
            self._heal(machine)
        if self._cluster.root is None:
            self._cluster.start_root()
        missing = self._cluster.job.num_machines - len(self._cluster.living())
        for _ in range(missing):
            self._cluster.add_machine()
        self._note("all faults end")

    def _machine(self, machine: SimulatedMachine, *, silently: bool = False) -> None:
        self._note("%s dies%s", machine.name, " silently" if silently else "")
        self._cluster.end_machine(machine, silently=silently)
        means_s = (_REPLACED_S, _REPLACED_S, _REPLACED_S, _LATE_S, _NEVER_S)
        delay_s = self._draw.expovariate(1 / self._draw.choice(means_s))
        self._cluster.time.after(delay_s, self._replace)

    def _replace(self) -> None:
        if not self._has_ended:
            self._cluster.add_machine()

    def _silent_machine(self, machine: SimulatedMachine) -> None:
        self._machine(machine, silently=True)

    def _several_machines(self, machine: SimulatedMachine) -> None:
        """Let neighbours die at once: often a whole replica group."""
        living = self._cluster.living()
        start = living.index(machine)
        for victim in living[start : start + self._draw.randint(2, 3)]:
            self._machine(victim)

    def _agent(self, machine: SimulatedMachine) -> None:
        """Let a worker agent die, and its memory with it; the machine starts another agent."""
        self._note("the agent of %s dies", machine.name)
        self._cluster.end_machine(machine, silently=False)
        delay_s = self._draw.expovariate(1 / _REPLACED_S)
        self._cluster.time.after(delay_s, self._restart_agent, machine)

    def _restart_agent(self, machine: SimulatedMachine) -> None:
        if not self._has_ended:
            self._cluster.add_machine(machine.name)

    def _rank(self, machine: SimulatedMachine) -> None:
        """Let a training process die; the memory of its machine stays."""
        for rank in list(machine.ranks)[:1]:
            self._note("rank %d dies", rank)
            del machine.ranks[rank]
            machine.do(partial(self._report_rank, machine, rank))

    def _report_rank(self, machine: SimulatedMachine, rank: int) -> None:
        self._cluster.act_worker(machine, machine.worker.rank_lost(rank))

    def _link(self, machine: SimulatedMachine) -> None:
        self._note("the connection of %s breaks", machine.name)
        self._cluster.lose_connection(machine)

    def _all_links(self, machine: SimulatedMachine) -> None:
        self._note("all connections break")
        for other in self._cluster.living():
            self._cluster.lose_connection(other)

    def _damage(self, machine: SimulatedMachine) -> None:
        """Flip bits in one sealed copy."""
        holdings = machine.slots.holdings()
        if holdings:
            chosen = self._draw.choice(holdings)
            self._note("%s: %s rots", machine.name, chosen)
            machine.slots.damage(chosen)
            self._cluster.is_touched = True

    def _freeze(self, machine: SimulatedMachine) -> None:
        """Stop everything on the machine, for less or for more than the heartbeat timeout."""
        if not machine.is_frozen:
            self._note("%s freezes", machine.name)
            machine.is_frozen = True
            self._later(machine, self._thaw)
            if self._draw.random() < 0.5:  # what watches the machine takes it for dead
                delay_s = self._draw.expovariate(1 / _REPLACED_S)
                self._cluster.time.after(delay_s, self._replace)

    def _thaw(self, machine: SimulatedMachine) -> None:
        if machine.is_frozen:
            self._note("%s thaws", machine.name)
            machine.is_frozen = False
            deferred, machine.deferred = machine.deferred, []
            for action in deferred:
                self._cluster.time.after(0.0, machine.do, action)

    def _partition(self, machine: SimulatedMachine) -> None:
        """Hold back the messages from a machine, those to it, or both."""
        way = self._draw.choice(("deaf", "mute", "deaf and mute"))
        self._note("%s is %s", machine.name, way)
        machine.is_deaf, machine.is_mute = "deaf" in way, "mute" in way
        self._later(machine, self._heal)
        connection = machine.connection
        if connection is not None:

            def give_up() -> None:
                if machine.is_deaf or machine.is_mute:
                    self._cluster.end_at_worker(connection)

            self._cluster.time.after(USER_TIMEOUT_S, machine.do, give_up)

    def _heal(self, machine: SimulatedMachine) -> None:
        if machine.is_deaf or machine.is_mute:
            self._note("%s is connected again", machine.name)
            machine.is_deaf = machine.is_mute = False
            if machine.connection is not None:
                machine.connection.release()

    def _disk(self, machine: SimulatedMachine) -> None:
        self._note("the disk is full")
        storage = self._cluster.storage
        storage.is_full = True
        delay_s = self._draw.expovariate(1 / 1.0)
        self._cluster.time.after(delay_s, lambda: setattr(storage, "is_full", False))

    def _root(self, machine: SimulatedMachine) -> None:
        """Let the root's process die; another root starts later."""
        if self._cluster.root is not None:
            self._note("the root dies")
            self._cluster.end_root()
            self._later_root()

    def _root_midway(self, machine: SimulatedMachine) -> None:
        """Let the root die when only some machines have been told of its next decision."""
        self._note("the root will die in the midst of what it does next")
        self._cluster.end_root_midway(self._later_root)

    def _later_root(self) -> None:
        mean_s = self._draw.choice((0.03, 0.3)) if self._cluster.job.elects_root else 0.3
        self._cluster.time.after(self._draw.expovariate(1 / mean_s), self._restart_root)

    def _restart_root(self) -> None:
        if self._cluster.root is None:
            self._note("a root starts")
            self._cluster.start_root()

    def _later(self, machine: SimulatedMachine, end: Callable[[SimulatedMachine], None]) -> None:
        mean_s = self._draw.choice((0.2, 2.0))
        self._cluster.time.after(self._draw.expovariate(1 / mean_s), end, machine)

    def _note(self, text: str, *arguments: object) -> None:
        self._cluster.time.note(f"FAULT {text}", *arguments)


KINDS: tuple[Callable[[Faults, SimulatedMachine], None], ...] = (
    Faults._machine,
    Faults._silent_machine,
    Faults._several_machines,
    Faults._agent,
    Faults._rank,
    Faults._link,
    Faults._all_links,
    Faults._damage,
    Faults._freeze,
    Faults._partition,
    Faults._disk,
    Faults._root,
)
# Drawn as well if a root has successors; listed twice to be drawn twice as often.
ELECTION_KINDS = (Faults._root_midway, Faults._root_midway)
