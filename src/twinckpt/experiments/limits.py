"""`limits`: the library beside a plain memcpy and a plain TCP transfer of the same bytes.

Everything that is compared is measured in one run, on the same buffers, in alternation.
Clocks and their limits are described in docs/results-schema.md.
"""

import os
from collections import defaultdict
from statistics import fmean

from twinckpt.agents.local_cluster import LocalCluster
from twinckpt.errors import ConfigurationError
from twinckpt.experiments.app import Experiment, run_app
from twinckpt.results.provenance import gpu_names

TIMEOUT_S = 1800.0
_UNITS = {"committed": "ratio"}


def measure(experiment: Experiment) -> None:
    """Run one cluster per case: all machines at once, then a single one; on each kind of device."""
    limits = experiment.config.limits
    if "cuda" in limits.devices and not gpu_names():
        raise ConfigurationError(
            "limits.devices has cuda, and nvidia-smi lists no GPU here: choose another scale, or "
            "limits.devices=[cpu]"
        )
    cases = [(experiment.config.cluster.num_machines, size) for size in limits.sizes_mib]
    cases += [(1, size) for size in limits.single_sizes_mib]
    for device in limits.devices:
        for num_machines, size_mib in cases:
            measure_case(experiment, num_machines, size_mib, limits.num_tensors, device)


def measure_case(
    experiment: Experiment,
    num_machines: int,
    size_mib: int,
    num_tensors: int,
    device: str = "cpu",
) -> None:
    """Run one cluster with one rank per machine, and add its samples.

    Their method is `ranks<N>_mib<SIZE>`, prefixed with `cuda_` if the state is on a GPU.
    """
    config = experiment.config
    method = ("" if device == "cpu" else f"{device}_") + f"ranks{num_machines}_mib{size_mib}"
    rounds = experiment.rounds
    program = ["-m", "twinckpt.experiments.ranks.limits"]
    arguments = [str(size_mib), str(num_tensors), str(rounds), device]
    with experiment.cluster(
        method,
        program + arguments,
        config.training(method="none", steps=rounds),
        warm=True,
        num_machines=num_machines,
        ranks_per_machine=1,
        replicas=min(config.cluster.replicas, num_machines),
    ) as cluster:
        sizes = cluster.wait_until(
            lambda: _saved(experiment, cluster, num_machines), timeout_s=TIMEOUT_S
        )
        _add_memory(experiment, cluster, method, sizes[0])
        cluster.kill_rank(0)
        cluster.wait(TIMEOUT_S)
    values: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rank in range(num_machines):
        for repeat, entry in experiment.measured(cluster, rank):
            metric, value = entry["metric"], entry["value"]
            unit = _UNITS.get(metric, "s")
            experiment.add(method, metric, value, unit, rank=rank, repeat=repeat)
            values[repeat][metric].append(value)
    for repeat, found in values.items():
        _add_extra(experiment, method, repeat, found)


def _add_extra(
    experiment: Experiment, method: str, repeat: int, found: dict[str, list[float]]
) -> None:
    """Add what a checkpoint adds to a step that keeps all cores busy, and the least it could add.

    `control_s` is the difference between two equal blocks without checkpoints.
    """
    plain_s = fmean([max(found["step_none_s"]), max(found["step_none_again_s"])])
    extra_s = max(found["step_every_step_s"]) - plain_s
    cpu_s = found["floor_cpu_s"]
    floor_s = sum(cpu_s) / min(len(os.sched_getaffinity(0)), len(cpu_s))
    experiment.add(method, "extra_s", extra_s, "s", repeat=repeat)
    control_s = max(found["step_none_again_s"]) - max(found["step_none_s"])
    experiment.add(method, "floor_s", floor_s, "s", repeat=repeat)
    experiment.add(method, "control_s", control_s, "s", repeat=repeat)


def _saved(experiment: Experiment, cluster: LocalCluster, num_ranks: int) -> list[float]:
    """Return the size of each rank's state once all ranks have measured saving."""
    last = [experiment.last_of(cluster, rank) for rank in range(num_ranks)]
    saved = [float(entry["bytes"]) for entry in last if entry and entry["event"] == "saved"]
    return saved if len(saved) == num_ranks else []


def _add_memory(
    experiment: Experiment, cluster: LocalCluster, method: str, state_bytes: float
) -> None:
    """Add each agent's memory as the operating system sees it: its slots, and everything else."""
    for machine, name in enumerate(cluster.places):
        for process in cluster.processes(name):
            if "twinckpt.agents.worker" not in process.cmdline():
                continue
            slots = [m for m in process.memory_maps(grouped=False) if "twinckpt-slot" in m.path]
            overhead_bytes = process.memory_info().rss - sum(slot.rss for slot in slots)
            arena = sum(slot.size for slot in slots) / state_bytes
            experiment.add(method, "overhead_bytes", overhead_bytes, "bytes", machine=machine)
            experiment.add(method, "arena_per_state", arena, "ratio", machine=machine)


if __name__ == "__main__":
    run_app("limits", measure)
