"""Several ranks on a machine that nothing starts again, as `mp.spawn` and `mpirun` have them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import wait_until
from twinckpt.agents.event_log import EventReader
from twinckpt.memory.drained import drained_steps
from twinckpt.net.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
TIMEOUT_S = 120

SCRIPT = """
import os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from twinckpt import Checkpointer

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
with Checkpointer(
    {"weight": torch.zeros(8)}, drain_directory=str(folder / "drained"), drain_every_commits=10
) as checkpointer:
    checkpointer.save(1, block=True)
    dist.barrier()
    (folder / f"saved-{dist.get_rank()}").touch()
    while not (folder / f"close-{dist.get_rank()}").exists():
        time.sleep(0.05)
"""


class Ranks:
    """The ranks of one machine; `end` lets one of them leave its `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, num_ranks: int) -> None:
        """Return once all have saved."""
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        job = {**os.environ, **meeting, "WORLD_SIZE": str(num_ranks), "OMP_NUM_THREADS": "1"}
        job["TWINCKPT_EVENT_LOG"] = str(self.folder / "events")
        for rank in range(num_ranks):
            with (self.folder / f"stderr-{rank}").open("wb") as stderr:
                command = [sys.executable, "-c", SCRIPT, str(self.folder)]
                env = {**job, "RANK": str(rank)}
                self.processes.append(subprocess.Popen(command, stderr=stderr, env=env))
        for rank in range(num_ranks):
            saved = self.folder / f"saved-{rank}"
            wait_until(saved.exists, f"rank {rank}", timeout_s=TIMEOUT_S)

    def end(self, rank: int) -> str:
        """Wait for a rank's end; return what it wrote."""
        (self.folder / f"close-{rank}").touch()
        self.processes[rank].wait(TIMEOUT_S)
        return (self.folder / f"stderr-{rank}").read_text()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    """None is left."""
    ranks = Ranks(tmp_path)
    yield ranks
    for process in ranks.processes:
        process.kill()
        process.wait()


def test_a_rank_that_closes_after_the_first_one_has_ended_finds_its_agent(ranks, tmp_path):
    """The agents that the first rank has started end with the last one."""
    ranks.start(2)
    outputs = [ranks.end(rank) for rank in (0, 1)]
    assert [process.returncode for process in ranks.processes] == [0, 0]
    assert "persistent storage" not in "".join(outputs)
    assert drained_steps(tmp_path / "drained") == (1,)


def test_every_rank_that_is_left_hears_that_another_one_is_lost(ranks, tmp_path):
    """None waits in `close` for what cannot come."""
    ranks.start(3)
    ranks.processes[2].kill()
    log = EventReader(tmp_path / "events" / "root.jsonl")
    wait_until(lambda: any(e["event"] == "generation_broken" for e in log.events), "its loss")
    outputs = [ranks.end(rank) for rank in (0, 1)]
    assert ["rank 2 was lost" in output for output in outputs] == [True, True]
