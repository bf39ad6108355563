"""What was published about real clusters: the paper's set-up, and how often machines fail.

Numbers only, each with its source; nothing here is measured by us or fitted to anything.
"""

from dataclasses import dataclass

from twinckpt.core.wasted_time import Restart, Workload

DAY_S = 86400.0
BITS_PER_BYTE = 8

# GEMINI §7.1: remote storage of 20 Gbps over all machines, and each machine's network.
STORAGE_BYTES_PER_S = 20e9 / BITS_PER_BYTE
P4D_NETWORK_BYTES_PER_S = 400e9 / BITS_PER_BYTE
P3DN_NETWORK_BYTES_PER_S = 100e9 / BITS_PER_BYTE

# GPT-2 100B on 16 p4d (Fig. 7): 62 s an iteration, 9.4 GB on each of 128 GPUs, read as GiB
# (docs/deviations.md says why).
GPT2_100B_JOB = Workload(iteration_s=62.0, checkpoint_bytes=128 * 9.4 * 2**30, num_machines=16)

# Adam in mixed precision: weights and two moments in 32 bits.
STATE_BYTES_PER_PARAMETER = 12
VOCABULARY = 50265

# Fig. 14. A machine's replacement takes 4 to 7 minutes; the middle counts.
DETECTION_S, SERIALIZATION_S, WARM_UP_S = 15.0, 162.0, 253.0
REPLACEMENT_S = (4 * 60 + 7 * 60) / 2
GEMINI_SOFTWARE = Restart(DETECTION_S, SERIALIZATION_S, 0.0, WARM_UP_S)
GEMINI_HARDWARE = Restart(DETECTION_S, SERIALIZATION_S, REPLACEMENT_S, WARM_UP_S)
STORAGE_SOFTWARE = Restart(DETECTION_S, 0.0, 0.0, WARM_UP_S)
STORAGE_HARDWARE = Restart(DETECTION_S, 0.0, REPLACEMENT_S, WARM_UP_S)

# OPT-175B: about 110 failures in two months of 992 GPUs (§1).
OPT_FAILURES, OPT_GPUS = 110, 992


@dataclass(frozen=True, slots=True)
class FailureStatistics:
    """How often the machines of a real cluster failed.

    failed_share_per_day: failures a machine and day. hardware_share: of these, how many took
    the machine (and its memory) away; 1.0 where the source does not say.
    """

    name: str
    failed_share_per_day: float
    hardware_share: float
    description: str
    source: str


FAILURE_STATISTICS = (
    FailureStatistics(
        "gemini", 0.015, 1.0,
        "the paper's own assumption: 1.5 % of the instances fail a day",
        "Wang et al., SOSP 2023, §7.3, https://doi.org/10.1145/3600006.3613145",
    ),
    FailureStatistics(
        "gemini_software", 0.015, 0.0,
        "the same rate, but every failure leaves the machine's memory intact",
        "the other end of the same assumption",
    ),
    FailureStatistics(
        "opt175b", OPT_FAILURES / (OPT_GPUS / 8) / 60, 1.0,
        "OPT-175B: about 110 failures in two months on 124 machines of 8 A100",
        "Zhang et al. 2022, §2.5, https://arxiv.org/abs/2205.01068, as counted by GEMINI §1",
    ),
    FailureStatistics(
        "llama3", 419 / 54 / (16384 / 8), 0.78,
        "Llama 3 405B: 419 unexpected interruptions in 54 days on 2,048 machines of 8 H100, "
        "78 % of them hardware",
        "Grattafiori et al. 2024, §3.3.4, https://arxiv.org/abs/2407.21783",
    ),
    FailureStatistics(
        "rsc1", 6.50e-3, 1.0,
        "Meta's RSC-1, 16,000 A100: 6.50 failures in 1,000 machine-days",
        "Kokolis et al., HPCA 2025, https://arxiv.org/abs/2410.21680",
    ),
    FailureStatistics(
        "rsc2", 2.34e-3, 1.0,
        "Meta's RSC-2, 8,000 A100: 2.34 failures in 1,000 machine-days",
        "Kokolis et al., HPCA 2025, https://arxiv.org/abs/2410.21680",
    ),
)  # fmt: skip
STATISTICS_BY_NAME = {one.name: one for one in FAILURE_STATISTICS}
