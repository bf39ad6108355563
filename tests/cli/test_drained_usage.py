"""`import` and `export` of what is not there, not theirs, or cannot be written: one line each."""

import pytest
import torch

from twinckpt.cli import main
from twinckpt.memory.drained import drained_steps


def is_told(capsys, arguments, message):
    """Whether a command fails with one line that says this."""
    status = main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    return status in (1, 2) and len(lines) == 1 and message in lines[0]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.pt"
    torch.save({"model": {"weight": torch.ones(2)}}, path)
    return path


def test_a_folder_that_is_no_checkpoint_is_not_imported(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["import", tmp_path / "empty", tmp_path / "out", "--step", 1]
    assert is_told(capsys, arguments, "no DCP checkpoint: there is no .metadata in it")


def test_pickled_objects_are_not_imported(tmp_path, capsys):
    torch.save({"model": object()}, tmp_path / "odd.pt")
    arguments = ["import", tmp_path / "odd.pt", tmp_path / "out", "--step", 1]
    assert is_told(capsys, arguments, "no checkpoint of tensors and plain values")


def test_a_step_below_zero_is_not_imported(saved, tmp_path, capsys):
    """No job could resume from it."""
    arguments = ["import", saved, tmp_path / "out", "--step", -3]
    assert is_told(capsys, arguments, "--step -3: a step is at least 0")
    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_written_is_named(saved, tmp_path, capsys):
    """A file where a folder is needed."""
    arguments = ["import", saved, saved / "out", "--step", 1]
    assert is_told(capsys, arguments, f"{saved}/out cannot be written to")
    assert main(["import", str(saved), str(tmp_path / "drained"), "--step", "1"]) == 0
    capsys.readouterr()
    for kind in ("torch", "dcp"):
        arguments = ["export", tmp_path / "drained", saved / "out", "--format", kind]
        assert is_told(capsys, arguments, f"{saved}/out cannot be written")
    assert drained_steps(tmp_path / "drained") == (1,)
