"""The figures, one function each: a `Dataset` in, a matplotlib figure out.

    python -m twinckpt.analysis.figures --results results/default --output DIR [--only NAME ...]

Points are single repeats (the slowest rank's value), bars their median, whiskers the 95 %
bootstrap interval. Files are byte for byte the same for the same samples.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinckpt.analysis import control_plane as control
from twinckpt.analysis import goodput, save_sweep, statistics, style
from twinckpt.analysis import interleaving as schemes
from twinckpt.analysis import limits as limiting
from twinckpt.analysis import placement as placements
from twinckpt.analysis import recovery as recovering
from twinckpt.analysis import scaling as growth
from twinckpt.analysis import soak as soaking
from twinckpt.analysis.command import run_command
from twinckpt.analysis.dataset import Dataset, NotMeasured

WIDTH_IN = 6.5


def save_cost(data: Dataset) -> Figure:
    """Stall of the loop and time until recoverable, for each way to save; and by size."""
    by_size = save_sweep.has(data)
    figure = Figure(figsize=(WIDTH_IN, 5.4 if by_size else 2.6), layout="constrained")
    rows = 2 if by_size else 1
    axes = [figure.add_subplot(rows, 2, index + 1) for index in range(2 * rows)]
    for axis, metric, title in (
        (axes[0], "stall_s", "Training loop waits"),
        (axes[1], "recoverable_s", "Until recoverable"),
    ):
        values = _by_method(data, "save_cost", metric)
        _bars(axis, {m: [statistics.MS_PER_S * v for v in vs] for m, vs in values.items()})
        axis.set(title=title, xlabel="milliseconds")
    axes[1].set_yticklabels([])  # those of the first panel
    if by_size:
        save_sweep.draw(axes[2], data, "sweep_stall_s")
        save_sweep.draw(axes[3], data, "sweep_done_s")
        axes[2].set_title("Blocking stall by size")
        axes[3].set_title("Until recoverable by size")
        handles, labels = axes[3].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def recovery_time(data: Dataset) -> Figure:
    """Phases from the kill to the first new step; warm restarts enlarged; the load alone."""
    figure = Figure(figsize=(WIDTH_IN, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(5, 4))
    axes = [figure.add_subplot(where) for where in (grid[0, :], grid[1, 0], grid[1, 1])]
    seconds = recovering.medians(data)
    methods = recovering.ordered(seconds.index)
    recovering.draw_stacked(axes[0], seconds, methods)
    axes[0].set(title="End to end, median of each phase")
    fast = [method for method in methods if method.startswith("warm")]
    recovering.draw_stacked(axes[1], seconds, fast or methods)
    axes[1].set(title="The same, warm restarts only" if fast else "The same")
    recovering.mark_step(axes[1], data)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    try:
        retrieve = _by_method(data, "recovery_time", "retrieve_s")
    except NotMeasured:  # only methods that start from scratch were measured
        axes[2].set_visible(False)
        return figure
    _bars(axes[2], {m: [statistics.MS_PER_S * v for v in vs] for m, vs in retrieve.items()})
    axes[2].set(title="Load alone", xlabel="milliseconds")
    return figure


def throughput(data: Dataset) -> Figure:
    """Iterations per second without checkpoints, with disk, with RAM."""
    figure, axes = _canvas(2.2, 1)
    _bars(axes[0], _by_method(data, "throughput", "iterations_per_s", over_ranks="min"))
    axes[0].set(title="Training speed", xlabel="iterations per second")
    return figure


def training(data: Dataset) -> Figure:
    """The loss curve without failures and with each kind of failure, on top of each other."""
    figure, axes = _canvas(3.0, 1)
    table = data.select("training", "bits_per_byte")
    curves = table.groupby(["method", "step"], as_index=False).value.mean()
    methods = style.ordered(curves.method.unique())
    methods.sort(key=lambda method: method != "undisturbed")
    palette = style.colours(methods)
    gap = 4 * max(1, len(methods) - 2)
    for index, method in enumerate(methods):
        curve = curves[curves.method == method]
        # Equal curves cover each other: the undisturbed one is wide, the others are thin dashes,
        # each where the others have their gaps.
        axes[0].plot(
            curve.step, curve.value, label=style.label(method), color=palette[method],
            linewidth=6.0 if index == 0 else 1.6, alpha=0.4 if index == 0 else 1.0,
            linestyle="-" if index == 0 else (4 * index, (4, gap)),
        )  # fmt: skip
    axes[0].set(title="Loss with and without failures", xlabel="step", ylabel="bits per byte")
    axes[0].legend(frameon=False, handlelength=4)
    return figure


def wasted_time(data: Dataset) -> Figure:
    """Simulated goodput against the size of the cluster, for three ways to fail."""
    panels = {"gemini": "1.5 % a day", "llama3": "Llama 3's rate"}
    for percent in goodput.rack_percents(data)[-1:]:
        panels[f"racks_{percent}_percent"] = f"{percent} % by rack"
    figure, axes = _canvas(3.0, len(panels))
    for axis, (phase, title) in zip(axes, panels.items(), strict=True):
        goodput.draw_goodput(axis, data, phase)
        axis.set_title(title)
    axes[0].set_ylabel("goodput in percent")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def limits(data: Dataset) -> Figure:
    """Time of each operation as a multiple of the plain copy or transfer of its bytes."""
    figure, axes = _canvas(3.0, 1)
    limiting.draw(axes[0], data)
    axes[0].legend(loc="best", fontsize="small")
    return figure


def placement(data: Dataset) -> Figure:
    """Whether every shard survives: computed, drawn at random and really killed, in one plot."""
    panels = placements.sizes(data)
    figure, axes = _canvas(2.9, len(panels) + 1)
    for axis, num_machines in zip(axes, panels, strict=False):
        placements.draw_probability(axis, data, num_machines)
    placements.draw_racks(axes[-1], data)
    axes[0].set_ylabel("all shards survive, percent")
    handles = placements.legend()
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small"
    )
    return figure


def control_plane(data: Dataset) -> Figure:
    """How the root's time grows with the cluster, and how soon simulated clusters heal."""
    figure, axes = _canvas(2.9, 2)
    control.draw_decisions(axes[0], data)
    control.draw_healthy(axes[1], data)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def peers(data: Dataset) -> Figure:
    """The alternatives to this library: stall, time until safe, and restore, on the same state."""
    figure, axes = _canvas(2.6, 3)
    panels = (
        ("stall_s", "Stall, blocking"), ("done_s", "Until safe"), ("restore_s", "Restore"),
    )  # fmt: skip
    for axis, (metric, title) in zip(axes, panels, strict=True):
        values = _by_method(data, "peers", metric)
        _bars(axis, {m: [statistics.MS_PER_S * v for v in vs] for m, vs in values.items()})
        axis.set(title=title, xlabel="milliseconds")
    axes[1].set_yticklabels([])  # those of the first panel
    return figure


def interleaving(data: Dataset) -> Figure:
    """Iterations by scheme over emulated links, and the busy intervals in one of each."""
    figure, axes = _canvas(3.2, 2)
    values = _by_method(data, "interleaving", "iteration_s")
    _bars(axes[0], {m: [statistics.MS_PER_S * v for v in vs] for m, vs in values.items()})
    axes[0].set(title="Iteration, emulated links", xlabel="milliseconds")
    schemes.draw_timeline(axes[1], data, list(values))
    axes[1].set_yticklabels([])
    figure.legend(handles=schemes.legend(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def scaling(data: Dataset) -> Figure:
    """Times against state and against ranks, with fitted power laws and their exponents."""
    figure, axes = _canvas(3.0, 2)
    growth.draw(axes[0], data, "mib")
    growth.draw(axes[1], data, "ranks")
    axes[0].set(title="With the state", xlabel="MiB a rank", ylabel="milliseconds")
    axes[1].set(title="With the ranks", xlabel="ranks")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def soak(data: Dataset) -> Figure:
    """Loss with and without failures, and the step that was reached when each failure struck."""
    figure, axes = _canvas(3.0, 2)
    soaking.draw_loss(axes[0], data)
    soaking.draw_events(axes[1], data)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


FIGURES: dict[str, Callable[[Dataset], Figure]] = {
    "save_cost": save_cost,
    "recovery_time": recovery_time,
    "throughput": throughput,
    "training": training,
    "wasted_time": wasted_time,
    "limits": limits,
    "placement": placement,
    "control_plane": control_plane,
    "peers": peers,
    "interleaving": interleaving,
    "scaling": scaling,
    "soak": soak,
}


def draw(name: str, data: Dataset) -> Figure:
    """Draw one figure in our style; raises `NotMeasured` if its samples are missing."""
    style.apply()
    return FIGURES[name](data)


def save(figure: Figure, directory: Path, name: str) -> list[Path]:
    """Write `<name>.pdf` (for LaTeX) and `<name>.png` (for the web), each atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        path = directory / f"{name}.{suffix}"
        temporary = directory / f".{name}.{suffix}"
        figure.savefig(temporary, format=suffix, metadata=metadata)
        temporary.replace(path)
        paths.append(path)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description="Draw the figures of a variant.")
    parser.add_argument("--results", type=Path, required=True, help="results/<variant>")
    parser.add_argument("--output", type=Path, required=True, help="directory for the files")
    parser.add_argument("--only", nargs="+", choices=FIGURES, help="draw these and no others")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    data = Dataset(options.results)
    for name in options.only or FIGURES:
        try:
            figure = draw(name, data)
        except NotMeasured as reason:
            if options.only:
                raise
            print(f"{name}: no figure ({reason})")
            continue
        print(", ".join(str(path) for path in save(figure, options.output, name)))
    return 0


def _canvas(height_in: float, num_axes: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, [figure.add_subplot(1, num_axes, index + 1) for index in range(num_axes)]


def _by_method(
    data: Dataset, experiment: str, metric: str, over_ranks: str = "max"
) -> dict[str, list[float]]:
    methods = style.ordered(data.select(experiment, metric).method.unique())
    return {
        method: data.repeats(experiment, metric, over_ranks=over_ranks, method=method)
        for method in methods
    }


def _bars(axis: Axes, values: dict[str, list[float]]) -> None:
    palette = style.colours(values)
    flat = [value for samples in values.values() for value in samples]
    # A bar's length means nothing on a logarithmic axis: there the median is a line.
    logarithmic = min(flat) > 0 and max(flat) / min(flat) > 30
    if logarithmic:
        axis.set_xscale("log")
    for position, (method, samples) in enumerate(values.items()):
        estimate = statistics.median(samples)
        colour = palette[method]
        if logarithmic:
            axis.vlines(estimate.value, position - 0.35, position + 0.35, color=colour, linewidth=5)
        else:
            axis.barh(position, estimate.value, color=colour, height=0.7, alpha=0.85)
        if estimate.low is not None and estimate.high is not None:
            axis.hlines(position, estimate.low, estimate.high, color="black", linewidth=1.2)
        axis.scatter(
            samples, [position] * len(samples), s=10, color="white", edgecolors="black",
            linewidths=0.6, zorder=3,
        )  # fmt: skip
    axis.set_yticks(range(len(values)), [style.label(method) for method in values])
    axis.set_ylim(len(values) - 0.4, -0.6)
    sns.despine(ax=axis, left=True)


if __name__ == "__main__":
    run_command(main)
