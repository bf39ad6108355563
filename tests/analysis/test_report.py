"""Macros, figures and documents from results."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from twinckpt.analysis import claims, figures, report, style, summary
from twinckpt.analysis.dataset import Dataset
from twinckpt.analysis.engine import compile_tex, find_engine
from twinckpt.analysis.format import escape, number, with_unit
from twinckpt.analysis.html import HtmlError, to_html
from twinckpt.analysis.macros import macro_name
from twinckpt.analysis.sections import peers_that_ran
from twinckpt.results.provenance import read_provenance, write_provenance
from twinckpt.results.samples import Sample, read_samples, write_samples

SOURCE = Path(__file__).parents[2] / "report"


@pytest.fixture(scope="module")
def drawn(all_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with summary, claims and figures; not to be changed."""
    directory = tmp_path_factory.mktemp("drawn") / "results" / "default"
    shutil.copytree(all_results, directory)
    path = directory / "summary.json"
    summary.main(["--results", str(directory), "--output", str(path)])
    claims.main(["--summary", str(path), "--output", str(directory / "claims.json")])
    figures.main(["--results", str(directory), "--output", str(directory / "figures")])
    return directory


@pytest.fixture
def analysed(drawn: Path, tmp_path: Path) -> Path:
    """A copy of them, which a test may change."""
    return shutil.copytree(drawn, tmp_path / "results" / "default")


def test_latex_specials_print_as_themselves() -> None:
    """Text from the machine cannot break the document."""
    assert escape("a_b & 5 % {x} #1 \\ $") == (r"a\_b \& 5 \% \{x\} \#1 \textbackslash{} \$")
    assert escape("caf\u00e9") == "caf?"


def test_macro_names_are_letters() -> None:
    """TeX knows no digits or underscores in names."""
    assert macro_name("save_disk_ms") == "saveDiskMs"
    assert macro_name("p99_ms") == "pNineNineMs"


def test_numbers_are_short() -> None:
    """Three significant digits, thousands apart, sizes in binary units."""
    assert [number(value) for value in (7012.4, 13.66, 0.01234, 0, 1e-7)] == [
        "7,012", "13.7", "0.0123", "0", "0",
    ]  # fmt: skip
    assert with_unit(3 * 2**20, "bytes") == r"3\,MiB"


def test_of_equal_loss_curves_each_one_shows(results: Path) -> None:
    """They lie on each other: a method's dashes are where all others have gaps."""
    figure = figures.draw("training", Dataset(results))
    canvas = FigureCanvasAgg(figure)
    (axis,) = figure.axes
    colours = {line.get_label(): to_rgb(line.get_color()) for line in axis.lines}
    assert len(set(colours.values())) == len(colours) == 5
    legend = axis.get_legend()
    assert legend is not None
    legend.remove()  # its samples do not count
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    shown = {label for label, rgb in colours.items() if (abs(pixels - rgb) < 0.02).all(-1).any()}
    assert shown >= colours.keys() - {"undisturbed"}  # that one is wide, and below them


@pytest.mark.parametrize(
    ("experiment", "left_out", "panels"),
    [
        ("wasted_time", lambda sample: sample.phase == "racks_37_percent", 2),
        ("recovery_time", lambda sample: sample.metric == "retrieve_s", 2),
    ],
)
def test_a_figure_does_without_what_settings_left_out(
    results: Path, experiment: str, left_out: Callable[[Sample], bool], panels: int
) -> None:
    """As goodput.correlated_percents=[] and recovery.methods=[torchrun] do."""
    path = results / experiment / "samples.csv"
    write_samples(path, [sample for sample in read_samples(path) if not left_out(sample)])
    figure = figures.draw(experiment, Dataset(results))
    assert sum(axis.get_visible() for axis in figure.axes) == panels


def test_figures_are_the_same_for_the_same_samples(analysed: Path, tmp_path: Path) -> None:
    """All are drawn, byte for byte the same twice."""
    figures.main(["--results", str(analysed), "--output", str(tmp_path / "again")])
    for name in figures.FIGURES:
        for suffix in ("pdf", "png"):
            first, second = (
                d / f"{name}.{suffix}" for d in (analysed / "figures", tmp_path / "again")
            )
            assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("experiment", ["scaling", "save_cost"])
def test_a_logarithmic_axis_says_how_much_within_a_decade(results: Path, experiment: str) -> None:
    """Times from 160 to 640 ms have no power of ten among them."""
    figure = figures.draw(experiment, Dataset(results))
    FigureCanvasAgg(figure).draw()
    for axis in figure.axes:
        if axis.get_yscale() == "log":
            low, high = axis.get_ylim()
            ticks = [*axis.yaxis.get_major_ticks(), *axis.yaxis.get_minor_ticks()]
            assert any(low <= t.get_loc() <= high and t.label1.get_text() for t in ticks)


def test_unknown_methods_get_a_colour_and_a_name() -> None:
    """Every method is told apart, known ones keep their colour."""
    colours = style.colours(["disk", "dcp_async", "torchft"])
    assert len(set(colours.values())) == 3
    assert colours["disk"] == style.colours(["disk"])["disk"]
    assert style.label("dcp_async") == "dcp async"


def test_documents_compile_with_the_engine_that_is_there(analysed: Path, tmp_path: Path) -> None:
    """Also with an experiment missing; twice the same bytes."""
    shutil.rmtree(analysed / "throughput")
    (analysed / "figures" / "throughput.pdf").unlink()
    (analysed / "figures" / "throughput.png").unlink()
    summary.main(["--results", str(analysed), "--output", str(analysed / "summary.json")])
    first = report.build(analysed, SOURCE, tmp_path / "a", find_engine())
    second = report.build(analysed, SOURCE, tmp_path / "b", find_engine())
    assert [path.stem for path in first] == ["report", "slides"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_no_page_of_the_documents_holds_more_than_it_can(
    analysed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every experiment there is: a long table below figures used to overrun a page."""
    engine = find_engine()
    if engine == "none":
        pytest.skip("needs a TeX engine")
    logs = []

    def compile_and_keep_log(engine, directory, name, epoch_s):
        pdf = compile_tex(engine, directory, name, epoch_s)
        logs.append(pdf.with_suffix(".log").read_text(errors="replace"))
        return pdf

    monkeypatch.setattr(report, "compile_tex", compile_and_keep_log)
    report.build(analysed, SOURCE, tmp_path, engine)
    assert len(logs) == 2
    assert not any("Overfull \\vbox" in log for log in logs)


def test_without_an_engine_there_is_html_with_the_same_content(
    analysed: Path, tmp_path: Path
) -> None:
    """Numbers, verdicts and figures are in the page, and no LaTeX is left over."""
    page, slides = report.build(analysed, SOURCE, tmp_path, "none")
    text = page.read_text(encoding="utf-8")
    assert "2,000\u202fms" in text
    assert "not reproduced" in text
    assert "Test &amp; Sons CPU_1" in text
    assert text.count("data:image/png;base64,") == len(figures.FIGURES) + 1
    assert "\\" not in text.partition("<h2>Reproduction")[0]
    assert slides.read_text(encoding="utf-8").count('<section class="slide">') == 15


def test_an_experiment_joins_the_report_by_having_results(analysed: Path, tmp_path: Path) -> None:
    """Nobody wrote a section for it, and it has one; another was not run, and has none."""
    shutil.rmtree(analysed / "throughput")
    write_samples(
        analysed / "brand_new" / "samples.csv",
        [Sample(experiment="brand_new", variant="default", method="x", metric="y", value=1.0,
                unit="s")],
    )  # fmt: skip
    shutil.copy(analysed / "training" / "provenance.json", analysed / "brand_new")
    summary.main(["--results", str(analysed), "--output", str(analysed / "summary.json")])
    (page, _) = report.build(analysed, SOURCE, tmp_path, "none")
    text = page.read_text(encoding="utf-8")
    assert "<h3>Brand new</h3>" in text
    assert "<h3>What a checkpoint costs</h3>" in text
    assert "Training speed with checkpoints" not in text


@pytest.mark.parametrize(("every", "says"), [(1, "one every step"), (25, "one every 25 steps")])
def test_the_report_says_how_often_there_was_a_checkpoint(
    analysed: Path, tmp_path: Path, every: int, says: str
) -> None:
    """The interval is that with which the cost was measured."""
    path = analysed / "throughput" / "provenance.json"
    write_provenance(path, read_provenance(path) | {"config": {"checkpoint": {"every": every}}})
    (page, _) = report.build(analysed, SOURCE, tmp_path, "none")
    assert f"Blocks with and without checkpoints, {says}," in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("days", [30, 365])
def test_the_report_says_how_long_was_simulated(analysed: Path, tmp_path: Path, days: int) -> None:
    """A month is no year."""
    path = analysed / "wasted_time" / "provenance.json"
    write_provenance(path, read_provenance(path) | {"config": {"goodput": {"days": days}}})
    (page, slides) = report.build(analysed, SOURCE, tmp_path, "none")
    assert f"Goodput over {days} simulated days" in page.read_text(encoding="utf-8")
    assert f"{days} days of failures, simulated" in slides.read_text(encoding="utf-8")


def test_other_machines_results_stand_beside_ours_and_are_not_mixed(
    analysed: Path, tmp_path: Path
) -> None:
    """A column of its own; our value stays what it was."""
    recorded = analysed.parent / "recorded" / "big-machine"
    write_samples(
        recorded / "save_cost" / "samples.csv",
        [
            Sample(experiment="save_cost", variant="recorded", method=method, rank=0,
                   repeat=repeat, metric="recoverable_s", value=value, unit="s")
            for method, value in (("disk", 77.0), ("ram_replica", 7.0))
            for repeat in range(3)
        ],
    )  # fmt: skip
    report.generate(analysed, tmp_path)
    table = (tmp_path / "side_by_side.tex").read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if r"save\_disk\_ms" in line)
    assert "big-machine" in table.splitlines()[2]
    assert [cell.strip() for cell in row.removesuffix(r"\\").split("&")[1:]] == [
        r"7,012\,ms", "", r"2,000\,ms", r"77,000\,ms",
    ]  # fmt: skip


def test_the_papers_numbers_stand_beside_our_predictions(analysed: Path, tmp_path: Path) -> None:
    """Published, predicted and the error of each; a bound holds or fails."""
    report.generate(analysed, tmp_path)
    table = (tmp_path / "paper_points.tex").read_text(encoding="utf-8")
    assert r"65\,x & 80\,x" in table.replace(r"$\times$", r"\,x")
    assert "holds" in table
    assert "fails" not in table


def test_peers_that_did_not_run_say_why() -> None:
    """Versions, and reasons as the run gave them."""
    text = peers_that_ran(
        {"dlrover": "0.6.1", "torchft": None, "dlrover_replicas": "KeyError: 0",
         "reasons": {"torchft": "ImportError: no_such"}}
    )  # fmt: skip
    assert text.startswith("Versions: dlrover 0.6.1.")
    assert r"Left out: torchft (\texttt{ImportError: no\_such})" in text
    assert r"\texttt{KeyError: 0}" in text
    assert peers_that_ran({}) == ""


def test_html_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """A command is converted or named, never dropped."""
    path = tmp_path / "x.tex"
    path.write_text(r"\begin{document}\marginpar{lost}\end{document}")
    with pytest.raises(HtmlError, match="marginpar"):
        to_html(path, {})


def test_forced_engine_must_exist(tmp_path: Path) -> None:
    """A misspelt or missing engine is an error, not a silent fallback."""
    with pytest.raises(ValueError, match="TWINCKPT_TEX=xetex"):
        find_engine({"TWINCKPT_TEX": "xetex"})
    with pytest.raises(ValueError, match="not installed"):
        find_engine({"TWINCKPT_TEX": "pdflatex", "PATH": str(tmp_path)})


def test_errors_of_tex_name_the_log(analysed: Path, tmp_path: Path) -> None:
    """A broken source publishes nothing and keeps the log."""
    engine = find_engine()
    if engine == "none":
        pytest.skip("no TeX engine on this machine")
    source = tmp_path / "source"
    shutil.copytree(SOURCE, source)
    (source / "report.tex").write_text(r"\documentclass{article}\begin{document}\broken")
    with pytest.raises(report.UserError, match=r"report\.tex.*failed/report\.log"):
        report.build(analysed, source, tmp_path / "out", engine)
    assert not (tmp_path / "out" / "report.pdf").exists()
    assert (tmp_path / "out" / "failed" / "report.log").exists()
