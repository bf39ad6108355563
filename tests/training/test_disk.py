"""The disk baseline carries all state, and only complete steps count."""

import tempfile
from pathlib import Path

import torch

from twinckpt.checkpointer.rng import RngState
from twinckpt.training.config import DataConfig, ModelConfig
from twinckpt.training.corpus import Corpus, DataPosition
from twinckpt.training.disk import DiskCheckpoint, is_cached
from twinckpt.training.fingerprint import fingerprint
from twinckpt.training.model import GPT

MODEL = ModelConfig(context=16, width=32, layers=1, heads=2)
DATA = DataConfig(max_bytes=1 << 14)


class Rank:
    """A training in one process, with what a checkpoint carries."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        self.model = GPT(MODEL)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.position = DataPosition(Corpus.load(DATA), 2, MODEL.context, seed, 0)
        self.state = {
            "model": self.model,
            "optimizer": self.optimizer,
            "rng": RngState(),
            "position": self.position,
        }

    def train(self, steps):
        """Train some steps and return the fingerprint of all state."""
        for _ in range(steps):
            self.model(*self.position.next_batch()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return fingerprint(self.state)


def test_resumed_training_ends_with_the_same_bits(tmp_path):
    """Model, Adam's moments, random numbers and data position all come back."""
    rank = Rank(seed=1)
    rank.train(3)
    DiskCheckpoint(tmp_path, rank.state).save(3)
    expected = rank.train(4)

    resumed = Rank(seed=2)
    assert DiskCheckpoint(tmp_path, resumed.state).restore() == 3
    assert resumed.train(4) == expected


def test_restored_state_is_the_saved_one(tmp_path):
    """Before any further step."""
    rank = Rank(seed=1)
    saved = rank.train(2)
    DiskCheckpoint(tmp_path, rank.state).save(2)
    rank.train(2)
    DiskCheckpoint(tmp_path, rank.state).restore()
    assert fingerprint(rank.state) == saved


def test_file_holds_weights_and_both_moments(tmp_path):
    """The baseline writes as many bytes as the RAM checkpoint carries: 3 times the weights."""
    rank = Rank(seed=1)
    rank.train(1)
    written = DiskCheckpoint(tmp_path, rank.state).save(1)
    weights = sum(p.numel() * p.element_size() for p in rank.model.parameters())
    assert written >= 3 * weights


def test_nothing_to_restore(tmp_path):
    """An empty directory gives no step and leaves the state alone."""
    rank = Rank(seed=1)
    before = fingerprint(rank.state)
    assert DiskCheckpoint(tmp_path, rank.state).restore() is None
    assert fingerprint(rank.state) == before


def test_newest_step_wins_and_old_ones_go(tmp_path):
    """Only `keep` steps stay on the disk."""
    rank = Rank(seed=1)
    rank.train(1)
    disk = DiskCheckpoint(tmp_path, rank.state, keep=2)
    for step in (1, 2, 3):
        disk.save(step)
    assert disk.newest_common_step() == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_half_written_file_does_not_count(tmp_path):
    """A writer killed before the rename leaves a name that no reader takes."""
    rank = Rank(seed=1)
    rank.train(1)
    disk = DiskCheckpoint(tmp_path, rank.state)
    disk.save(1)
    (tmp_path / "step-00000002-rank-00000.4711").write_bytes(b"half")
    assert disk.newest_common_step() == 1


def test_step_of_which_a_rank_is_missing_does_not_count(tmp_path, monkeypatch):
    """All ranks must have written a step before it can be restored."""
    rank = Rank(seed=1)
    rank.train(1)
    disk = DiskCheckpoint(tmp_path, rank.state)
    disk.save(1)
    monkeypatch.setattr(disk, "_world_size", 2)
    assert disk.newest_common_step() is None


def test_whether_the_file_will_be_read_from_storage_is_known(tmp_path):
    """The file is out of the page cache, or `cool` says that it is not; a restore brings it in."""
    rank = Rank(seed=1)
    rank.train(1)
    disk = DiskCheckpoint(tmp_path, rank.state)
    assert not disk.cool()
    disk.save(1)
    (path,) = tmp_path.iterdir()
    assert disk.cool() is not is_cached(path)
    disk.restore()
    assert is_cached(path)


def test_a_file_in_memory_is_never_read_from_storage():
    """`/dev/shm` has nothing to forget its files for."""
    rank = Rank(seed=1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        disk = DiskCheckpoint(Path(folder), rank.state)
        disk.save(1)
        assert not disk.cool()
