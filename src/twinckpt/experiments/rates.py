"""Strategies of the model with durations measured on this machine, from an earlier run's samples.

The samples are those of `save_cost`, `recovery_time` and `throughput` in the same variant. For
each repeat the slowest rank counts; the value is the median over repeats.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import StatisticsError, median

from twinckpt.core.wasted_time import Restart, Strategy, smallest_interval_s
from twinckpt.results.samples import Sample, read_samples

NEEDED = ("save_cost", "recovery_time", "throughput")


@dataclass(frozen=True, slots=True)
class MeasuredStrategy:
    """A strategy and its restart with this machine's durations, after either kind of failure."""

    software: Strategy
    hardware: Strategy
    around_software: Restart
    around_hardware: Restart


def measured_strategies(results: Path) -> dict[str, MeasuredStrategy]:
    """Return `twinckpt` and `disk` as measured below `results`; empty if samples are missing."""
    paths = [results / name / "samples.csv" for name in NEEDED]
    if not all(path.exists() for path in paths):
        return {}
    try:
        return _strategies([sample for path in paths for sample in read_samples(path)])
    except StatisticsError:  # no samples: `recovery.methods` has left a method out
        return {}


def _strategies(samples: list[Sample]) -> dict[str, MeasuredStrategy]:
    """Return both strategies; raises StatisticsError if samples are missing.

    The stall of a checkpoint in memory is what it adds to an iteration, so that it includes
    the copying that goes on beside the training; the disk baseline blocks.
    """

    def value(method: str, metric: str, phase: str = "") -> float:
        return _typical(samples, method, metric, phase)

    iteration_s = 1 / value("none", "iterations_per_s")
    stall_s = max(0.0, 1 / value("ram", "iterations_per_s") - iteration_s)

    def strategy(name: str, saved_as: str, restored_as: str, stall_s: float) -> Strategy:
        safe_s = value(saved_as, "recoverable_s")
        interval_s = smallest_interval_s(max(safe_s, stall_s), iteration_s)
        return Strategy(name, safe_s, interval_s, value(restored_as, "retrieve_s"), stall_s)

    def around(method: str, waiting: str) -> Restart:
        return Restart(
            detection_s=value(method, "duration_s", "detect"),
            replacement_s=value(method, "duration_s", waiting),
            warm_up_s=value(method, "duration_s", "restart")
            + value(method, "duration_s", "first_step"),
        )

    to_disk = strategy("disk", "disk", "disk", value("disk", "stall_s"))
    return {
        "twinckpt": MeasuredStrategy(
            strategy("twinckpt", "ram_replica", "ram_local", stall_s),
            strategy("twinckpt", "ram_replica", "ram_peer", stall_s),
            around("ram_local", "decide"),
            around("ram_peer", "replace"),
        ),
        # The disk baseline's machine is replaced like ours; only the state comes from a file.
        "disk": MeasuredStrategy(
            to_disk, to_disk, around("disk", "decide"), around("ram_peer", "replace")
        ),
    }


def _typical(samples: list[Sample], method: str, metric: str, phase: str) -> float:
    """Return the median over repeats of the slowest rank's value."""
    repeats: dict[tuple[int | None, int | None], list[float]] = defaultdict(list)
    for sample in samples:
        if (sample.method, sample.metric, sample.phase) == (method, metric, phase):
            repeats[sample.repeat, sample.step].append(sample.value)
    slowest = min if metric == "iterations_per_s" else max
    return median(slowest(values) for values in repeats.values())
