"""What a job leaves behind, and what its long-lived processes hold on to as time goes by.

Read from outside, from the operating system: processes by the job's secret in their environment,
memory and descriptors from /proc.
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
    """Resident memory (its mapped slots included) and descriptors of one process.

    `machine` is the number in the machine's name, `number` that of the process, by first look.
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
        """Return what they hold: the least of a few looks, as a transfer that runs is not kept."""
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
    """Return what runs beyond what should, on a job in which nothing is being recovered.

    Processes that a machine has twice, and strays that belong to no machine. Not the dead that
    torchrun waits for when it starts the next process: they hold nothing.
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
        found.remove("root")  # one there must be, on some machine or the operator's
    return [what for what in found if what != "gone"]


def remaining_processes(cluster: LocalCluster) -> list[str]:
    """Return what still runs of a job that has ended, after a moment to end in."""
    return _until_none(lambda: [role(process) for process in cluster.processes_of_job()])


def remaining_files(temporary: Path, drain_directory: Path) -> list[str]:
    """Return what nobody will ever delete after a job's end.

    Files below its directory for temporary ones, and steps that were drained by halves before
    one that is complete. Of the steps older than all that are kept, the newest may be there by
    halves: the end of the job has interrupted its removal, which the next drain would complete.
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
