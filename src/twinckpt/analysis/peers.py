"""What `peers` shows: what users could take instead, over what this library needs for the same.

Each repeat's slowest rank counts; a ratio above 1 says that the peer takes longer.
"""

from collections.abc import Callable
from statistics import fmean

from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.statistics import Estimate, ratio

EXPERIMENT = "peers"
OURS = "twinckpt"
NAMES = ("torch_save", "dcp_sync", "dcp_thread", "dcp_process", "lm_resiliency", "torchft")


def over_ours(metric: str, method: str) -> Callable[[Dataset], Estimate]:
    """The peer's time over ours."""
    return lambda data: ratio(_of(data, metric, method), _of(data, metric, OURS))


def best_over_ours(metric: str) -> Callable[[Dataset], Estimate]:
    """The time of the peer that is fastest, over ours."""

    def compute(data: Dataset) -> Estimate:
        found = data.select(EXPERIMENT, metric)
        methods = [name for name in NAMES if name in set(found.method)]
        if not methods:
            raise NotMeasured(f"{data.results / EXPERIMENT}: no peer has {metric}")
        ratios = [over_ours(metric, method)(data) for method in methods]
        return min(ratios, key=lambda estimate: estimate.value)

    return compute


def extra_over_ours(method: str) -> Callable[[Dataset], Estimate]:
    """What the peer adds to a busy step, over what we add; steps without frame both."""

    def compute(data: Dataset) -> Estimate:
        return ratio(extra_s(data, method), extra_s(data, OURS))

    return compute


def extra_s(data: Dataset, method: str) -> list[float]:
    """Seconds that a checkpoint in each step adds to it, by repeat."""
    steps = _of(data, "step_s", method)
    plain = zip(_of(data, "step_s", "none"), _of(data, "step_s", "none_again"), strict=True)
    return [step_s - fmean(both_s) for step_s, both_s in zip(steps, plain, strict=True)]


def _of(data: Dataset, metric: str, method: str) -> list[float]:
    return data.repeats(EXPERIMENT, metric, method=method)
