"""The report's tables in LaTeX, made from the summary, the claims and the provenance.

Plain `tabular` with the rules of `report/preamble.tex`, which has a substitute for booktabs;
`html` understands exactly what is used here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from twinckpt.analysis import format as fmt
from twinckpt.analysis.claims import VERDICTS, Judgement
from twinckpt.analysis.macros import commit_name
from twinckpt.analysis.metrics import BY_NAME
from twinckpt.analysis.summary import by_name

# What the seed's final table gives, and our metrics for the same row.
SEED_ROWS = (
    ("Checkpoint save", "save_disk_ms", "save_ram_local_ms", "save_local_speedup_x"),
    ("Recovery", "recovery_disk_ms", "recovery_ram_ms", "recovery_speedup_x"),
    ("Throughput", "throughput_disk_it_s", "throughput_ram_it_s", "throughput_gain_percent"),
)
# Both readings of each clock, at equal bytes.
EQUAL_BYTES_ROWS = (
    ("Save: until sealed in own RAM", "save_disk_ms", "save_ram_local_ms",
     "save_local_speedup_x"),
    ("Save: until sealed on all replicas", "save_disk_ms", "save_ram_ms", "save_speedup_x"),
    ("Save: the training loop waits", "save_disk_stall_ms", "save_ram_stall_ms",
     "save_stall_speedup_x"),
    ("Recovery: load, own RAM", "recovery_disk_ms", "recovery_ram_local_ms",
     "recovery_local_speedup_x"),
    ("Recovery: load, peer's RAM", "recovery_disk_ms", "recovery_ram_ms", "recovery_speedup_x"),
    ("Recovery: kill to first new step", "recovery_disk_total_ms", "recovery_ram_total_ms",
     "recovery_total_speedup_x"),
    ("Throughput", "throughput_disk_it_s", "throughput_ram_it_s", "throughput_gain_percent"),
)  # fmt: skip


def all_tables(
    summary: dict[str, Any],
    judgements: Sequence[Judgement],
    provenance: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """File names (without `.tex`) and the tables' LaTeX."""
    return {
        "verdicts": verdicts(judgements),
        "seed": seed_published(),
        "equal_bytes": equal_bytes(summary),
        "metrics": metrics(summary),
        "traceability": traceability(summary, provenance),
        "outcomes": outcomes(judgements),
    }


def verdicts(judgements: Sequence[Judgement]) -> str:
    """Each claim, our evidence, the verdict."""
    rows = [
        (
            one.source,
            fmt.escape(one.statement),
            _evidence(one),
            rf"\textbf{{{one.verdict}}}" if one.verdict == "not reproduced" else one.verdict,
        )
        for one in judgements
    ]
    return _tabular(r"lp{0.48\linewidth}p{0.21\linewidth}l", ("", "Claim", "Here", "Verdict"), rows)


def outcomes(judgements: Sequence[Judgement]) -> str:
    """What to bear in mind for each claim, grouped by verdict."""
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
    return _tabular("lrrr", ("As published", "Disk", "RAM", "Gain"), rows)


def equal_bytes(summary: dict[str, Any]) -> str:
    """Our measurements in the seed's rows, all state copied on both sides."""
    measured = by_name(summary)
    rows = []
    for name, *row in EQUAL_BYTES_ROWS:
        disk, ram, gain = (measured.get(metric) for metric in row)
        cells = (fmt.amount(disk), fmt.amount(ram), fmt.amount(gain), fmt.interval(gain))
        rows.append((name, *cells))
    return _tabular("lrrrr", ("At equal bytes", "Disk", "RAM", "Gain", r"95\,\% interval"), rows)


def metrics(summary: dict[str, Any]) -> str:
    """All headline metrics with interval, size of the sample, and published values."""
    rows = [
        (
            rf"\texttt{{{fmt.escape(metric['name'])}}}",
            fmt.amount(metric),
            fmt.interval(metric),
            str(metric["n"]),
            *(
                "" if value is None else fmt.with_unit(value, metric["unit"])
                for value in (metric["seed_value"], metric["paper_value"])
            ),
        )
        for metric in summary["metrics"]
    ]
    return _tabular("lrrrrr", ("Metric", "Value", r"95\,\%", "n", "Seed", "Paper"), rows)


def traceability(
    summary: dict[str, Any], provenance: Mapping[str, Mapping[str, Any]]
) -> str:  # fmt: skip
    """From each result file's metrics to the file, its configuration's digest and its commit."""
    sources: dict[str, list[str]] = {}
    for metric in summary["metrics"]:
        sources.setdefault(metric["source"], []).append(metric["name"])
    rows = []
    for source, names in sources.items():
        origin = provenance.get(source.split("/")[-2], {})
        rows.append(
            (
                ", ".join(rf"\texttt{{{fmt.escape(name)}}}" for name in names),
                rf"\texttt{{{fmt.escape('/'.join(source.split('/')[-2:]))}}}",
                rf"\texttt{{{fmt.escape(str(origin.get('config_sha256') or 'unknown')[:12])}}}",
                rf"\texttt{{{commit_name(origin)}}}",
                fmt.escape(", ".join(str(seed) for seed in origin.get("seeds", [])) or "none"),
            )
        )
    header = ("Metrics", "Samples", "Configuration", "Commit", "Seeds")
    return _tabular(
        r"p{0.33\linewidth}p{0.26\linewidth}lll", header, rows, ragged=True
    )  # fmt: skip


def _published(name: str) -> str:
    metric = BY_NAME[name]
    if metric.seed_value is None:
        return ""
    sign = "+" if metric.unit == "percent" else ""
    return sign + fmt.with_unit(metric.seed_value, metric.unit)


def _evidence(one: Judgement) -> str:
    if one.value is None:
        return ""
    interval = fmt.interval({"low": one.low, "high": one.high, "unit": one.unit})
    return f"{fmt.with_unit(one.value, one.unit)} {interval}".strip()


def _tabular(
    columns: str, header: Sequence[str], rows: Sequence[Sequence[str]], ragged: bool = False
) -> str:
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines.append(" & ".join(header) + r" \\")
    lines.append(r"\midrule")
    prefix = r"\raggedright " if ragged else ""
    for first, *rest in rows:
        lines.append(" & ".join((prefix + first, *rest)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"
