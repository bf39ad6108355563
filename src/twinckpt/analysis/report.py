"""The report and the slides: PDF if a TeX engine is found, otherwise the same content as HTML.

    python -m twinckpt.analysis.report --results results/default --source report --output DIR

Reads `summary.json`, `claims.json`, `figures/` and the provenance below the results directory.
The documents' date is `SOURCE_DATE_EPOCH`, or the newest measurement's: the same results give
the same bytes.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from twinckpt.analysis import diagrams
from twinckpt.analysis.claims import read_claims
from twinckpt.analysis.command import UserError, run_command
from twinckpt.analysis.dataset import EXPERIMENTS, Dataset
from twinckpt.analysis.engine import (
    HOW_TO_GET_PDF,
    Engine,
    TexError,
    compile_tex,
    find_engine,
)
from twinckpt.analysis.figures import save
from twinckpt.analysis.html import to_html
from twinckpt.analysis.macros import as_latex, macros
from twinckpt.analysis.sections import sections
from twinckpt.analysis.summary import read_summary, summarise
from twinckpt.analysis.tables import all_tables
from twinckpt.results.atomic import write_text
from twinckpt.results.provenance import read_provenance

DOCUMENTS = ("report", "slides")


def generate(results: Path, directory: Path) -> dict[str, str]:
    """Write macros and tables of a variant into `directory`; returns the macros."""
    summary = read_summary(results / "summary.json")
    judgements = read_claims(results / "claims.json")
    provenance = _provenance(results)
    values = macros(summary, judgements, provenance, results.resolve().name)
    write_text(directory / "macros.tex", as_latex(values))
    figures = [path.stem for path in (results / "figures").glob("*.pdf")]
    experiments = sections(summary, judgements, provenance, figures)
    write_text(directory / "experiments.tex", experiments)
    recorded = recorded_summaries(results.resolve().parent / "recorded")
    for name, table in all_tables(summary, judgements, provenance, recorded).items():
        write_text(directory / f"{name}.tex", table)
    return values


def recorded_summaries(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the summaries of other machines' results in `<directory>/<hardware>/`, by hardware."""
    return {
        path.name: summarise(Dataset(path))
        for path in sorted(directory.glob("*"))
        if any(path.glob("*/samples.csv"))
    }


def build(results: Path, source: Path, output: Path, engine: Engine) -> list[Path]:
    """Build both documents into `output`; returns their paths.

    TeX runs in a temporary copy, and a document is published only when it is whole. If TeX fails,
    UserError is raised, and TeX's logs are in `<output>/failed`.
    """
    values = generate(results, output / "generated")
    failed = output / "failed"
    shutil.rmtree(failed, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="twinckpt-report-") as name:
        work = Path(name)
        for path in source.glob("*.tex"):
            shutil.copy(path, work)
        shutil.copytree(output / "generated", work / "generated")
        if (results / "figures").is_dir():
            shutil.copytree(results / "figures", work / "figures")
        save(diagrams.system(), work / "figures", "system")
        try:
            return [
                _build_one(document, work, output, engine, values, epoch_s(results))
                for document in DOCUMENTS
            ]
        except TexError as error:
            failed.mkdir(parents=True)
            for log in work.glob("*.log"):
                shutil.copy(log, failed)
            raise UserError(f"{str(error).replace(str(work), str(failed))}") from None


def epoch_s(results: Path) -> int:
    """Return the documents' date in seconds since 1970."""
    if value := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(value)
    dates = [one["date"] for one in _provenance(results).values() if one.get("date")]
    return int(datetime.fromisoformat(max(dates)).timestamp()) if dates else 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description="Build the report and the slides of a variant.")
    parser.add_argument("--results", type=Path, required=True, help="results/<variant>")
    parser.add_argument("--source", type=Path, default=Path("report"), help="the LaTeX sources")
    parser.add_argument("--output", type=Path, required=True, help="directory for the documents")
    parser.add_argument("--also", type=Path, help="directory for a second copy of them")
    options = parser.parse_args(arguments)
    engine = find_engine()
    documents = build(options.results, options.source, options.output, engine)
    for document in documents:
        print(document)
        if options.also:
            options.also.mkdir(parents=True, exist_ok=True)
            _publish(document, options.also / document.name)
    if engine == "none":
        print(HOW_TO_GET_PDF)
    return 0


def _build_one(
    document: str,
    work: Path,
    output: Path,
    engine: Engine,
    values: Mapping[str, str],
    date_epoch_s: int,
) -> Path:
    if engine == "none":
        path = output / f"{document}.html"
        write_text(path, to_html(work / f"{document}.tex", values))
        return path
    pdf = compile_tex(engine, work, document, date_epoch_s)
    return _publish(pdf, output / f"{document}.pdf")


def _publish(source: Path, target: Path) -> Path:
    temporary = target.with_name(f".{target.name}")
    shutil.copyfile(source, temporary)
    return temporary.replace(target)


def _provenance(results: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(results.glob("*/provenance.json"))
    found = {path.parent.name: read_provenance(path) for path in paths}
    order = {name: position for position, name in enumerate(EXPERIMENTS)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


if __name__ == "__main__":
    run_command(main)
