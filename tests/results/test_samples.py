"""Samples: what is written is what is read, and a broken file says where it is broken."""

from pathlib import Path

import pytest

from twinckpt.results.samples import COLUMNS, Sample, SampleError, read_samples, write_samples

SAMPLE = Sample(
    experiment="save_cost", variant="default", method="ram", rank=0, repeat=3,
    metric="stall_s", value=0.1 + 0.2, unit="s",
)  # fmt: skip
GOOD_ROW = "save_cost,default,ram,0,,,3,,stall_s,0.5,s"


def write_rows(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


def test_round_trip_is_exact(tmp_path: Path) -> None:
    """Values keep every bit, empty cells stay empty."""
    write_samples(tmp_path / "samples.csv", [SAMPLE])
    assert read_samples(tmp_path / "samples.csv") == [SAMPLE]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("Save,default,ram,0,,,3,,stall_s,0.5,s", "experiment"),
        ("save_cost,a/b,ram,0,,,3,,stall_s,0.5,s", "variant"),
        ("save_cost,default,,0,,,3,,stall_s,0.5,s", "method"),
        ("save_cost,default,ram,zero,,,3,,stall_s,0.5,s", "rank"),
        ("save_cost,default,ram,0,-1,,3,,stall_s,0.5,s", "machine"),
        ("save_cost,default,ram,0,,,3,,stall_s,fast,s", "value"),
        ("save_cost,default,ram,0,,,3,,stall_s,nan,s", "value"),
        ("save_cost,default,ram,0,,,3,,identical,0.5,bool", "value"),
        ("save_cost,default,ram,0,,,3,,stall_s,0.5,seconds", "unit"),
        ("save_cost,default,ram,0,,,3,,stall_s,0.5", "column count"),
    ],
)
def test_error_names_file_line_and_column(tmp_path: Path, row: str, column: str) -> None:
    """A bad cell in the third line is reported as such."""
    path = write_rows(tmp_path / "samples.csv", GOOD_ROW, row)
    with pytest.raises(SampleError, match=rf"samples\.csv:3: column.*{column.split()[-1]}"):
        read_samples(path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    """A file with another header is not read as if it fitted."""
    path = tmp_path / "samples.csv"
    path.write_text("experiment,value\nsave_cost,1\n")
    with pytest.raises(SampleError, match=r"samples\.csv:1: the columns are experiment,value"):
        read_samples(path)


@pytest.mark.parametrize("content", ["", ",".join(COLUMNS) + "\n"])
def test_file_without_samples_is_refused(tmp_path: Path, content: str) -> None:
    """An empty result is a failed run, not a result."""
    path = tmp_path / "samples.csv"
    path.write_text(content)
    with pytest.raises(SampleError, match="rerun the experiment"):
        read_samples(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Samples that cannot be made do not replace those of an earlier run, nor leave litter."""
    path = tmp_path / "samples.csv"
    write_samples(path, [SAMPLE])

    def failing():
        yield SAMPLE
        raise RuntimeError("measurement failed")

    with pytest.raises(RuntimeError, match="measurement failed"):
        write_samples(path, failing())
    assert read_samples(path) == [SAMPLE]
    assert list(tmp_path.iterdir()) == [path]
