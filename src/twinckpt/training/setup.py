"""Building a deterministic training: process group, sharded model, optimizer, data."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from twinckpt.checkpointer.rng import RngState
from twinckpt.training.config import TrainingConfig
from twinckpt.training.corpus import Corpus, DataPosition
from twinckpt.training.model import GPT


@dataclass
class Training:
    """Everything a training loop works with, on one rank."""

    config: TrainingConfig
    device: torch.device
    module: GPT
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    position: DataPosition

    def step(self) -> torch.Tensor:
        """Train on one batch; return its mean loss in nats on this rank."""
        inputs, targets = (part.to(self.device) for part in self.position.next_batch())
        loss: torch.Tensor = self.model(inputs, targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def initialise(self) -> None:
        """Write the initial weights, if `build` has left them out and nothing was restored."""
        torch.manual_seed(self.config.seed)
        first = GPT(self.config.model)
        for live, value in zip(self.module.parameters(), first.parameters(), strict=True):
            if isinstance(live, DTensor):
                mesh, placements = live.device_mesh, live.placements
                part = distribute_tensor(
                    value.to(live.device), mesh, placements, src_data_rank=None
                )
                live.to_local().copy_(part.to_local())
            else:
                live.copy_(value)
        _seed(self.config, dist.get_rank())

    def state(self) -> dict[str, Any]:
        """Return all that a checkpoint must carry to continue bit for bit."""
        return {
            "model": self.module,
            "optimizer": self.optimizer,
            "rng": RngState(),
            "position": self.position,
        }


def join_process_group(config: TrainingConfig) -> torch.device:
    """Set up this process and its process group; return its device.

    The group uses gloo on CPUs; on GPUs see `gpu_and_backend`.
    """
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads uninitialized memory, and filling all new memory takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        index, backend = gpu_and_backend(os.environ, torch.cuda.device_count())
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        dist.init_process_group(backend)
        return device
    dist.init_process_group("gloo")
    return torch.device("cpu")


def gpu_and_backend(environment: Mapping[str, str], num_gpus: int) -> tuple[int, str]:
    """Return the index of this rank's GPU, and the backend: NCCL, or gloo if ranks share a GPU.

    Emulated machines share one host's GPUs, so the job's rank decides there instead of the local
    one. NCCL refuses two ranks on one GPU; gloo carries CUDA tensors too.
    """
    prefix = "" if "TWINCKPT_ONE_HOST" in environment else "LOCAL_"
    rank, ranks_on_host = (int(environment[prefix + name]) for name in ("RANK", "WORLD_SIZE"))
    return rank % num_gpus, "gloo" if ranks_on_host > num_gpus else "nccl"


class _WithoutWeights(TorchFunctionMode):
    """Leaves the weights of modules made in this context uninitialized."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def build(config: TrainingConfig, device: torch.device, *, empty: bool = False) -> Training:
    """Build model, optimizer and data; the same on every run with the same seed.

    With `empty` the weights must come from a checkpoint, or else from `initialise`: a rank that
    restarts does not compute weights that it would overwrite.
    """
    rank = dist.get_rank()
    torch.manual_seed(config.seed)
    with _WithoutWeights() if empty else nullcontext():
        module = GPT(config.model).to(device)
    if config.sharding == "fsdp":
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in module.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        model: torch.nn.Module = module
    else:
        # By default DDP regroups gradients after the first step of a process. A restarted process
        # would then sum them in another order than one that went on: equal steps would differ.
        bucket_mib = config.ddp_bucket_bytes / 2**20
        model = DistributedDataParallel(
            module, find_unused_parameters=True, bucket_cap_mb=bucket_mib
        )
    _seed(config, rank)
    groups = [{"params": parameters} for parameters in _parameters_by_block(module)]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    corpus = Corpus.load(config.data)
    position = DataPosition(corpus, config.batch, config.model.context, config.seed, rank)
    return Training(config, device, module, model, optimizer, position)


def _seed(config: TrainingConfig, rank: int) -> None:
    """Seed all generators so that every rank draws its own random numbers from here on."""
    seed = config.seed * 1_000_003 + rank
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _parameters_by_block(module: GPT) -> Iterator[list[torch.nn.Parameter]]:
    """Yield the parameters of each block, and then all others.

    DTensor works out anew for every list of tensors how a fused step is sharded. For all parameters
    at once that takes a third of a second per process; blocks are alike, so they share one answer.
    """
    seen: set[torch.nn.Parameter] = set()
    for block in module.blocks:
        parameters = list(block.parameters())
        seen.update(parameters)
        yield parameters
    yield [parameter for parameter in module.parameters() if parameter not in seen]
