"""What `peers` shows: the times of alternatives to this library, relative to its own.

Each repeat's slowest rank counts; a ratio above 1 says that the peer takes longer. `plain_…` is the
peer's time relative to a plain memcpy and TCP transfer: a yardstick, which can be beaten.
"""

from collections.abc import Callable
from statistics import fmean

from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.metric import Metric
from twinckpt.analysis.statistics import Estimate, ratio

EXPERIMENT = "peers"
OURS, PLAIN = "twinckpt", "plain"
NAMES = (
    *("torch_save", "dcp_sync", "dcp_thread", "dcp_process", "torchsnapshot", "lm_resiliency"),
    *("nv_resiliency", "dlrover", "torchft"),
)


def over_ours(metric: str, method: str, ours: str = OURS) -> Callable[[Dataset], Estimate]:
    """The ratio of the peer's time to ours."""
    return lambda data: ratio(_of(data, metric, method), _of(data, metric, ours), paired=True)


def best_over_ours(metric: str) -> Callable[[Dataset], Estimate]:
    """The ratio of the fastest peer's time to ours."""

    def compute(data: Dataset) -> Estimate:
        found = data.select(EXPERIMENT, metric)
        methods = [name for name in NAMES if name in set(found.method)]
        if not methods:
            raise NotMeasured(f"{data.results / EXPERIMENT}: no peer has {metric}")
        ratios = [over_ours(metric, method)(data) for method in methods]
        return min(ratios, key=lambda estimate: estimate.value)

    return compute


def extra_over_ours(method: str, ours: str = OURS) -> Callable[[Dataset], Estimate]:
    """The ratio of the time that the peer adds to a busy step to the time that we add."""

    def compute(data: Dataset) -> Estimate:
        return ratio(extra_s(data, method), extra_s(data, ours), paired=True)

    return compute


def extra_s(data: Dataset, method: str) -> list[float]:
    """The seconds that a checkpoint adds to a busy step, by repeat.

    The step without it is the mean of those before and after all peers' steps.
    """
    steps = _of(data, "step_s", method)
    plain = zip(_of(data, "step_s", "none"), _of(data, "step_s", "none_again"), strict=True)
    return [step_s - fmean(both_s) for step_s, both_s in zip(steps, plain, strict=True)]


def _of(data: Dataset, metric: str, method: str) -> list[float]:
    return data.repeats(EXPERIMENT, metric, method=method)


METRICS = (
    Metric("done_vs_lm_resiliency_x", "x", EXPERIMENT,
           "lm-resiliency: save until replicated in a peer's RAM, over ours",
           over_ours("done_s", "lm_resiliency")),
    Metric("restore_vs_lm_resiliency_x", "x", EXPERIMENT,
           "lm-resiliency: restore of a rank that lost everything, over ours",
           over_ours("restore_s", "lm_resiliency")),
    Metric("extra_vs_lm_resiliency_x", "x", EXPERIMENT,
           "lm-resiliency: time added to a busy step, over ours",
           extra_over_ours("lm_resiliency")),
    *(
        Metric(f"plain_{clock}_vs_lm_resiliency_x", "x", EXPERIMENT,
               f"lm-resiliency: {words}, over a plain memcpy and TCP transfer",
               compute)
        for clock, words, compute in (
            ("done", "save until replicated", over_ours("done_s", "lm_resiliency", PLAIN)),
            ("restore", "restore", over_ours("restore_s", "lm_resiliency", PLAIN)),
            ("extra", "time added to a busy step", extra_over_ours("lm_resiliency", PLAIN)),
        )
    ),
    Metric("plain_restore_vs_torchft_x", "x", EXPERIMENT,
           "torchft: in-place transfer, over a plain TCP transfer",
           over_ours("restore_s", "torchft", PLAIN)),
    Metric("stall_vs_best_peer_x", "x", EXPERIMENT,
           "the least blocking stall of all peers, over ours", best_over_ours("stall_s")),
    Metric("overlapped_stall_vs_best_peer_x", "x", EXPERIMENT,
           "the same beside a host that waits",
           best_over_ours("overlapped_stall_s")),
    Metric("restore_vs_torchft_x", "x", EXPERIMENT,
           "torchft: in-place transfer from a live replica, over our restore from a peer's RAM",
           over_ours("restore_s", "torchft")),
    *(
        Metric(f"done_vs_{method}_x", "x", EXPERIMENT,
               f"{words}: save until durable, over ours until replicated",
               over_ours("done_s", method))
        for method, words in (
            ("torch_save", "torch.save and fsync"), ("dcp_sync", "DCP"),
            ("dcp_thread", "DCP async, thread"), ("dcp_process", "DCP async, process"),
            ("torchsnapshot", "torchsnapshot async"),
            ("nv_resiliency", "NVIDIA Resiliency Extension, with replication"),
        )
    ),
    *(
        Metric(f"{clock}_vs_{method}_x", "x", EXPERIMENT, f"{words}, over ours",
               over_ours(f"{clock}_s", method))
        for clock, method, words in (
            ("restore", "nv_resiliency", "NVIDIA Resiliency Extension: restore from a replica"),
            ("stall", "dlrover", "DLRover: blocking copy to shared memory, no replica"),
        )
    ),
)  # fmt: skip
