"""`summary.json`: the hardware and every headline metric whose samples exist.

python -m twinckpt.analysis.summary --results results/default --output FILE [--also FILE]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from twinckpt.analysis.command import run_command
from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.metrics import BY_NAME, METRICS
from twinckpt.results.atomic import write_text

KEYS = ("name", "value", "low", "high", "unit", "n", "seed_value", "paper_value", "source")


class SummaryError(ValueError):
    """A file is not a summary; the message names it and what is wrong."""


def summarise(data: Dataset) -> dict[str, Any]:
    """Return hardware and metrics, in the order of `METRICS`; unmeasured metrics are left out."""
    metrics = []
    for metric in METRICS:
        try:
            estimate = metric.compute(data)
        except NotMeasured:
            continue
        metrics.append(
            {
                "name": metric.name,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "unit": metric.unit,
                "n": estimate.n,
                "seed_value": metric.seed_value,
                "paper_value": metric.paper_value,
                "source": data.paths[metric.experiment].as_posix(),
            }
        )
    return {"hardware": data.hardware(), "metrics": metrics}


def read_summary(path: Path) -> dict[str, Any]:
    """Read and check a summary; raises `SummaryError`."""
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SummaryError(f"{path}: not a summary ({error})") from None
    if not isinstance(summary, dict) or not {"hardware", "metrics"} <= summary.keys():
        raise SummaryError(f"{path}: not a summary (no hardware or metrics)")
    for number, metric in enumerate(summary["metrics"]):
        missing = [key for key in KEYS if key not in metric]
        if missing:
            raise SummaryError(f"{path}: metric {number} lacks {', '.join(missing)}")
    return summary


def by_name(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the summary's metrics by name."""
    return {metric["name"]: metric for metric in summary["metrics"]}


def as_lines(summary: dict[str, Any]) -> list[str]:
    """Return one line per metric, for the terminal."""
    lines = []
    for metric in summary["metrics"]:
        interval = "" if metric["low"] is None else f" [{metric['low']:.4g}, {metric['high']:.4g}]"
        definition = BY_NAME[metric["name"]].definition if metric["name"] in BY_NAME else ""
        lines.append(
            f"{metric['name']:32} {metric['value']:>10.4g} {metric['unit']}{interval}"
            f" n={metric['n']}  {definition}"
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description="Write the headline metrics of a variant.")
    parser.add_argument("--results", type=Path, required=True, help="results/<variant>")
    parser.add_argument("--output", type=Path, required=True, help="summary.json to write")
    parser.add_argument("--also", type=Path, help="a second copy")
    options = parser.parse_args(arguments)
    summary = summarise(Dataset(options.results))
    text = json.dumps(summary, indent=2) + "\n"
    for path in filter(None, (options.output, options.also)):
        write_text(path, text)
    print("\n".join(as_lines(summary)))
    return 0


if __name__ == "__main__":
    run_command(main)
