"""A save that fails: by default counted, training goes on; `strict` raises it."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from unittest import mock

import pytest
import torch

from twinckpt import Checkpointer
from twinckpt.checkpointer import moving
from twinckpt.checkpointer.staging import SlotWriter, TornCopyError
from twinckpt.errors import ConfigurationError, UnsupportedStateError


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(16 << 20))], lr=0.1)


@pytest.fixture
def state(optimizer):
    parameters = optimizer.param_groups[0]["params"]
    return {"model": torch.nn.ParameterList(parameters), "optimizer": optimizer}


def torn_save(checkpointer, state, monkeypatch):
    """Save step 2, whose parameter is written to while it is copied, before any fence."""
    (parameter,) = state["model"].parameters()
    move = moving.move

    def move_and_write(target, source, size_bytes):
        move(target, source, size_bytes)
        parameter[:8].add_(1)

    with monkeypatch.context() as patched:
        patched.setattr(moving, "move", move_and_write)
        assert checkpointer.save(2).wait(timeout_s=30) == "failed"


def test_a_torn_copy_is_counted_and_training_goes_on(state, monkeypatch):
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        torn_save(checkpointer, state, monkeypatch)
        assert checkpointer.num_failed == 1
        assert checkpointer.save(3, block=True).status == "committed"


def test_strict_raises_at_the_fence_and_the_next_save_works(state, monkeypatch):
    with Checkpointer(state, strict=True) as checkpointer:
        checkpointer.save(1, block=True)
        torn_save(checkpointer, state, monkeypatch)
        with pytest.raises(TornCopyError, match="changed while it was copied"):
            checkpointer.fence()
        assert checkpointer.save(3, block=True).status == "committed"


class Moody:
    """An object of the user's own that now and then has no state."""

    mood = "good"

    def state_dict(self):
        return {"mood": {"good": 1}[self.mood]}

    def load_state_dict(self, state):
        pass


def test_a_part_whose_state_cannot_be_read_fails_that_save_and_not_the_training(state):
    part = state["moody"] = Moody()
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        part.mood = "bad"
        handle = checkpointer.save(2)
        assert handle.status == "failed"
        assert str(handle.error) == "moody.state_dict() raised KeyError: 'bad'"
        part.mood = "good"
        assert checkpointer.save(3, block=True).status == "committed"


def test_a_part_whose_state_cannot_be_read_is_named_by_the_first_save(state):
    part = state["moody"] = Moody()
    part.mood = "bad"
    with (
        Checkpointer(state) as checkpointer,
        pytest.raises(UnsupportedStateError, match=r"moody\.state_dict\(\) raised KeyError"),
    ):
        checkpointer.save(1)


def test_where_no_thread_is_to_be_had_training_goes_on(state, optimizer):
    """Otherwise the fence would wait for it for ever."""
    with Checkpointer(state) as checkpointer:
        with mock.patch.object(Thread, "start", side_effect=RuntimeError("can't start new thread")):
            handle = checkpointer.save(1)
        assert handle.status == "failed"
        assert "can't start new thread" in str(handle.error)
        optimizer.step()
        assert checkpointer.save(2, block=True).status == "committed"


def test_a_state_that_cannot_be_carried_ends_the_job_at_its_first_save():
    with (
        Checkpointer({"model": torch.nn.Linear(2, 2), "odd": {"object": object()}}) as checkpointer,
        pytest.raises(UnsupportedStateError, match="odd"),
    ):
        checkpointer.save(1)


def test_a_state_that_turns_bad_later_is_counted():
    state = {"plain": {"x": 1}}
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        state["plain"]["x"] = object()
        assert checkpointer.save(2).status == "failed"
        state["plain"]["x"] = 2
        assert checkpointer.save(3, block=True).status == "committed"


@torch.no_grad()
def test_what_is_written_to_before_the_fence_is_copied_at_once_from_then_on(state, caplog):
    (parameter,) = state["model"].parameters()
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        parameter.add_(1)
        checkpointer.fence()
        assert "changed after save() and before optimizer.step()" in caplog.text
        for step in range(2, 6):
            parameter.fill_(step)
            handle = checkpointer.save(step)
            parameter.fill_(-1)
            checkpointer.fence()
            assert handle.wait(timeout_s=30) == "committed"
            checkpointer.restore()
            assert bool((parameter == step).all())
    assert caplog.text.count("changed after save()") == 1


@torch.no_grad()
def test_what_is_written_to_through_data_is_found_at_the_first_fence(state, caplog):
    """No version counter tells of it: as `p.data.mul_(1 - decay)` before `optimizer.step()`."""
    (parameter,) = state["model"].parameters()
    with Checkpointer(state) as checkpointer:
        for step in range(1, 6):
            parameter.data.fill_(step)
            handle = checkpointer.save(step)
            parameter.data.fill_(-1)
            checkpointer.fence()
            assert handle.wait(timeout_s=30) == "committed"
            checkpointer.restore()
            assert bool((parameter == step).all())
        assert checkpointer.num_failed == 0
    assert caplog.text.count("changed after save()") == 1


@torch.no_grad()
@pytest.mark.parametrize("is_taken_back", [False, True])
def test_weights_that_are_replaced_through_data_while_they_are_copied_are_torn(
    state, monkeypatch, is_taken_back
):
    """By averaged ones for an evaluation, now and then: the first fence comes long before."""
    (parameter,) = state["model"].parameters()
    moves, move = [], moving.move

    def move_and_write(target, source, size_bytes):
        move(target, source, size_bytes)
        moves.append(target)
        if len(moves) == 20:
            parameter.data.fill_(-1)
        elif is_taken_back and len(moves) == 40:
            parameter.data.fill_(0)

    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        checkpointer.fence()
        with monkeypatch.context() as patched:
            patched.setattr(moving, "move", move_and_write)
            handle = checkpointer.save(2)
            assert handle.wait(timeout_s=30) == "failed"
        assert isinstance(handle.error, TornCopyError)
        assert checkpointer.restore() == 1
    assert not parameter.any()


@torch.no_grad()
def test_a_target_network_may_be_moved_through_data_now_and_then(state):
    """No optimizer owns it, and the first fence, which compares, comes long before."""
    target = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(16 << 20))])
    with Checkpointer({**state, "target": target}) as checkpointer:
        for step in range(1, 6):
            handle = checkpointer.save(step)
            if step > 2:
                target[0].data.fill_(step)
            checkpointer.fence()
            assert handle.wait(timeout_s=30) == "committed"
        assert checkpointer.restore() == 5
    assert bool((target[0] == 4).all())


@torch.no_grad()
def test_a_tensor_that_is_given_other_memory_while_it_is_copied_is_torn(state):
    """Averaged weights put in place of the live ones, and taken out again before the fence."""
    (parameter,) = state["model"].parameters()
    own, other = parameter.data.uniform_(), torch.zeros(3)
    expected = own.clone()
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        checkpointer.fence()
        for step in range(2, 12):
            handle = checkpointer.save(step)
            parameter.data = other
            parameter.data = own
            checkpointer.fence()
            assert handle.wait(timeout_s=30) in ("committed", "failed")
            assert (checkpointer.restore() == step) == (handle.status == "committed")
            assert torch.equal(parameter, expected)


def test_a_step_abandoned_while_it_is_copied_stays_abandoned(state, monkeypatch):
    """As when a rank of another machine asks for larger slots."""
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        is_moving, is_abandoned, move = Event(), Event(), moving.move

        def move_once_abandoned(target, source, size_bytes):
            is_moving.set()
            is_abandoned.wait(30)
            move(target, source, size_bytes)

        with monkeypatch.context() as patched:
            patched.setattr(moving, "move", move_once_abandoned)
            handle = checkpointer.save(2)
            assert is_moving.wait(30)
            checkpointer._client.attach(checkpointer._slots.slot_bytes)
            while not handle.is_final:
                checkpointer._in_flight.poll(1.0)
            is_abandoned.set()
            checkpointer.fence()
        assert handle.wait(timeout_s=30) == "abandoned"
        assert checkpointer.save(3, block=True).status == "committed"
        assert handle.status == "abandoned"


def test_a_step_abandoned_before_it_has_a_handle_ends(state, monkeypatch):
    """Another thread waits for an older step, and takes in what becomes of this one."""
    with Checkpointer(state) as checkpointer, ThreadPoolExecutor(1) as pool:
        checkpointer.save(1, block=True)
        copy_now, client = SlotWriter.copy_now, checkpointer._client

        def copy_now_and_be_abandoned(writer, names):
            copy_now(writer, names)
            client.attach(checkpointer._slots.slot_bytes)
            assert pool.submit(client.wait_for_grant, 30).result()  # the next: this one is decided
            pool.submit(checkpointer._in_flight.poll).result()

        with monkeypatch.context() as patched:
            patched.setattr(SlotWriter, "copy_now", copy_now_and_be_abandoned)
            handle = checkpointer.save(2)
        checkpointer.fence()
        assert handle.wait(timeout_s=30) == "abandoned"
        assert checkpointer.save(3, block=True).status == "committed"


def test_waiting_for_what_is_no_status_is_refused(state):
    with Checkpointer(state) as checkpointer:
        handle = checkpointer.save(1)
        with pytest.raises(ConfigurationError, match="wait for one of staging, staged"):
            handle.wait(30)
        handle.wait(timeout_s=30)
