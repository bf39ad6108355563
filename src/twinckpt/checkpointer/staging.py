"""Staging: copying live tensors into a slot, and sealing it.

The copy goes through the slot in order, a chunk at a time, so that the checksum reads bytes
that are still in the core's cache: those of the tensors, as copies bypass it. Tensors whose
version counter moved during the copy were written to by the training loop: the copy is torn and
must not be used. A write through `Tensor.data` leaves no trace there; so a sample of each piece is
compared afterwards, which shows a write to whole tensors.

Tensors on a GPU are copied by the GPU, in the order of its streams (see `device`).
"""

import threading
from typing import NamedTuple

import torch

from twinckpt.checkpointer import moving
from twinckpt.checkpointer.cores import threads
from twinckpt.checkpointer.device import Copies, DeviceCopies
from twinckpt.checkpointer.layout import Layout
from twinckpt.checkpointer.tree import FlatState
from twinckpt.errors import TwinckptError
from twinckpt.memory.checksums import (
    chunk_bytes_of,
    chunk_digest,
    chunk_digests,
    chunks,
    digest_of,
)

MAX_SEALING_THREADS = 4
_SAMPLE_BYTES = 64  # a cache line


class TornCopyError(TwinckptError):
    """A tensor changed while it was copied; the checkpoint is dropped."""


class _Piece(NamedTuple):
    """Part of a tensor that lies in one chunk: bytes from `skip` on go to `address`."""

    tensor: int
    skip: int
    address: int
    size: int


class SlotTarget:
    """A slot seen through a layout, made once and reused: tensors, pieces by chunk, samples."""

    def __init__(self, layout: Layout, buffer: memoryview) -> None:
        self.layout = layout
        self.buffer = buffer[: layout.size_bytes]
        whole = torch.frombuffer(self.buffer, dtype=torch.uint8)
        self.tensors = {
            name: whole[region.start : region.end].view(region.dtype).view(region.shape)
            for name, region in layout.regions.items()
        }
        chunk_bytes = chunk_bytes_of(layout.size_bytes)
        pieces = _pieces(layout, whole.data_ptr(), chunk_bytes)
        self.samples = [_sample_of(piece) for of_a_chunk in pieces for piece in of_a_chunk]
        self.chunks = list(zip(pieces, chunks(self.buffer, chunk_bytes), strict=True))


class SlotWriter:
    """Fills one slot with one version of a rank's state."""

    def __init__(
        self,
        target: SlotTarget,
        flat: FlatState,
        header: bytes,
        device: DeviceCopies,
    ) -> None:
        self._target = target
        self._tensors = flat.tensors
        self._target.buffer[: len(header)] = header
        self._device = device
        self._copies: list[Copies] = []
        self._on_device = target.layout.on_device
        self._watched: list[tuple[str, torch.Tensor, int, int]] = []
        self._done: frozenset[str] = frozenset()
        self._deciding = threading.Lock()
        self._is_fenced = False
        self._torn: list[str] = []
        self._copied = threading.Event()

    @torch.no_grad()
    def copy_now(self, names: frozenset[str]) -> None:
        """Copy the tensors that may change at any time; watch the others for changes.

        If the state is on a GPU, what lies in CPU memory is copied now as well, and all of the
        GPU's copies are queued, of the state as it is now.
        """
        self._done = names
        if self._on_device:
            self._done = frozenset(self._tensors)
            self._start_on_device(names & self._on_device)
            self._fence_device()
            self._start_on_device(self._on_device - names)
        for name in self._done - self._on_device:
            moving.copy(self._target.tensors[name], self._tensors[name])
        self._watched = [
            (name, tensor, tensor._version, tensor.data_ptr())
            for name, tensor in self._tensors.items()
            if name not in names and not tensor.is_inference()
        ]

    def _start_on_device(self, names: frozenset[str]) -> None:
        pairs = ((self._target.tensors[name], self._tensors[name]) for name in names)
        self._copies.append(self._device.start(pairs))

    def _fence_device(self) -> None:
        for copies in self._copies:
            copies.fence()

    def wait_until_copied(self) -> None:
        """Return once `copy_rest` reads no tensor any more; at once where a GPU copies."""
        if not self._on_device:
            self._copied.wait()

    def fence(self) -> list[str]:
        """Return the names of tensors written to since `copy_now`; from here on they may be.

        Where a GPU still copies, the training loop's stream waits for it.
        """
        with self._deciding:
            self._is_fenced = True
            changed = self._changed()
            self._torn = self._torn or changed
        self._fence_device()
        return changed

    @torch.no_grad()
    def differing(self) -> list[str]:
        """Return the names of watched tensors that differ from their copies; as slow as copying.

        What is written through `Tensor.data` leaves no trace in the version counter.
        """
        return [
            name
            for name, tensor, *_ in self._watched
            if not moving.same_bits(tensor, self._target.tensors[name])
        ]

    @torch.no_grad()
    def copy_rest(self) -> bytes:
        """Copy all other tensors; return the checksums of the whole slot.

        Raises TornCopyError if one of them was written to since `copy_now`.
        """
        try:
            digests = self._hash_from_device() if self._on_device else self._copy_hashed()
        finally:
            self._copied.set()
        with self._deciding:
            if not self._is_fenced:
                self._torn = self._changed()
        self._raise_if_torn()
        return b"".join(digests)

    def _raise_if_torn(self) -> None:
        if self._torn:
            raise TornCopyError(
                f"{self._torn[0]} (and {len(self._torn) - 1} more) changed while it was copied; "
                "change the state only inside optimizer.step(), or call checkpointer.fence() "
                "before it"
            )

    def _hash_from_device(self) -> list[bytes]:
        """Return the checksums of all chunks, once a GPU has copied them."""
        for copies in self._copies:
            copies.wait()
        written = [chunk for _, chunk in self._target.chunks]
        return chunk_digests(written, threads(MAX_SEALING_THREADS))

    def _copy_hashed(self) -> list[bytes]:
        """Copy all chunks; return their checksums."""
        # A tensor may be given other memory (`tensor.data = …`) at any time: its own is kept.
        kept = {n: t.detach() for n, t in self._tensors.items() if n not in self._done}
        moved = [n for n, *_, at in self._watched if n in kept and kept[n].data_ptr() != at]
        self._refuse(moved)
        names = list(self._target.layout.regions)
        sources = [self._source(kept, name) for name in names]
        digests: list[bytes] = []
        for pieces, chunk in self._target.chunks:
            copied: list[memoryview] = []
            for tensor, skip, address, size in pieces:
                if sources[tensor]:
                    moving.move(address, sources[tensor] + skip, size)
                    copied.append(moving.memory(sources[tensor] + skip, size))
            is_all = sum(map(len, copied)) == len(chunk)
            digests.append(digest_of(copied) if is_all else chunk_digest(chunk))
        written = [
            names[tensor]
            for tensor, skip, address, size in self._target.samples
            if sources[tensor] and moving.differ(address, sources[tensor] + skip, size)
        ]
        self._refuse(list(dict.fromkeys(written)))
        return digests

    def _refuse(self, torn: list[str]) -> None:
        with self._deciding:
            self._torn = self._torn or torn
        self._raise_if_torn()

    def _changed(self) -> list[str]:
        return [
            name
            for name, tensor, version, address in self._watched
            if tensor._version != version or tensor.data_ptr() != address
        ]

    def _source(self, kept: dict[str, torch.Tensor], name: str) -> int:
        """Return the address to copy a tensor from; 0 if nothing is left to copy."""
        tensor = kept.get(name)
        if tensor is None:
            return 0
        if not self._target.layout.kinds[name].lies_in_order:
            moving.copy_by_torch(self._target.tensors[name], tensor)
            return 0
        return tensor.data_ptr()


def _pieces(layout: Layout, address: int, chunk_bytes: int) -> list[list[_Piece]]:
    """Cut all tensors up at the borders of chunks; return the pieces of each chunk."""
    pieces: list[list[_Piece]] = [[] for _ in range(0, layout.size_bytes, chunk_bytes)]
    for index, region in enumerate(layout.regions.values()):
        for chunk, start, end in region.cut(chunk_bytes):
            pieces[chunk].append(_Piece(index, start - region.start, address + start, end - start))
    return pieces


def _sample_of(piece: _Piece) -> _Piece:
    """Return a cache line of a piece, from its middle on."""
    middle = piece.size >> 1
    size = min(piece.size - middle, _SAMPLE_BYTES)
    return _Piece(piece.tensor, piece.skip + middle, piece.address + middle, size)
