"""What `recovery_time` shows of the warm restart: times, speed-ups, and bounds on these.

No restart is faster than the step it ends with. Beside the time until that step is finished there
are therefore the time until all ranks begin it, an undisturbed step of the same training, and
the speed-up that a restart would reach if it took no time but that step.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from twinckpt.analysis import style
from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.statistics import MS_PER_S, Estimate, median, ratio

EXPERIMENT = "recovery_time"
WARM = "warm_local"
# What is lost, how it restarts, where its state comes from: in the order of the figures.
LABELS = {
    "torchrun": "rank: torchrun, from step 0",
    "disk": "rank: torchrun, disk",
    "ram_local": "rank: torchrun, own RAM",
    "warm_local": "rank: fork, own RAM",
    "ram_peer": "machine: torchrun, peer's RAM",
    "warm_peer": "machine: warm spare, peer's RAM",
    "group_drained": "group: torchrun, drained step",
}
_COLD = {
    "ram": ("ram_local", "torchrun restart and RAM restore"),
    "disk": ("disk", "torchrun restart and torch.load from disk"),
}


def _of(data: Dataset, method: str, phase: str) -> list[float]:
    return data.repeats(EXPERIMENT, "duration_s", method=method, phase=phase)


def _steps(data: Dataset) -> list[float]:
    return data.repeats(EXPERIMENT, "step_s", method=WARM)


def _took(method: str, phase: str, scale: float = 1.0) -> Callable[[Dataset], Estimate]:
    return lambda data: median([scale * value for value in _of(data, method, phase)])


def _over_warm(method: str, phase: str) -> Callable[[Dataset], Estimate]:
    return lambda data: ratio(_of(data, method, phase), _of(data, WARM, phase))


def _bound(method: str) -> Callable[[Dataset], Estimate]:
    return lambda data: ratio(_of(data, method, "total"), _steps(data))


Row = tuple[str, Literal["s", "ms", "x", "steps"], str, Callable[[Dataset], Estimate]]

# Name, unit, definition, how to compute it; `metrics` makes its rows of these.
ROWS: tuple[Row, ...] = (
    ("rank_loss_to_step_s", "s", "SIGKILL of a rank to the next step, warm restart",
     _took(WARM, "total")),
    ("machine_loss_to_step_s", "s", "SIGKILL of a machine to the next step, spare",
     _took("warm_peer", "total")),
    ("rank_loss_to_ready_s", "s", "SIGKILL of a rank until all ranks begin a step, warm restart",
     _took(WARM, "ready")),
    ("machine_loss_to_ready_s", "s", "SIGKILL of a machine until all ranks begin a step, spare",
     _took("warm_peer", "ready")),
    ("rank_loss_step_s", "s", "an undisturbed step of the same training",
     lambda data: median(_steps(data))),
    *(
        row
        for name, (method, words) in _COLD.items()
        for row in (
            (f"rank_loss_speedup_vs_torchrun_{name}_x", "x", f"{words} over warm restart",
             _over_warm(method, "total")),
            (f"rank_loss_ready_speedup_vs_torchrun_{name}_x", "x",
             f"the same until all ranks begin a step: {words}", _over_warm(method, "ready")),
            (f"rank_loss_bound_vs_torchrun_{name}_x", "x",
             f"the most that any restart could reach: {words} over an undisturbed step",
             _bound(method)),
        )
    ),
    ("rank_loss_detect_ms", "ms", "SIGKILL of a rank until the root has noticed",
     _took(WARM, "detect", MS_PER_S)),
    ("lost_steps", "steps", "steps trained again after the loss of a rank",
     lambda data: median(data.repeats(EXPERIMENT, "lost_steps", method=WARM))),
)  # fmt: skip


def ordered(methods: Iterable[str]) -> list[str]:
    """Return the methods in the order of the figures, further ones last."""
    found = set(methods)
    return [name for name in LABELS if name in found] + sorted(found - LABELS.keys())


def label(method: str) -> str:
    """Return what a method restarts and how, in a few words."""
    return LABELS.get(method, style.label(method))


def medians(data: Dataset) -> pd.DataFrame:
    """Return the median seconds of each phase (columns) by method (rows)."""
    table = data.select(EXPERIMENT, "duration_s")
    return table.groupby(["method", "phase"]).value.median().unstack(fill_value=0)


def draw_stacked(axis: Axes, seconds: pd.DataFrame, methods: Sequence[str]) -> None:
    """Draw each method's phases one after the other, and write how long they take together."""
    left = pd.Series(0.0, index=list(methods))
    for phase, colour in style.PHASES.items():
        if phase in seconds:
            widths = seconds.loc[left.index, phase]
            axis.barh(
                [label(method) for method in methods], widths, left=left, color=colour,
                label=phase.replace("_", " "), edgecolor="white", linewidth=0.4,
            )  # fmt: skip
            left += widths
    for row, total_s in enumerate(left):
        axis.annotate(
            f"{total_s:.1f} s", (total_s, row), (3, 0), textcoords="offset points", va="center",
            fontsize="small",
        )  # fmt: skip
    axis.set_xlim(0, 1.2 * left.max())  # room for what is written at the end of the longest
    axis.invert_yaxis()
    axis.set(xlabel="seconds since the kill")
    sns.despine(ax=axis, left=True)


def mark_step(axis: Axes, data: Dataset) -> None:
    """Mark how long a step takes undisturbed, if that was measured: nothing can be faster."""
    try:
        step_s = median(_steps(data)).value
    except NotMeasured:
        return
    axis.axvline(step_s, color="black", linestyle=":", linewidth=1)
    axis.annotate(  # in the gap between the first and the second bar
        " one step", (step_s, 0.5), va="center", fontsize="small"
    )
