"""The alternatives to this library, each behind the same five verbs, used as recommended.

Rivals are given the plain list of tensors, which spares them `state_dict()`; twinckpt is given
the module and the optimizer, as users do. Their packages are imported only when they are used.
"""

import os
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from twinckpt.checkpointer import Checkpointer, SaveHandle
from twinckpt.experiments.ranks.loopback import LoopbackRing
from twinckpt.experiments.ranks.measuring import lose_and_restore, require_committed
from twinckpt.experiments.ranks.rank import Rank, memcpy

_TIMEOUT = timedelta(seconds=120)


class Rival:
    """One way to keep checkpoints. Every rank calls the same verbs in the same order."""

    saves = True  # False: it only restores, from a live replica

    def save(self, step: int) -> None:
        """Begin a checkpoint; an earlier one may have to be finished first."""

    def fence(self) -> None:
        """Wait until the state may change."""

    def finish(self) -> None:
        """Wait until the newest checkpoint survives the loss of this rank's machine."""
        raise NotImplementedError

    def restore(self, loser: int) -> None:
        """Restore the live tensors of the rank `loser`, which has lost its state."""
        raise NotImplementedError

    def close(self) -> None:
        """Free connections, processes and other resources."""


class Twinckpt(Rival):
    """This library."""

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._handle: SaveHandle | None = None

    def save(self, step: int) -> None:
        self.finish()  # there is no slot for another one
        self._handle = self._checkpointer.save(step)
        if self._handle.status == "skipped":
            raise RuntimeError(f"step {step} was skipped: no slot was free")

    def fence(self) -> None:
        self._checkpointer.fence()

    def finish(self) -> None:
        if self._handle is not None:
            require_committed(self._handle)

    def restore(self, loser: int) -> None:
        if dist.get_rank() == loser:
            lose_and_restore(self._checkpointer)


class Plain(Rival):
    """A memcpy, then a TCP transfer between the ranks, with nothing checked: a yardstick.

    Its copies are not safe to use as checkpoints.
    """

    def __init__(self, rank: Rank) -> None:
        self._tensors = rank.tensors
        self._ring = LoopbackRing(rank.num_bytes)
        sizes = [tensor.nbytes for tensor in self._tensors]
        staged = torch.frombuffer(self._ring.outgoing, dtype=torch.uint8).split(sizes)
        self._staged = [copy.view(t.dtype) for copy, t in zip(staged, self._tensors, strict=True)]
        self._transfer: threading.Thread | None = None

    def save(self, step: int) -> None:
        self.finish()
        for copy, tensor in zip(self._staged, self._tensors, strict=True):
            memcpy(copy, tensor)
        self._transfer = threading.Thread(target=self._ring.transfer)
        self._transfer.start()

    def finish(self) -> None:
        if self._transfer is not None:
            self._transfer.join()

    def restore(self, loser: int) -> None:
        live = (memoryview(tensor.numpy().data).cast("B") for tensor in self._tensors)
        self._ring.give_back(loser, live)

    def close(self) -> None:
        self._ring.close()


class TorchSave(Rival):
    """torch.save to a file of this rank, and fsync."""

    def __init__(self, rank: Rank, directory: Path) -> None:
        self._tensors = rank.tensors
        self._path = directory / f"rank-{dist.get_rank()}.pt"
        directory.mkdir(parents=True, exist_ok=True)

    def save(self, step: int) -> None:
        draft = self._path.with_suffix(".draft")
        with draft.open("wb") as file:
            torch.save({"step": step, "tensors": self._tensors}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._path)

    def finish(self) -> None:
        pass

    def restore(self, loser: int) -> None:
        if dist.get_rank() == loser:
            saved = torch.load(self._path, weights_only=True)["tensors"]
            for live, tensor in zip(self._tensors, saved, strict=True):
                live.copy_(tensor)


class Dcp(Rival):
    """torch.distributed.checkpoint, blocking or asynchronous, to files that it fsyncs."""

    def __init__(
        self, rank: Rank, directory: Path, executor: AsyncCheckpointerType | None = None
    ) -> None:
        number = dist.get_rank()
        self._state = {f"rank{number}.{i}": tensor for i, tensor in enumerate(rank.tensors)}
        self._directory = directory
        self._executor = executor
        self._group = dist.new_group(backend="gloo")
        self._stager = None
        if executor is not None:
            is_shared = executor is AsyncCheckpointerType.PROCESS
            # What needs an accelerator is off; the stager keeps its buffers between saves.
            self._stager = DefaultStager(StagingOptions(False, is_shared, False, False))
        self._future: Any = None

    def save(self, step: int) -> None:
        self.finish()
        options: dict[str, Any] = {
            "storage_writer": dcp.FileSystemWriter(self._directory, overwrite=True),
            "process_group": self._group,
        }
        if self._executor is None:
            dcp.save(self._state, **options)
        else:
            options |= {"async_checkpointer_type": self._executor, "async_stager": self._stager}
            self._future = dcp.async_save(self._state, **options)

    def finish(self) -> None:
        future, self._future = self._future, None
        if future is not None:
            getattr(future, "upload_completion", future).result()

    def restore(self, loser: int) -> None:
        if dist.get_rank() == loser:
            dcp.load(self._state, checkpoint_id=self._directory, no_dist=True)

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()


class LmResiliency(Rival):
    """The library of GEMINI's author: copies in the trainer's memory, paired over Gloo."""

    def __init__(self, rank: Rank, directory: Path) -> None:
        from lm_resiliency.checkpointing import (
            InMemoryCheckpointManager,
            InMemoryCkptConfig,
            TorchDistTransfer,
        )

        self._tensors = rank.tensors
        self._manager = InMemoryCheckpointManager(
            InMemoryCkptConfig(
                interval=1, replication_jump=1, disk_flush_interval=0, pin_memory=False,
                disk_folder=str(directory), run_id="peers",
            )
        )  # fmt: skip
        self._transfer = TorchDistTransfer(dist.get_rank(), timeout_s=_TIMEOUT.total_seconds())
        self._num_restored = 0

    def save(self, step: int) -> None:
        self._manager.save_tensors(self._tensors, step)

    def fence(self) -> None:
        self._manager.maybe_wait()

    def finish(self) -> None:
        if not self._manager.finalize_replication():
            raise RuntimeError("lm-resiliency did not complete the replication")

    def restore(self, loser: int) -> None:
        self._num_restored += 1
        key, number, peer = f"restore-{self._num_restored}", dist.get_rank(), loser ^ 1
        if number == peer:
            held = self._manager._buffer_pool.peer_current.tensors
            self._transfer.serve(held, key, loser, socket.gethostname())
        elif number == loser:
            self._transfer.fetch(self._tensors, key, peer, socket.gethostname())


class Torchft(Rival):
    """torchft's in-place transfer from a live replica; it keeps no checkpoint."""

    saves = False

    def __init__(self, rank: Rank) -> None:
        from torchft.checkpointing.pg_transport import PGTransport

        self._group = dist.new_group(backend="gloo")
        self._live = {str(i): tensor for i, tensor in enumerate(rank.tensors)}
        # The state that a data-parallel peer of the previous rank would hold; shapes are alike.
        self._replica = {name: torch.empty_like(tensor) for name, tensor in self._live.items()}
        self._copies = rank.copies
        self._transport = PGTransport(
            self._group, _TIMEOUT, torch.device("cpu"), state_dict=lambda: self._live
        )

    def finish(self) -> None:
        """Give the next rank a live replica of this rank's state."""
        number, size = dist.get_rank(), dist.get_world_size()
        for tensor, replica in zip(self._copies, self._replica.values(), strict=True):
            sending = dist.isend(tensor, (number + 1) % size)
            dist.recv(replica, (number - 1) % size)
            assert sending is not None
            sending.wait()

    def restore(self, loser: int) -> None:
        number, source = dist.get_rank(), (loser + 1) % dist.get_world_size()
        if number == source:
            self._transport.send_checkpoint([loser], 1, self._replica, _TIMEOUT)
        elif number == loser:
            self._transport.recv_checkpoint(source, "<n/a>", 1, _TIMEOUT)
