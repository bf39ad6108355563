"""Reading a sealed slot: each chunk is verified as it is copied, while the cache holds it.

Damage found half way leaves the target partly overwritten; the caller continues with another
copy, which overwrites all of it.
"""

from collections.abc import Callable, Mapping

import torch

from twinckpt.checkpointer import moving
from twinckpt.checkpointer.layout import header_bytes, parse, view


class SavedTensors:
    """Tensors by name, to be copied into live ones."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def kind(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return a tensor's type and shape."""
        tensor = self._tensors[name]
        return tensor.dtype, tuple(tensor.shape)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, whose memory is not the caller's."""
        return self._tensors[name]

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        """Copy a tensor into a live one of its type and shape; under `torch.no_grad`."""
        moving.copy(target, self._tensors[name])


class SlotReader(SavedTensors):
    """The tensors of a slot, each chunk verified at its first use.

    Args:
        buffer: the slot's bytes.
        chunk_bytes: size of a chunk.
        verify: takes a chunk's index; raises DamagedCopyError if it is damaged.
        arrive: takes a chunk's index; returns once its bytes are there.

    Raises DamagedCopyError as `verify` does, or if the bytes are no checkpoint.
    """

    def __init__(
        self,
        buffer: memoryview,
        chunk_bytes: int,
        verify: Callable[[int], None] = lambda index: None,
        arrive: Callable[[int], None] = lambda index: None,
    ) -> None:
        self._buffer = buffer
        self._chunk_bytes = chunk_bytes
        self._verify = verify
        self._arrive = arrive
        self._devices: set[torch.device] = set()
        self._unverified = set(range(-(-len(buffer) // chunk_bytes)))
        self._check(0, 1)
        self._check(0, header_bytes(buffer))
        self.metadata, self._regions = parse(buffer)
        self._base = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()

    def kind(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return a tensor's type and shape."""
        region = self._regions[name]
        return region.dtype, region.shape

    def tensor(self, name: str) -> torch.Tensor:
        """Return a verified tensor: a view of the slot."""
        region = self._regions[name]
        self._check(region.start, region.end)
        return view(self._buffer, region)

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        """Copy a tensor and verify it, chunk by chunk: hashing what was just read is cheap."""
        address = moving.address_of(target)
        if not address:
            target.copy_(self.tensor(name), non_blocking=True)
            self._devices.add(target.device)
            return
        region = self._regions[name]
        position = region.start
        while position < region.end:
            index = position // self._chunk_bytes
            border = min(region.end, (index + 1) * self._chunk_bytes)
            is_new = index in self._unverified
            if is_new:
                self._arrive(index)
            moving.move(address + position - region.start, self._base + position, border - position)
            if is_new:
                self._verify(index)
                self._unverified.discard(index)
            position = border
        torch.autograd.graph.increment_version(target)

    def verify_rest(self) -> None:
        """Verify the chunks that nobody has used; return once GPUs have all they were given."""
        self._check(0, len(self._buffer))
        for device in self._devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def _check(self, start: int, end: int) -> None:
        for index in range(start // self._chunk_bytes, -(-end // self._chunk_bytes)):
            if index in self._unverified:
                self._arrive(index)
                self._verify(index)
                self._unverified.discard(index)
