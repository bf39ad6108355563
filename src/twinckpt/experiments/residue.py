"""Leaks: what a job leaves behind, and what its long-lived processes hold as time goes by.

All of it is read from the operating system: processes are found by the job's secret in their
environment, memory and descriptors are read from /proc.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from twinckpt.agents.local_cluster import LocalCluster
from twinckpt.experiments.disturbance import role
from twinckpt.memory.drained import drained_steps, step_directory

END_TIMEOUT_S = 10.0
NUM_LOOKS, LOOK_AGAIN_S = 5, 0.05


@dataclass(frozen=True, slots=True)
class Held:
    """Resident memory (mapped slots included) and open descriptors of one process.

    `machine` is the number in the machine's name; `number` counts processes as they are first seen.
    """

    machine: int
    role: str
    number: int
    rss_bytes: int
    num_descriptors: int


class Watch:
    """Looks at the processes that outlive a failure: agents, torchruns, warm parents."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._numbers: dict[tuple[int, float], int] = {}

    def look(self) -> list[Held]:
        """Return what each process holds: the least of a few looks, to leave out transfers."""
        found = []
        for name in self._cluster.members.values():
            machine = int(name.rpartition("-")[2])
            for process in self._cluster.processes(name):
                with suppress(psutil.Error):
                    if (what := role(process)) in ("agent", "torchrun", "parent"):
                        identity = process.pid, process.create_time()
                        number = self._numbers.setdefault(identity, len(self._numbers))
                        found.append(Held(machine, what, number, *_least(process)))
        return found


def _least(process: psutil.Process) -> tuple[int, int]:
    looks = []
    for _ in range(NUM_LOOKS):
        looks.append((process.memory_info().rss, process.num_fds()))
        time.sleep(LOOK_AGAIN_S)
    return min(rss for rss, _ in looks), min(fds for _, fds in looks)


def surplus_processes(cluster: LocalCluster) -> list[str]:
    """Return the roles of surplus processes in a job in which nothing is being recovered.

    These are processes that a machine has twice, and strays that belong to no machine. Dead
    processes that torchrun reaps only at its next start do not count: they hold nothing.
    """
    ranks = cluster.config.ranks_per_machine
    members = Counter(torchrun=1, agent=1, parent=ranks, rank=ranks)
    spare = Counter(torchrun=1, agent=1, parent=ranks)
    found: list[str] = []
    known: set[int] = set()
    for name in cluster.machines:
        processes = cluster.processes(name)
        known |= {process.pid for process in processes}
        roles = Counter(role(process) for process in processes)
        found += (roles - (members if name in cluster.members.values() else spare)).elements()
    found += [role(process) for process in cluster.processes_of_job() if process.pid not in known]
    if "root" in found:
        found.remove("root")  # one root is needed, on some machine or the operator's
    return [what for what in found if what != "gone"]


def remaining_processes(cluster: LocalCluster) -> list[str]:
    """Return the roles of the processes of an ended job that still run after a grace period."""
    return _until_none(lambda: [role(process) for process in cluster.processes_of_job()])


def remaining_files(temporary: Path, drain_directory: Path) -> list[str]:
    """Return the names of the files and folders that nothing will delete after a job's end.

    These are files in its directory for temporary files, and incomplete drained steps older than
    the newest complete one. The newest step older than all complete ones may be incomplete: the
    end of the job interrupted its removal, which the next drain would finish.
    """
    complete = [step_directory(drain_directory, step) for step in drained_steps(drain_directory)]
    halves = sorted(
        folder
        for folder in drain_directory.glob("step-*")
        if complete and folder < complete[-1] and folder not in complete
    )
    if halves and halves[-1] < complete[0]:
        halves.pop()
    files = [path for path in temporary.rglob("*") if path.is_file()]
    return [path.name for path in files + halves]


def own_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def _until_none(look: Callable[[], list[str]]) -> list[str]:
    deadline_s = time.monotonic() + END_TIMEOUT_S
    while (found := look()) and time.monotonic() < deadline_s:
        time.sleep(LOOK_AGAIN_S)
    return found
