"""What `placement` shows: computed probabilities and the outcomes of real losses, in one plot.

In its samples `machine` is the number of machines of the cluster, `step` how many of them (or
how many racks) are lost at once, and `phase` how a probability was found or what was lost.
"""

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from twinckpt.analysis import style
from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.statistics import Estimate, exactly, median

EXPERIMENT = "placement"
PAPER_MACHINES = 16
KINDS = ("group", "ring", "mixed")
LINES = {"closed_form": ":", "enumeration": "-"}


def percent_on_paper(kind: str, num_lost: int) -> Callable[[Dataset], Estimate]:
    """The enumerated probability in a cluster of the paper's size, in percent."""

    def compute(data: Dataset) -> Estimate:
        table = data.select(EXPERIMENT, "probability", method=kind, phase="enumeration")
        table = table[(table.machine == PAPER_MACHINES) & (table.step == num_lost)]
        if table.empty:
            raise NotMeasured(
                f"{data.results / EXPERIMENT}: no {kind} of {PAPER_MACHINES} with {num_lost} lost"
            )
        return median([100 * value for value in table.value])

    return compute


def max_monte_carlo_error(data: Dataset) -> Estimate:
    """The largest distance between Monte Carlo and enumeration, in percentage points."""
    columns = ["method", "machine", "step"]
    drawn, counted = (
        data.select(EXPERIMENT, "probability", phase=how).set_index(columns).value
        for how in ("monte_carlo", "enumeration")
    )
    errors = (100 * (drawn - counted)).abs()
    return exactly(errors.max(), len(errors))


def all_as_predicted(data: Dataset) -> Estimate:
    """Whether each real loss ended as the placement says; n is the number of losses."""
    columns = ["method", "machine", "step", "repeat"]
    recovered, predicted = (
        data.select(EXPERIMENT, metric).set_index(columns).value
        for metric in ("recovered", "predicted")
    )
    return exactly(bool((recovered == predicted).all()), len(recovered))


def racks_survived(order: str) -> Callable[[Dataset], Estimate]:
    """The share of really killed racks after which every shard was still in RAM, in percent."""

    def compute(data: Dataset) -> Estimate:
        values = data.select(EXPERIMENT, "rack_recovered", phase=order).value
        return exactly(100 * values.mean(), len(values))

    return compute


def killed_shares(data: Dataset) -> pd.DataFrame:
    """The share of really killed sets that were recovered, by cluster and number of machines."""
    table = data.select(EXPERIMENT, "recovered")
    shares = table.groupby(["method", "machine", "step"]).value.agg(["mean", "count"])
    return shares.reset_index()


def sizes(data: Dataset) -> list[int]:
    """Numbers of machines of the clusters, largest first."""
    return sorted(map(int, data.select(EXPERIMENT, "probability").machine.unique()), reverse=True)


def draw_probability(axis: Axes, data: Dataset, num_machines: int) -> None:
    """Draw probability against machines lost: lines computed, dots Monte Carlo, crosses killed."""
    table = data.select(EXPERIMENT, "probability")
    table = table[table.machine == num_machines]
    killed = killed_shares(data)
    palette = style.colours(KINDS)
    for kind in KINDS:
        own = table[table.method == kind]
        for how, line in LINES.items():
            found = own[own.phase == how]
            axis.plot(found.step, 100 * found.value, line, color=palette[kind], linewidth=1.4)
        drawn = own[own.phase == "monte_carlo"]
        axis.scatter(drawn.step, 100 * drawn.value, s=14, color=palette[kind])
        real = killed[(killed.method == kind) & (killed.machine == num_machines)]
        axis.scatter(real.step, 100 * real["mean"], s=60, marker="x", color=palette[kind])
    axis.set(title=f"{num_machines} machines", xlabel="machines lost", ylim=(-4, 104))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def draw_racks(axis: Axes, data: Dataset) -> None:
    """Draw probability against racks lost in the largest cluster, replicas apart or not."""
    table = data.select(EXPERIMENT, "rack_probability")
    table = table[table.machine == table.machine.max()]
    palette = style.colours(KINDS)
    for (kind, order), found in table.groupby(["method", "phase"]):
        line = "-" if order == "aware" else ":"
        axis.plot(
            found.step, 100 * found.value, line, marker="o", markersize=3, color=palette[str(kind)]
        )
    size = int(table.machine.max())
    axis.set(title=f"{size}, by rack", xlabel="racks lost", ylim=(-4, 104))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def legend() -> list[Artist]:
    """Handles that say what colours, lines and marks mean."""
    palette = style.colours(KINDS)
    black: dict[str, Any] = {"color": "black"}
    return [
        *(Line2D([], [], color=palette[kind], linewidth=4, label=kind) for kind in KINDS),
        Line2D([], [], label="enumerated (racks: apart)", linestyle="-", **black),
        Line2D([], [], label="closed form (racks: blind)", linestyle=":", **black),
        Line2D([], [], label="Monte Carlo", linestyle="none", marker=".", **black),
        Line2D([], [], label="really killed", linestyle="none", marker="x", **black),
    ]
