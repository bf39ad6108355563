"""Copies between GPUs and slots: slots registered as pinned memory, and a stream of their own.

The training loop's host thread never waits for such a copy. The copy starts once the loop's
stream has computed what was queued before `save`; the fence makes that stream, not the host,
wait for its end. Only the thread that seals the slot waits on the host.
"""

import contextlib
import logging
from collections.abc import Iterable
from typing import NamedTuple

import torch

from twinckpt.checkpointer import moving

logger = logging.getLogger(__name__)


def is_capturing() -> bool:
    """Return whether work goes into a CUDA graph now: it computes nothing, nor may it wait."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


class PinnedSlots:
    """Slots that CUDA knows as pinned memory, which it copies to and from by itself."""

    def __init__(self) -> None:
        self._addresses: dict[int, bool] = {}

    def pin(self, buffer: memoryview) -> None:
        """Register a slot, once; no-op in a process that does not use CUDA.

        What CUDA refuses to register (a limit on locked memory) is still copied, but slower.
        """
        if not torch.cuda.is_initialized():
            return
        address = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
        if address not in self._addresses:
            error = int(torch.cuda.cudart().cudaHostRegister(address, len(buffer), 0))
            self._addresses[address] = error == 0
            if error:
                with contextlib.suppress(RuntimeError):
                    torch.zeros(1, device="cuda")  # takes the error, told again at the next kernel
                logger.warning(
                    "CUDA did not register a slot of %d MiB as pinned memory (error %d): copies "
                    "are slower; raise the limit on locked memory (ulimit -l)",
                    len(buffer) >> 20,
                    error,
                )

    def close(self) -> None:
        """Take all slots out of CUDA's books; no copy may be under way."""
        for address, is_registered in self._addresses.items():
            if is_registered:
                torch.cuda.cudart().cudaHostUnregister(address)
        self._addresses.clear()


class Copies(NamedTuple):
    """Copies under way, known by the end of those on each GPU."""

    ends: dict[torch.device, torch.cuda.Event]

    def fence(self) -> None:
        """Let the training loop's streams wait for the copies; the host goes on."""
        for device, end in self.ends.items():
            torch.cuda.current_stream(device).wait_event(end)

    def wait(self) -> None:
        """Return once all copies have ended; other threads run meanwhile."""
        for end in self.ends.values():
            end.synchronize()


class DeviceCopies:
    """Copies tensors into slots, on a stream of each GPU beside the training loop's."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def start(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Copies:
        """Begin to copy each (target in a slot, source on a GPU), as the source is now.

        The caller keeps the sources until the copies have ended.
        """
        by_device: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for pair in pairs:
            by_device.setdefault(pair[1].device, []).append(pair)
        return Copies({device: self._start(device, some) for device, some in by_device.items()})

    def _start(
        self, device: torch.device, pairs: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.cuda.Event:
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # Else the host would conjugate or negate the copy in RAM, before it has arrived there.
            sources = [
                source.resolve_conj().resolve_neg()
                if source.is_conj() or source.is_neg()
                else source
                for _, source in pairs
            ]
            moving.start_copies([target for target, _ in pairs], sources)
        # Whoever waits sleeps: a thread that spins would take a core from the training.
        return stream.record_event(torch.cuda.Event(blocking=True))
