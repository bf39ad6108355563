"""Building what is trained: process group, sharded model, optimizer, data; deterministic."""

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

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
    corpus: Corpus

    def step(self) -> torch.Tensor:
        """Train on one batch; return its mean loss in nats on this rank."""
        inputs, targets = (part.to(self.device) for part in self.position.next_batch())
        loss: torch.Tensor = self.model(inputs, targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

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


def build(config: TrainingConfig, device: torch.device) -> Training:
    """Build model, optimizer and data; the same on every run with the same seed."""
    rank = dist.get_rank()
    torch.manual_seed(config.seed)
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
    seed = config.seed * 1_000_003 + rank
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.learning_rate, fused=True)
    corpus = Corpus.load(config.data)
    position = DataPosition(corpus, config.batch, config.model.context, config.seed, rank)
    return Training(config, device, module, model, optimizer, position, corpus)
