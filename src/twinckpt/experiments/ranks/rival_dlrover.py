"""DLRover's flash checkpoint in shared memory, behind the verbs of `rivals`.

It is measured without replicas, its default. The program below tries separately, on two ranks,
whether its replicas make good the loss of a machine: that may fail or wait for ever, and
`dlrover_replicas` in the provenance says what came of it.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from dlrover.trainer.torch.flash_checkpoint import engine
from dlrover.trainer.torch.flash_checkpoint.checkpointer import StorageType
from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer

from twinckpt.agents.emulated_machines import die_with_parent
from twinckpt.experiments.ranks.rank import Rank
from twinckpt.experiments.ranks.rivals import Rival


class DLRover(Rival):
    """A blocking copy to the machine's shared memory, which survives the loss of a rank only."""

    def __init__(self, rank: Rank, memory: Path, directory: Path) -> None:
        tensors = {str(index): tensor for index, tensor in enumerate(rank.tensors)}
        self._flash = FlashCheckpoint(tensors, memory, directory)

    def save(self, step: int) -> None:
        self._flash.save()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._flash.close()


class FlashCheckpoint:
    """`DdpCheckpointer` set up for a model sharded over all ranks, with one rank per machine.

    The names of its sockets and segments begin with the name of the directory in `memory`.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], memory: Path, directory: Path, replicas: int = 0
    ) -> None:
        number, size = dist.get_rank(), dist.get_world_size()
        os.environ["TORCHELASTIC_RUN_ID"] = f"{memory.name}-{number}"
        os.environ |= {"NODE_RANK": str(number), "NODE_NUM": str(size)}
        self._tensors = tensors
        with mock.patch.object(engine, "start_async_save", _with_its_parent()):
            self._checkpointer = DdpCheckpointer(
                str(directory), local_shard_num=1, global_shard_num=size, replica_count=replicas
            )
        self._engine: Any = self._checkpointer._engine
        self._step = 0

    def save(self) -> None:
        """Save to memory; RuntimeError if DLRover has silently skipped the checkpoint."""
        self._step += 1
        state = dict(self._tensors)
        self._checkpointer.save_checkpoint(self._step, state, storage_type=StorageType.MEMORY)
        if self._engine._cached_step != self._step:
            raise RuntimeError("dlrover skipped the checkpoint")

    def lose(self) -> None:
        """Forget the shared memory, as if this machine had been replaced."""
        handler = self._engine._shm_handler
        handler.shared_memory.unlink()
        handler.shared_memory = None
        handler.metadata.set({})

    def load(self) -> dict[str, torch.Tensor]:
        """Return the state loaded from this rank's memory or a replica; collective."""
        return dict(self._checkpointer.load_checkpoint())

    def close(self) -> None:
        """End the engine and the process that would write to storage."""
        self._engine.close()
        if self._engine.saver_proc is not None:
            self._engine.saver_proc.kill()


def _with_its_parent() -> Callable[[], None]:
    """Return a `start_async_save` whose saver process ends with the rank, which will be killed."""
    save = engine.start_async_save

    def start_async_save() -> None:
        die_with_parent()
        save()

    return start_async_save


def main() -> None:
    """`rival_dlrover MEMORY DIRECTORY`: rank 1 of two loses its memory and must get it back."""
    memory, directory = map(Path, sys.argv[1:3])
    dist.init_process_group("gloo")
    number = dist.get_rank()
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"GROUP_RANK": str(number), "GROUP_WORLD_SIZE": str(dist.get_world_size())}
    saved = {"weight": torch.full((1 << 18,), float(number + 1))}
    flash = FlashCheckpoint(saved, memory, directory, replicas=2)
    flash.save()
    if number == 1:
        flash.lose()
    loaded = flash.load()
    if set(loaded) != set(saved) or not torch.equal(loaded["weight"], saved["weight"]):
        given = "another state than it had saved" if loaded else "nothing"
        raise RuntimeError(f"rank {number} was given back {given}")
    flash.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
