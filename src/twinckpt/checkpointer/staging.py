"""Staging: copying live tensors into a slot, and sealing it.

Large tensors are copied a chunk at a time, so that the checksum reads the bytes while they
are still in the cache. Tensors whose version counter moved during the copy were written to
by the training loop: the copy is torn and must not be used.
"""

from collections.abc import Iterable

import torch

from twinckpt.checkpointer.layout import Layout
from twinckpt.errors import TwinckptError
from twinckpt.memory.checksums import CHUNK_BYTES, chunk_digest


class TornCopyError(TwinckptError):
    """A tensor changed while it was copied; the checkpoint is dropped."""


class SlotWriter:
    """Fills one slot with one version of a rank's state."""

    def __init__(self, layout: Layout, buffer: memoryview, header: bytes) -> None:
        self._layout = layout
        self._buffer = buffer[: layout.size_bytes]
        self._bytes = torch.frombuffer(self._buffer, dtype=torch.uint8)
        self._buffer[: len(header)] = header
        self._versions: dict[str, int] = {}
        self._digests: list[bytes] = []

    def watch(self, tensors: dict[str, torch.Tensor]) -> None:
        """Note the versions of tensors that will be copied later."""
        self._versions = {name: tensor._version for name, tensor in tensors.items()}

    def copy(self, tensors: dict[str, torch.Tensor], names: Iterable[str]) -> None:
        """Copy some tensors to their regions."""
        for name in names:
            self._copy_tensor(name, tensors[name])

    def copy_and_hash(self, tensors: dict[str, torch.Tensor], done: frozenset[str]) -> bytes:
        """Copy all but the `done` tensors, in the order of the slot; return all checksums.

        Raises TornCopyError if a watched tensor was written to since `watch`.
        """
        hashed = 0
        for name, region in self._layout.regions.items():
            if name not in done:
                for end in self._copy_in_chunks(tensors[name], region.start, region.end):
                    hashed = self._hash_up_to(end, hashed)
            hashed = self._hash_up_to(region.end, hashed)
        self._hash_rest(hashed)
        torn = [n for n, version in self._versions.items() if tensors[n]._version != version]
        if torn:
            raise TornCopyError(
                f"{torn[0]} (and {len(torn) - 1} more) changed while it was copied; change the "
                "state only inside optimizer.step(), or call checkpointer.fence() before it"
            )
        return b"".join(self._digests)

    def _copy_tensor(self, name: str, tensor: torch.Tensor) -> None:
        region = self._layout.regions[name]
        target = self._bytes[region.start : region.end].view(region.dtype).view(region.shape)
        target.copy_(tensor)

    def _copy_in_chunks(self, tensor: torch.Tensor, start: int, end: int) -> Iterable[int]:
        """Copy a tensor to [start, end) and yield how far it is, at the slot's chunk borders."""
        if end - start <= CHUNK_BYTES or not tensor.is_contiguous():
            target = self._bytes[start:end].view(tensor.dtype).view(tensor.shape)
            target.copy_(tensor)
            yield end
            return
        source = tensor.reshape(-1).view(torch.uint8)
        position = start
        while position < end:
            border = min(end, (position // CHUNK_BYTES + 1) * CHUNK_BYTES)
            self._bytes[position:border].copy_(source[position - start : border - start])
            position = border
            yield position

    def _hash_up_to(self, position: int, hashed: int) -> int:
        while hashed + CHUNK_BYTES <= position:
            self._digests.append(chunk_digest(self._buffer[hashed : hashed + CHUNK_BYTES]))
            hashed += CHUNK_BYTES
        return hashed

    def _hash_rest(self, hashed: int) -> None:
        hashed = self._hash_up_to(len(self._buffer), hashed)
        if hashed < len(self._buffer):
            self._digests.append(chunk_digest(self._buffer[hashed:]))
