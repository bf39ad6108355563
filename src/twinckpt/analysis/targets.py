"""The targets that this project set itself, and whether the median of each metric reaches them.

Nobody published them as results, so they are not claims, which have verdicts (see `claims`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["met", "missed", "not measured"]
OUTCOMES: tuple[Outcome, ...] = ("met", "missed", "not measured")


@dataclass(frozen=True)
class Target:
    """A metric and its limit: `most`, or `least` for a metric that should be large.

    `plain` is the metric of a plain operation in the same run, to compare with.
    """

    metric: str
    most: float | None = None
    least: float | None = None
    plain: str = ""

    @property
    def limit(self) -> float:
        """Return the limit, whether `most` or `least`."""
        limit = self.most if self.most is not None else self.least
        assert limit is not None, self.metric
        return limit

    def outcome(self, measured: Mapping[str, dict[str, Any]]) -> Outcome:
        """Return whether the metric's median, found in `measured` by name, reaches the limit."""
        found = measured.get(self.metric)
        if found is None:
            return "not measured"
        value = found["value"]
        is_met = value <= self.limit if self.most is not None else value >= self.limit
        return "met" if is_met else "missed"


TARGETS = (
    Target("staging_vs_memcpy_x", most=1.2),
    Target("single_staging_vs_memcpy_x", most=1.2),
    Target("stall_vs_staging_percent", most=5),
    Target("single_stall_vs_staging_percent", most=5),
    Target("training_extra_vs_floor_x", most=1.3),
    Target("replication_vs_loopback_x", least=0.85),
    Target("restore_local_vs_memcpy_x", most=1.3, plain="memcpy_hashed_vs_memcpy_x"),
    Target("single_restore_local_vs_memcpy_x", most=1.3),
    Target("restore_peer_vs_loopback_x", most=1.25),
    Target("agent_overhead_mib", most=64),
    Target("device_staging_vs_pcie_x", least=0.85),
    Target("device_restore_vs_pcie_x", least=0.8),
    Target("device_stall_percent", most=1),
    Target("device_training_stall_percent", most=1),
    Target("training_overhead_percent", most=5),
    Target("committed_steps_percent", least=90),
    Target("rank_loss_to_step_s", most=2),
    Target("machine_loss_to_step_s", most=3),
    Target("rank_loss_speedup_vs_torchrun_ram_x", least=6),
    Target("rank_loss_speedup_vs_torchrun_disk_x", least=10),
    Target("rank_loss_detect_ms", most=50),
    Target("lost_steps", most=1),
    Target("invariant_violations", most=0),
    Target("mutants_missed", most=0),
    Target("simulated_year_s", most=60),
    Target("done_vs_lm_resiliency_x", least=2.5, plain="plain_done_vs_lm_resiliency_x"),
    Target("restore_vs_lm_resiliency_x", least=4, plain="plain_restore_vs_lm_resiliency_x"),
    Target("extra_vs_lm_resiliency_x", least=5, plain="plain_extra_vs_lm_resiliency_x"),
    Target("stall_vs_best_peer_x", least=1),
    Target("overlapped_stall_vs_best_peer_x", least=5),
    Target("restore_vs_torchft_x", least=1, plain="plain_restore_vs_torchft_x"),
)
