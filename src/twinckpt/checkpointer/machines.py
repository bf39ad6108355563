"""Which ranks share a machine, where no launcher says so: the ranks tell each other."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from twinckpt.errors import AgentUnavailableError

_FAILED = "\0"


@dataclass(slots=True)
class Machines:
    """The machines of the job's ranks, numbered in the order of their first ranks."""

    rank: int
    world_size: int
    index: int
    count: int
    first_here: int

    @classmethod
    def gather(cls) -> "Machines":
        """Find out who is where; collective over all ranks of the default process group."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls(rank=0, world_size=1, index=0, count=1, first_here=0)
        rank = dist.get_rank()
        places = _all_gather(_identity())
        names = list(dict.fromkeys(places))
        here = places[rank]
        return cls(rank, len(places), names.index(here), len(names), places.index(here))

    @property
    def is_first_here(self) -> bool:
        """Whether this is the first rank of its machine."""
        return self.rank == self.first_here

    def share(self, action: Callable[[], str]) -> list[str]:
        """Run `action` on each rank and return the results of all; collective.

        If it fails anywhere it fails everywhere, so that no rank waits for another one.
        """
        error: Exception | None = None
        try:
            text = action()
        except Exception as failure:
            error, text = failure, f"{_FAILED}{failure}"
        texts = _all_gather(text) if self.world_size > 1 else [text]
        if error is not None:
            raise error
        for rank, other in enumerate(texts):
            if other.startswith(_FAILED):
                raise AgentUnavailableError(f"rank {rank}: {other.removeprefix(_FAILED)}")
        return texts


def address_towards(host: str) -> str:
    """Return the address of this machine by which `host` reaches it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _identity() -> str:
    """What ranks of one machine have in common: torchrun's number of it, or its boot."""
    if "GROUP_RANK" in os.environ:
        return os.environ["GROUP_RANK"]
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return socket.gethostname() + file.read()
    except OSError:
        return socket.gethostname()


def _all_gather(text: str) -> list[str]:
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    own = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8).to(device)
    size = dist.get_world_size()
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([own.numel()], device=device))
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: own.numel()] = own
    texts = [torch.zeros_like(padded) for _ in range(size)]
    dist.all_gather(texts, padded)
    return [
        bytes(found[: int(length) - 1].cpu().numpy()).decode()
        for found, length in zip(texts, lengths, strict=True)
    ]
