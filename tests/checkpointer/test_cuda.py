"""State on a GPU: copied by the GPU, in the order of its streams."""

import pytest
import torch

from twinckpt import Checkpointer
from twinckpt.checkpointer.device import PinnedSlots
from twinckpt.memory.slot import Slot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
LONG_CYCLES = 1_000_000_000  # about half a second


class Job:
    """A model and its optimizer on a GPU, under a Checkpointer."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(256, 1024), torch.nn.BatchNorm1d(1024), torch.nn.Linear(1024, 256)
        ).cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        state = {"model": self.model, "optimizer": self.optimizer}
        self.checkpointer = Checkpointer(state, strict=True)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(32, 256, device="cuda")).square().mean().backward()
        self.optimizer.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors as they are now."""
        found = {f"model.{name}": t.clone() for name, t in self.model.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"{index}.{name}": t.clone() for name, t in moments.items()}
        return found


@pytest.fixture
def job():
    found = Job()
    with found.checkpointer:
        found.step()
        found.checkpointer.save(1, block=True)
        yield found


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_steps_after_save_never_show_in_the_checkpoint(job):
    for step in range(2, 12):
        job.step()
        expected = job.tensors()
        handle = job.checkpointer.save(step)
        job.step()
        job.step()
        if handle.status == "skipped":
            continue
        assert handle.wait(timeout_s=30) == "committed"
        job.checkpointer.restore()
        assert_equal(job.tensors(), expected)


def test_restore_fills_the_live_tensors_in_place(job):
    expected = job.tensors()
    addresses = [parameter.data_ptr() for parameter in job.model.parameters()]
    job.step()
    assert job.checkpointer.restore() == 1
    assert_equal(job.tensors(), expected)
    assert [parameter.data_ptr() for parameter in job.model.parameters()] == addresses


def test_neither_save_nor_the_fence_makes_the_host_wait_for_the_gpu(job):
    torch.cuda._sleep(LONG_CYCLES)
    marker = torch.cuda.current_stream().record_event()
    handle = job.checkpointer.save(2)
    job.checkpointer.fence()
    assert handle.status == "staging"
    assert not marker.query()
    assert handle.wait(timeout_s=30) == "committed"


def test_a_write_before_the_fence_is_found(job):
    torch.cuda._sleep(LONG_CYCLES)
    handle = job.checkpointer.save(2)
    with torch.no_grad():
        next(job.model.parameters()).add_(1)
    job.checkpointer.fence()
    assert handle.wait(timeout_s=30) == "failed"
    assert "changed while it was copied" in str(handle.error)
    assert job.checkpointer.restore() == 1


def test_slots_are_pinned_memory_until_they_are_given_back():
    torch.cuda.init()
    slot = Slot.allocate(1 << 20)
    pinned = PinnedSlots()
    pinned.pin(slot.buffer)
    pinned.pin(slot.buffer)
    assert torch.frombuffer(slot.buffer, dtype=torch.uint8).is_pinned()
    pinned.close()
    assert not torch.frombuffer(slot.buffer, dtype=torch.uint8).is_pinned()
