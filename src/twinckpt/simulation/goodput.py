"""Goodput of a job over months: failures drawn from a seed, played through a strategy.

The closed form of `core.wasted_time` takes one failure at a time. Here failures also strike
during a recovery, racks fail at once, and a replica group that is lost whole sends the job back
to its last drained checkpoint. The same failures are played through every strategy, so that a
difference between two of them is not luck. Durations are given, nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinckpt.core.placement import Placement
from twinckpt.core.published import DAY_S
from twinckpt.core.wasted_time import Restart, Strategy

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FailureModel:
    """How machines fail: alone, or with all of their rack.

    failed_share_per_day: losses per machine and day, all kinds together. hardware_share: the
    share of lone losses that take the machine's memory away. correlated_share: the share of all
    losses that strike a whole rack; `rack_size` machines with neighbouring numbers are a rack.
    """

    failed_share_per_day: float
    hardware_share: float = 1.0
    correlated_share: float = 0.0
    rack_size: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.failed_share_per_day < float("inf"):
            raise ValueError(f"failed_share_per_day={self.failed_share_per_day}: at least 0")
        for name in ("hardware_share", "correlated_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1]")
        if self.rack_size < 1:
            raise ValueError(f"rack_size={self.rack_size}: must be at least 1")

    def racks(self, num_machines: int) -> list[int]:
        """Return each machine's rack."""
        return [machine // self.rack_size for machine in range(num_machines)]

    def events_per_s(self, num_machines: int) -> float:
        """Return how often the job is interrupted, in 1/s; the loss of a rack counts once."""
        share = self.correlated_share
        alone = num_machines * (1 - share)
        racks = share * -(-num_machines // self.rack_size)
        return (alone + racks) * self.failed_share_per_day / DAY_S


@dataclass(frozen=True, slots=True)
class Failures:
    """Interruptions in order of time: when, which machine, whether its memory or rack is lost."""

    num_machines: int
    duration_s: float
    rack_size: int
    time_s: Floats
    machine: npt.NDArray[np.int64]
    is_hardware: npt.NDArray[np.bool_]
    is_rack: npt.NDArray[np.bool_]

    def lost_machines(self, index: int) -> range:
        """Return the machines whose memory an interruption takes away."""
        machine = int(self.machine[index])
        if self.is_rack[index]:
            first = machine - machine % self.rack_size
            return range(first, min(first + self.rack_size, self.num_machines))
        return range(machine, machine + int(self.is_hardware[index]))


@dataclass(frozen=True, slots=True)
class RecoveryCosts:
    """The time that a restart takes after each kind of failure, and what reading storage costs.

    drain_interval_s (how often a checkpoint is drained) and storage_retrieval_s (how long reading
    one back takes) matter only to strategies that keep checkpoints in memory.
    """

    software: Restart
    hardware: Restart
    drain_interval_s: float = 0.0
    storage_retrieval_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a strategy fared over the simulated time; all durations in seconds.

    lost_work_s: training that had to be repeated. down_s: time without training. stalled_s: time
    that training waited for checkpoints. num_from_storage: recoveries that had to read storage.
    """

    duration_s: float
    useful_s: float
    lost_work_s: float
    down_s: float
    stalled_s: float
    num_failures: int
    num_from_storage: int

    @property
    def goodput(self) -> float:
        """Return the share of the time that was useful training, in [0, 1]."""
        return self.useful_s / self.duration_s

    @property
    def wasted_s(self) -> float:
        """Return the mean wasted time of a failure, down time included; 0 without failures."""
        return (self.lost_work_s + self.down_s) / max(1, self.num_failures)


def draw_failures(
    model: FailureModel, num_machines: int, duration_s: float, rng: np.random.Generator
) -> Failures:
    """Draw a Poisson stream of lone losses and one of rack losses, merged in order of time."""
    per_s = model.failed_share_per_day / DAY_S
    num_racks = -(-num_machines // model.rack_size)
    num_alone = rng.poisson(per_s * num_machines * (1 - model.correlated_share) * duration_s)
    # A rack event is one loss for each of its machines: this keeps each machine's own rate.
    num_rack_events = rng.poisson(per_s * num_racks * model.correlated_share * duration_s)
    time_s = rng.uniform(0, duration_s, num_alone + num_rack_events)
    machine = np.concatenate(
        (
            rng.integers(num_machines, size=num_alone),
            rng.integers(num_racks, size=num_rack_events) * model.rack_size,
        )
    )
    is_rack = np.arange(len(time_s)) >= num_alone
    is_hardware = is_rack | (rng.random(len(time_s)) < model.hardware_share)
    order = np.argsort(time_s)
    return Failures(
        num_machines, duration_s, model.rack_size,
        time_s[order], machine[order], is_hardware[order], is_rack[order],
    )  # fmt: skip


def simulate(
    failures: Failures,
    strategies: Mapping[str, Strategy],
    costs: RecoveryCosts,
    placement: Placement | None,
) -> Outcome:
    """Play failures through a job that checkpoints in memory (`placement`) or to storage (None).

    strategies: how the job fares after a loss that leaves memory intact ("software") and one
    that does not ("hardware"); they differ in the retrieval only. Training counts as useful once
    its checkpoint is safe, so the last stretch counts up to its last checkpoint.
    """
    local, remote = strategies["software"], strategies["hardware"]
    training_s = local.interval_s - local.stall_s
    resumed_s, useful_s, lost_work_s, stalled_s, down_s = 0.0, 0.0, 0.0, 0.0, 0.0
    struck_s, drained_s = 0.0, 0.0
    num_from_storage = 0
    gone: set[int] = set()
    for index, at_s in enumerate(failures.time_s.tolist()):
        drain_s = _last_drain_s(at_s, costs)
        if drain_s >= struck_s:
            drained_s = useful_s + training_s * _num_safe(drain_s - resumed_s, local)
        if at_s >= resumed_s:
            gone.clear()
            run_s = at_s - resumed_s
            safe = _num_safe(run_s, local)
            useful_s += safe * training_s
            stalled_s += safe * local.stall_s
            lost_work_s += run_s - safe * local.interval_s
        else:  # struck while recovering: the rest of that recovery never happens
            down_s -= resumed_s - at_s
        gone.update(failures.lost_machines(index))
        restart = costs.hardware if gone else costs.software
        retrieval_s = remote.retrieval_s if gone else local.retrieval_s
        if placement is not None and _is_group_lost(gone, placement.holders):
            num_from_storage += 1
            retrieval_s = costs.storage_retrieval_s
            lost_work_s += useful_s - drained_s
            useful_s = drained_s
        downtime_s = restart.total_s + retrieval_s
        down_s += downtime_s
        struck_s, resumed_s = at_s, at_s + downtime_s
    run_s = failures.duration_s - resumed_s
    safe = _num_safe(run_s, local)
    return Outcome(
        failures.duration_s,
        useful_s + safe * training_s,
        lost_work_s,
        down_s + min(0.0, run_s),
        stalled_s + safe * local.stall_s,
        len(failures.time_s),
        num_from_storage,
    )


def _num_safe(run_s: float, strategy: Strategy) -> int:
    """Return how many checkpoints of an undisturbed stretch were safe at its end."""
    return max(0, int((run_s - strategy.checkpoint_s) // strategy.interval_s))


def _last_drain_s(now_s: float, costs: RecoveryCosts) -> float:
    """Return when the last complete drain began; a drain takes as long as reading it back."""
    if costs.drain_interval_s <= 0:
        return 0.0
    return (now_s - costs.storage_retrieval_s) // costs.drain_interval_s * costs.drain_interval_s


def _is_group_lost(gone: set[int], holders: Sequence[Sequence[int]]) -> bool:
    """Return whether some lost machine's shards were on lost machines only."""
    return any(all(holder in gone for holder in holders[machine]) for machine in gone)
