"""The notebooks run on results, and their sources hold no logic."""

from pathlib import Path

import nbformat
import pytest

from twinckpt.analysis import notebook
from twinckpt.analysis.command import UserError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted((NOTEBOOKS / "src").glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs_on_fresh_results(source: Path, results: Path, tmp_path: Path) -> None:
    """Every code cell runs, and one of them shows a figure."""
    output = tmp_path / "out.ipynb"
    notebook.main([str(source), str(output), "--results", str(results)])
    cells = [cell for cell in nbformat.read(output, 4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    shown = [data for cell in cells for out in cell.outputs for data in out.get("data", {})]
    assert "image/png" in shown


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
    import jupytext

    committed = nbformat.read(NOTEBOOKS / f"{source.stem}.ipynb", 4)
    assert [cell.source for cell in committed.cells] == [
        cell.source for cell in jupytext.read(source).cells
    ]
