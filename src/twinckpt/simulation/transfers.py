"""Copies between machines and to persistent storage: they take time, and may fail half way."""

from typing import TYPE_CHECKING

from twinckpt.core import worker_actions as act
from twinckpt.simulation.machine import SimulatedMachine

if TYPE_CHECKING:
    from twinckpt.simulation.cluster import SimulatedCluster

_FETCH_S, _DRAIN_S = 0.04, 0.15


class Transfers:
    """Fetches and drains that workers start; the slots stay pinned until the worker is told."""

    def __init__(self, cluster: "SimulatedCluster") -> None:
        self._cluster = cluster

    def fetch(self, machine: SimulatedMachine, fetch: act.StartFetch) -> None:
        """Copy a shard from the first source that is reachable and has it intact at the end."""
        machine.slots.state(fetch.rank, fetch.slot).num_pins += 1
        time = self._cluster.time
        time.after(time.draw_s(_FETCH_S), machine.do, lambda: self._end_fetch(machine, fetch))

    def _end_fetch(self, machine: SimulatedMachine, fetch: act.StartFetch) -> None:
        slots, rank, ticket = machine.slots, fetch.rank, fetch.ticket
        slots.state(rank, fetch.slot).num_pins -= 1
        self._cluster.is_touched = True
        damaged = []
        for name in (address.machine for address in fetch.sources):
            source = self._cluster.machines[name]
            if not source.is_reachable or not (machine.is_reachable or source is machine):
                continue
            holding = source.slots.holding(rank, ticket)
            if holding is None or not source.slots.intact(rank, ticket):
                damaged.append(name)
            elif slots.find(rank, ticket) == fetch.slot:
                slots.seal(holding)
                self._cluster.act_worker(machine, machine.worker.fetched(fetch, holding))
                return
        failed = machine.worker.fetched(fetch, None, "no intact source", tuple(damaged))
        self._cluster.act_worker(machine, failed)

    def drain(self, machine: SimulatedMachine, drain: act.StartDrain) -> None:
        """Write the sealed shards of this machine's ranks; their slots are not reused meanwhile."""
        states = []
        for rank in drain.ranks:
            slot = machine.slots.find(rank, drain.ticket)
            if slot is not None:
                states.append(machine.slots.state(rank, slot))
                states[-1].num_pins += 1
        copies = [machine.slots.holding(rank, drain.ticket) for rank in drain.ranks]

        def end() -> None:
            for state in states:
                state.num_pins -= 1
            ok = all(copy is not None and self._cluster.storage.write(copy) for copy in copies)
            self._cluster.act_worker(machine, machine.worker.drained(drain, ok))

        self._cluster.time.after(self._cluster.time.draw_s(_DRAIN_S), machine.do, end)
