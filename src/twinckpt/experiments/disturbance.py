"""Random failures of a training: what is killed, and when.

Everything follows from a seed except the moment in the protocol at which a failure strikes. That
is the point of a soak: a failure may come during a step, a transfer, a drain or a recovery.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from twinckpt.agents.local_cluster import ClusterFailed, LocalCluster

STRIKE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure that happened; `struck_s` is on the host's monotonic clock, in seconds."""

    kind: str
    machine: int
    struck_s: float


def schedule(
    kinds: Sequence[str], duration_s: float, per_s: float, seed: int
) -> list[tuple[float, str]]:
    """Return (seconds from the start, kind) of each failure: a Poisson process of `per_s`.

    Kinds are drawn without replacement until each has had its turn, so that a short soak has all
    of them. There is at least one failure.
    """
    draw = random.Random(seed)
    turns = _turns(kinds, draw)
    at_s = draw.expovariate(per_s)
    found: list[tuple[float, str]] = []
    while at_s < duration_s or not found:
        found.append((min(at_s, duration_s), next(turns)))
        at_s += draw.expovariate(per_s)
    return found


def _turns(kinds: Sequence[str], draw: random.Random) -> Iterator[str]:
    while True:
        yield from draw.sample(list(kinds), len(kinds))


class Disturber:
    """Kills a process or machine of a given kind, on machines that it draws."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self._cluster = cluster
        self._draw = random.Random(seed)

    def strike(self, kind: str) -> Failure:
        """Kill one process, or a machine with all of its processes; return the failure.

        If nothing of the kind lives at this moment (a rank that restarts, say), wait for it. A
        lost machine is replaced by a spare, and the spare by a new one; without spares, by a new
        machine at once.
        """
        kill = self._kill_machine if kind == "machine_loss" else self._kill_process
        found = self._cluster.wait_until(
            lambda: kill(kind), timeout_s=STRIKE_TIMEOUT_S, what=f"victim of {kind}"
        )
        assert found is not None
        return found

    def _kill_machine(self, kind: str) -> Failure | None:
        members = list(self._cluster.members)
        if not members:
            return None
        index = self._draw.choice(members)
        struck_s = self._cluster.kill_machine(index)
        if self._cluster.config.num_spares:
            self._cluster.add_machine(spare=True)
        return Failure(kind, index, struck_s)

    def _kill_process(self, kind: str) -> Failure | None:
        wanted = kind.removesuffix("_loss")
        machines = list(self._cluster.members.items())
        self._draw.shuffle(machines)
        for index, name in machines:
            for process in self._cluster.processes(name):
                if role(process) == wanted:
                    struck_s = time.monotonic()
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                        return Failure(kind, index, struck_s)
        if wanted == "root":  # a root that the operator started belongs to no machine
            with suppress(ClusterFailed):
                return Failure(kind, 0, self._cluster.kill_root())
        return None


def role(process: psutil.Process) -> str:
    """Return a process's role: torchrun, agent, root, parent, rank, child, unknown or gone.

    A rank is a fork of its warm parent (`twinckpt.run`) and shares its command line, as does a
    child of a rank, such as a data loader's worker.
    """
    try:
        command = process.cmdline()
        if "twinckpt.run" not in command:
            names = {"twinckpt.agents.worker": "agent", "twinckpt.agents.root": "root"}
            return next((role for name, role in names.items() if name in command), "unknown")
        if "torch.distributed.run" in command:
            return "torchrun"
        above = process.parent()
        return {"torchrun": "parent", "parent": "rank"}.get(role(above) if above else "", "child")
    except psutil.Error:
        return "gone"
