"""The course of a run drawn from its samples: recoveries by phase, training by step."""

import pandas as pd
from matplotlib.figure import Figure

from twinckpt.analysis import recovery as recovering
from twinckpt.analysis import style
from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.statistics import MS_PER_S

WIDTH_IN = 7.5


def phases(data: Dataset, repeat: int = 0) -> pd.DataFrame:
    """The seconds of each phase (columns) of one recovery of each method (rows), in order."""
    table = data.select("recovery_time", "duration_s")
    table = table[(table.repeat == repeat) & table.phase.isin(style.PHASES)]
    if table.empty:
        raise NotMeasured(f"{data.paths['recovery_time']}: no repeat {repeat}")
    wide = table.groupby(["method", "phase"]).value.max().unstack(fill_value=0)
    return wide.loc[recovering.ordered(wide.index), [name for name in style.PHASES if name in wide]]


def recovery(data: Dataset, repeat: int = 0) -> Figure:
    """Draw one recovery of each method on a common clock that starts with the kill."""
    style.apply()
    table = phases(data, repeat)
    figure = Figure(figsize=(WIDTH_IN, 0.8 + 0.4 * len(table)), layout="constrained")
    axis = figure.subplots()
    for row, (_, seconds) in enumerate(table.iterrows()):
        starts = seconds.cumsum() - seconds
        for phase in table.columns:
            axis.broken_barh(
                [(starts[phase], seconds[phase])], (row - 0.35, 0.7),
                color=style.PHASES[phase], label=phase.replace("_", " ") if row == 0 else None,
            )  # fmt: skip
    axis.set_yticks(range(len(table)), [recovering.label(str(name)) for name in table.index])
    axis.invert_yaxis()
    axis.set_xlabel("seconds since the kill")
    figure.legend(loc="outside lower center", ncols=len(table.columns), frameon=False)
    return figure


def training(data: Dataset) -> Figure:
    """Draw loss by step for every training run, and each step's wait if it was recorded.

    Raises `NotMeasured` rather than drawing an empty figure.
    """
    style.apply()
    figure = Figure(figsize=(WIDTH_IN, 4.0), layout="constrained")
    loss, wait = figure.subplots(2, 1, sharex=True)
    for axis, metric, scale in ((loss, "bits_per_byte", 1.0), (wait, "stall_s", MS_PER_S)):
        try:
            table = data.select("training", metric)
        except NotMeasured:
            if axis is loss:
                raise
            axis.set_visible(False)
            continue
        curves = table.groupby(["step", "method"]).value.max().unstack()
        methods = style.ordered(map(str, curves.columns))
        palette = style.colours(methods)
        for method in methods:
            axis.plot(
                curves.index, scale * curves[method], color=palette[method],
                label=style.label(method), linewidth=1.2,
            )  # fmt: skip
    loss.set_ylabel("bits per byte")
    loss.legend(frameon=False, fontsize="small")
    wait.set(xlabel="step", ylabel="wait in ms")
    return figure
