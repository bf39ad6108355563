"""What the programs on ranks clock: a stall to its end, and no checkpoint that got lost."""

import time

import pytest
import torch

from twinckpt import Checkpointer
from twinckpt.checkpointer import moving
from twinckpt.experiments.ranks.measuring import save_to_memory


@pytest.fixture
def parameter():
    return torch.nn.Parameter(torch.zeros(16 << 20))


@pytest.fixture
def checkpointer(parameter):
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    state = {"model": torch.nn.ParameterList([parameter]), "optimizer": optimizer}
    with Checkpointer(state) as checkpointer:
        checkpointer.save(0, block=True)
        yield checkpointer


def test_a_stall_lasts_until_the_last_chunk_is_copied(checkpointer, monkeypatch):
    move, copied_s = moving.move, []

    def move_slowly(target, source, size_bytes):
        for _ in range(20):
            move(target, source, size_bytes)
        copied_s.append(time.monotonic())

    monkeypatch.setattr(moving, "move", move_slowly)
    saved = save_to_memory(checkpointer, 1)
    assert len(copied_s) > 1
    assert saved.stall_s >= copied_s[-1] - copied_s[0]


def test_later_states_take_longer(checkpointer):
    saved = save_to_memory(checkpointer, 1)
    assert list(saved) == sorted(saved)


def test_a_checkpoint_that_got_lost_has_no_time(checkpointer, parameter, monkeypatch):
    move = moving.move

    def move_and_write(target, source, size_bytes):
        move(target, source, size_bytes)
        with torch.no_grad():
            parameter[:8].add_(1)

    monkeypatch.setattr(moving, "move", move_and_write)
    with pytest.raises(RuntimeError, match="step 1 is failed"):
        save_to_memory(checkpointer, 1)
