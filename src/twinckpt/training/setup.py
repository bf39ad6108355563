"""Building what is trained: process group, sharded model, optimizer, data; deterministic."""

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
        """Write the first weights, where `build` has left them out and nothing was restored."""
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
    """Set up this process and its group (gloo, or NCCL where there is a GPU)."""
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads what it has not written, and filling all new memory takes time.
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
    """Return this rank's GPU and the backend to talk with.

    Emulated machines share one host's GPUs, so there the job's rank decides. NCCL refuses two
    ranks on one GPU; gloo carries CUDA tensors too.
    """
    prefix = "" if "TWINCKPT_ONE_HOST" in environment else "LOCAL_"
    rank, ranks_on_host = (int(environment[prefix + name]) for name in ("RANK", "WORLD_SIZE"))
    return rank % num_gpus, "gloo" if ranks_on_host > num_gpus else "nccl"


class _WithoutWeights(TorchFunctionMode):
    """Modules made within have memory for their weights, but nothing in it."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def build(config: TrainingConfig, device: torch.device, *, empty: bool = False) -> Training:
    """Build model, optimizer and data; the same on every run with the same seed.

    With `empty` the weights are to come from a checkpoint, or else from `initialise`: a rank
    that restarts does not compute what it overwrites.
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
        # By default DDP regroups gradients after the first step of a process, and so sums them
        # in another order than a process that goes on: equal steps would differ in bits.
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
    """Let every rank draw numbers of its own from here on."""
    seed = config.seed * 1_000_003 + rank
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _parameters_by_block(module: GPT) -> Iterator[list[torch.nn.Parameter]]:
    """Return the parameters of each block, and then all others.

    How a fused step is sharded, DTensor works out anew for every list of tensors: a third of a
    second for all of them, once a process. Blocks are alike, so one answer does for all.
    """
    seen: set[torch.nn.Parameter] = set()
    for block in module.blocks:
        parameters = list(block.parameters())
        seen.update(parameters)
        yield parameters
    yield [parameter for parameter in module.parameters() if parameter not in seen]
