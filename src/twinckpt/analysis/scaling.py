"""What `scaling` shows: a time against ranks or state, and the power law through it.

Its methods are cases, `ranks<N>_mib<SIZE>`, as in `limits`.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from twinckpt.analysis.dataset import Dataset
from twinckpt.analysis.limits import ranks_and_mib
from twinckpt.analysis.statistics import MS_PER_S, Estimate, median, power_law

EXPERIMENT = "scaling"
TIMES = {
    "stall_s": ("stall", "tab:blue"),
    "done_s": ("until replicated", "tab:orange"),
    "restore_local_s": ("restore, own RAM", "tab:green"),
    "restore_peer_s": ("restore, peer's RAM", "tab:red"),
}

Axis = Literal["ranks", "mib"]
VARIED: dict[Axis, str] = {"mib": "state a rank", "ranks": "ranks"}


def series(data: Dataset, metric: str, along: Axis) -> dict[float, list[float]]:
    """Return the slowest rank's value of each repeat, by ranks or by MiB of state.

    The other one is fixed at the value with most cases.
    """
    found: dict[int, dict[float, list[float]]] = defaultdict(dict)
    for method in data.select(EXPERIMENT, metric).method.unique():
        num_ranks, size_mib = ranks_and_mib(method)
        varied, fixed = (num_ranks, size_mib) if along == "ranks" else (size_mib, num_ranks)
        found[fixed][varied] = data.repeats(EXPERIMENT, metric, method=method)
    return max(found.values(), key=len)


def exponent(metric: str, along: Axis) -> Callable[[Dataset], Estimate]:
    """The exponent of a time in ranks or state: 0 is constant, 1 proportional."""
    return lambda data: power_law(series(data, metric, along))[0]


def draw(axis: Axes, data: Dataset, along: Axis) -> None:
    """Draw medians with intervals and fitted lines, both axes logarithmic."""
    for metric, (label, colour) in TIMES.items():
        points = series(data, metric, along)
        fitted, factor = power_law(points)
        for x, values in points.items():
            estimate = median(values)
            axis.plot(x, MS_PER_S * estimate.value, "o", color=colour, markersize=4)
            if estimate.low is not None and estimate.high is not None:
                axis.vlines(x, MS_PER_S * estimate.low, MS_PER_S * estimate.high, color=colour)
        xs = np.array(sorted(points), dtype=float)
        ys = MS_PER_S * factor * xs**fitted.value
        axis.plot(xs, ys, color=colour, linewidth=1, label=label)
        axis.annotate(f"{fitted.value:.2f}", (xs[-1], ys[-1]), fontsize="small", color=colour)
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(xs, [f"{x:g}" for x in xs])
    axis.xaxis.set_minor_locator(NullLocator())
