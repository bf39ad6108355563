"""The state of one rank, for the programs that compare with plain copies."""

import torch
import torch.distributed as dist

from twinckpt.checkpointer import moving
from twinckpt.checkpointer.device import DeviceCopies
from twinckpt.checkpointer.layout import Layout, metadata_of
from twinckpt.checkpointer.staging import SlotTarget, SlotWriter
from twinckpt.checkpointer.state import TrainingState
from twinckpt.memory.checksums import chunk_digest
from twinckpt.memory.slot import Slot

CPU = torch.device("cpu")


def memcpy(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy between two tensors in CPU memory as the C library does."""
    moving.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)


class Blocks(torch.nn.Module):
    """Parameters of many sizes, like a transformer's, without any computation."""

    def __init__(self, num_bytes: int, num_tensors: int, seed: int) -> None:
        super().__init__()
        weights = torch.rand(num_tensors, generator=torch.Generator().manual_seed(0)) + 0.05
        sizes = (weights / weights.sum() * num_bytes / 4).long().clamp(min=1)
        generator = torch.Generator().manual_seed(seed)
        self.blocks = torch.nn.ParameterList(
            torch.randn(int(size), generator=generator) for size in sizes
        )


class Rank:
    """The state of one rank, a plain copy of it, and the operations to be timed."""

    def __init__(self, size_mib: int, num_tensors: int, device: torch.device = CPU) -> None:
        self.device = device
        # Of the state, a third are parameters and two are Adam's moments.
        model = Blocks((size_mib << 20) // 3, num_tensors // 3, seed=dist.get_rank())
        self.model = model.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tensors = [p.detach() for p in self.model.parameters()]
        for moments in self.optimizer.state.values():
            self.tensors += [moments["exp_avg"], moments["exp_avg_sq"]]
        self.copies = [
            torch.empty(tensor.shape, pin_memory=device.type == "cuda").copy_(tensor)
            for tensor in self.tensors
        ]
        self.counters = [moments["step"] for moments in self.optimizer.state.values()]
        self.num_bytes = sum(tensor.nbytes for tensor in self.tensors)
        self._training_state = TrainingState(self.state)
        flat = self._training_state.capture()
        self._layout = Layout(flat)
        self._target = SlotTarget(self._layout, Slot.allocate(self._layout.size_bytes).buffer)
        self._live = [moving.address_of(flat.tensors[name]) for name in self._layout.regions]

    def settle(self) -> None:
        """Wait until a GPU has finished all queued work; on a CPU nothing is queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def state(self) -> dict[str, object]:
        """Return the state to checkpoint."""
        return {"model": self.model, "optimizer": self.optimizer}

    @torch.no_grad()
    def copy_out(self) -> None:
        """Copy the state into touched memory, with nothing checked."""
        self._copy_all(self.copies, self.tensors)

    def _copy_all(self, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        for target, source in zip(targets, sources, strict=True):
            if self.device.type == "cpu":
                memcpy(target, source)
            else:
                target.copy_(source, non_blocking=True)
        self.settle()

    def stage(self) -> None:
        """Fill this rank's own slot as the checkpointer does, checksums included."""
        flat = self._training_state.capture()
        header = self._layout.header(metadata_of(flat, self._layout, step=0))
        assert header is not None
        writer = SlotWriter(self._target, flat, header, DeviceCopies())
        writer.copy_now(frozenset())
        writer.copy_rest()

    @torch.no_grad()
    def overwrite(self) -> None:
        """Spoil the live state, so that only a restore can bring it back."""
        for tensor in self.tensors:
            tensor.zero_()
        self.settle()

    def is_intact(self) -> bool:
        """Return whether every byte of the live state is that of the plain copy."""
        return all(
            torch.equal(tensor.cpu(), copy)
            for tensor, copy in zip(self.tensors, self.copies, strict=True)
        )

    @torch.no_grad()
    def copy_in(self) -> None:
        """Copy the plain copy back into the live state, with nothing checked."""
        self._copy_all(self.tensors, self.copies)

    def copy_in_hashed(self) -> None:
        """Copy and hash each chunk of the slot, as a verified restore does, without its Python.

        Source and target addresses are prepared; `stage` must have filled the slot. CPU only.
        """
        for pieces, chunk in self._target.chunks:
            for tensor, skip, address, size_bytes in pieces:
                moving.move(self._live[tensor] + skip, address, size_bytes)
            chunk_digest(chunk)
