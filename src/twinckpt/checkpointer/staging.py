"""Staging: copying live tensors into a slot, and sealing it.

The copy goes through the slot in order, a chunk at a time, so that the checksum reads bytes
that are still in the core's cache. Tensors whose version counter moved during the copy were
written to by the training loop: the copy is torn and must not be used.
"""

from dataclasses import dataclass

import torch

from twinckpt.checkpointer import moving
from twinckpt.checkpointer.layout import Layout
from twinckpt.errors import TwinckptError
from twinckpt.memory.checksums import CHUNK_BYTES, chunk_digest, chunks


class TornCopyError(TwinckptError):
    """A tensor changed while it was copied; the checkpoint is dropped."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a tensor that lies in one chunk: bytes from `skip` on go to `address`."""

    tensor: int
    skip: int
    address: int
    size: int


class SlotTarget:
    """A slot seen through a layout, made once and reused: tensors, and pieces by chunk."""

    def __init__(self, layout: Layout, buffer: memoryview) -> None:
        self.layout = layout
        self.buffer = buffer[: layout.size_bytes]
        whole = torch.frombuffer(self.buffer, dtype=torch.uint8)
        self.tensors = {
            name: whole[region.start : region.end].view(region.dtype).view(region.shape)
            for name, region in layout.regions.items()
        }
        self.chunks = list(zip(_pieces(layout, whole.data_ptr()), chunks(self.buffer), strict=True))


class SlotWriter:
    """Fills one slot with one version of a rank's state."""

    def __init__(self, target: SlotTarget, tensors: dict[str, torch.Tensor], header: bytes) -> None:
        self._target = target
        self._tensors = tensors
        self._target.buffer[: len(header)] = header
        self._versions: dict[str, int] = {}
        self._done: frozenset[str] = frozenset()

    @torch.no_grad()
    def copy_now(self, names: frozenset[str]) -> None:
        """Copy the tensors that may change at any time; watch the others for changes."""
        for name in names:
            moving.copy(self._target.tensors[name], self._tensors[name])
        self._done = names
        self._versions = {
            name: _version(tensor) for name, tensor in self._tensors.items() if name not in names
        }

    @torch.no_grad()
    def copy_rest(self) -> bytes:
        """Copy all other tensors; return the checksums of the whole slot.

        Raises TornCopyError if one of them was written to since `copy_now`.
        """
        sources = [self._source(name) for name in self._target.layout.regions]
        digests = []
        for pieces, chunk in self._target.chunks:
            for piece in pieces:
                source = sources[piece.tensor]
                if source:
                    moving.move(piece.address, source + piece.skip, piece.size)
            digests.append(chunk_digest(chunk))
        torn = [n for n, version in self._versions.items() if _version(self._tensors[n]) != version]
        if torn:
            raise TornCopyError(
                f"{torn[0]} (and {len(torn) - 1} more) changed while it was copied; change the "
                "state only inside optimizer.step(), or call checkpointer.fence() before it"
            )
        return b"".join(digests)

    def _source(self, name: str) -> int:
        """Return where to copy a tensor from; 0 if that is done."""
        if name in self._done:
            return 0
        tensor = self._tensors[name]
        address = moving.address_of(tensor)
        if not address:
            self._target.tensors[name].copy_(tensor)
        return address


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _pieces(layout: Layout, address: int) -> list[list[_Piece]]:
    """Cut all tensors up at the borders of chunks; return the pieces of each chunk."""
    pieces: list[list[_Piece]] = [[] for _ in range(0, layout.size_bytes, CHUNK_BYTES)]
    for index, region in enumerate(layout.regions.values()):
        position = region.start
        while position < region.end:
            chunk = position // CHUNK_BYTES
            end = min(region.end, (chunk + 1) * CHUNK_BYTES)
            piece = _Piece(index, position - region.start, address + position, end - position)
            pieces[chunk].append(piece)
            position = end
    return pieces
