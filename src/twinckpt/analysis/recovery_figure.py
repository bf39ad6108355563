"""Failures and their recoveries drawn: the job's phases, and below them those of each machine."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from twinckpt.analysis import style
from twinckpt.analysis.recoveries import Failure, Span

WIDTH_IN = 7.5
LANE_IN = 0.28
MAX_FAILURES = 8


def draw(failures: Sequence[Failure]) -> Figure:
    """Draw one panel for each of the last `MAX_FAILURES`, in seconds since it was noticed."""
    style.apply()
    shown = list(failures)[-MAX_FAILURES:]
    lanes = [1 + len(failure.machines) for failure in shown]
    height_in = 0.5 + sum(0.75 + LANE_IN * count for count in lanes)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    ratios = [0.75 + LANE_IN * count for count in lanes]
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axis, failure in zip(axes, shown, strict=True):
        _panel(axis, failure)
    axes[-1].set_xlabel("seconds since the failure was noticed")
    handles = [
        Patch(color=colour, label=phase.replace("_", " ")) for phase, colour in style.PHASES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _panel(axis: Axes, failure: Failure) -> None:
    rows = {"job": failure.job, **failure.machines}
    for row, spans in enumerate(rows.values()):
        _lane(axis, row, spans)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.set_title(failure.title)


def _lane(axis: Axes, row: int, spans: Sequence[Span]) -> None:
    for span in spans:
        extent = (span.begin_s, span.end_s - span.begin_s)
        axis.broken_barh([extent], (row - 0.35, 0.7), color=style.PHASES[span.phase])
