"""The report's tables in LaTeX, made from the summary, the claims and the provenance.

Plain `tabular` with the rules of `report/preamble.tex`, which has a substitute for booktabs;
`html` understands exactly what is used here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from twinckpt.analysis import format as fmt
from twinckpt.analysis.claims import VERDICTS, Judgement
from twinckpt.analysis.macros import commit_name
from twinckpt.analysis.metrics import BY_NAME, METRICS
from twinckpt.analysis.summary import by_name
from twinckpt.analysis.targets import TARGETS
from twinckpt.core.paper_points import paper_points
from twinckpt.core.paper_predictions import paper_predictions

# A page holds this many rows of a small font.
MAX_ROWS = 50

# The rows of the seed's final table, and our metrics for disk, RAM and gain in each.
SEED_ROWS = (
    ("Checkpoint save", "save_disk_ms", "save_ram_local_ms", "save_local_speedup_x"),
    ("Recovery", "recovery_disk_ms", "recovery_ram_ms", "recovery_speedup_x"),
    ("Throughput", "throughput_disk_it_s", "throughput_ram_it_s", "throughput_gain_percent"),
)
# Every reading of each of the seed's clocks, at equal bytes.
EQUAL_BYTES_ROWS = (
    ("Save: until sealed in own RAM", "save_disk_ms", "save_ram_local_ms",
     "save_local_speedup_x"),
    ("Save: until sealed on all replicas", "save_disk_ms", "save_ram_ms", "save_speedup_x"),
    ("Save: the training loop waits", "save_disk_stall_ms", "save_ram_stall_ms",
     "save_stall_speedup_x"),
    ("Recovery: load, own RAM", "recovery_disk_ms", "recovery_ram_local_ms",
     "recovery_local_speedup_x"),
    ("Recovery: load, peer's RAM", "recovery_disk_ms", "recovery_ram_ms", "recovery_speedup_x"),
    ("Recovery: rank killed to first new step", "recovery_disk_total_ms",
     "recovery_ram_local_total_ms", "recovery_total_speedup_x"),
    ("Throughput", "throughput_disk_it_s", "throughput_ram_it_s", "throughput_gain_percent"),
)  # fmt: skip


def all_tables(
    summary: dict[str, Any],
    judgements: Sequence[Judgement],
    provenance: Mapping[str, Mapping[str, Any]],
    recorded: Mapping[str, dict[str, Any]],
) -> dict[str, str]:
    """Return the LaTeX of all tables by file name (without `.tex`).

    `recorded`: summaries of other machines' results by name; each gets a column.
    """
    return {
        "verdicts": verdicts(judgements),
        "verdicts_paper": verdicts(
            [one for one in judgements if one.source == "paper" and one.evidence == "measured"]
        ),
        "verdicts_predicted": verdicts(
            [one for one in judgements if one.source == "paper" and one.evidence == "predicted"]
        ),
        "verdicts_others": verdicts([one for one in judgements if one.source != "paper"]),
        "seed": seed_published(),
        "equal_bytes": equal_bytes(summary),
        "metrics": metrics(summary),
        "traceability": traceability(summary, provenance),
        "outcomes": outcomes(judgements),
        "side_by_side": side_by_side(summary, recorded),
        "targets": targets(summary),
        "paper_points": points(),
        "predictions": predictions(),
    }


def verdicts(judgements: Sequence[Judgement]) -> str:
    """The table of claims, each with our evidence and the verdict."""
    rows = [
        (
            one.source,
            fmt.escape(one.statement),
            evidence(one),
            rf"\textbf{{{one.verdict}}}" if one.verdict == "not reproduced" else one.verdict,
        )
        for one in judgements
    ]
    return tabular(r"lp{0.5\linewidth}p{0.2\linewidth}l", ("", "Claim", "Here", "Verdict"), rows)


def outcomes(judgements: Sequence[Judgement]) -> str:
    """The list of claims with their remarks, grouped by verdict."""
    lines = []
    for verdict in VERDICTS:
        group = [one for one in judgements if one.verdict == verdict]
        if not group:
            continue
        lines += [rf"\paragraph{{{verdict.capitalize()}}}", r"\begin{itemize}"]
        for one in group:
            lines.append(
                rf"\item \emph{{{fmt.escape(one.source)}: {fmt.escape(one.statement)}.}} "
                f"{fmt.escape(one.remark[:1].upper() + one.remark[1:])}."
            )
        lines.append(r"\end{itemize}")
    return "\n".join(lines) + "\n"


def seed_published() -> str:
    """The seed's final table as it published it."""
    rows = [
        (name, *(_published(metric) for metric in row))
        for name, *row in SEED_ROWS
    ]  # fmt: skip
    return tabular("lrrr", ("As published", "Disk", "RAM", "Gain"), rows)


def equal_bytes(summary: dict[str, Any]) -> str:
    """Our measurements in the seed's rows, all state copied on both sides."""
    measured = by_name(summary)
    rows = []
    for name, *row in EQUAL_BYTES_ROWS:
        disk, ram, gain = (measured.get(metric) for metric in row)
        cells = (fmt.amount(disk), fmt.amount(ram), fmt.amount(gain), fmt.interval(gain))
        rows.append((name, *cells))
    return tabular("lrrrr", ("At equal bytes", "Disk", "RAM", "Gain", r"95\,\% interval"), rows)


def targets(summary: dict[str, Any]) -> str:
    """Our targets, the values reached, and the values of plain operations."""
    measured = by_name(summary)
    rows = []
    for target in TARGETS:
        found, outcome = measured.get(target.metric), target.outcome(measured)
        plain = measured.get(target.plain)
        metric = BY_NAME[target.metric]
        side = "at most" if target.most is not None else "at least"
        rows.append(
            (
                fmt.escape(metric.definition),
                f"{side} {fmt.with_unit(target.limit, metric.unit)}",
                f"{fmt.amount(found)} {fmt.interval(found)}".strip() if found else "",
                fmt.amount(plain) if plain else "",
                rf"\textbf{{{outcome}}}" if outcome == "missed" else outcome,
            )
        )
    header = ("What", "Target", "Here", "Plain", "")
    return tabular(r"p{0.4\linewidth}lp{0.2\linewidth}ll", header, rows)


def side_by_side(summary: dict[str, Any], recorded: Mapping[str, dict[str, Any]]) -> str:
    """The seed's, the paper's, this machine's and other machines' numbers in one row each.

    Rows are the metrics that somebody published or that another machine has measured.
    """
    here = by_name(summary)
    others = {name: by_name(one) for name, one in recorded.items()}
    rows = []
    for metric in METRICS:
        measured = [one.get(metric.name) for one in (here, *others.values())]
        is_published = metric.seed_value is not None or metric.paper_value is not None
        if not any(measured) or not (is_published or any(measured[1:])):
            continue
        published = (metric.seed_value, metric.paper_value)
        rows.append(
            (
                rf"\texttt{{{fmt.escape(metric.name)}}}",
                *("" if v is None else fmt.with_unit(v, metric.unit) for v in published),
                *("" if one is None else fmt.amount(one) for one in measured),
            )
        )
    header = ("Metric", "Seed", "Paper", "Here", *(fmt.escape(name) for name in others))
    return tabular("lrrr" + "r" * len(others), header, rows)


def points() -> str:
    """The paper's published points, each with our prediction and its error."""
    rows = []
    for one in paper_points():
        sign = {"value": "", "more than": r"\textgreater{}", "less than": r"\textless{}"}[one.kind]
        error = one.error_percent
        unit = "percent" if one.unit == "%" else one.unit
        rows.append(
            (
                fmt.escape(one.where.replace("\u00a7", "section ")),
                fmt.escape(one.quantity),
                sign + fmt.with_unit(one.published, unit),
                fmt.with_unit(one.predicted, unit),
                ("holds" if one.holds else r"\textbf{fails}")
                if error is None
                else fmt.with_unit(error, "percent"),
            )
        )
    header = ("Where", "Quantity", "Published", "Predicted", "Error")
    return tabular(r"lp{0.42\linewidth}rrr", header, rows)


def predictions() -> str:
    """The paper's models on both of its clusters: sizes, times and how often storage can save."""
    rows = [
        (
            fmt.escape(one.model),
            fmt.escape(one.machine),
            str(one.num_machines),
            fmt.with_unit(one.gpu_bytes / 1e9, "GB"),
            fmt.with_unit(one.storage_s, "s"),
            fmt.with_unit(one.peer_s, "s"),
            fmt.with_unit(one.storage_s / one.peer_s, "x"),
        )
        for one in paper_predictions()
    ]
    header = ("Model", "Machine", "N", "A GPU", "To storage", "To a peer", "Ratio")
    return tabular("llrrrrr", header, rows)


def metrics(summary: dict[str, Any]) -> str:
    """All metrics with interval, size of the sample and published values, by result file."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    for metric in summary["metrics"]:
        by_source.setdefault(metric["source"], []).append(metric)
    parts = []
    for source, found in by_source.items():
        parts += [
            rf"\paragraph{{\texttt{{{fmt.escape('/'.join(source.split('/')[-2:]))}}}}}",
            r"\begin{center}",
            metric_table(found).rstrip(),
            r"\end{center}",
        ]
    return "\n".join(parts) + "\n"


def metric_table(found: Sequence[Mapping[str, Any]]) -> str:
    """One row per metric: name, value, interval, n, the seed's and the paper's number."""
    header = ("Metric", "Value", r"95\,\%", "n", "Seed", "Paper")
    rows = [
        (
            rf"\texttt{{{fmt.escape(metric['name'])}}}",
            fmt.amount(dict(metric)),
            fmt.interval(dict(metric)),
            str(metric["n"]),
            *(
                "" if value is None else fmt.with_unit(value, metric["unit"])
                for value in (metric["seed_value"], metric["paper_value"])
            ),
        )
        for metric in found
    ]
    return tabular("lrrrrr", header, rows)


def traceability(summary: dict[str, Any], provenance: Mapping[str, Mapping[str, Any]]) -> str:
    """From each result file to its run, its configuration's digest and its commit."""
    rows = []
    for source in dict.fromkeys(metric["source"] for metric in summary["metrics"]):
        origin = provenance.get(source.split("/")[-2], {})
        rows.append(
            (
                rf"\texttt{{{fmt.escape('/'.join(source.split('/')[-2:]))}}}",
                fmt.escape(str(origin.get("date", "unknown"))[:16].replace("T", " ")),
                rf"\texttt{{{fmt.escape(str(origin.get('config_sha256') or 'unknown')[:12])}}}",
                rf"\texttt{{{commit_name(origin)}}}",
                fmt.escape(", ".join(str(seed) for seed in origin.get("seeds", [])) or "none"),
            )
        )
    return tabular("lllll", ("Samples", "Run (UTC)", "Configuration", "Commit", "Seeds"), rows)


def _published(name: str) -> str:
    metric = BY_NAME[name]
    if metric.seed_value is None:
        return ""
    sign = "+" if metric.unit == "percent" else ""
    return sign + fmt.with_unit(metric.seed_value, metric.unit)


def evidence(one: Judgement) -> str:
    """The number that a verdict rests on, with its interval, marked if it was predicted."""
    if one.value is None:
        return ""
    interval = fmt.interval({"low": one.low, "high": one.high, "unit": one.unit})
    how = "predicted: " if one.evidence == "predicted" else ""
    return f"{how}{fmt.with_unit(one.value, one.unit)} {interval}".strip()


def tabular(columns: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with our rules; if longer than a page, in several parts, each with the header."""
    parts = [rows[at : at + MAX_ROWS] for at in range(0, len(rows), MAX_ROWS)] or [rows]
    return "\n".join(_part(columns, header, part) for part in parts)


def _part(columns: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(header) + r" \\"]
    lines.append(r"\midrule")
    lines += [" & ".join(row) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"
