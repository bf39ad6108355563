"""What the measuring rank programs share: a built training, a log, barriers around clocks."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from twinckpt.results.jsonl import JsonLines
from twinckpt.training.config import TrainingConfig
from twinckpt.training.setup import Training, build, join_process_group


def start() -> tuple[Training, JsonLines]:
    """Build the training that the configuration in the first argument describes."""
    torch.set_num_threads(1)
    config = TrainingConfig.read(Path(sys.argv[1]))
    device = join_process_group(config)
    log = JsonLines(
        Path(os.environ["TWINCKPT_RUN_DIR"]) / "ranks" / f"rank-{dist.get_rank()}.jsonl"
    )
    return build(config, device), log


def meet(training: Training) -> None:
    """Wait for all ranks, and for the device, so that a clock starts on idle machines."""
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    dist.barrier()
