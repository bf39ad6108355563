"""`control_plane`: thousands of simulated clusters under faults, mutants, and the root's speed.

The state machines are those of the library; the simulator gives them virtual time, faults and
an invariant checker. The story of a seed that breaks a rule is in `logs/violations/`, and
`clusters=1 seed=<seed>` plays it again. docs/results-schema.md describes what the numbers mean.
"""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar

from twinckpt.errors import TwinckptError
from twinckpt.experiments.app import Experiment, run_app
from twinckpt.experiments.root_load import LargeCluster, heartbeats_per_s
from twinckpt.results.atomic import write_text
from twinckpt.simulation.invariants import InvariantViolation
from twinckpt.simulation.mutants import MUTANTS, first_violation
from twinckpt.simulation.schedule import Outcome, run

logger = logging.getLogger("twinckpt.experiments")

_SEEDS_A_TASK = 20
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def measure(experiment: Experiment) -> None:
    """Play the clusters, hunt the mutants, load the root; TwinckptError if a rule is broken."""
    violations = _play(experiment)
    _hunt(experiment)
    _load_root(experiment)
    if violations:
        raise TwinckptError(
            f"seeds {violations} break a rule; see {experiment.out}/logs/violations/ and play one "
            "again with clusters=1 seed=<seed>"
        )


def _play(experiment: Experiment) -> list[int]:
    """Play every cluster and add its samples; return the seeds that break a rule."""
    section = experiment.config.control_plane
    logs = experiment.fresh_log_directory("violations")
    play = partial(_play_seeds, num_faults=section.faults, max_machines=section.max_machines)
    last = section.seed + section.clusters
    tasks = [
        range(first, min(first + _SEEDS_A_TASK, last))
        for first in range(section.seed, last, _SEEDS_A_TASK)
    ]
    violations, num_events = [], 0
    for seeds, outcomes in zip(tasks, _in_processes(play, tasks), strict=True):
        for seed, outcome in zip(seeds, outcomes, strict=True):
            is_right = isinstance(outcome, Outcome)
            at = {"repeat": seed}
            experiment.add("simulation", "violated", not is_right, "bool", **at)
            if isinstance(outcome, Outcome):
                num_events += outcome.num_events
                at["machine"] = outcome.num_machines
                experiment.add("simulation", "events", outcome.num_events, "count", **at)
                experiment.add("simulation", "commits", outcome.num_commits, "count", **at)
                experiment.add("simulation", "healthy_after_s", outcome.healthy_after_s, "s", **at)
            else:
                violations.append(seed)
                write_text(logs / f"seed-{seed}.txt", outcome)
                logger.error("seed %d: %s", seed, outcome.partition("\n")[0])
        if seeds[-1] + 1 == last or (seeds[0] - section.seed) % (25 * _SEEDS_A_TASK) == 0:
            logger.info("%d of %d clusters, %d events, %d violations",
                        seeds[-1] + 1 - section.seed, section.clusters, num_events,
                        len(violations))  # fmt: skip
    return violations


def _play_seeds(seeds: Sequence[int], num_faults: int, max_machines: int) -> list[Outcome | str]:
    """Return each seed's outcome, or the story of its violation."""
    _be_quiet()
    outcomes: list[Outcome | str] = []
    for seed in seeds:
        try:
            outcomes.append(run(seed, num_faults=num_faults, max_machines=max_machines))
        except InvariantViolation as violation:
            outcomes.append(str(violation))
    return outcomes


def _hunt(experiment: Experiment) -> None:
    """Add for each mutant how many seeds it took to find it; 0 if no seed found it."""
    hunt = partial(_seeds_until_found, num_seeds=experiment.config.control_plane.mutant_seeds)
    names = range(len(MUTANTS))
    for mutant, needed in zip(MUTANTS, _in_processes(hunt, names), strict=True):
        phase = mutant.name.replace(" ", "_")
        experiment.add("mutant", "seeds_until_found", needed, "count", phase=phase)
        if not needed:
            logger.error("the mutant %r was not found", mutant.name)
    logger.info("%d mutants hunted", len(MUTANTS))


def _be_quiet() -> None:
    """Silence the warning that few racks cannot keep replicas apart: it would come for thousands.

    In small simulated clusters it is expected.
    """
    logging.getLogger("twinckpt.core.placement").setLevel(logging.ERROR)


def _seeds_until_found(index: int, num_seeds: int) -> int:
    _be_quiet()
    for seed in range(num_seeds):
        if first_violation(MUTANTS[index], [seed]) is not None:
            return seed + 1
    return 0


def _load_root(experiment: Experiment) -> None:
    section = experiment.config.control_plane
    for repeat in range(section.repeats):
        for num_machines in section.root_machines:
            found = LargeCluster(num_machines, replicas=2).decisions()
            at = {"machine": num_machines, "repeat": repeat}
            experiment.add("root", "plan_s", found.plan_s, "s", **at)
            experiment.add("root", "commit_s", found.commit_s, "s", **at)
            experiment.add("root", "tick_s", found.tick_s, "s", **at)
            experiment.add("root", "told_bytes", found.told_bytes, "bytes", **at)
        for num_machines in section.connections:
            rate = heartbeats_per_s(num_machines, section.heartbeats // num_machines)
            at = {"machine": num_machines, "repeat": repeat}
            experiment.add("root", "heartbeats_s", 1 / rate, "s", **at)
    logger.info("the root's decisions timed up to %d machines", max(section.root_machines))


def _in_processes(work: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> Iterator[_Result]:
    """Yield the results in the order of the tasks, which run in one process per core."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        yield from pool.map(work, tasks)


if __name__ == "__main__":
    run_app("control_plane", measure)
