"""The data is the same on every machine, and its position can be saved."""

import hashlib
import sysconfig
from pathlib import Path

import pytest
import torch

from twinckpt.errors import ConfigurationError
from twinckpt.training.config import DataConfig
from twinckpt.training.corpus import Corpus, DataPosition

CONTEXT = 8


@pytest.fixture
def numbered(tmp_path):
    """A corpus in which a byte's value is its position modulo 256."""
    path = tmp_path / "numbered"
    path.write_bytes(bytes(range(256)) * 32)
    return Corpus.load(DataConfig(path=str(path)))


def test_standard_library_in_path_order():
    """The first bytes are the first source's; the hash is that of all bytes."""
    corpus = Corpus.load(DataConfig(max_bytes=1 << 16))
    raw = corpus.data.numpy().tobytes()
    first = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("_*.py"))[0].read_bytes()
    assert raw.startswith(first[: 1 << 16])
    assert len(raw) == 1 << 16
    assert corpus.sha256 == hashlib.sha256(raw).hexdigest()


def test_loading_twice_gives_the_same_bytes():
    """Ranks read the corpus each for itself and must agree."""
    config = DataConfig(max_bytes=1 << 16)
    assert Corpus.load(config).sha256 == Corpus.load(config).sha256


def test_own_file(tmp_path):
    """`data.path` takes any file, cut to `max_bytes`."""
    path = tmp_path / "own"
    path.write_bytes(b"x" * 10_000)
    corpus = Corpus.load(DataConfig(path=str(path), max_bytes=5_000))
    assert corpus.data.tolist() == [ord("x")] * 5_000


def test_too_little_data_is_refused(tmp_path):
    """The error says how much there is and how much it takes."""
    path = tmp_path / "short"
    path.write_bytes(b"x" * 100)
    with pytest.raises(ConfigurationError, match="100 bytes of training data: at least 4096"):
        Corpus.load(DataConfig(path=str(path)))


def test_missing_file_is_refused():
    """Before anything is read."""
    with pytest.raises(ConfigurationError, match="no such file"):
        DataConfig(path="/does/not/exist")


def test_targets_are_the_next_bytes(numbered):
    """Each target is the byte after its input."""
    inputs, targets = DataPosition(numbered, 4, CONTEXT, seed=0, rank=0).next_batch()
    assert inputs.shape == targets.shape == (4, CONTEXT)
    assert torch.equal((inputs + 1) % 256, targets)


def test_ranks_read_different_windows(numbered):
    """Otherwise data parallelism would train on the same batch several times."""
    first, second = (
        DataPosition(numbered, 4, CONTEXT, seed=0, rank=rank).next_batch()[0] for rank in (0, 1)
    )
    assert not torch.equal(first, second)


def test_position_resumes_where_it_was(numbered):
    """A position loaded into a new object continues with the same batches."""
    position = DataPosition(numbered, 4, CONTEXT, seed=0, rank=0)
    for _ in range(3):
        position.next_batch()
    saved = position.state_dict()
    expected = [position.next_batch() for _ in range(5)]

    resumed = DataPosition(numbered, 4, CONTEXT, seed=99, rank=3)
    resumed.load_state_dict(saved)
    assert resumed.num_batches == 3
    for (inputs, targets), (found, found_targets) in zip(
        expected, (resumed.next_batch() for _ in range(5)), strict=True
    ):
        assert torch.equal(inputs, found)
        assert torch.equal(targets, found_targets)


def test_saved_position_does_not_move(numbered):
    """The state is a copy: later batches leave it as it was."""
    position = DataPosition(numbered, 4, CONTEXT, seed=0, rank=0)
    saved = position.state_dict()
    before = saved["generator"].clone()
    position.next_batch()
    assert torch.equal(saved["generator"], before)
