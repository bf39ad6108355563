"""The notebooks run on results, and their sources hold no logic."""

import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Image

from twinckpt.analysis import notebook, show
from twinckpt.analysis.command import UserError
from twinckpt.analysis.dataset import Dataset, NotMeasured

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted((NOTEBOOKS / "src").glob("*.py"))


def is_code(cell: nbformat.NotebookNode) -> bool:
    """Return whether a cell is to be run."""
    return cell.cell_type == "code"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_cell_runs_and_one_shows_a_figure(
    source: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: starting a kernel takes longer than all cells."""
    monkeypatch.setenv("TWINCKPT_RESULTS", str(results))
    shell = InteractiveShell()
    done = [shell.run_cell(cell.source) for cell in jupytext.read(source).cells if is_code(cell)]
    for cell in done:
        cell.raise_error()
    assert any(isinstance(cell.result, Image) for cell in done)


def test_a_notebook_is_run_by_a_kernel_and_keeps_what_it_showed(
    results: Path, tmp_path: Path
) -> None:
    """As the workflow runs all of them."""
    output = tmp_path / "out.ipynb"
    notebook.main([str(SOURCES[0]), str(output), "--results", str(results)])
    cells = [cell for cell in nbformat.read(output, 4).cells if is_code(cell)]
    assert all(cell.execution_count for cell in cells)
    shown = [data for cell in cells for out in cell.outputs for data in out.get("data", {})]
    assert "image/png" in shown


def test_a_timeline_of_what_was_not_measured_says_so(results: Path) -> None:
    """In the place of empty axes."""
    shutil.rmtree(results / "training")
    with pytest.raises(NotMeasured, match="training: not measured"):
        show.training_timeline(Dataset(results))


def test_failing_cell_publishes_nothing(tmp_path: Path, results: Path) -> None:
    """The error is the cell's, the output file does not exist."""
    source = tmp_path / "bad.py"
    source.write_text("# %%\nraise RuntimeError('broken cell')\n")
    with pytest.raises(UserError, match="broken cell"):
        notebook.main([str(source), str(tmp_path / "out.ipynb"), "--results", str(results)])
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_committed_notebook_has_its_source(source: Path) -> None:
    """The notebook to browse and the source to review say the same."""
    committed = nbformat.read(NOTEBOOKS / f"{source.stem}.ipynb", 4)
    assert [cell.source for cell in committed.cells] == [
        cell.source for cell in jupytext.read(source).cells
    ]
