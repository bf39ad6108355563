"""NVIDIA Resiliency Extension's local checkpoints with replication, behind the verbs of `rivals`.

It is made for CUDA. Without CUDA, its requests for a device are answered with the CPU, and its
copy to the host becomes a copy in memory; nothing else of it is replaced.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from nvidia_resiliency_ext.checkpointing.async_ckpt.core import AsyncCallsQueue
from nvidia_resiliency_ext.checkpointing.local.basic_state_dict import BasicTensorAwareStateDict
from nvidia_resiliency_ext.checkpointing.local.ckpt_managers.local_manager import (
    LocalCheckpointManager,
)
from nvidia_resiliency_ext.checkpointing.local.replication.group_utils import (
    GroupWrapper,
    parse_group_sequence,
)
from nvidia_resiliency_ext.checkpointing.local.replication.strategies import (
    CliqueReplicationStrategy,
)

from twinckpt.experiments.ranks.rank import Rank
from twinckpt.experiments.ranks.rivals import Rival

SESSION = "peers"


class NvResiliency(Rival):
    """Files on a RAM disk, written by a forked process, and replicated in cliques of two ranks.

    Replication blocks the training: the library does it so. Its persistent writer cannot be used:
    with replication it would have to pickle a process group.
    """

    def __init__(self, rank: Rank, ram_disk: Path) -> None:
        self._tensors = rank.tensors
        # Checkpoints that an earlier generation left would count as newer than those saved now.
        shutil.rmtree(ram_disk / SESSION / str(dist.get_rank()), ignore_errors=True)
        cliques = parse_group_sequence(1, 2, dist.get_world_size())
        groups = [dist.new_group(ranks) for ranks in cliques]
        mine = next(index for index, ranks in enumerate(cliques) if dist.get_rank() in ranks)
        self._clique = cliques[mine]
        self._strategy = CliqueReplicationStrategy(CpuGroup(groups[mine]), target_device="cpu")
        self._manager = LocalCheckpointManager(ram_disk, SESSION, repl_strategy=self._strategy)
        self._queue = AsyncCallsQueue(persistent=False)
        self._step = 0

    def save(self, step: int) -> None:
        self.finish()
        self._step += 1
        with _without_cuda():
            state = CpuStateDict({"tensors": list(self._tensors)})
            request = self._manager.save(state, self._step, is_async=True)
            self._queue.schedule_async_request(request)

    def finish(self) -> None:
        with _without_cuda():
            self._queue.maybe_finalize_async_calls(blocking=True)

    def restore(self, loser: int) -> None:
        """Restore the loser with its clique alone: other ranks would just read their own files."""
        number = dist.get_rank()
        if number not in self._clique or loser not in self._clique:
            return
        lost = (self._step, loser, SESSION)
        held = {one: [] if one == loser else [lost] for one in range(dist.get_world_size())}
        plan = self._strategy.retrieve_plan(held, [lost] if number == loser else [])
        mine = {wanted: self._manager._load_fn(wanted) for wanted in plan.required_ids()}
        received = self._strategy.retrieve_execute(plan, mine)
        if number == loser:
            for live, tensor in zip(self._tensors, received[lost].tensors, strict=True):
                live.copy_(tensor)

    def close(self) -> None:
        with _without_cuda():
            self._queue.close()


class CpuStateDict(BasicTensorAwareStateDict):
    """The library's own state, for tensors that are not on CUDA."""

    def __init__(self, state_dict: dict[str, Any]) -> None:
        self.state_dict = state_dict
        self._is_hollow = False

    def copy_tensors_to_cpu(self, non_blocking: bool = False) -> None:
        self.state_dict["tensors"] = [tensor.clone() for tensor in self.tensors]

    def restore_tensor_device(self, non_blocking: bool = True) -> None:
        pass


class CpuGroup(GroupWrapper):
    """The library's sends and receives, without the detour through a CUDA tensor."""

    def isend_state_dict(self, state_dict: Any, dst: int) -> dict[str, float]:
        tensors = state_dict.pop_tensors()
        self.send_object(state_dict, dst)
        for tensor in tensors:
            dist.send(tensor, dst, group=self.group)
        state_dict.insert_tensors(tensors)
        return {"data_sent": sum(tensor.nbytes for tensor in tensors)}

    def irecv_state_dict(self, src: int) -> tuple[Any, dict[str, float]]:
        state_dict = self.recv_object(src)
        state_dict.init_tensors()
        for tensor in state_dict.tensors:
            dist.recv(tensor, src, group=self.group)
        return state_dict, {"data_recv": sum(tensor.nbytes for tensor in state_dict.tensors)}


@contextmanager
def _without_cuda() -> Iterator[None]:
    if torch.cuda.is_available():
        yield
        return
    with (
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(torch.cuda, "current_device", return_value="cpu"),
    ):
        yield
