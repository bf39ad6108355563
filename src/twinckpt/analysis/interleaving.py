"""What `interleaving` shows: iterations by scheme, and the busy intervals in one of them.

In its samples `step` is the number of an idle span or of a busy interval in an iteration, and
`phase` says what was busy: the emulated link with `training` or `checkpoint`, the CPU with
`compute`.
"""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from twinckpt.analysis import style
from twinckpt.analysis.dataset import Dataset
from twinckpt.analysis.statistics import MS_PER_S, Estimate, exactly, median, percent_more, ratio

EXPERIMENT = "interleaving"


def iterations_s(data: Dataset, scheme: str) -> list[float]:
    """The time of an iteration on the slowest rank, by repeat, in seconds."""
    return data.repeats(EXPERIMENT, "iteration_s", method=scheme)


def iteration_ms(scheme: str) -> Callable[[Dataset], Estimate]:
    """The median iteration of a scheme, in milliseconds."""
    return lambda data: median([MS_PER_S * value for value in iterations_s(data, scheme)])


def overhead_percent(scheme: str) -> Callable[[Dataset], Estimate]:
    """By how much iterations of a scheme are longer than those without checkpoints."""
    return lambda data: percent_more(
        iterations_s(data, scheme), iterations_s(data, "none"), paired=True
    )


def predicted_overhead_percent(scheme: str) -> Callable[[Dataset], Estimate]:
    """The overhead that the schedule predicts, relative to an iteration without checkpoints."""

    def compute(data: Dataset) -> Estimate:
        longer_s = data.select(EXPERIMENT, "predicted_lengthening_s", method=scheme).value.max()
        return exactly(100 * longer_s / iteration_s(data))

    return compute


def iteration_s(data: Dataset) -> float:
    """The median iteration without checkpoints, in seconds."""
    return median(iterations_s(data, "none")).value


def idle_percent(data: Dataset) -> Estimate:
    """The link's idle share of an iteration without checkpoints, by profiled iteration."""
    spans = data.select(EXPERIMENT, "idle_span_s")
    idle_s = spans.groupby(["rank", "repeat"]).value.sum().groupby("repeat").mean()
    return median([100 * value / iteration_s(data) for value in idle_s])


def profile_ms(data: Dataset) -> pd.DataFrame:
    """Mean and deviation of each rank's idle spans over the profiled iterations."""
    spans = data.select(EXPERIMENT, "idle_span_s").groupby(["rank", "step"]).value
    table = spans.agg(["mean", "std"]) * MS_PER_S
    return table.assign(normalised=table["std"] / table["mean"]).round(3)


def span_deviation_percent(data: Dataset) -> Estimate:
    """The standard deviation of the longest idle span as a share of its mean, on the worst rank."""
    spans = data.select(EXPERIMENT, "idle_span_s").groupby(["rank", "step"]).value
    mean_s, deviation_s = spans.mean(), spans.std(ddof=0)
    longest = mean_s.groupby("rank").idxmax()
    worst = max(float(deviation_s[where] / mean_s[where]) for where in longest)
    return exactly(100 * worst, int(spans.size().iloc[0]))


def naive_buffer(data: Dataset) -> Estimate:
    """The buffer that naive interleaving would need, as a multiple of the reserved buffer."""
    needed, reserved = (
        list(data.select(EXPERIMENT, "buffer_bytes", method=scheme).value)
        for scheme in ("naive", "full_schedule")
    )
    return ratio([max(needed)], [max(reserved)])


def all_intact(data: Dataset) -> Estimate:
    """Whether every copy arrived as it was sent; n is the number of copies."""
    values = data.select(EXPERIMENT, "intact").value
    return exactly(values.min(), len(values))


def typical_iteration(data: Dataset, scheme: str) -> pd.DataFrame:
    """Busy intervals of the lowest rank in the scheme's median iteration, in milliseconds."""
    times = data.select(EXPERIMENT, "iteration_s", method=scheme)
    own = times[times["rank"] == times["rank"].min()].sort_values("value")
    chosen = own.iloc[len(own) // 2]
    columns = {}
    for metric in ("busy_from_s", "busy_until_s"):
        table = data.select(EXPERIMENT, metric, method=scheme)
        table = table[(table["rank"] == chosen["rank"]) & (table["repeat"] == chosen["repeat"])]
        columns[metric] = MS_PER_S * table.set_index(["step", "phase"]).value
    return pd.DataFrame(columns).reset_index()


def draw_timeline(axis: Axes, data: Dataset, schemes: list[str]) -> None:
    """Draw two rows per scheme: the emulated link above, the CPU below; white is idle."""
    for row, scheme in enumerate(schemes):
        busy = typical_iteration(data, scheme)
        for phase, colour in style.BUSY.items():
            found = busy[busy.phase == phase]
            bars = [(a, b - a) for a, b in zip(found.busy_from_s, found.busy_until_s, strict=True)]
            top = row + (0.02 if phase == "compute" else -0.38)
            axis.broken_barh(bars, (top, 0.36), color=colour, edgecolor="white", linewidth=0.4)
    axis.set_yticks(range(len(schemes)), [style.label(scheme) for scheme in schemes])
    axis.set_ylim(len(schemes) - 0.5, -0.5)
    axis.set(title="One iteration: link, CPU", xlabel="milliseconds")
    axis.grid(visible=False, axis="y")


def legend() -> list[Patch]:
    """Handles that say what was busy."""
    words = {
        "training": "link: training",
        "checkpoint": "link: checkpoint",
        "compute": "CPU: training",
    }
    return [Patch(color=style.BUSY[phase], label=label) for phase, label in words.items()]
