"""Execute a notebook's source on a results directory.

    python -m twinckpt.analysis.notebook notebooks/src/NAME.py OUTPUT.ipynb --results DIR

Sources are jupytext percent scripts: prose and calls into `twinckpt.analysis`. The notebook is
written only if every cell ran. It holds no execution times, so that the same results give the
same file.
"""

import argparse
import os
import sys
from pathlib import Path

from twinckpt.analysis.command import UserError, run_command
from twinckpt.analysis.dataset import Dataset
from twinckpt.results.atomic import write_text

RESULTS_VARIABLE = "TWINCKPT_RESULTS"
DEFAULT_RESULTS = Path("results/default")
TIMEOUT_S = 300


def open_results() -> Dataset:
    """Return the results named by `TWINCKPT_RESULTS`, or the default ones; notebooks call it first.

    A relative path is looked for in the working directory and in those above it, because a
    notebook runs in the directory it lies in. Raises UserError if there are none.
    """
    path = Path(os.environ.get(RESULTS_VARIABLE, DEFAULT_RESULTS))
    for base in (Path.cwd(), *Path.cwd().parents):
        if (base / path).is_dir():
            return Dataset(base / path)
    raise UserError(f"{path}: no such results; run an experiment or set {RESULTS_VARIABLE}")


def execute(source: Path, output: Path, results: Path) -> None:
    """Run `source` in a fresh kernel of this Python and write the notebook with its outputs."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python",
    }  # fmt: skip
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    client = NotebookClient(notebook, timeout=TIMEOUT_S, record_timing=False)
    # The kernel "python3" of this environment, whatever the user has registered elsewhere.
    if kernel_spec := client.create_kernel_manager().kernel_spec:
        kernel_spec.argv[0] = sys.executable
    os.environ[RESULTS_VARIABLE] = str(results.resolve())
    try:
        client.execute()
    except CellExecutionError as error:
        raise UserError(f"{source}: a cell failed\n{error}") from None
    notebook.metadata.pop("language_info", None)
    write_text(output, nbformat.writes(notebook) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description="Execute a notebook on a results directory.")
    parser.add_argument("source", type=Path, help="notebooks/src/NAME.py")
    parser.add_argument("output", type=Path, help="the notebook to write")
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS, help="results/<variant>")
    options = parser.parse_args(arguments)
    execute(options.source, options.output, options.results)
    print(options.output)
    return 0


if __name__ == "__main__":
    run_command(main)
