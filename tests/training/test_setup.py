"""Which GPU a rank takes, how ranks talk wherever the machines are, and what they start with."""

import pytest
import torch
import torch.distributed as dist

from twinckpt.training.config import DataConfig, TrainingConfig
from twinckpt.training.fingerprint import fingerprint
from twinckpt.training.setup import build, gpu_and_backend

ONE_HOST = {"TWINCKPT_ONE_HOST": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.mark.parametrize(("rank", "num_gpus", "gpu"), [(3, 4, 3), (3, 1, 0), (3, 2, 1)])
def test_emulated_machines_share_the_host(rank, num_gpus, gpu):
    """All of them have local rank 0, and yet GPUs of their own as far as there are some."""
    environment = {**ONE_HOST, "RANK": str(rank), "WORLD_SIZE": "4"}
    backend = "nccl" if num_gpus >= 4 else "gloo"
    assert gpu_and_backend(environment, num_gpus) == (gpu, backend)


def test_real_machines_have_their_own_gpus():
    """The job's rank says nothing about a machine's GPUs; the local one does."""
    environment = {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}
    assert gpu_and_backend(environment, 8) == (5, "nccl")


def test_more_local_ranks_than_gpus_share():
    """NCCL refuses that, so gloo it is."""
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
    assert gpu_and_backend(environment, 2) == (1, "gloo")


@pytest.fixture
def alone():
    """A process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("sharding", ["fsdp", "ddp"])
def test_weights_left_out_and_written_later_are_the_same(alone, sharding):
    """And so is all that follows: generators, and the first step."""
    config = TrainingConfig(batch=2, sharding=sharding, data=DataConfig(max_bytes=1 << 14))
    ends = []
    for empty in (False, True):
        training = build(config, torch.device("cpu"), empty=empty)
        if empty:
            training.initialise()
        ends.append((training.step().item(), fingerprint(training.state())))
    assert ends[0] == ends[1]
