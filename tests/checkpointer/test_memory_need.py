"""What checkpoints take of the memory is told before training starts, and if it does not fit."""

import re
import subprocess
import sys

import pytest
import torch

from helpers import open_descriptors
from twinckpt.checkpointer.memory_need import bytes_to_come
from twinckpt.errors import OutOfMemoryError
from twinckpt.memory import slot
from twinckpt.memory.in_memory import InMemoryCheckpoint

MIB = 1 << 20


# The second generation of the same agent, as after a restart.
TWICE = """
import torch
from twinckpt import Checkpointer

model = torch.nn.Linear(1000, 1000)
optimizer = torch.optim.Adam(model.parameters())
with Checkpointer({"model": model, "optimizer": optimizer}) as checkpointer:
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    checkpointer.save(1, block=True)
    print(checkpointer.shard_bytes)
with Checkpointer({"model": model, "optimizer": optimizer}) as checkpointer:
    checkpointer.save(2, block=True)
"""


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p),
        lambda p: torch.optim.SGD(p, momentum=0.9),
        lambda p: torch.optim.AdamW(p, amsgrad=True),
    ],
    ids=["SGD", "momentum", "AdamW"],
)
def test_the_state_that_an_optimizer_will_make_is_known_before(make):
    """To the byte; nothing is stepped, and frozen parameters have none."""
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 10))
    model[0].weight.requires_grad_(False)
    optimizer = make(model.parameters())
    before = [parameter.clone() for parameter in model.parameters()]
    expected = bytes_to_come([optimizer])
    assert not optimizer.state
    assert all(map(torch.equal, before, model.parameters()))
    model(torch.randn(4, 30)).sum().backward()
    optimizer.step()
    values = [v for state in optimizer.state.values() for v in state.values() if v is not None]
    assert expected == (sum(v.numel() * v.element_size() for v in values), True)


def test_an_optimizer_that_needs_values_says_so_only_in_its_first_step():
    """Then the line says that more will come."""
    weights = torch.nn.Parameter(torch.ones(3, 3))
    assert bytes_to_come([torch.optim.Adafactor([weights])]) == (0, False)
    assert bytes_to_come([torch.optim.LBFGS([weights])]) == (0, False)


def test_the_first_line_is_what_the_slots_take():
    """Said once, before training; a single machine holds one replica. Not said after a restart."""
    run = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    size_mib = float(run.stdout) / MIB
    assert run.stderr.count("twinckpt: ") == 1
    total, shard = re.search(
        r"twinckpt: ([\d.]+) MiB of .*: 1 replicas x 2 slots x 1 ranks x ([\d.]+) MiB", run.stderr
    ).groups()
    assert float(shard) == pytest.approx(size_mib, abs=0.1)
    assert float(total) == pytest.approx(2 * size_mib, abs=0.1)


SPAWNED = """
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from twinckpt import Checkpointer

def main(rank, address):
    dist.init_process_group("gloo", init_method=address, world_size=2, rank=rank)
    with Checkpointer({"state": torch.zeros(1 << 18)}) as checkpointer:
        checkpointer.save(1, block=True)
    dist.destroy_process_group()

multiprocessing.start_processes(main, args=(sys.argv[1],), nprocs=2, start_method="fork")
"""


def test_ranks_that_a_script_starts_by_itself_are_counted(tmp_path):
    """As by `multiprocessing.spawn`, which sets no variables: each used to count as a machine."""
    command = [sys.executable, "-c", SPAWNED, f"file://{tmp_path}/ranks"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "twinckpt: 4.0 MiB of each machine's memory: 1 replicas x 2 slots x 2 r" in run.stderr


def test_slots_that_do_not_fit_are_refused_with_the_sum_and_nothing_is_kept(monkeypatch):
    """Some of them would have fitted."""
    free = iter([9 * MIB, 5 * MIB, 1 * MIB])
    monkeypatch.setattr(slot, "available_bytes", lambda: next(free))
    before = open_descriptors()
    checkpoints = InMemoryCheckpoint(max_checkpoints=3)
    with pytest.raises(OutOfMemoryError, match=r"12 MiB are needed for 3 slots .*; 2 fitted"):
        checkpoints.reserve(0, 4 * MIB)
    assert checkpoints.allocated_bytes == 0
    assert not open_descriptors() - before


TOO_LARGE = """
import torch
from twinckpt import Checkpointer
with Checkpointer({"state": torch.zeros(1 << 20)}, capacity_mib=4) as checkpointer:
    checkpointer.save(1)
"""


def test_the_error_at_the_first_save_says_what_the_whole_machine_needs():
    """As the agent refuses it; in a process of its own, whose agent has that limit."""
    run = subprocess.run([sys.executable, "-c", TOO_LARGE], capture_output=True, text=True)
    assert "twinckpt: 8.0 MiB of each machine's memory: 1 replicas x 2 slots" in run.stderr
    assert "OutOfMemoryError: 8 MiB are needed for 2 slots of each of 1 shards" in run.stderr
    assert "Checkpoints need 8.0 MiB of each machine's memory" in run.stderr


GROWING = """
import torch
from twinckpt import Checkpointer
state = {"state": torch.zeros(1)}
with Checkpointer(state) as checkpointer:
    for step in range(1, 9):
        state["state"] = torch.zeros(step << 18)
        assert checkpointer.save(step, block=True).status == "committed"
    with open("/proc/self/maps") as lines:
        slots = [line.split()[0].split("-") for line in lines if "twinckpt-slot" in line]
    print(sum(int(end, 16) - int(start, 16) for start, end in slots))
"""


def test_a_rank_gives_the_slots_back_that_its_state_has_outgrown():
    """The kernel keeps memory that any process has mapped, whatever the agent does."""
    run = subprocess.run([sys.executable, "-c", GROWING], capture_output=True, text=True)
    assert 2 * 8 * MIB < int(run.stdout) < 2 * 8 * MIB * 1.3, run.stderr
