"""Reading a sealed slot: each chunk is verified as it is copied, while the cache holds it.

Damage found half way leaves the target partly overwritten; the caller continues with another
copy, which overwrites all of it.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from twinckpt.checkpointer import moving
from twinckpt.checkpointer.gpu_reading import GpuReader
from twinckpt.checkpointer.layout import Region, header_bytes, parse, view

_CHUNKS_WORTH_A_THREAD = 8


class SavedTensors:
    """Tensors by name, to be copied into live ones."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._noted: list[tuple[torch.Tensor, str]] = []

    def kind(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return a tensor's type and shape."""
        tensor = self._tensors[name]
        return tensor.dtype, tuple(tensor.shape)

    def device_type(self, name: str) -> str:
        """Return the type of device that a tensor was on when it was saved."""
        return self._tensors[name].device.type

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, whose memory is not the caller's."""
        return self._tensors[name]

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        """Note a live tensor of its type and shape, for `finish` to copy a tensor into."""
        self._noted.append((target, name))

    def finish(self) -> None:
        """Fill the live tensors; a GPU may still copy afterwards. Under `torch.no_grad`."""
        for target, name in self._noted:
            moving.copy(target, self._tensors[name])
        self._noted = []

    def settle(self) -> None:
        """Return once a GPU, too, has done its part; raises DamagedCopyError if it found damage."""


class SlotReader(SavedTensors):
    """The tensors of a slot, each chunk verified at its first use.

    Args:
        buffer: the slot's bytes.
        chunk_bytes: size of a chunk.
        verify: takes a chunk's index; raises DamagedCopyError if it is damaged.
        arrive: takes a chunk's index, in order of chunks; returns once its bytes are there. None
            if all are there already.
        num_threads: how many threads copy and verify.
        on_gpu: takes the bytes to a GPU, where it verifies them; None if the host verifies all.

    Raises DamagedCopyError as `verify` does, or if the bytes are no checkpoint.
    """

    def __init__(
        self,
        buffer: memoryview,
        chunk_bytes: int,
        verify: Callable[[int], None] = lambda index: None,
        arrive: Callable[[int], None] | None = None,
        num_threads: int = 1,
        on_gpu: GpuReader | None = None,
    ) -> None:
        super().__init__({})
        self._buffer = buffer
        self._chunk_bytes = chunk_bytes
        self._verify = verify
        self._arrive = arrive
        self._num_threads = num_threads
        self._on_gpu = on_gpu
        self._devices: set[torch.device] = set()
        self._unverified = set(range(-(-len(buffer) // chunk_bytes)))
        self._targets: list[tuple[Region, torch.Tensor]] = []
        self._targets_on_gpu: list[tuple[Region, torch.Tensor]] = []
        self._check(0, 1)
        self._check(0, header_bytes(buffer))
        self.metadata, self._regions = parse(buffer)
        self._base = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()

    def kind(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return a tensor's type and shape."""
        region = self._regions[name]
        return region.dtype, region.shape

    def device_type(self, name: str) -> str:
        """Return the type of device that a tensor was on when it was saved."""
        device_type: str = self.metadata["tensors"][name][2]
        return device_type

    def tensor(self, name: str) -> torch.Tensor:
        """Return a verified tensor: a view of the slot."""
        region = self._regions[name]
        self._check(region.start, region.end)
        return view(self._buffer, region)

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        """Note a target for `finish`, which goes through the slot once."""
        region = self._regions[name]
        if moving.lies_in_order(target):
            self._targets.append((region, target))
        elif target.is_cuda and self._arrive is None:
            self._targets_on_gpu.append((region, target))
        else:
            super().copy_into(target, name)

    def finish(self) -> None:
        """Copy and verify all chunks, those that nobody wants included; GPUs copy meanwhile."""
        # GPUs first, since threads that hash leave little of the interpreter to others.
        self._start_on_gpus()
        for target, name in self._noted:
            moving.copy_by_torch(target, self.tensor(name), non_blocking=True)
            self._devices.add(target.device)
        self._take_all(self._pieces())
        for _, target in self._targets:
            moving.note_write(target)
        self._noted, self._targets, self._targets_on_gpu = [], [], []

    def settle(self) -> None:
        """Wait for GPUs; raise DamagedCopyError if one of them found damage."""
        self.close()
        if self._on_gpu is not None:
            self._on_gpu.verify()

    def close(self) -> None:
        """Return once no GPU copies from the slot any more, by what `copy_into` began."""
        for device in self._devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def _take_all(self, pieces: list[list[tuple[int, int, int]]]) -> None:
        on_gpu = 0 if self._on_gpu is None else self._on_gpu.num_chunks
        here = [index for index, some in enumerate(pieces) if some or index >= on_gpu]
        chunks = iter(here)
        # All threads take from one iterator, so that one without a core of its own does less.
        # Each hashes the chunk it has just copied, which is cheap and needs no hand-over.
        num_threads = max(1, min(self._num_threads, len(here) // _CHUNKS_WORTH_A_THREAD))
        with ThreadPoolExecutor(num_threads) as pool:
            shares = [pool.submit(self._take, chunks, pieces) for _ in range(num_threads)]
            for share in shares:
                share.result()

    def _start_on_gpus(self) -> None:
        by_device: dict[torch.device, list[tuple[Region, torch.Tensor]]] = {}
        in_order: list[tuple[Region, torch.Tensor]] = []
        for region, target in self._targets_on_gpu:
            if self._on_gpu is not None and self._on_gpu.takes(target):
                in_order.append((region, target))
            else:
                by_device.setdefault(target.device, []).append((region, target))
        if self._on_gpu is not None:
            self._on_gpu.copy_into(in_order)
        for device, some in by_device.items():
            self._devices.add(device)
            sources = [view(self._buffer, region) for region, _ in some]
            moving.start_copies([target for _, target in some], sources)

    def _pieces(self) -> list[list[tuple[int, int, int]]]:
        """Cut what is to be copied at the borders of chunks: destination, source, size in bytes."""
        pieces: list[list[tuple[int, int, int]]] = [
            [] for _ in range(0, len(self._buffer), self._chunk_bytes)
        ]
        for region, target in self._targets:
            to = target.data_ptr() - region.start
            for index, start, end in region.cut(self._chunk_bytes):
                pieces[index].append((to + start, self._base + start, end - start))
        return pieces

    def _take(self, chunks: Iterator[int], pieces: list[list[tuple[int, int, int]]]) -> None:
        for index in chunks:
            is_new = index in self._unverified
            if is_new and self._arrive is not None:
                self._arrive(index)
            for to, source, size_bytes in pieces[index]:
                moving.move(to, source, size_bytes)
            if is_new:
                self._verify(index)
                self._unverified.discard(index)

    def _check(self, start: int, end: int) -> None:
        for index in range(start // self._chunk_bytes, -(-end // self._chunk_bytes)):
            if index in self._unverified:
                if self._arrive is not None:
                    self._arrive(index)
                self._verify(index)
                self._unverified.discard(index)
