"""`wasted_time`: the paper's published points predicted, and goodput simulated for a year.

Durations have two sources, kept apart in `phase`: the paper's hardware (§7.1, Fig. 14), and this
machine's own measurements if the same variant has them (`<statistics>_measured`). Nothing is
measured here except the simulator's own speed; docs/results-schema.md has the details.
"""

import logging
import time
from dataclasses import dataclass, replace

import numpy as np

from twinckpt.core import published as setup
from twinckpt.core.paper_points import paper_points
from twinckpt.core.placement import Placement, make_placement
from twinckpt.core.published import DAY_S, FAILURE_STATISTICS, STATISTICS_BY_NAME
from twinckpt.core.wasted_time import (
    STRAWMAN_INTERVAL_S,
    Restart,
    Strategy,
    gemini,
    goodput,
    highfreq,
    strawman,
)
from twinckpt.experiments.app import Experiment, run_app
from twinckpt.experiments.rates import measured_strategies
from twinckpt.simulation.goodput import FailureModel, RecoveryCosts, draw_failures, simulate

logger = logging.getLogger("twinckpt.experiments")

REPLICAS = 2


@dataclass(frozen=True, slots=True)
class Contender:
    """A strategy as the simulator takes it; `placement` is a kind, or empty for storage only."""

    software: Strategy
    hardware: Strategy
    costs: RecoveryCosts
    placement: str = ""
    is_rack_aware: bool = False


def measure(experiment: Experiment) -> None:
    """Predict the paper's points, then simulate every strategy, size and failure statistic."""
    for point in paper_points():
        if point.error_percent is not None:
            experiment.add(point.name, "error_percent", point.error_percent, "percent")
        if point.holds is not None:
            experiment.add(point.name, "bound_holds", float(point.holds), "bool")
        experiment.add(point.name, "published", point.published, "ratio")
        experiment.add(point.name, "predicted", point.predicted, "ratio")
    on_paper = paper_contenders(experiment.config.cluster.heartbeat_timeout_s)
    here = measured_contenders(experiment)
    logger.info("durations: the paper's%s", " and this machine's" if here else " only")
    settings = experiment.config.goodput
    for statistics in FAILURE_STATISTICS:
        model = FailureModel(
            statistics.failed_share_per_day, statistics.hardware_share, 0.0, settings.rack_size
        )
        for num_machines in settings.machines:
            _play(experiment, statistics.name, model, num_machines, on_paper)
            if here:
                _play(experiment, f"{statistics.name}_measured", model, num_machines, here)
        logger.info("%s: done", statistics.name)
    statistics = STATISTICS_BY_NAME["gemini"]
    for percent in settings.correlated_percents:
        model = FailureModel(
            statistics.failed_share_per_day, 1.0, percent / 100, settings.rack_size
        )
        for num_machines in settings.machines:
            _play(experiment, f"racks_{percent}_percent", model, num_machines, on_paper)


def paper_contenders(detection_s: float) -> dict[str, Contender]:
    """Return the strategies on the paper's hardware; no cost of a failure grows with N.

    Ours differs from the paper's in three things, by design and not by measurement: nothing is
    serialized before a restart, silence counts as a loss after `detection_s`, and replicas of a
    shard are placed in different racks.
    """
    job = setup.GPT2_100B_JOB
    remote = highfreq(job, setup.STORAGE_BYTES_PER_S)
    rare = strawman(job, setup.STORAGE_BYTES_PER_S)
    local = gemini(job, setup.P4D_NETWORK_BYTES_PER_S, from_peer=False)
    peer = gemini(job, setup.P4D_NETWORK_BYTES_PER_S, from_peer=True)
    drained = {"drain_interval_s": rare.interval_s, "storage_retrieval_s": remote.retrieval_s}
    from_storage = RecoveryCosts(setup.STORAGE_SOFTWARE, setup.STORAGE_HARDWARE)
    in_memory = RecoveryCosts(setup.GEMINI_SOFTWARE, setup.GEMINI_HARDWARE, **drained)
    ours = RecoveryCosts(
        Restart(detection_s, 0.0, 0.0, setup.WARM_UP_S),
        Restart(detection_s, 0.0, setup.REPLACEMENT_S, setup.WARM_UP_S),
        **drained,
    )
    return {
        "strawman": Contender(rare, rare, from_storage),
        "highfreq": Contender(remote, remote, from_storage),
        "gemini": Contender(local, peer, in_memory, "mixed"),
        "twinckpt": Contender(local, peer, ours, "mixed", is_rack_aware=True),
    }


def measured_contenders(experiment: Experiment) -> dict[str, Contender]:
    """Return ours and the disk baseline with the durations measured in the same variant."""
    found = measured_strategies(experiment.out.parent)
    return {
        name: Contender(
            one.software,
            one.hardware,
            RecoveryCosts(
                one.around_software,
                one.around_hardware,
                STRAWMAN_INTERVAL_S,
                found["disk"].hardware.retrieval_s,
            ),
            "mixed" if name == "twinckpt" else "",
            is_rack_aware=True,
        )
        for name, one in found.items()
    }


def _play(
    experiment: Experiment,
    phase: str,
    model: FailureModel,
    num_machines: int,
    contenders: dict[str, Contender],
) -> None:
    settings = experiment.config.goodput
    placements = {name: _placement(one, model, num_machines) for name, one in contenders.items()}
    place = {"phase": phase, "machine": num_machines}
    for repeat in range(settings.repeats):
        seed = (experiment.config.optimization.seed, repeat, num_machines)
        started_s = time.perf_counter()
        failures = draw_failures(
            model, num_machines, settings.days * DAY_S, np.random.default_rng(seed)
        )
        for name, one in contenders.items():
            outcome = simulate(
                failures,
                {"software": one.software, "hardware": one.hardware},
                one.costs,
                placements[name],
            )
            at = {**place, "repeat": repeat}
            experiment.add(name, "goodput", outcome.goodput, "ratio", **at)
            experiment.add(name, "wasted_s", outcome.wasted_s, "s", **at)
            experiment.add(name, "from_storage", outcome.num_from_storage, "count", **at)
        spent_s = time.perf_counter() - started_s
        experiment.add("simulator", "seconds", spent_s, "s", **place, repeat=repeat)
    for name, one in contenders.items():
        experiment.add(name, "goodput_analytic", _analytic(one, model, num_machines), "ratio",
                       **place)  # fmt: skip
        experiment.add(name, "wasted_equation_1_s", one.hardware.wasted_s, "s", **place)


def _placement(one: Contender, model: FailureModel, num_machines: int) -> Placement | None:
    if not one.placement:
        return None
    racks = model.racks(num_machines) if one.is_rack_aware else None
    return make_placement(one.placement, num_machines, REPLICAS, racks)


def _analytic(one: Contender, model: FailureModel, num_machines: int) -> float:
    """Return the goodput in closed form, with the mean cost of the two kinds of failure.

    It leaves out replica groups that are lost whole, which the simulator includes.
    """
    rate_per_s = model.events_per_s(num_machines)
    share = model.hardware_share
    restart_s = share * one.costs.hardware.total_s + (1 - share) * one.costs.software.total_s
    retrieval_s = share * one.hardware.retrieval_s + (1 - share) * one.software.retrieval_s
    strategy = replace(one.hardware, retrieval_s=retrieval_s)
    return goodput(strategy, rate_per_s, Restart(warm_up_s=restart_s))


if __name__ == "__main__":
    run_app("wasted_time", measure)
