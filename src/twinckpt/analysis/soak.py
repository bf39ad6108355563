"""What `soak` shows: a training under random failures beside the same one left alone.

In its samples a failure's method is its kind and `repeat` its number; for the memory and
descriptors of a process, `phase` is its role, `machine` its machine and `repeat` its number.
"""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes

from twinckpt.analysis import style
from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.statistics import Estimate, exactly, median

EXPERIMENT = "soak"
KINDS = {
    "rank_loss": ("rank", "o"),
    "parent_loss": ("warm parent", "s"),
    "agent_loss": ("worker agent", "D"),
    "machine_loss": ("machine", "X"),
    "root_loss": ("root agent", "^"),
}
_BYTES_PER_MIB = 1 << 20


def failures(data: Dataset) -> pd.DataFrame:
    """Each failure in order: its kind, when it struck, when training went on, in seconds."""
    columns = ["repeat", "method", "value"]
    struck = data.select(EXPERIMENT, "struck_s")[columns].set_index("repeat")
    went_on = data.select(EXPERIMENT, "went_on_s").set_index("repeat").value
    found = struck.rename(columns={"method": "kind", "value": "struck_s"})
    return found.assign(went_on_s=went_on).sort_index()


def num_failures(data: Dataset) -> Estimate:
    """The number of failures that struck."""
    return exactly(len(failures(data)))


def seconds_to_go_on(data: Dataset) -> Estimate:
    """The median time from a failure of any kind until every rank has finished its next step."""
    found = failures(data)
    return median(list(found.went_on_s - found.struck_s))


def total(metric: str, **columns: str) -> Callable[[Dataset], Estimate]:
    """The sum of a count over its samples."""
    return lambda data: exactly(data.select(EXPERIMENT, metric, **columns).value.sum())


def holds(metric: str) -> Callable[[Dataset], Estimate]:
    """Whether a bool is true in every sample."""
    return lambda data: exactly(data.select(EXPERIMENT, metric).value.min())


def growth(metric: str, scale: float = 1.0) -> Callable[[Dataset], Estimate]:
    """How much more an agent held at its last look than at its first, for the worst agent."""

    def compute(data: Dataset) -> Estimate:
        grown = [
            looks.value.iloc[-1] - looks.value.iloc[0]
            for _, looks in data.select(EXPERIMENT, metric, phase="agent").groupby("repeat")
            if len(looks) > 1
        ]
        if not grown:
            raise NotMeasured(f"{data.results / EXPERIMENT}: no agent was looked at twice")
        return exactly(max(grown) / scale, len(grown))

    return compute


rss_growth_mib = growth("rss_bytes", _BYTES_PER_MIB)


def draw_loss(axis: Axes, data: Dataset) -> None:
    """Draw both loss curves; equal ones cover each other, so one is wide and one thin."""
    for method, words, width, alpha in (
        ("undisturbed", "undisturbed", 5.0, 0.4), ("soak", "under failures", 1.2, 1.0)
    ):  # fmt: skip
        curve = data.select(EXPERIMENT, "loss", method=method).sort_values("step")
        colour = style.METHODS[method][1]
        axis.plot(curve.step, curve.value, label=words, color=colour, linewidth=width, alpha=alpha)
    axis.set(title="Loss, last value of each step", xlabel="step", ylabel="nats per byte")
    axis.legend(frameon=False)


def draw_events(axis: Axes, data: Dataset) -> None:
    """Draw the step reached against time, and each failure with the time that it cost."""
    reached = data.select(EXPERIMENT, "reached_s").sort_values("step")
    axis.plot(reached.value, reached.step, color=style.METHODS["soak"][1], linewidth=1.2)
    table = failures(data)
    step_at = [int(reached.step[reached.value <= at_s].max()) for at_s in table.struck_s]
    for kind, (words, marker) in KINDS.items():
        own = (table.kind == kind).to_numpy()
        if own.any():
            axis.scatter(
                table.struck_s[own], [s for s, is_own in zip(step_at, own, strict=True) if is_own],
                marker=marker, s=22, label=words, color=style.METHODS[kind][1], zorder=3,
                edgecolors="black", linewidths=0.4,
            )  # fmt: skip
    for _, failure in table.iterrows():
        axis.axvspan(failure.struck_s, failure.went_on_s, color="black", alpha=0.12, linewidth=0)
    axis.set(title="Failures; grey: recovery", xlabel="seconds", ylabel="step")
