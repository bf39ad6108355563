"""Staging: copying live tensors into a slot, and sealing it.

The copy goes through the slot in order, about a chunk at a time, so that the checksum reads
bytes that are still in the cache: small tensors in groups, each group in one call, and large
ones cut up. Tensors whose version counter moved during the copy were written to by the
training loop: the copy is torn and must not be used.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from twinckpt.checkpointer.layout import Layout
from twinckpt.errors import TwinckptError
from twinckpt.memory.checksums import CHUNK_BYTES, chunk_digest


class TornCopyError(TwinckptError):
    """A tensor changed while it was copied; the checkpoint is dropped."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbouring small tensors, or one large one, that end at `end` in the slot."""

    names: tuple[str, ...]
    end: int


class SlotTarget:
    """A slot seen through a layout: one tensor for each region, made once and reused."""

    def __init__(self, layout: Layout, buffer: memoryview) -> None:
        self.layout = layout
        self.buffer = buffer[: layout.size_bytes]
        self.bytes = torch.frombuffer(self.buffer, dtype=torch.uint8)
        self.tensors = {
            name: self.bytes[region.start : region.end].view(region.dtype).view(region.shape)
            for name, region in layout.regions.items()
        }
        self.groups = tuple(_grouped(layout))


class SlotWriter:
    """Fills one slot with one version of a rank's state."""

    def __init__(self, target: SlotTarget, tensors: dict[str, torch.Tensor], header: bytes) -> None:
        self._target = target
        self._tensors = tensors
        self._target.buffer[: len(header)] = header
        self._versions: dict[str, int] = {}
        self._done: frozenset[str] = frozenset()
        self._digests: list[bytes] = []
        self._hashed = 0

    @torch.no_grad()
    def copy_now(self, names: frozenset[str]) -> None:
        """Copy the tensors that may change at any time; watch the others for changes."""
        for name in names:
            self._target.tensors[name].copy_(self._tensors[name])
        self._done = names
        self._versions = {
            name: tensor._version for name, tensor in self._tensors.items() if name not in names
        }

    @torch.no_grad()
    def copy_rest(self) -> bytes:
        """Copy all other tensors; return the checksums of the whole slot.

        Raises TornCopyError if one of them was written to since `copy_now`.
        """
        for group in self._target.groups:
            names = [name for name in group.names if name not in self._done]
            if len(names) == 1:
                self._copy_large(names[0])
            elif names:
                torch._foreach_copy_(
                    [self._target.tensors[name] for name in names],
                    [self._tensors[name] for name in names],
                )
            self._hash_up_to(group.end)
        self._hash_up_to(len(self._target.buffer))
        if self._hashed < len(self._target.buffer):
            self._digests.append(chunk_digest(self._target.buffer[self._hashed :]))
        torn = [n for n, version in self._versions.items() if self._tensors[n]._version != version]
        if torn:
            raise TornCopyError(
                f"{torn[0]} (and {len(torn) - 1} more) changed while it was copied; change the "
                "state only inside optimizer.step(), or call checkpointer.fence() before it"
            )
        return b"".join(self._digests)

    def _copy_large(self, name: str) -> None:
        tensor, region = self._tensors[name], self._target.layout.regions[name]
        if region.end - region.start <= CHUNK_BYTES or not tensor.is_contiguous():
            self._target.tensors[name].copy_(tensor)
            return
        source = tensor.reshape(-1).view(torch.uint8)
        position = region.start
        while position < region.end:
            border = min(region.end, (position // CHUNK_BYTES + 1) * CHUNK_BYTES)
            self._target.bytes[position:border].copy_(
                source[position - region.start : border - region.start]
            )
            position = border
            self._hash_up_to(position)

    def _hash_up_to(self, position: int) -> None:
        while self._hashed + CHUNK_BYTES <= position:
            end = self._hashed + CHUNK_BYTES
            self._digests.append(chunk_digest(self._target.buffer[self._hashed : end]))
            self._hashed = end


def _grouped(layout: Layout) -> Iterator[_Group]:
    names: list[str] = []
    start = end = layout.data_start
    for name, region in layout.regions.items():
        size = region.end - region.start
        if names and (size > CHUNK_BYTES or region.end - start > CHUNK_BYTES):
            yield _Group(tuple(names), end)
            names, start = [], region.start
        names.append(name)
        end = region.end
    if names:
        yield _Group(tuple(names), end)
