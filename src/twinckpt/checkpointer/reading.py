"""Reading a sealed slot: each chunk is verified just before its bytes are used.

Verifying and copying go through the slot together, while a chunk is in the core's cache.
Damage found half way leaves the target partly overwritten; the caller continues with another
copy, which overwrites all of it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from twinckpt.checkpointer import moving
from twinckpt.checkpointer.layout import header_bytes, parse


class SavedTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, to be copied into live ones."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def kind(self, name: str) -> tuple[torch.dtype, torch.Size]:
        """Return a tensor's type and shape."""
        tensor = self._tensors[name]
        return tensor.dtype, tensor.shape

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        """Copy a tensor into a live one of its type and shape; under `torch.no_grad`."""
        moving.copy(target, self[name])


class SlotReader(SavedTensors):
    """The tensors of a slot; `verify` is called once for each chunk, before its first use.

    Args:
        buffer: the slot's bytes.
        chunk_bytes: size of a chunk.
        verify: takes a chunk's index; raises DamagedCopyError if it is damaged.

    Raises DamagedCopyError as `verify` does, or if the bytes are no checkpoint.
    """

    def __init__(self, buffer: memoryview, chunk_bytes: int, verify: Callable[[int], None]) -> None:
        self._chunk_bytes = chunk_bytes
        self._verify = verify
        self._unverified = set(range(-(-len(buffer) // chunk_bytes)))
        self._check(0, 1)
        self._check(0, header_bytes(buffer))
        self.metadata: dict[str, Any]
        self.metadata, tensors = parse(buffer)
        super().__init__(tensors)
        self._base = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        start, end = self._span(tensor)
        self._check(start, end)
        return tensor

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        """Verify and copy a tensor chunk by chunk."""
        source = self._tensors[name]
        to = moving.address_of(target)
        if not to:
            target.copy_(self[name])
            return
        start, end = self._span(source)
        position = start
        while position < end:
            border = min(end, (position // self._chunk_bytes + 1) * self._chunk_bytes)
            self._check(position, border)
            moving.move(to + position - start, self._base + position, border - position)
            position = border
        torch.autograd.graph.increment_version(target)

    def verify_rest(self) -> None:
        """Verify the chunks that nobody has used."""
        for index in sorted(self._unverified):
            self._verify(index)
        self._unverified.clear()

    def _span(self, tensor: torch.Tensor) -> tuple[int, int]:
        size = tensor.numel() * tensor.element_size()
        start = tensor.data_ptr() - self._base if size else 0
        return start, start + size

    def _check(self, start: int, end: int) -> None:
        for index in range(start // self._chunk_bytes, -(-end // self._chunk_bytes)):
            if index in self._unverified:
                self._verify(index)
                self._unverified.discard(index)
