r"""LaTeX macros for every number in the report: no number is typed there.

`save_disk_ms` becomes `\saveDiskMs` (value with unit), `\saveDiskMsInterval`, `\saveDiskMsSeed`
(the seed's published value); a digit in a name becomes a word. Every known metric has its macros:
that of a metric that was not measured says so instead of breaking the document.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from twinckpt.analysis import format as fmt
from twinckpt.analysis.claims import VERDICTS, Judgement
from twinckpt.analysis.goodput import YEAR_DAYS
from twinckpt.analysis.metrics import METRICS
from twinckpt.analysis.summary import by_name
from twinckpt.analysis.targets import OUTCOMES, TARGETS
from twinckpt.core.paper_points import end_to_end_ratios

_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def macro_name(name: str) -> str:
    """Return the name of the macro for a metric's name: letters only, camel case."""
    head, *tail = re.split(r"[^A-Za-z0-9]+", name)
    joined = head + "".join(part[:1].upper() + part[1:] for part in tail)
    return re.sub(r"\d", lambda digit: _DIGITS[int(digit.group())], joined)


def macros(
    summary: dict[str, Any],
    judgements: Sequence[Judgement],
    provenance: Mapping[str, Mapping[str, Any]],
    variant: str,
) -> dict[str, str]:
    """Return macro names (without backslash) and the LaTeX that each stands for."""
    values: dict[str, str] = {}
    measured = by_name(summary)
    for metric in METRICS:
        name = macro_name(metric.name)
        found = measured.get(metric.name)
        values[name] = fmt.amount(found)
        values[name + "Interval"] = fmt.interval(found)
        if metric.seed_value is not None:
            values[name + "Seed"] = fmt.with_unit(metric.seed_value, metric.unit)
    for verdict in VERDICTS:
        count = sum(one.verdict == verdict for one in judgements)
        values[macro_name("num_" + verdict.replace(" ", "_"))] = str(count)
    values["numClaims"] = str(len(judgements))
    values["numReproducedPredicted"] = str(
        sum(one.verdict == "reproduced" and one.evidence == "predicted" for one in judgements)
    )
    outcomes = [target.outcome(measured) for target in TARGETS]
    for outcome in OUTCOMES:
        values[macro_name("num_targets_" + outcome.replace(" ", "_"))] = str(
            outcomes.count(outcome)
        )
    for kind, gain in zip(("Software", "Hardware"), end_to_end_ratios(), strict=True):
        values[f"gain{kind}"] = fmt.with_unit(gain, "x")
    return values | _machine(summary["hardware"]) | _origin(provenance, variant)


def as_latex(values: Mapping[str, str]) -> str:
    """Return the text of the file of `\\newcommand`s."""
    lines = [f"\\newcommand{{\\{name}}}{{{value}}}" for name, value in values.items()]
    return "% Generated from summary.json; do not edit.\n" + "\n".join(lines) + "\n"


def _machine(hardware: Mapping[str, Any]) -> dict[str, str]:
    gpus = hardware.get("gpus") or []
    memory = hardware.get("memory_bytes")
    return {
        "cpuModel": fmt.escape(str(hardware.get("cpu_model") or "unknown CPU")),
        "numCores": fmt.escape(str(hardware.get("num_cores") or "unknown")),
        "memorySize": fmt.with_unit(memory, "bytes") if memory else "unknown",
        "gpuNames": fmt.escape(", ".join(gpus)) if gpus else "no GPU",
        "systemName": fmt.escape(str(hardware.get("system") or "unknown")),
    }


def _origin(provenance: Mapping[str, Mapping[str, Any]], variant: str) -> dict[str, str]:
    newest = max(provenance.values(), key=lambda one: str(one.get("date", "")), default={})
    packages = newest.get("packages", {})
    trained = provenance.get("throughput", {}).get("config", {})
    every = trained.get("checkpoint", {}).get("every", 1)
    simulated = provenance.get("wasted_time", {}).get("config", {})
    days = simulated.get("goodput", {}).get("days", YEAR_DAYS)
    return {
        "variantName": fmt.escape(variant),
        "simulatedDays": fmt.number(days),
        "checkpointInterval": "step" if every == 1 else f"{every} steps",
        "commitHash": commit_name(newest),
        "measuredDate": fmt.escape(str(newest.get("date", "unknown"))[:10]),
        "pythonVersion": fmt.escape(str(newest.get("python", "unknown"))),
        "torchVersion": fmt.escape(str(packages.get("torch") or "unknown")),
    }


def commit_name(provenance: Mapping[str, Any]) -> str:
    """Return twelve digits of the commit, with `+` if tracked files differed from it."""
    git = provenance.get("git") or {}
    commit = git.get("commit")
    if not commit:
        return "unknown"
    return fmt.escape(commit[:12]) + ("+" if git.get("dirty") else "")
