"""What `control_plane` shows: clusters simulated, mutants found, and how the root's time grows.

In its samples `machine` is the number of machines of a cluster, `repeat` a simulation's seed,
and `phase` a mutant's name.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from twinckpt.analysis import style
from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.statistics import Estimate, exactly, median

EXPERIMENT = "control_plane"
DECISIONS = {
    "plan_s": ("recovery planned, all told", "ram"),
    "commit_s": ("a step sealed and committed", "ram_replica"),
    "tick_s": ("search for silent machines", "none"),
}


def num_clusters(data: Dataset) -> Estimate:
    """The number of simulated clusters."""
    return exactly(len(data.select(EXPERIMENT, "violated")))


def num_violations(data: Dataset) -> Estimate:
    """The number of clusters that broke an invariant."""
    return exactly(data.select(EXPERIMENT, "violated").value.sum())


def total(metric: str) -> Callable[[Dataset], Estimate]:
    """The sum of a metric over all simulated clusters."""
    return lambda data: exactly(data.select(EXPERIMENT, metric).value.sum())


def num_mutants(data: Dataset) -> Estimate:
    """The number of wrong rules that were planted."""
    return exactly(len(data.select(EXPERIMENT, "seeds_until_found")))


def mutants_missed(data: Dataset) -> Estimate:
    """The number of wrong rules that no seed has found."""
    needed = data.select(EXPERIMENT, "seeds_until_found").value
    return exactly((needed == 0).sum())


def decision_s(metric: str, num_machines: int) -> Callable[[Dataset], Estimate]:
    """The median time that a decision takes the root in a cluster of this size, in seconds."""

    def compute(data: Dataset) -> Estimate:
        table = data.select(EXPERIMENT, metric)
        table = table[table.machine == num_machines]
        if table.empty:
            raise NotMeasured(f"{data.results / EXPERIMENT}: no {num_machines} machines")
        return median(list(table.value))

    return compute


def plan_exponent(data: Dataset) -> Estimate:
    """The slope of planning time against machines, both as logarithms: 1 is linear."""
    medians = data.select(EXPERIMENT, "plan_s").groupby("machine").value.median()
    if len(medians) < 2:
        raise NotMeasured(f"{data.results / EXPERIMENT}: one size has no slope")
    slope = np.polyfit(np.log(medians.index.astype(float)), np.log(medians), 1)[0]
    return exactly(slope, len(medians))


def heartbeats_per_s(data: Dataset) -> Estimate:
    """The heartbeats that a root agent takes in per second, over the most connections."""
    table = data.select(EXPERIMENT, "heartbeats_s")
    return median([1 / value for value in table[table.machine == table.machine.max()].value])


def mutants(data: Dataset) -> pd.DataFrame:
    """The number of seeds until each mutant was found; 0 if it was not."""
    table = data.select(EXPERIMENT, "seeds_until_found")
    names = table.phase.str.replace("_", " ")
    found = pd.DataFrame({"wrong rule": names, "clusters until found": table.value.astype(int)})
    return found.set_index("wrong rule")


def draw_decisions(axis: Axes, data: Dataset) -> None:
    """Draw the root's time against machines, with the linear slope as a dotted line."""
    for metric, (words, method) in DECISIONS.items():
        medians = data.select(EXPERIMENT, metric).groupby("machine").value.median()
        colour = style.METHODS[method][1]
        axis.plot(medians.index, medians, marker="o", markersize=4, color=colour, label=words)
        ends = medians.index.min(), medians.index.max()
        linear = [medians[ends[0]], medians[ends[0]] * ends[1] / ends[0]]
        axis.plot(ends, linear, linestyle=":", linewidth=0.9, color=colour)
    axis.set(xscale="log", yscale="log", title="The root's time", xlabel="machines",
             ylabel="seconds")  # fmt: skip


def draw_healthy(axis: Axes, data: Dataset) -> None:
    """Draw the share of clusters that commit again within a time after the last fault."""
    seconds = np.sort(data.select(EXPERIMENT, "healthy_after_s").value)
    shares = 100 * np.arange(1, len(seconds) + 1) / len(seconds)
    axis.step(seconds, shares, where="post", color=style.METHODS["ram_replica"][1])
    axis.set(title="Healthy again", xlabel="virtual seconds after the last fault",
             ylabel="percent of clusters", ylim=(0, 104))  # fmt: skip
