"""What `wasted_time` shows: the paper's points, goodput by size of cluster, and its figure.

In its samples `phase` is a failure statistic of `core.published` (with `_measured` if the durations
are this machine's) or a share of losses that take their rack; `machine` is the size of the cluster.
"""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes

from twinckpt.analysis import style
from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.statistics import Estimate, exactly, median, ratio

EXPERIMENT = "wasted_time"
PAPER_PHASE = "gemini"
YEAR_DAYS = 365.0
LARGEST = 10_000


def max_paper_error(data: Dataset) -> Estimate:
    """The largest error of a prediction of the paper's values, in percent."""
    errors = data.select(EXPERIMENT, "error_percent").value
    return exactly(errors.max(), len(errors))


def paper_bounds_hold(data: Dataset) -> Estimate:
    """Whether each of the paper's bounds holds."""
    holds = data.select(EXPERIMENT, "bound_holds").value
    return exactly(holds.min(), len(holds))


def paper_prediction(point: str) -> Callable[[Dataset], Estimate]:
    """One point's predicted value."""
    return lambda data: median(list(data.select(EXPERIMENT, "predicted", method=point).value))


def goodput_percent(
    method: str, num_machines: int, phase: str = PAPER_PHASE
) -> Callable[[Dataset], Estimate]:
    """A strategy's simulated goodput for a size of cluster, in percent."""
    return lambda data: median([100 * v for v in _goodput(data, method, num_machines, phase)])


def goodput_ratio(better: str, worse: str, num_machines: int) -> Callable[[Dataset], Estimate]:
    """The ratio of the goodput of one strategy to that of another, at the paper's failure rate.

    In each repeat the same failures strike both.
    """
    return lambda data: ratio(
        _goodput(data, better, num_machines, PAPER_PHASE),
        _goodput(data, worse, num_machines, PAPER_PHASE),
        paired=True,
    )


def _goodput(data: Dataset, method: str, num_machines: int, phase: str) -> list[float]:
    table = data.select(EXPERIMENT, "goodput", method=method, phase=phase)
    values = table[table.machine == num_machines].value
    if values.empty:
        raise NotMeasured(f"{data.results / EXPERIMENT}: {num_machines} machines not simulated")
    return list(values)


def max_gap_percent(data: Dataset) -> Estimate:
    """The largest gap between simulated and analytic goodput, in percentage points.

    Compared are clusters of up to 1,000 machines without rack losses; in others, groups are lost
    whole, which the closed form leaves out.
    """
    columns = ["phase", "method", "machine"]
    simulated = data.select(EXPERIMENT, "goodput").groupby(columns).value.median()
    analytic = data.select(EXPERIMENT, "goodput_analytic").groupby(columns).value.median()
    gaps = (100 * (simulated - analytic)).abs().reset_index()
    same = gaps[(gaps.machine <= 1000) & ~gaps.phase.str.startswith("racks_")]
    if same.empty:
        raise NotMeasured(f"{data.results / EXPERIMENT}: no cluster of up to 1000 machines")
    return exactly(same.value.max(), len(same))


def year_s(data: Dataset) -> Estimate:
    """The longest time to simulate a year of one failure statistic with all strategies.

    Fewer days or smaller clusters would take less.
    """
    table = data.select(EXPERIMENT, "seconds")
    if days(data) < YEAR_DAYS or table.machine.max() < LARGEST:
        raise NotMeasured(f"{data.results / EXPERIMENT}: no year of {LARGEST} machines")
    return exactly(table.value.max(), len(table))


def days(data: Dataset) -> float:
    """Return how many days were simulated."""
    return float(data.setting(EXPERIMENT, "goodput", "days", YEAR_DAYS))


def rack_percents(data: Dataset) -> list[int]:
    """The shares of losses that take their rack, in percent, in ascending order."""
    phases = data.select(EXPERIMENT, "goodput").phase.unique()
    return sorted(int(phase.split("_")[1]) for phase in phases if phase.startswith("racks_"))


def curves(data: Dataset, metric: str, phase: str) -> pd.DataFrame:
    """Medians over repeats: one row per size of cluster, one column per strategy."""
    table = data.select(EXPERIMENT, metric, phase=phase)
    medians = table.groupby(["machine", "method"]).value.median().unstack()
    return medians[style.ordered(medians.columns)]


def draw_goodput(axis: Axes, data: Dataset, phase: str) -> None:
    """Draw goodput against the size of the cluster: dots simulated, lines the closed form."""
    simulated = curves(data, "goodput", phase)
    analytic = curves(data, "goodput_analytic", phase)
    palette = style.colours(simulated.columns)
    for method in map(str, simulated.columns):
        axis.plot(
            analytic.index, 100 * analytic[method], color=palette[method], linewidth=1.4,
            label=style.label(method),
        )  # fmt: skip
        axis.scatter(simulated.index, 100 * simulated[method], color=palette[method], s=14)
    axis.set_xscale("log")
    axis.set(xlabel="machines", ylim=(0, 102))
