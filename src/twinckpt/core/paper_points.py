"""The paper's published numbers, each beside what our model predicts for the paper's set-up.

A prediction uses Eq. 1, Algorithm 1's closed forms and the set-up of §7.1 only (line rates,
sizes, Fig. 14's durations); no constant is fitted to a result. A bound ("more than 13x") holds
or not and has no error. OPT-175B's checkpoint interval is not published: Strawman's is taken. Left
out: the ablation of Fig. 16, because its model's iteration time is not published as a number.
"""

from dataclasses import dataclass
from typing import Literal

from twinckpt.core import published as setup
from twinckpt.core.paper_predictions import GPT2_100B
from twinckpt.core.recovery_probability import exact_probability, ring_union_bound
from twinckpt.core.wasted_time import EndToEnd, Workload, gemini, highfreq, strawman

Kind = Literal["value", "more than", "less than"]


@dataclass(frozen=True, slots=True)
class PaperPoint:
    """One published number and our prediction of it; both in `unit`."""

    name: str
    where: str
    quantity: str
    kind: Kind
    published: float
    predicted: float
    unit: str

    @property
    def error_percent(self) -> float | None:
        """By how many percent the prediction is off; None for a bound."""
        if self.kind != "value":
            return None
        return 100 * abs(self.predicted / self.published - 1)

    @property
    def holds(self) -> bool | None:
        """Whether a bound holds; None for a value."""
        if self.kind == "value":
            return None
        if self.kind == "more than":
            return self.predicted > self.published
        return self.predicted < self.published


def paper_points() -> tuple[PaperPoint, ...]:
    """Return every point, in the order of the paper."""
    job, storage = setup.GPT2_100B_JOB, setup.STORAGE_BYTES_PER_S
    remote, rare = highfreq(job, storage), strawman(job, storage)
    software = gemini(job, setup.P4D_NETWORK_BYTES_PER_S, from_peer=False)
    hardware = gemini(job, setup.P4D_NETWORK_BYTES_PER_S, from_peer=True)
    machine_bytes = job.checkpoint_bytes / job.num_machines
    mt_nlg_s = 530e9 * setup.STATE_BYTES_PER_PARAMETER / storage
    opt = Workload(job.iteration_s, 175e9 * setup.STATE_BYTES_PER_PARAMETER, setup.OPT_GPUS // 8)
    points: list[PaperPoint] = []

    # fmt: off
    def add(name: str, where: str, quantity: str, published: float, predicted: float,
            unit: str = "", kind: Kind = "value") -> None:
        points.append(PaperPoint(name, where, quantity, kind, published, predicted, unit))

    add("mt_nlg_checkpoint", "§1", "MT-NLG 530B: a checkpoint at 20 Gbps", 42.0,
        mt_nlg_s / 60, "min")
    add("mt_nlg_wasted", "§1", "MT-NLG 530B: wasted time of a failure, saving all the time",
        105.0, 2.5 * mt_nlg_s / 60, "min")
    add("opt175b_lost", "§2", "OPT-175B: GPU-hours lost to 110 failures, storage every 3 h",
        178_000.0, setup.OPT_FAILURES * setup.OPT_GPUS * strawman(opt, storage).wasted_s / 3600,
        "GPU-h")
    add("state_bytes", "Fig. 7", "GPT-2 100B: state a GPU, from the model's shape", 9.4,
        GPT2_100B.checkpoint_bytes / 128 / 1e9, "GB")
    add("traffic", "Fig. 8", "checkpoint traffic of an iteration, line rate", 3.0,
        machine_bytes / setup.P4D_NETWORK_BYTES_PER_S, "s", "less than")
    for lost, published, predicted in (
        (2, 93.3, exact_probability("group", 16, 2, 2)),
        (3, 80.0, exact_probability("group", 16, 2, 3)),
    ):
        add(f"recovery_k{lost}", "Fig. 9", f"recovery from RAM, N=16, m=2, k={lost}", published,
            100 * predicted, "%")
    add("ring_k3", "Fig. 9", "the same with a ring, k=3, as plotted (a union bound)", 60.0,
        100 * ring_union_bound(16, 2, 3), "%")
    add("wasted_ratio", "Fig. 10", "wasted time, HighFreq over GEMINI (Eq. 1)", 13.0,
        remote.wasted_s / hardware.wasted_s, "x", "more than")
    add("software_wasted", "Fig. 10", "software failure, in iterations", 1.5,
        software.wasted_s / job.iteration_s, "iterations")
    add("checkpoint_time_100", "Fig. 11",
        "checkpoint time, remote storage over 100 Gbps at line rate", 65.0,
        remote.checkpoint_s / (machine_bytes / setup.P3DN_NETWORK_BYTES_PER_S), "x")
    add("checkpoint_time_400", "Fig. 11",
        "checkpoint time, remote storage over 400 Gbps at line rate", 250.0,
        remote.checkpoint_s / (machine_bytes / setup.P4D_NETWORK_BYTES_PER_S), "x", "more than")
    add("highfreq_interval", "§7.1", "HighFreq: iterations between checkpoints", 9.0,
        remote.interval_s / job.iteration_s, "iterations")
    add("frequency_highfreq", "Fig. 12", "frequency over HighFreq's bandwidth bound", 8.0,
        remote.checkpoint_s / software.interval_s, "x")
    add("frequency_strawman", "Fig. 12", "frequency over Strawman's", 170.0,
        rare.interval_s / software.interval_s, "x", "more than")
    add("software_total", "Fig. 14", "around a software failure, without lost work", 7.0,
        EndToEnd(software, setup.GEMINI_SOFTWARE).downtime_s / 60, "min")
    add("hardware_total", "Fig. 14", "around a hardware failure, without lost work", 12.0,
        EndToEnd(hardware, setup.GEMINI_HARDWARE).downtime_s / 60, "min")
    # fmt: on
    return tuple(points)


def end_to_end_ratios() -> tuple[float, float]:
    """Return what Fig. 10's ratio becomes with everything around a failure (Fig. 14).

    First for a software failure, then for a hardware failure.
    """
    job, network = setup.GPT2_100B_JOB, setup.P4D_NETWORK_BYTES_PER_S
    remote = highfreq(job, setup.STORAGE_BYTES_PER_S)
    software, hardware = (
        EndToEnd(remote, around_storage).total_s
        / EndToEnd(gemini(job, network, from_peer=from_peer), around_memory).total_s
        for around_storage, around_memory, from_peer in (
            (setup.STORAGE_SOFTWARE, setup.GEMINI_SOFTWARE, False),
            (setup.STORAGE_HARDWARE, setup.GEMINI_HARDWARE, True),
        )
    )
    return software, hardware
