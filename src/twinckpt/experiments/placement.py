"""`placement`: does every shard survive when k machines are lost at once (GEMINI §4, Fig. 9)?

The answer is computed by closed form, enumeration and Monte Carlo for clusters of the paper's
size, and observed by SIGKILL of every machine, pair, triple … of small clusters of worker agents.
docs/results-schema.md describes what the numbers mean.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import combinations
from threading import Event

import numpy as np

from twinckpt.core import recovery_probability as probability
from twinckpt.core.placement import Placement, domain_order, make_placement
from twinckpt.experiments.agent_cluster import AgentCluster
from twinckpt.experiments.app import Experiment, run_app

KINDS = ("group", "ring", "mixed")
CLUSTERS_AT_ONCE = 2  # a loss is mostly waiting for processes to start, and no clock is read

logger = logging.getLogger("twinckpt.experiments")


def measure(experiment: Experiment) -> None:
    """Compute the probabilities, then kill machines and record whether all shards survive."""
    section = experiment.config.placement
    rng = np.random.default_rng(experiment.config.optimization.seed)
    for num_machines in (section.num_machines, *section.killed_sizes):
        for kind in _kinds(num_machines, section.num_replicas):
            placement = make_placement(kind, num_machines, section.num_replicas)
            _compute(experiment, placement, rng)
            _compute_racks(experiment, placement)
    killed = [
        make_placement(kind, num_machines, section.num_replicas)
        for num_machines in section.killed_sizes
        for kind in _kinds(num_machines, section.num_replicas)
    ]
    stopped = Event()
    with ThreadPoolExecutor(CLUSTERS_AT_ONCE) as pool:
        clusters = [pool.submit(_kill, experiment, placement, stopped) for placement in killed]
        try:
            for done in clusters:
                done.result()
        finally:
            stopped.set()  # interrupted, or one has failed: the others stop early


def _kinds(num_machines: int, num_replicas: int) -> tuple[str, ...]:
    """Return the placements that differ: mixed is the same as group if m divides N."""
    return tuple(
        kind for kind in KINDS if kind != ("mixed" if num_machines % num_replicas == 0 else "group")
    )


def _racks(num_machines: int, machines_per_rack: int) -> list[int]:
    """Return each machine's rack; machines are numbered rack by rack."""
    return [machine // machines_per_rack for machine in range(num_machines)]


def _compute(experiment: Experiment, placement: Placement, rng: np.random.Generator) -> None:
    n, m = placement.num_machines, placement.num_replicas
    num_samples = experiment.config.placement.num_samples
    for num_lost in range(1, n + 1):
        found = {
            "exact": probability.recovery_probability(placement, num_lost),
            "enumeration": probability.probability_by_enumeration(placement, num_lost),
        }
        if placement.kind == "group":
            found["closed_form"] = probability.corollary_1(n, m, num_lost)
        elif placement.kind == "ring":
            found["closed_form"] = probability.ring_union_bound(n, m, num_lost)
        drawn = probability.probability_by_monte_carlo(placement, num_lost, num_samples, rng)
        found["monte_carlo"] = drawn.probability
        found["standard_error"] = drawn.standard_error
        for how, value in found.items():
            place = {"machine": n, "step": num_lost}
            experiment.add(placement.kind, "probability", value, "ratio", phase=how, **place)


def _compute_racks(experiment: Experiment, unaware: Placement) -> None:
    racks = _racks(unaware.num_machines, experiment.config.placement.machines_per_rack)
    aware = make_placement(unaware.kind, unaware.num_machines, unaware.num_replicas, racks)
    for name, placement in (("unaware", unaware), ("aware", aware)):
        for num_lost in range(1, len(set(racks)) + 1):
            value = probability.probability_by_domains(placement, racks, num_lost)
            place = {"machine": placement.num_machines, "step": num_lost}
            experiment.add(placement.kind, "rack_probability", value, "ratio", phase=name, **place)


def _kill(experiment: Experiment, placement: Placement, stopped: Event) -> None:
    """Lose every set of up to `max_lost` machines, then every rack, of one real cluster."""
    if stopped.is_set():
        return
    section = experiment.config.placement
    kind, num_machines, replicas = placement.kind, placement.num_machines, placement.num_replicas
    logger.info("%s of %d machines: killing every set of them", kind, num_machines)
    run_dir = experiment.fresh_log_directory(f"{kind}-{num_machines}")
    with AgentCluster(num_machines, replicas, kind, section.shard_bytes, run_dir) as cluster:
        for num_lost in range(1, section.max_lost + 1):
            for repeat, lost in enumerate(combinations(range(num_machines), num_lost)):
                place = {"machine": num_machines, "step": num_lost, "repeat": repeat}
                phase = "lost_" + "_".join(map(str, lost))
                predicted = probability.survives(placement, lost)
                recovered = _survived(cluster, lost, stopped)
                experiment.add(kind, "predicted", predicted, "bool", phase=phase, **place)
                experiment.add(kind, "recovered", recovered, "bool", phase=phase, **place)
        racks = _racks(num_machines, section.machines_per_rack)
        orders = {
            "unaware": list(range(num_machines)),
            "aware": domain_order(kind, replicas, racks),
        }
        for name, order in orders.items():
            for rack in sorted(set(racks)):
                lost = tuple(i for i, machine in enumerate(order) if racks[machine] == rack)
                place = {"machine": num_machines, "repeat": rack}
                recovered = _survived(cluster, lost, stopped)
                experiment.add(kind, "rack_recovered", recovered, "bool", phase=name, **place)


def _survived(cluster: AgentCluster, lost: Sequence[int], stopped: Event) -> bool:
    """Checkpoint, kill, recover; return whether the committed step survived.

    Raises AssertionError if another step is resumed: that would be a defect.
    """
    if stopped.is_set():
        raise CancelledError
    committed = cluster.checkpoint()
    resumed = cluster.lose(lost)
    if resumed not in (None, committed):
        raise AssertionError(f"step {committed} was committed, but step {resumed} is resumed")
    return resumed is not None


if __name__ == "__main__":
    run_app("placement", measure)
