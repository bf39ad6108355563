"""A machine that waits for others looks after the root agent that it hosts."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from twinckpt.net.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
TRAIN = """
import time, torch, torch.distributed as dist
from twinckpt import Checkpointer
dist.init_process_group("gloo")
weight = torch.zeros(10)
with Checkpointer({"weight": weight}) as checkpointer:
    step = checkpointer.restore() or 0
    assert weight.eq(step).all()
    print("from", step, flush=True)
    while step < 100:
        weight.add_(1)
        step += 1
        checkpointer.save(step, block=True)
        time.sleep(0.05)
dist.destroy_process_group()
"""


def agents(kind, port):
    """Return the agents of a kind of the job whose root agent has this port."""
    told = f'"port":{port}' if kind == "root" else f'"root_port":{port}'
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if f"twinckpt.agents.{kind}" in line and told in line:
            found.append(process)
    return found


def test_the_root_dies_while_its_machine_waits_for_another(tmp_path, until):
    """Before the first generation, and in warm parents after a machine was lost."""
    (tmp_path / "train.py").write_text(TRAIN)
    port = free_port()

    def machine():
        rendezvous = ["--rdzv-backend=twinckpt", f"--rdzv-endpoint=127.0.0.1:{port}", "--nnodes=2"]
        options = ["--nproc-per-node=1", "--max-restarts=3", "-m", "twinckpt.run", "train.py"]
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *rendezvous, *options],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill_root():
        killed = until(lambda: agents("root", port), "root agent")
        for root in killed:
            root.kill()
        until(lambda: set(agents("root", port)) - set(killed), "another root agent")

    first = machine()
    until(lambda: agents("worker", port), "worker agent")
    kill_root()
    second = machine()
    assert first.stdout.readline() == "from 0\n"
    assert second.stdout.readline() == "from 0\n"
    second.send_signal(signal.SIGKILL)
    second.wait()
    (parent,) = [p for p in psutil.Process(first.pid).children() if "twinckpt.run" in p.cmdline()]
    until(lambda: not parent.children(), "end of the rank")
    kill_root()
    third = machine()
    for process in (first, third):
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0
        assert "from " in output


def test_a_machine_that_waits_in_vain_says_for_what():
    """In one line: how torchrun came to wait helps nobody."""
    endpoint = f"127.0.0.1:{free_port()}"
    rendezvous = ("--rdzv-backend=twinckpt", f"--rdzv-endpoint={endpoint}", "--nnodes=2")
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous]
    run = subprocess.run(
        [*command, "--rdzv-conf=join_timeout=2", "train.py"], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "twinckpt: only 2 or more machines make a generation, and too few joined within 2 s at "
        + endpoint
    )
    assert "Traceback" not in run.stderr
