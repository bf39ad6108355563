"""Settings travel to the ranks unchanged, and impossible ones are refused by name."""

import pytest

from twinckpt.errors import ConfigurationError
from twinckpt.training.config import DataConfig, ModelConfig, TrainingConfig


def test_ranks_read_what_was_written(tmp_path):
    """Nested sections included."""
    config = TrainingConfig(
        steps=7,
        method="disk",
        disk_directory="somewhere",
        model=ModelConfig(layers=3),
        data=DataConfig(max_bytes=5000),
    )
    path = tmp_path / "below" / "training.json"
    config.write(path)
    assert TrainingConfig.read(path) == config


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"method": "tape"}, "method=tape must be one of none, disk, ram"),
        ({"sharding": "zero"}, "sharding=zero must be one of fsdp, ddp"),
        ({"method": "disk"}, "method=disk needs disk_directory"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
    ],
)
def test_impossible_training_is_refused(wrong, says):
    """The message names the setting, its value and the limit."""
    with pytest.raises(ConfigurationError, match=says):
        TrainingConfig(**wrong)
