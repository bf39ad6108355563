"""What a failure costs: the paper's Eq. 1, the end-to-end time around it, and goodput.

Eq. 1 (§2) is T_wasted = t_ckpt + 1/(2f) + t_rtvl with 1/f ≥ max(t_ckpt, T_iter). It leaves out
detection, serialization, machine replacement and warm-up; `EndToEnd` keeps those apart, so
that neither figure can pass for the other.
"""

import math
from dataclasses import dataclass

STRAWMAN_INTERVAL_S = 3 * 3600.0


@dataclass(frozen=True, slots=True)
class Workload:
    """A training job: T_iter, the bytes of one checkpoint over all machines, and N."""

    iteration_s: float
    checkpoint_bytes: float
    num_machines: int

    def __post_init__(self) -> None:
        _check_positive(
            iteration_s=self.iteration_s,
            checkpoint_bytes=self.checkpoint_bytes,
            num_machines=self.num_machines,
        )


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a job checkpoints, in the terms of Eq. 1.

    checkpoint_s: t_ckpt, from the state's existence until a failure can no longer lose it.
    interval_s: 1/f, between the states that are checkpointed.
    retrieval_s: t_rtvl, from asking for a checkpoint until it has arrived.
    stall_s: how long training stands still for each checkpoint; not in Eq. 1.
    """

    name: str
    checkpoint_s: float
    interval_s: float
    retrieval_s: float
    stall_s: float = 0.0

    def __post_init__(self) -> None:
        _check_not_negative(
            checkpoint_s=self.checkpoint_s, retrieval_s=self.retrieval_s, stall_s=self.stall_s
        )
        _check_positive(interval_s=self.interval_s)
        for name, limit_s in (("checkpoint_s", self.checkpoint_s), ("stall_s", self.stall_s)):
            if self.interval_s < limit_s:
                raise ValueError(
                    f"interval_s={self.interval_s:g} of {self.name}: must be at least "
                    f"{name}={limit_s:g}; checkpoint less often"
                )

    @property
    def checkpoints_per_s(self) -> float:
        """The frequency f of Eq. 1, in 1/s."""
        return 1 / self.interval_s

    @property
    def lost_work_s(self) -> float:
        """The training repeated after a failure, on average: half an interval, in seconds."""
        return self.interval_s / 2

    @property
    def wasted_s(self) -> float:
        """Eq. 1: the average wasted time of a failure, in seconds."""
        return self.checkpoint_s + self.lost_work_s + self.retrieval_s


@dataclass(frozen=True, slots=True)
class Restart:
    """What comes around a retrieval, in seconds; Eq. 1 has none of it.

    serialization_s: writing the in-memory copies out for a loader that wants files, as
    GEMINI does before it restarts; 0 where the memory itself is read.
    replacement_s: until a new machine stands in; 0 for a software failure.
    """

    detection_s: float = 0.0
    serialization_s: float = 0.0
    replacement_s: float = 0.0
    warm_up_s: float = 0.0

    def __post_init__(self) -> None:
        _check_not_negative(
            detection_s=self.detection_s,
            serialization_s=self.serialization_s,
            replacement_s=self.replacement_s,
            warm_up_s=self.warm_up_s,
        )

    @property
    def total_s(self) -> float:
        """All of it, in seconds."""
        return self.detection_s + self.serialization_s + self.replacement_s + self.warm_up_s


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """One failure's whole cost: Eq. 1's part and the part that Eq. 1 leaves out."""

    strategy: Strategy
    restart: Restart

    @property
    def wasted_s(self) -> float:
        """Eq. 1's part, in seconds."""
        return self.strategy.wasted_s

    @property
    def restart_s(self) -> float:
        """Detection, serialization, replacement and warm-up, in seconds."""
        return self.restart.total_s

    @property
    def total_s(self) -> float:
        """Both parts, in seconds."""
        return self.wasted_s + self.restart_s

    @property
    def downtime_s(self) -> float:
        """How long nothing trains: the restart and the retrieval, in seconds."""
        return self.restart_s + self.strategy.retrieval_s


def smallest_interval_s(checkpoint_s: float, iteration_s: float) -> float:
    """Return the smallest 1/f, rounded up to whole iterations: ⌈t_ckpt / T_iter⌉·T_iter."""
    _check_positive(iteration_s=iteration_s)
    _check_not_negative(checkpoint_s=checkpoint_s)
    return max(1, math.ceil(checkpoint_s / iteration_s)) * iteration_s


def strawman(workload: Workload, storage_bytes_per_s: float) -> Strategy:
    """Remote storage every three hours; `storage_bytes_per_s` is of all machines."""
    _check_positive(storage_bytes_per_s=storage_bytes_per_s)
    transfer_s = workload.checkpoint_bytes / storage_bytes_per_s
    return Strategy("strawman", transfer_s, max(STRAWMAN_INTERVAL_S, transfer_s), transfer_s)


def highfreq(workload: Workload, storage_bytes_per_s: float) -> Strategy:
    """Remote storage as often as its bandwidth allows, in whole iterations."""
    _check_positive(storage_bytes_per_s=storage_bytes_per_s)
    transfer_s = workload.checkpoint_bytes / storage_bytes_per_s
    interval_s = smallest_interval_s(transfer_s, workload.iteration_s)
    return Strategy("highfreq", transfer_s, interval_s, transfer_s)


def gemini(workload: Workload, network_bytes_per_s: float, *, from_peer: bool) -> Strategy:
    """Peers' memory in every iteration, with the traffic spread over its idle spans.

    t_ckpt is one iteration, because the last span of it carries the last bytes; retrieval is
    one machine's part at `network_bytes_per_s` (of one machine) after a hardware failure
    (`from_peer`), and nothing after a software failure, as in the paper.
    """
    _check_positive(network_bytes_per_s=network_bytes_per_s)
    machine_bytes = workload.checkpoint_bytes / workload.num_machines
    retrieval_s = machine_bytes / network_bytes_per_s if from_peer else 0.0
    return Strategy("gemini", workload.iteration_s, workload.iteration_s, retrieval_s)


def goodput(strategy: Strategy, rate_per_s: float, restart: Restart | None = None) -> float:
    """Return the effective training time ratio under Poisson failures, in [0, 1].

    Between two failures a job runs for 1/λ on average, then stands still until `downtime_s`
    have passed without another failure, (e^(λ·downtime) − 1)/λ in all. Of the run, the
    checkpoints that became safe count: with interval I and delay t_ckpt, the expected number is
    e^(−λ·t_ckpt) / (e^(λ·I) − 1), each worth I less its stall. To first order in λ each failure
    costs Eq. 1 and the restart, and each checkpoint its stall.
    """
    _check_not_negative(rate_per_s=rate_per_s)
    useful_share = 1 - strategy.stall_s / strategy.interval_s
    exponent = rate_per_s * strategy.interval_s
    if exponent == 0:
        return useful_share
    downtime_s = EndToEnd(strategy, restart or Restart()).downtime_s
    # λI·e^(−λ·t) / (e^(λ·I) − 1), written so that neither a large nor a tiny λ·I breaks it.
    safe_share = (
        exponent / -math.expm1(-exponent) * math.exp(-rate_per_s * strategy.checkpoint_s - exponent)
    )
    return useful_share * safe_share * math.exp(-rate_per_s * downtime_s)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value:g}: must be more than 0 and finite")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value:g}: must be at least 0 and finite")
