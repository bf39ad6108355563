"""What a job has left behind is found, and what its end has interrupted is not held against it."""

import msgspec
import pytest

from twinckpt.experiments.residue import remaining_files
from twinckpt.memory.drained import Manifest, step_directory


@pytest.mark.parametrize(
    ("halves", "left"),
    [
        ([], []),
        ([30], []),  # its removal was interrupted
        ([20, 30], ["step-0000000020"]),
        ([45], ["step-0000000045"]),
        ([60], []),  # its drain was interrupted
    ],
)
def test_steps_drained_by_halves_are_what_no_drain_has_removed(halves, left, tmp_path):
    """Steps 40 and 50 are complete and kept."""
    for step in (40, 50, *halves):
        step_directory(tmp_path / "drained", step).mkdir(parents=True)
    for step in (40, 50):
        manifest = step_directory(tmp_path / "drained", step) / "manifest.json"
        manifest.write_bytes(msgspec.json.encode(Manifest(step, 1, 2)))
    assert remaining_files(tmp_path / "temporary", tmp_path / "drained") == left


def test_temporary_files_are_left_behind(tmp_path):
    """Wherever below its directory they are."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").touch()
    assert remaining_files(tmp_path, tmp_path / "drained") == ["file"]
