"""What a worker agent says of its copies to persistent storage."""

import pytest

from twinckpt.agents.config import WorkerAgentConfig
from twinckpt.agents.transfers import StepDrain
from twinckpt.core.worker import StartDrain
from twinckpt.memory.drained import drained_steps
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal


@pytest.fixture
def checkpoints():
    """Two steps of one rank; their tickets are numbered alike."""
    made = InMemoryCheckpoint()
    made.reserve(0, 100)
    for step in (1, 2):
        data = made.slot(0, made.begin(0, step)).buffer[:100]
        identity = {"rank": 0, "ticket": step, "step": step, "home": 0, "world_size": 1}
        made.seal(Seal.of(data, **identity))
    return made


def test_storage_that_fails_is_told_once_and_again_only_after_it_worked(
    checkpoints, tmp_path, caplog
):
    """Every drained step had a line of its own; what else goes wrong is told too."""
    directory = tmp_path / "drained"
    drain = StepDrain(
        checkpoints, WorkerAgentConfig("m", "s", "h", 1, drain_directory=str(directory))
    )

    def is_drained(step):
        return drain(StartDrain(1, step, step, 1, (0,)))

    directory.touch()
    assert not any(is_drained(step) for step in (1, 2, 1, 2))
    assert len(caplog.messages) == 1
    assert "step 1 was not drained" in caplog.messages[0]
    assert "Not a directory" in caplog.messages[0]

    directory.unlink()
    directory.symlink_to(directory)
    assert not any(is_drained(step) for step in (1, 2))
    assert len(caplog.messages) == 2
    assert "Too many levels of symbolic links" in caplog.messages[1]

    directory.unlink()
    assert is_drained(1)
    assert drained_steps(directory) == (1,)
    assert len(caplog.messages) == 2

    directory.rename(tmp_path / "moved")
    directory.touch()
    assert not any(is_drained(step) for step in (2, 1))
    assert len(caplog.messages) == 3
