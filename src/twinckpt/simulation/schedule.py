"""Random clusters under random faults: `run` plays one seed and checks it throughout."""

import random
from dataclasses import dataclass

from twinckpt.core.root import RootConfig
from twinckpt.simulation.cluster import Job, SimulatedCluster
from twinckpt.simulation.invariants import Invariants, InvariantViolation

FAULTS = ("machine", "silent machine", "rank", "link", "damage")
_QUIET_START_S, _MEAN_GAP_S, _RECOVERY_S = 5.0, 2.0, 40.0
_MIN_COMMITS_AFTER_FAULTS = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed amounted to."""

    num_events: int
    num_commits: int


def run(seed: int, *, num_faults: int = 20, max_machines: int = 8) -> Outcome:
    """Play one seed; raises InvariantViolation, with its trace, if a rule is broken.

    The cluster's size, replicas, placement and slots are drawn from the seed too. Once the
    faults have ended the job must commit again within bounded time.
    """
    draw = random.Random(seed)
    num_machines = draw.randint(2, max_machines)
    config = RootConfig(
        replicas=draw.randint(2, min(3, num_machines)),
        placement=draw.choice(["ring", "mixed"]),
        num_slots=draw.choice([2, 2, 3]),
    )
    invariants = Invariants()
    cluster = SimulatedCluster(Job(num_machines, config), seed, invariants)
    at_s = _QUIET_START_S
    for _ in range(num_faults):
        at_s += draw.expovariate(1 / _MEAN_GAP_S)
        _schedule(cluster, at_s, draw.choice(FAULTS), draw)
    cluster.run_until(at_s + 1.0)
    before = invariants.num_commits
    cluster.run_until(at_s + _RECOVERY_S)
    if invariants.num_commits < before + _MIN_COMMITS_AFTER_FAULTS:
        story = "\n".join(cluster.trace[-60:])
        raise InvariantViolation(f"seed {seed}: not healthy {_RECOVERY_S} s later\n{story}")
    return Outcome(cluster.num_events, invariants.num_commits)


def _schedule(cluster: SimulatedCluster, at_s: float, fault: str, draw: random.Random) -> None:
    def strike() -> None:
        living = [machine.name for machine in cluster.machines.values() if machine.is_alive]
        if not living:
            return
        name = draw.choice(living)
        match fault:
            case "rank":
                cluster.kill_rank(name)
            case "link":
                cluster.cut_link(name)
            case "damage":
                cluster.damage(name)
            case _:
                cluster.kill_machine(name, silently=fault == "silent machine")

    cluster.after(at_s, strike)
