"""State on a GPU: copied by the GPU, in the order of its streams."""

import pytest
import torch
from catalogue import CARRIED, assert_same, restored, seeded, slot_of

from twinckpt import Checkpointer
from twinckpt.checkpointer import gpu_reading
from twinckpt.checkpointer.device import PinnedSlots
from twinckpt.checkpointer.gpu_reading import GpuReader, reading
from twinckpt.checkpointer.kernels import kernels_on
from twinckpt.checkpointer.reading import SlotReader
from twinckpt.checkpointer.staging import TornCopyError
from twinckpt.checkpointer.state import TrainingState
from twinckpt.errors import DamagedCopyError
from twinckpt.memory.checksums import CHUNK_BYTES
from twinckpt.memory.seal import Seal
from twinckpt.memory.slot import Slot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
LONG_CYCLES = 1_000_000_000  # about half a second


class Job:
    """A model and its optimizer on a GPU, under a Checkpointer."""

    def __init__(self, seed: int = 0, **options: bool) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(256, 1024), torch.nn.BatchNorm1d(1024), torch.nn.Linear(1024, 256)
        ).cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **options)
        state = {"model": self.model, "optimizer": self.optimizer}
        self.checkpointer = Checkpointer(state, strict=True)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.checkpointer.close()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.compute(torch.randn(32, 256, device="cuda"))
        self.optimizer.step()

    def compute(self, batch: torch.Tensor) -> None:
        """Add a batch's gradients."""
        self.model(batch).square().mean().backward()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors as they are now."""
        found = {f"model.{name}": t.clone() for name, t in self.model.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"{index}.{name}": t.clone() for name, t in moments.items()}
        return found


@pytest.fixture
def job():
    with Job() as found:
        found.step()
        found.checkpointer.save(1, block=True)
        found.checkpointer.fence()  # the first one compares all bytes
        yield found


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.device == right[name].device, name
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("name", CARRIED)
def test_a_state_comes_back_bit_for_bit_and_where_it_was(name):
    with torch.device("cuda"):
        state, fresh = seeded(1, CARRIED[name]), seeded(2, CARRIED[name])
    assert_same(state, restored(slot_of(state), fresh))


def test_what_has_no_live_counterpart_comes_back_where_it_was():
    state = {"x": {"on_gpu": torch.rand(3, device="cuda"), "here": torch.rand(3)}}
    fresh = {"x": {}}
    assert_same(state, restored(slot_of(state), fresh))
    assert fresh["x"]["on_gpu"].is_cuda


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}])
def test_an_optimizer_that_has_not_stepped_gets_its_state_on_the_gpu(options):
    with Job(**options) as saved:
        saved.step()
        saved.checkpointer.save(1, block=True)
        expected = saved.tensors()
        torch.manual_seed(7)
        saved.step()
        after = saved.tensors()
    with Job(seed=1, **options) as fresh:
        assert fresh.checkpointer.restore() == 1
        assert_equal(fresh.tensors(), expected)
        torch.manual_seed(7)
        fresh.step()
        assert_equal(fresh.tensors(), after)


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


def test_a_loop_on_a_stream_of_its_own_is_fenced_there(job):
    with torch.cuda.stream(torch.cuda.Stream()):
        test_steps_after_save_never_show_in_the_checkpoint(job)


def test_restore_fills_the_live_tensors_in_place(job):
    expected = job.tensors()
    addresses = [parameter.data_ptr() for parameter in job.model.parameters()]
    job.step()
    assert job.checkpointer.restore() == 1
    assert_equal(job.tensors(), expected)
    assert [parameter.data_ptr() for parameter in job.model.parameters()] == addresses


def test_damage_is_found_although_the_gpu_copies_what_is_not_verified_yet():
    state = {"x": torch.rand(4 * CHUNK_BYTES, device="cuda")}
    slot = slot_of(state)
    identity = {"rank": 0, "ticket": 1, "step": 1, "home": 0, "world_size": 1}
    seal = Seal.of(slot, **identity)
    slot[len(slot) // 2] ^= 1
    reader = SlotReader(slot, seal.chunk_bytes, lambda index: seal.verify_chunk(slot, index))
    with pytest.raises(DamagedCopyError):
        TrainingState(state).restore(reader.metadata["state"], reader)


class Sealed:
    """A sealed slot of a state on a GPU, with tensors in CPU memory in between."""

    def __init__(self, num_bytes: int) -> None:
        generator = torch.Generator("cuda").manual_seed(num_bytes)
        self.state = {
            f"part{index}": {
                "on_gpu": torch.rand(num_bytes // 12 + index, generator=generator, device="cuda"),
                "step": torch.rand(1 + index),
                "of_bytes": torch.ones(index, dtype=torch.uint8, device="cuda"),
                "transposed": torch.rand(5, 3, generator=generator, device="cuda").t(),
            }
            for index in range(3)
        }
        self.slot = slot_of(self.state)
        identity = {"rank": 0, "ticket": 1, "step": 1, "home": 0, "world_size": 1}
        self.seal = Seal.of(self.slot, **identity)
        self.kernels = kernels_on(torch.device("cuda", torch.cuda.current_device()))
        self.kernels.wait()

    def restore(self, state):
        with reading(self.seal, self.slot, self.kernels) as on_gpu:
            assert on_gpu is not None
            reader = SlotReader(
                self.slot,
                self.seal.chunk_bytes,
                lambda index: self.seal.verify_chunk(self.slot, index),
                on_gpu=on_gpu,
            )
            TrainingState(state).restore(reader.metadata["state"], reader)


@pytest.mark.parametrize("num_chunks", [0, 1, 2, 3, 7, 12])
def test_a_gpu_reads_a_slot_in_pieces_of_any_number(monkeypatch, num_chunks):
    monkeypatch.setattr(gpu_reading, "PIECE_BYTES", 2 * CHUNK_BYTES)
    monkeypatch.setattr(gpu_reading, "NUM_BUFFERS", 2)
    sealed = Sealed(num_chunks * CHUNK_BYTES + 17)
    fresh = {
        name: {k: torch.zeros_like(t) for k, t in p.items()} for name, p in sealed.state.items()
    }
    targets = [tensor for part in fresh.values() for tensor in part.values()]
    sealed.restore(fresh)
    assert_same(sealed.state, fresh)
    live = [tensor for part in fresh.values() for tensor in part.values()]
    assert all(left is right for left, right in zip(targets, live, strict=True))


def test_a_gpu_takes_the_checksums_of_the_host():
    sealed = Sealed(5 * CHUNK_BYTES)
    data = torch.frombuffer(sealed.slot, dtype=torch.uint8).cuda()
    digests = torch.zeros(len(data) // CHUNK_BYTES, dtype=torch.int64, device="cuda")
    sealed.kernels.take_checksums(data, digests, CHUNK_BYTES)
    sealed.seal.verify_digests(digests.cpu().numpy().astype(">i8").tobytes())


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 1.0])
def test_a_gpu_finds_every_damaged_byte(where):
    sealed = Sealed(5 * CHUNK_BYTES)
    sealed.slot[int(where * (len(sealed.slot) - 1))] ^= 1
    with pytest.raises(DamagedCopyError, match="does not match its checksum"):
        sealed.restore(sealed.state)


def test_the_second_restore_is_the_gpus(job, monkeypatch):
    expected = job.tensors()
    job.step()
    job.checkpointer.restore()
    job.checkpointer._restorer.wait_until_prepared()
    verified = []
    monkeypatch.setattr(
        GpuReader, "verify", lambda self, verify=GpuReader.verify: verified.append(verify(self))
    )
    job.step()
    assert job.checkpointer.restore() == 1
    assert_equal(job.tensors(), expected)
    assert len(verified) == 1


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
    with pytest.raises(TornCopyError, match="changed while it was copied"):
        job.checkpointer.fence()
    assert job.checkpointer.restore() == 1


def test_a_step_that_is_captured_into_a_graph_is_saved_if_the_fence_comes_before_its_replay():
    """A replay calls no optimizer, and so no fence."""
    with Job(capturable=True) as job:
        batch = torch.randn(32, 256, device="cuda")
        for step in (1, 2):  # a graph is captured of what has run, in the middle of a training
            job.step()
            job.checkpointer.save(step, block=True)
        graph = torch.cuda.CUDAGraph()
        job.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            job.compute(batch)
            job.optimizer.step()
        for step in range(3, 8):
            graph.replay()
            expected = job.tensors()
            job.checkpointer.save(step)
            job.checkpointer.fence()
            graph.replay()
            job.checkpointer.restore()
            assert_equal(job.tensors(), expected)


def test_slots_are_pinned_memory_until_they_are_given_back():
    torch.cuda.init()
    slot = Slot.allocate(1 << 20)
    pinned = PinnedSlots()
    pinned.pin(slot.buffer)
    pinned.pin(slot.buffer)
    assert torch.frombuffer(slot.buffer, dtype=torch.uint8).is_pinned()
    pinned.close()
    assert not torch.frombuffer(slot.buffer, dtype=torch.uint8).is_pinned()


def test_a_slot_that_cuda_does_not_register_costs_a_warning_only(caplog):
    """CUDA reported the refusal once more to the training's next kernel."""
    torch.cuda.init()
    slot = Slot.allocate(1 << 20)
    pinned, again = PinnedSlots(), PinnedSlots()
    pinned.pin(slot.buffer)
    again.pin(slot.buffer)  # nothing is registered twice
    assert "did not register" in caplog.text
    assert torch.ones(3, device="cuda").sum() == 3
    again.close()
    pinned.close()
