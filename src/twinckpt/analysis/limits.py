"""What `limits` shows: each operation over the plain copy or transfer of its bytes, by case.

A case is a method of its samples, `ranks<N>_mib<SIZE>`: N ranks at once, each with SIZE MiB of
state in CPU memory, or on a GPU if the name begins with `cuda_`.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.statistics import Estimate, median, ratio

EXPERIMENT = "limits"
MARKERS = "osD^v"


class Limit(NamedTuple):
    """A quotient of two clocks: `top` over `bottom`, times `scale`.

    `label` is its name in the figure, which shows the time of the operation over that of the plain
    one: a quotient of rates is therefore `turned`.
    """

    top: str
    bottom: str
    label: str = ""
    scale: float = 1.0
    turned: bool = False


LIMITS = {
    "staging_vs_memcpy_x": Limit("staging_s", "memcpy_s", "blocking staging / memcpy"),
    "stall_vs_staging_percent": Limit("stall_s", "staging_s", scale=100),
    "training_extra_vs_floor_x": Limit("extra_s", "floor_s", "added to a busy step / memcpy + TCP"),
    "training_control_vs_floor_x": Limit("control_s", "floor_s"),
    "replication_vs_loopback_x": Limit(
        "loopback_s", "replication_s", "replication / plain TCP", turned=True
    ),
    "restore_local_vs_memcpy_x": Limit(
        "restore_local_s", "memcpy_in_s", "restore, own RAM / memcpy"
    ),
    "memcpy_hashed_vs_memcpy_x": Limit(
        "memcpy_hashed_s", "memcpy_in_s", "streamed copy, hashed / memcpy"
    ),
    "restore_peer_vs_loopback_x": Limit(
        "restore_peer_s", "loopback_one_s", "restore, peer's RAM / plain TCP"
    ),
}
# For a state on a GPU, whose plain copy goes through PCIe, from or to pinned memory.
DEVICE_LIMITS = {
    "device_staging_vs_pcie_x": Limit("memcpy_s", "staging_s"),
    "device_restore_vs_pcie_x": Limit("memcpy_in_s", "restore_local_s"),
    "device_stall_percent": Limit("stall_s", "step_none_s", scale=100),
    "device_extra_percent": Limit("extra_s", "step_none_s", scale=100),
    "device_control_percent": Limit("control_s", "step_none_s", scale=100),
}
# Limits of copies by the CPU, and of steps that keep its cores busy.
_IN_CPU_MEMORY = ("memcpy_hashed_vs_memcpy_x", "training_extra_vs_floor_x",
                  "training_control_vs_floor_x")  # fmt: skip
_OF_SEVERAL = ("replication_vs_loopback_x", "restore_peer_vs_loopback_x")


def ranks_and_mib(case: str) -> tuple[int, int]:
    """Return the number of ranks of a case, and the MiB of each rank's state."""
    ranks, size = map(int, re.findall(r"\d+", case))
    return ranks, size


def cases(data: Dataset, *, on_gpu: bool = False) -> list[str]:
    """Return the cases in CPU memory or on a GPU, by ranks, then size; the last is the headline."""
    found = data.select(EXPERIMENT, "memcpy_s").method.unique()
    return sorted((case for case in found if _is_on_gpu(case) == on_gpu), key=ranks_and_mib)


def all_cases(data: Dataset) -> list[str]:
    """Return the cases in CPU memory, then those on a GPU."""
    return cases(data) + cases(data, on_gpu=True)


def quotient(data: Dataset, name: str, case: str) -> Estimate:
    """Return one of the limits for one case, from the slowest rank of each repeat."""
    limit = (LIMITS | DEVICE_LIMITS)[name]
    top = data.repeats(EXPERIMENT, limit.top, method=case)
    bottom = data.repeats(EXPERIMENT, limit.bottom, method=case)
    return ratio([limit.scale * value for value in top], bottom, paired=True)


def headline(
    name: str, *, on_gpu: bool = False, alone: bool = False
) -> Callable[[Dataset], Estimate]:
    """One of the limits for the headline case: the most ranks at once, and the largest state.

    With `alone`, the case is one rank with the largest state. NotMeasured if there is no such case.
    """
    return lambda data: quotient(data, name, _case(data, on_gpu=on_gpu, alone=alone))


def device_committed_percent(data: Dataset) -> Estimate:
    """The share of checkpoints beside a busy GPU that were committed, in the headline case."""
    case = _case(data, on_gpu=True)
    shares = data.repeats(EXPERIMENT, "committed", over_ranks="min", method=case)
    return median([100 * share for share in shares])


def agent_overhead_mib(data: Dataset) -> Estimate:
    """The memory of a worker agent beyond its slots, in the headline case."""
    table = data.select(EXPERIMENT, "overhead_bytes", method=_case(data))
    return median([value / (1 << 20) for value in table.value])


def table(data: Dataset) -> pd.DataFrame:
    """All quotients with their intervals: one row per quotient, one column per case."""
    rows = {
        name: {
            _title(case): _text(quotient(data, name, case))
            for case in all_cases(data)
            if _applies(name, case)
        }
        for name in LIMITS | DEVICE_LIMITS
    }
    return pd.DataFrame(rows).T.fillna("")


def draw(axis: Axes, data: Dataset) -> None:
    """Draw the quotients that have a label, with one marker per case."""
    shown = [name for name, limit in LIMITS.items() if limit.label]
    found = all_cases(data)
    for index, case in enumerate(found):
        offset = 0.16 * (index - (len(found) - 1) / 2)
        colour = f"C{index}"
        for position, name in enumerate(shown):
            if not _applies(name, case):
                continue
            value, *interval = _shown(name, quotient(data, name, case))
            marker, label = MARKERS[index % len(MARKERS)], _title(case) if position == 0 else None
            axis.plot(value, position + offset, marker, color=colour, markersize=4, label=label)
            if interval:
                axis.hlines(
                    position + offset, min(interval), max(interval), color=colour, linewidth=1.2
                )
    axis.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(shown)), [LIMITS[name].label for name in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set(title="Times the plain operation", xlabel="time over that of the plain operation")
    axis.set_xlim(left=0)


def _case(data: Dataset, *, on_gpu: bool = False, alone: bool = False) -> str:
    found = [
        case for case in cases(data, on_gpu=on_gpu) if not alone or ranks_and_mib(case)[0] == 1
    ]
    if not found:
        raise NotMeasured("limits of such a case (limits.devices, limits.single_sizes_mib)")
    return found[-1]


def _applies(name: str, case: str) -> bool:
    if name in (_IN_CPU_MEMORY if _is_on_gpu(case) else DEVICE_LIMITS):
        return False
    return ranks_and_mib(case)[0] > 1 or name not in _OF_SEVERAL


def _is_on_gpu(case: str) -> bool:
    return case.startswith("cuda_")


def _shown(name: str, estimate: Estimate) -> list[float]:
    numbers = [estimate.value, estimate.low, estimate.high]
    turned = LIMITS[name].turned
    return [1 / number if turned else number for number in numbers if number is not None]


def _text(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _title(case: str) -> str:
    ranks, size = ranks_and_mib(case)
    where = " on the GPU" if _is_on_gpu(case) else ""
    return f"{ranks} rank{'s' if ranks > 1 else ''}, {size} MiB each{where}"
