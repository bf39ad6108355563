"""Random clusters under random faults: `run` plays one seed and checks it throughout."""

import random
from dataclasses import dataclass, replace

from twinckpt.core.root import RootConfig
from twinckpt.simulation.cluster import Job, SimulatedCluster
from twinckpt.simulation.faults import Faults
from twinckpt.simulation.invariants import Invariants, InvariantViolation

HEALTHY = "healthy in bounded time"
_QUIET_START_S, _LONG_GAP_S, _SHORT_GAP_S, _BOUND_S = 2.0, 1.2, 0.05, 30.0
_COMMITS_AFTER_FAULTS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one seed; `healthy_after_s` counts from the last fault."""

    num_machines: int
    num_events: int
    num_commits: int
    healthy_after_s: float


def draw_job(draw: random.Random, max_machines: int) -> Job:
    """Draw a job: machines, replicas, placement, slots, drains, elasticity, ranks, racks."""
    num_machines = draw.randint(2, max_machines)
    config = RootConfig(
        replicas=draw.randint(2, min(3, num_machines)),
        placement=draw.choice(["ring", "mixed", "group"]),
        num_slots=draw.choice([2, 2, 3]),
        heartbeat_timeout_s=0.6,
        last_call_s=1.0,
        drain_every_commits=draw.choice([0, 3]),
    )
    is_elastic = draw.random() < 0.2
    return Job(
        num_machines,
        config,
        min_machines=num_machines - 1 if is_elastic else num_machines,
        ranks_per_machine=draw.choice([1, 1, 1, 2]),
        num_racks=draw.choice([0, 0, 2, 4]),
    )


def run(seed: int, *, num_faults: int = 20, max_machines: int = 16) -> Outcome:
    """Play one seed; raises InvariantViolation, with its story, if a rule is broken.

    Clusters of odd seeds elect the successors of their roots; in every third seed the ranks run
    freely. Once the faults have ended, the job must commit again within bounded time; the bound is
    doubled if ranks run freely, since a checkpoint waits for the slowest of them. The same seed
    always plays the same events.
    """
    draw = random.Random(seed)
    job = replace(
        draw_job(draw, max_machines), elects_root=seed % 2 == 1, runs_freely=seed % 3 == 2
    )
    invariants = Invariants()
    cluster = SimulatedCluster(job, seed, invariants)
    faults = Faults(cluster, draw)
    at_s = _QUIET_START_S
    for _ in range(num_faults):
        at_s += draw.expovariate(1 / (_SHORT_GAP_S if draw.random() < 0.35 else _LONG_GAP_S))
        cluster.time.after(at_s, faults.strike)
    cluster.time.note("seed %d: %s", seed, job)
    cluster.run_until(at_s + 1e-6)
    faults.end()
    enough = invariants.num_commits + _COMMITS_AFTER_FAULTS
    bound_s = 2 * _BOUND_S if job.runs_freely else _BOUND_S
    cluster.run_until(at_s + bound_s, lambda: invariants.num_commits >= enough)
    if invariants.num_commits < enough:
        what = f"seed {seed}: not {bound_s} s after the last fault"
        raise InvariantViolation(HEALTHY, what, cluster.time.story())
    return Outcome(
        job.num_machines,
        cluster.time.num_events,
        invariants.num_commits,
        cluster.time.now_s - at_s,
    )
