"""Reading a slot with a GPU: it takes all bytes, verifies them, and hands them to its tensors.

They pass through a few buffers in its memory, in order and in large pieces, the first of them
before it is known which tensors there are. The host only tells the GPU what to do.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from twinckpt.checkpointer import moving
from twinckpt.checkpointer.kernels import BLOCK_BYTES, Kernels
from twinckpt.checkpointer.layout import Region
from twinckpt.memory.seal import Seal

PIECE_BYTES = 64 << 20
NUM_BUFFERS = 6  # as much as is copied while the host reads the header and finds the tensors
MAX_PARTS = 65535  # of a piece at once: a kernel's grid takes no more


class _Piece(NamedTuple):
    """Part of a slot, in whole chunks but for the last one: bytes, buffer, checksums to come."""

    start: int
    source: torch.Tensor
    buffer: torch.Tensor
    digests: torch.Tensor


class GpuReader:
    """One slot on its way into a GPU's tensors. All waiting is in `verify` and `close`."""

    def __init__(self, seal: Seal, buffer: memoryview, kernels: Kernels) -> None:
        self.device = kernels.device
        self._seal = seal
        self._kernels = kernels
        self._loop = torch.cuda.current_stream(self.device)
        self._stream = torch.cuda.Stream(self.device)
        self.num_chunks = len(buffer) // seal.chunk_bytes  # a last one may not be whole
        self._digests = torch.empty(self.num_chunks, dtype=torch.int64, device=self.device)
        self._piece_bytes = max(1, PIECE_BYTES // seal.chunk_bytes) * seal.chunk_bytes
        self._pieces = self._cut(torch.frombuffer(buffer, dtype=torch.uint8))
        self._stream.wait_stream(self._loop)
        self._arrivals: list[torch.cuda.Event] = []
        for _ in range(NUM_BUFFERS):
            self._fetch_next()

    def _cut(self, slot: torch.Tensor) -> list[_Piece]:
        size = self._piece_bytes
        chunks = size // self._seal.chunk_bytes
        sources = slot.split(size)
        num_buffers = min(NUM_BUFFERS, len(sources))
        buffers = torch.empty(num_buffers, size, dtype=torch.uint8, device=self.device)
        return [
            _Piece(
                index * size,
                source,
                buffers[index % num_buffers],
                self._digests[index * chunks : (index + 1) * chunks],
            )
            for index, source in enumerate(sources)
        ]

    def _fetch_next(self) -> None:
        """Queue the copy of the next piece, if there is one, into its buffer."""
        if len(self._arrivals) < len(self._pieces):
            piece = self._pieces[len(self._arrivals)]
            with torch.cuda.stream(self._stream):
                piece.buffer[: len(piece.source)].copy_(piece.source, non_blocking=True)
            self._arrivals.append(self._stream.record_event())

    def takes(self, target: torch.Tensor) -> bool:
        """Return whether `copy_into` can fill a tensor: its bytes lie as a slot has them."""
        is_plain = target.is_contiguous() and not target.is_neg() and not target.is_conj()
        return is_plain and target.device == self.device

    def copy_into(self, targets: Sequence[tuple[Region, torch.Tensor]]) -> None:
        """Queue the rest: checksums of all chunks, and copies of regions into live tensors."""
        parts = self._parts(targets)
        table = torch.tensor([part for some in parts for part in some], dtype=torch.int64)
        table = table.view(-1, 3).to(self.device)
        rows = table.split([len(some) for some in parts])
        with torch.cuda.device(self.device):
            for index, (piece, some) in enumerate(zip(self._pieces, rows, strict=True)):
                self._loop.wait_event(self._arrivals[index])
                self._kernels.take_checksums(piece.buffer, piece.digests, self._seal.chunk_bytes)
                for page in some.split(MAX_PARTS):
                    self._kernels.copy_all(page)
                self._stream.wait_stream(self._loop)  # the buffer is free again
                self._fetch_next()
        for _, target in targets:
            moving.note_write(target)

    def _parts(
        self, targets: Sequence[tuple[Region, torch.Tensor]]
    ) -> list[list[tuple[int, int, int]]]:
        """Cut what is to be copied at the borders of pieces: target, source, size in bytes."""
        parts: list[list[tuple[int, int, int]]] = [[] for _ in self._pieces]
        buffers = [piece.buffer.data_ptr() - piece.start for piece in self._pieces]
        for region, target in targets:
            to = target.data_ptr() - region.start
            for index, start, end in region.cut(self._piece_bytes):
                parts[index].append((to + start, buffers[index] + start, end - start))
        return parts

    def verify(self) -> None:
        """Wait for all bytes; raise DamagedCopyError unless they are those that were sealed."""
        self._seal.verify_digests(self._digests.cpu().numpy().astype(">i8").tobytes())

    def close(self) -> None:
        """Wait until nothing reads the slot, or writes to a buffer, any more."""
        self._stream.synchronize()
        self._loop.synchronize()


@contextlib.contextmanager
def reading(seal: Seal, buffer: memoryview, kernels: Kernels | None) -> Iterator[GpuReader | None]:
    """Yield a reader that has begun, or None where the host must verify."""
    reader = None
    if kernels is not None and seal.chunk_bytes % BLOCK_BYTES == 0 and kernels.are_ready():
        with contextlib.suppress(torch.OutOfMemoryError):
            reader = GpuReader(seal, buffer, kernels)
    try:
        yield reader
    finally:
        if reader is not None:
            reader.close()
