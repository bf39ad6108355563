"""The figure of `twinckpt plan`: what wastes time under each plan, and goodput by failure rate."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from twinckpt.analysis import style
from twinckpt.core.planning import ClusterFacts, Plan, memory_plan, storage_plan


def draw(facts: ClusterFacts, plans: Sequence[Plan]) -> Figure:
    """Draw waste by cause for each plan (left), and goodput against the failure rate (right)."""
    style.apply()
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    names = [_name(plan) for plan in plans]
    causes = list(dict.fromkeys(cause for plan in plans for cause in plan.waste))
    palette = dict(zip(causes, sns.color_palette("colorblind").as_hex(), strict=False))
    left = np.zeros(len(plans))
    for cause in causes:
        # The causes share what is really wasted in proportion to what each alone would cost.
        shares = np.array([
            100 * (1 - plan.goodput) * plan.waste.get(cause, 0.0) / (sum(plan.waste.values()) or 1)
            for plan in plans
        ])  # fmt: skip
        if shares.max() > 0:
            bars.barh(names, shares, left=left, color=palette[cause], label=cause)
        left += shares
    bars.invert_yaxis()
    bars.set(title="What wastes the time", xlabel="percent of the time")
    handles, labels = bars.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(causes), frameon=False)
    factors = np.logspace(-1, 1, 41)
    for plan, name in zip(plans, names, strict=True):
        rates = facts.failures_per_day * factors
        lines.plot(rates, [100 * _at(facts, plan, rate).goodput for rate in rates], label=name)
    lines.axvline(facts.failures_per_day, color="black", linewidth=0.8, linestyle=":")
    lines.set_xscale("log")
    lines.set(title="If more or fewer fail", xlabel="failures a day", ylabel="goodput in percent")
    lines.legend(frameon=False, fontsize="small")
    return figure


def _at(facts: ClusterFacts, plan: Plan, failures_per_day: float) -> Plan:
    changed = replace(facts, failures_per_day=failures_per_day)
    if plan.num_replicas == 1:
        return storage_plan(changed)
    return memory_plan(changed, plan.num_replicas)


def _name(plan: Plan) -> str:
    return "storage only" if plan.num_replicas == 1 else f"{plan.num_replicas} replicas"
