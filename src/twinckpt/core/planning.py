"""How to checkpoint on a given cluster: placement, replicas, frequency, drain interval.

A model on paper: Eq. 1 and the restart around it as in `core.wasted_time`, cause by cause, and the
loss of a whole replica group, which costs the way back to the last drained checkpoint. The
durations around a failure (detection, replacement, warm-up) are inputs; nothing is measured here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from twinckpt.core.published import DAY_S
from twinckpt.core.wasted_time import smallest_interval_s
from twinckpt.errors import ConfigurationError

MAX_REPLICAS = 4
MAX_DRAIN_INTERVAL_S = 24 * 3600.0
# A drain interval may add this much of all other waste, and no more.
DRAIN_SHARE = 0.02
# Below this goodput there is no plan to recommend.
MIN_GOODPUT = 0.05
# Plans that differ less in goodput count as equal: a minute and a half a day.
SAME_GOODPUT = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """What a user knows of a cluster and a job; bandwidths in bytes/s, durations in seconds.

    network_bytes_per_s: of one machine, one way. network_idle_share: how much of it training
    leaves free. storage_bytes_per_s: of all machines together. copy_bytes_per_s: copying within
    one machine's memory. memory_bytes: what one machine can give to checkpoints, None if that
    is no concern. hardware_share: failures that take a machine's memory away. rack_share: of
    these, how many take the whole rack; num_racks: 0 where racks are unknown. stall_s: how long
    training stands still for each checkpoint.
    """

    num_machines: int
    ranks_per_machine: int
    bytes_per_rank: float
    network_bytes_per_s: float
    storage_bytes_per_s: float
    copy_bytes_per_s: float
    iteration_s: float
    failures_per_day: float
    memory_bytes: float | None = None
    network_idle_share: float = 0.15
    hardware_share: float = 1.0
    rack_share: float = 0.0
    num_racks: int = 0
    num_slots: int = 2
    detection_s: float = 1.0
    replacement_s: float = 330.0
    warm_up_s: float = 253.0
    stall_s: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "num_machines", "ranks_per_machine", "bytes_per_rank", "network_bytes_per_s",
            "storage_bytes_per_s", "copy_bytes_per_s", "iteration_s", "num_slots",
        ):  # fmt: skip
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigurationError(f"{name}={value:g}: must be more than 0 and finite")
        for name in (
            "failures_per_day",
            "detection_s",
            "replacement_s",
            "warm_up_s",
            "num_racks",
            "stall_s",
        ):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigurationError(f"{name}={value:g}: must be at least 0 and finite")
        if self.memory_bytes is not None and not self.memory_bytes >= 0:
            raise ConfigurationError(f"memory_bytes={self.memory_bytes:g}: must be at least 0")
        for name in ("hardware_share", "rack_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name}={getattr(self, name):g}: must be in [0, 1]")
        if not 0 < self.network_idle_share <= 1:
            raise ConfigurationError(
                f"network_idle_share={self.network_idle_share:g}: must be in (0, 1]"
            )
        if self.num_machines < 2:
            raise ConfigurationError(
                "num_machines=1: a replica needs a second machine; checkpoint to storage instead"
            )
        if self.num_slots < 2:
            raise ConfigurationError(
                f"num_slots={self.num_slots}: needs 2, the committed step and the one in progress"
            )
        if self.num_racks > self.num_machines:
            raise ConfigurationError(
                f"num_racks={self.num_racks} is more than num_machines={self.num_machines}"
            )

    @property
    def machine_bytes(self) -> float:
        """The state of one machine's ranks."""
        return self.ranks_per_machine * self.bytes_per_rank

    @property
    def rate_per_s(self) -> float:
        """Failures of the job, in 1/s."""
        return self.failures_per_day / DAY_S

    @property
    def drain_s(self) -> float:
        """How long it takes to copy the whole state to storage, or back."""
        return self.num_machines * self.machine_bytes / self.storage_bytes_per_s


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to checkpoint and what it is expected to cost.

    num_replicas: machines that hold a shard; 1 means storage only, without twinckpt.
    interval_iterations: iterations from one checkpoint to the next. safe_s: until a new one
    survives the loss of a machine. waste: what each cause costs, in seconds a second of training.
    """

    placement: str
    num_replicas: int
    interval_iterations: int
    safe_s: float
    drain_interval_s: float
    memory_bytes: float
    group_losses_per_day: float
    waste: Mapping[str, float]

    @property
    def goodput(self) -> float:
        """The expected share of time that is training which counts, in [0, 1].

        e^(−waste): the closed form of `core.wasted_time.goodput` up to second order in the
        failure rate, failures during recoveries included.
        """
        return math.exp(-sum(self.waste.values()))

    @property
    def dominant(self) -> str:
        """The cause of most of the waste."""
        return max(self.waste, key=lambda cause: self.waste[cause])


def storage_plan(facts: ClusterFacts) -> Plan:
    """Return the plan to checkpoint to storage alone, as often as it can keep up and it pays.

    The write goes on beside the training, so that its stall is that of a copy in memory. This
    is what the other plans are compared with.
    """
    interval_s = _interval_s(facts, facts.drain_s)
    return Plan(
        "storage", 1, round(interval_s / facts.iteration_s), facts.drain_s, interval_s, 0.0,
        facts.failures_per_day,
        _waste(facts, facts.drain_s, interval_s, facts.drain_s, facts.drain_s),
    )  # fmt: skip


def memory_plan(facts: ClusterFacts, num_replicas: int) -> Plan:
    """Return the best plan with this many replicas in memory.

    Frequency: as often as the copies keep up, less often where they stall the loop (`_interval_s`).
    Drain interval: as long as its part of the waste stays small (`DRAIN_SHARE`).
    Raises ConfigurationError where it cannot work, with the reason.
    """
    if not 2 <= num_replicas <= facts.num_machines:
        raise ConfigurationError(
            f"num_replicas={num_replicas}: must be in [2, num_machines={facts.num_machines}]"
        )
    memory_bytes = num_replicas * facts.num_slots * facts.machine_bytes
    if facts.memory_bytes is not None and memory_bytes > facts.memory_bytes:
        raise ConfigurationError(
            f"{num_replicas} replicas in {facts.num_slots} slots need {memory_bytes / 2**30:,.4g} "
            f"GiB of a machine's memory, {facts.memory_bytes / 2**30:,.4g} GiB are there; use more "
            "machines or fewer bytes a rank"
        )
    sent_s = (num_replicas - 1) * facts.machine_bytes / facts.network_bytes_per_s
    safe_s = facts.machine_bytes / facts.copy_bytes_per_s + sent_s / facts.network_idle_share
    interval_s = _interval_s(facts, safe_s)
    retrieval_s = facts.machine_bytes / facts.network_bytes_per_s
    waste = _waste(facts, safe_s, interval_s, retrieval_s, software_s=0.0)
    lost_per_s = _group_losses_per_s(facts, num_replicas, retrieval_s)
    drain_interval_s = _drain_interval_s(facts, lost_per_s, sum(waste.values()))
    # Back to the last complete drain: half an interval, and the drain that was under way.
    waste["group loss"] = lost_per_s * (drain_interval_s / 2 + 2 * facts.drain_s)
    return Plan(
        "group" if facts.num_machines % num_replicas == 0 else "mixed",
        num_replicas,
        round(interval_s / facts.iteration_s),
        safe_s,
        drain_interval_s,
        memory_bytes,
        lost_per_s * DAY_S,
        waste,
    )


def candidates(facts: ClusterFacts) -> tuple[list[Plan], list[str]]:
    """Return the plans that are possible, and why the others are not."""
    plans, reasons = [], []
    for num_replicas in range(2, min(MAX_REPLICAS, facts.num_machines) + 1):
        try:
            plans.append(memory_plan(facts, num_replicas))
        except ConfigurationError as reason:
            reasons.append(str(reason))
    return plans, reasons


def recommend(facts: ClusterFacts) -> Plan:
    """Return the plan with the best expected goodput; among equals the one with less memory.

    Raises ConfigurationError where no replica fits, or where failures leave next to no time
    between recoveries: then no way of checkpointing helps.
    """
    plans, reasons = candidates(facts)
    if not plans:
        raise ConfigurationError(f"no plan with replicas in memory: {reasons[0]}")
    best = max(plan.goodput for plan in plans)
    plan = next(plan for plan in plans if plan.goodput >= best - SAME_GOODPUT)
    if plan.goodput < MIN_GOODPUT:
        mean_s = 1 / facts.rate_per_s
        raise ConfigurationError(
            f"failures_per_day={facts.failures_per_day:g}: one every {mean_s:,.0f} s leaves "
            f"{100 * plan.goodput:.1f} % of the time to train, most of the rest goes to "
            f"{plan.dominant}; use fewer machines or shorten that"
        )
    return plan


def _interval_s(facts: ClusterFacts, safe_s: float) -> float:
    """Return 1/f in whole iterations: what bandwidth allows, or Young's √(2·stall/λ) if longer."""
    interval_s = smallest_interval_s(max(safe_s, facts.stall_s), facts.iteration_s)
    if facts.stall_s > 0 and facts.rate_per_s > 0:
        best_s = math.sqrt(2 * facts.stall_s / facts.rate_per_s)
        interval_s = max(interval_s, round(best_s / facts.iteration_s) * facts.iteration_s)
    return interval_s


def _waste(
    facts: ClusterFacts, safe_s: float, interval_s: float, retrieval_s: float, software_s: float
) -> dict[str, float]:
    """Return the waste per second by cause; `software_s`: retrieval where memory is intact."""
    rate, hardware = facts.rate_per_s, facts.hardware_share
    return {
        "stall": facts.stall_s / interval_s,
        "lost work": rate * (safe_s + interval_s / 2),
        "detection": rate * facts.detection_s,
        "replacement": rate * hardware * facts.replacement_s,
        "warm-up": rate * facts.warm_up_s,
        "retrieval": rate * (hardware * retrieval_s + (1 - hardware) * software_s),
    }


def _group_losses_per_s(facts: ClusterFacts, num_replicas: int, retrieval_s: float) -> float:
    """Return how often all machines of some replica group are gone at once.

    Either a rack takes them, if there are too few racks to keep replicas apart, or the others of
    a lost machine's group follow it before it is replaced and its copies are back.
    """
    hardware_per_s = facts.rate_per_s * facts.hardware_share
    from_racks = 0.0
    if facts.num_racks < num_replicas:
        from_racks = hardware_per_s * facts.rack_share
    window_s = (
        facts.detection_s + facts.replacement_s + facts.warm_up_s + num_replicas * retrieval_s
    )
    machine_per_s = hardware_per_s / facts.num_machines
    others = math.prod(
        1 - math.exp(-machine_per_s * window_s * (num_replicas - lost))
        for lost in range(1, num_replicas)
    )
    return from_racks + hardware_per_s * others


def _drain_interval_s(facts: ClusterFacts, lost_per_s: float, other_waste: float) -> float:
    """Return the longest interval whose lost work stays a small part of all waste."""
    longest_s = MAX_DRAIN_INTERVAL_S
    if lost_per_s > 0:
        longest_s = min(longest_s, 2 * DRAIN_SHARE * other_waste / lost_per_s)
    return max(smallest_interval_s(facts.drain_s, facts.iteration_s), longest_s)
