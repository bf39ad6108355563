"""What `save_cost` shows by size of state for files, DCP and RAM; its `step` is the size in MiB."""

from collections import defaultdict
from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from twinckpt.analysis import style
from twinckpt.analysis.dataset import Dataset
from twinckpt.analysis.statistics import MS_PER_S, Estimate, median, ratio

EXPERIMENT = "save_cost"


def has(data: Dataset) -> bool:
    """Return whether several sizes were measured."""
    table = data.samples
    return bool(((table.experiment == EXPERIMENT) & (table.metric == "sweep_done_s")).any())


def series(data: Dataset, metric: str, method: str) -> dict[int, list[float]]:
    """Return the slowest rank's value of each repeat, by size in MiB."""
    table = data.select(EXPERIMENT, metric, method=method)
    found: dict[int, list[float]] = defaultdict(list)
    for row in table.groupby(["step", "repeat"], as_index=False).value.max().itertuples():
        found[int(row.step)].append(row.value)
    return found


def over_ram(metric: str, method: str, ours: str = "ram_ring") -> Callable[[Dataset], Estimate]:
    """The ratio of a method's time to that of RAM on all replicas, at the largest size."""

    def compute(data: Dataset) -> Estimate:
        theirs, own = (series(data, metric, name) for name in (method, ours))
        size = max(own)
        return ratio(theirs[size], own[size], paired=ours == "ram_ring" and method != "ram_group")

    return compute


def milliseconds(data: Dataset, metric: str) -> pd.DataFrame:
    """Medians in milliseconds: one row per method, one column per size in MiB."""
    methods = style.ordered(data.select(EXPERIMENT, metric).method.unique())
    rows = {
        style.label(method): {
            size: MS_PER_S * median(values).value
            for size, values in series(data, metric, method).items()
        }
        for method in methods
    }
    return pd.DataFrame(rows).T.round(2)


def draw(axis: Axes, data: Dataset, metric: str) -> None:
    """Draw medians with intervals against the size, both axes logarithmic."""
    methods = style.ordered(data.select(EXPERIMENT, metric).method.unique())
    palette = style.colours(methods)
    for method in methods:
        found = series(data, metric, method)
        estimates = {size: median(values) for size, values in sorted(found.items())}
        axis.plot(
            list(estimates), [MS_PER_S * one.value for one in estimates.values()], marker="o",
            markersize=4, linewidth=1.2, color=palette[method], label=style.label(method),
            linestyle="--" if method in ("dcp_thread", "ram_group", "ram_mixed") else "-",
        )  # fmt: skip
        for size, one in estimates.items():
            if one.low is not None and one.high is not None:
                axis.vlines(size, MS_PER_S * one.low, MS_PER_S * one.high, color=palette[method])
    axis.set(xscale="log", yscale="log", xlabel="MiB a rank", ylabel="milliseconds")
    axis.set_xticks(list(estimates), [str(size) for size in estimates])
    axis.xaxis.set_minor_locator(NullLocator())
