"""The handler that torchrun calls, here by this process, with agents of its own."""

import os
import subprocess
import sys

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from helpers import agents_of_tests
from twinckpt.agents.rendezvous import create_handler
from twinckpt.net.ports import free_port


@pytest.fixture
def machine():
    """The handler of a job's only machine; what it told ranks ends with it."""
    before = dict(os.environ)
    endpoint = f"127.0.0.1:{free_port()}"
    yield create_handler(RendezvousParameters("twinckpt", endpoint, "job", 1, 1))
    os.environ.clear()
    os.environ.update(before)


def test_a_machine_whose_agent_has_died_as_it_joins_again_starts_another(machine):
    """A rank that dies with the agent may be what torchrun sees first."""
    machine.next_rendezvous()
    (agent,) = agents_of_tests("twinckpt.agents.worker")
    agent.kill()
    agent.wait()
    assert machine.next_rendezvous().world_size == 1
    assert len(agents_of_tests("twinckpt.agents.worker")) == 1


def test_machines_that_were_told_different_numbers_of_ranks_end_and_say_so():
    """Otherwise their ranks would wait for each other until torch gives up."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--rdzv-id=job"]
    command += ["--rdzv-backend=twinckpt", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    launchers = [
        subprocess.Popen(
            [*command, f"--nproc-per-node={num_ranks}", "--no-python", "true"],
            env={**os.environ, "TWINCKPT_MACHINE": name},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, num_ranks in (("a", 1), ("b", 2))
    ]
    for launcher in launchers:
        *_, told = launcher.communicate(timeout=60)[1].splitlines()
        assert launcher.returncode == 1
        assert "all machines need the same --nproc-per-node, but it is" in told
        assert "1 on a (127.0.0.1)" in told
        assert "2 on b (127.0.0.1)" in told
