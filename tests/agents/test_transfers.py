"""What a worker agent's threads receive from peers, and copy to persistent storage."""

import pytest

from twinckpt.agents.config import WorkerAgentConfig
from twinckpt.agents.transfers import StepDrain, fetch_shard
from twinckpt.core.messages import Address
from twinckpt.core.worker_actions import StartDrain, StartFetch
from twinckpt.memory.drained import drained_steps, shard_path, step_directory
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal
from twinckpt.net.bulk import BulkClient, BulkServer

SECRET = b"a secret of the job that is long"


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
    """Every drained step used to log a line of its own; other errors are logged as well."""
    directory = tmp_path / "drained"
    drain = StepDrain(
        checkpoints, WorkerAgentConfig("m", "s", "h", 1, drain_directory=str(directory))
    )

    def is_drained(step):
        return drain.begin(StartDrain(1, step, step, 1, (0,), digest=""))()

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


def test_a_step_is_drained_though_an_older_one_cannot_be_removed(checkpoints, tmp_path, caplog):
    """It and all later ones used to count as failed, and no step that was too old was removed."""
    config = WorkerAgentConfig("m", "s", "h", 1, drain_directory=str(tmp_path), drain_keep=1)
    drain = StepDrain(checkpoints, config)
    step_directory(tmp_path, 0).touch()  # a user's file, say
    for step in (1, 2):
        assert drain.begin(StartDrain(1, step, step, 1, (0,), digest=""))()
    assert drained_steps(tmp_path) == (2,)
    assert len(caplog.messages) == 1
    assert "more than the newest steps stay: [Errno 20] Not a directory" in caplog.messages[0]


def test_a_shard_that_is_in_storage_already_is_not_written_again(checkpoints, tmp_path):
    """Another root has drained what its predecessor had; half a copy stayed when the job ended."""
    drain = StepDrain(
        checkpoints, WorkerAgentConfig("m", "s", "h", 1, drain_directory=str(tmp_path))
    )
    files = []
    for _ in range(2):
        assert drain.begin(StartDrain(1, 1, 1, 1, (0,), digest=""))()
        files.append(shard_path(tmp_path, 1, 0).stat().st_ino)
    assert files[0] == files[1]
    assert drained_steps(tmp_path) == (1,)


def test_a_step_is_drained_though_the_next_one_commits_before_its_turn_comes(checkpoints, tmp_path):
    """The thread was still at another step; then nothing was left of this one."""
    drain = StepDrain(
        checkpoints, WorkerAgentConfig("m", "s", "h", 1, drain_directory=str(tmp_path))
    )
    copy = drain.begin(StartDrain(1, 1, 1, 1, (0,), digest=""))
    checkpoints.drop_where(older_than=2)
    assert checkpoints.begin(0, 3) is None
    assert copy()
    assert drained_steps(tmp_path) == (1,)
    assert checkpoints.begin(0, 3) is not None


def test_a_transfer_whose_turn_comes_late_leaves_the_slot_to_what_is_there_now(checkpoints):
    """Its ticket was abandoned while others were received: the slot holds the next one."""
    server = BulkServer(checkpoints, SECRET, "127.0.0.1")
    peer = Address("peer", "127.0.0.1", server.port)
    entry = checkpoints.entry(0, 1)
    entry.slot.buffer[:100] = bytes(range(100))
    checkpoints.drop(0, 1)
    checkpoints.begin(0, 1)
    identity = {"rank": 0, "step": 1, "home": 0, "world_size": 1}
    checkpoints.seal(Seal.of(entry.slot.buffer[:100], ticket=1, **identity))

    here = InMemoryCheckpoint()
    here.reserve(0, 100)
    late = StartFetch(1, 0, 1, here.begin(0, 1), (peer,))
    here.drop(0, 1)
    assert here.begin(0, 3) == late.slot
    newer = here.seal(Seal.of(here.slot(0, late.slot).buffer[:100], ticket=3, **identity))
    fetched = fetch_shard(late, here, BulkClient(SECRET), lambda seal, num_bytes: None)
    assert fetched.seal is None
    assert fetched.damaged_sources == ()
    newer.seal.verify(newer.data)
    server.close()
