"""The worker agent's process, with this one in the place of its launcher and its rank."""

import os
import socket
import subprocess
import sys

import pytest

from helpers import open_descriptors
from twinckpt.agents.config import RootAgentConfig, WorkerAgentConfig
from twinckpt.agents.launch import connect_to_agent
from twinckpt.agents.local_server import LocalPeer
from twinckpt.agents.process import start_root_agent, start_worker_agent
from twinckpt.checkpointer.agent_client import AgentClient
from twinckpt.errors import AgentUnavailableError, AuthenticationError, TwinckptError
from twinckpt.experiments.agent_cluster import next_message
from twinckpt.memory import drained
from twinckpt.memory.seal import Seal
from twinckpt.net import local
from twinckpt.net.local_socket import AgentLink
from twinckpt.net.ports import free_port

SECRET = b"s" * 32
JOIN = local.LauncherJoin("127.0.0.1:1", None, 1, 1)


@pytest.fixture
def agent(tmp_path):
    """Name of the socket of a worker agent that has its root agent."""
    port = free_port()
    name = f"twinckpt-test-{port}"
    with start_root_agent(
        RootAgentConfig("127.0.0.1", port, watched=(os.getpid(),)), SECRET
    ) as root:
        here = {"watched": (root.pid,), "drain_directory": str(tmp_path)}
        start_worker_agent(WorkerAgentConfig(name, name, "127.0.0.1", port, **here), SECRET)
        yield name
        root.terminate()


def test_a_connection_that_fails_leaves_no_descriptor_behind(agent):
    """A process that waits for an agent tries fifty times a second."""
    connect_to_agent(agent, SECRET).close()
    before = open_descriptors()
    with pytest.raises(AuthenticationError):
        AgentLink(agent, b"x" * 32)
    with pytest.raises(AgentUnavailableError):
        AgentLink("twinckpt-nobody", SECRET)
    assert not open_descriptors() - before


BECOME_A_RANK = """
import os, sys
from twinckpt.experiments.agent_cluster import next_message
from twinckpt.net import local
from twinckpt.net.local_socket import AgentLink

def become_a_rank():
    link = AgentLink(sys.argv[1], b"s" * 32)
    link.send(local.RankHello(0, 1))
    next_message(link, local.Welcome)
    return link
"""
HOLDER = f"""{BECOME_A_RANK}
link = become_a_rank()
print("the rank", flush=True)
sys.stdin.read()
"""


def test_a_rank_that_another_process_is_already_is_refused(agent):
    """As a program that a rank starts, and that inherits its environment."""
    connect_to_agent(agent, SECRET).close()
    program, pipe = [sys.executable, "-c", HOLDER, agent], subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout.readline() == b"the rank\n"
        before = open_descriptors()
        with pytest.raises(TwinckptError, match="needs a Checkpointer of its own job"):
            AgentClient(agent, SECRET, 0, 1, 1)
        assert not open_descriptors() - before


def introduced(agent):
    """Return the connection of this process as the machine's rank."""
    rank = AgentLink(agent, SECRET)
    rank.send(local.RankHello(0, 1))
    next_message(rank, local.Welcome)
    return rank


def test_a_rank_that_ends_after_its_generation_does_not_break_the_next(agent):
    """A launcher may have joined again before the agent sees the end of what it has killed."""
    launcher = connect_to_agent(agent, SECRET)
    launcher.send(JOIN)
    next_message(launcher, local.LauncherFormed)
    former = introduced(agent)
    launcher.send(JOIN)
    next_message(launcher, local.LauncherFormed)

    former.close()
    rank = introduced(agent)
    rank.send(local.Attach(1 << 20))
    grant, fd = next_message(rank, local.Granted)

    os.close(fd)
    assert grant.ticket
    assert launcher.receive(0.0) is None


CONTAINED = f"""{BECOME_A_RANK}
while os.path.exists(f"/proc/{{os.getpid()}}"):  # outside, that is another process
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
link = become_a_rank()
link.send(local.Attach(1 << 20))
next_message(link, local.Granted)
link.say_goodbye()
"""
IN_A_CONTAINER = ["unshare", "--pid", "--fork"]


@pytest.mark.skipif(
    subprocess.run([*IN_A_CONTAINER, "true"], check=False, capture_output=True).returncode != 0,
    reason="this user may not make namespaces of process numbers",
)
def test_a_rank_in_a_container_of_its_own_is_not_taken_for_lost(agent):
    """It knows itself by a number that is nobody's outside, or another's."""
    launcher = connect_to_agent(agent, SECRET)
    launcher.send(JOIN)
    next_message(launcher, local.LauncherFormed)
    subprocess.run([*IN_A_CONTAINER, sys.executable, "-c", CONTAINED, agent], check=True)
    assert launcher.receive(0.0) is None


@pytest.mark.parametrize(("unread", "warnings"), [(1, 0), (100_000, 1)])
def test_who_ended_with_messages_unread_is_no_warning_and_who_never_reads_is_one(
    unread, warnings, caplog
):
    agent, rank = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.setblocking(False)
    peer = LocalPeer(agent)
    with agent, rank:
        for _ in range(unread):
            peer.send(local.Welcome(1, 0))
            if caplog.records:
                break
        rank.close()
        peer.send(local.Welcome(1, 0))
    assert len(caplog.records) == warnings


def test_a_damaged_drained_step_is_not_resumed_again(agent, tmp_path):
    """Though it may still lie there, where it could not be set aside."""
    for step in (1, 2):
        identity = {"rank": 0, "ticket": step, "step": step, "home": 0, "world_size": 1}
        drained.write_shard(tmp_path, Seal.of(memoryview(b"state"), **identity), b"state")
        drained.finish_step(tmp_path, step, ticket=step, world_size=1)
    launcher = connect_to_agent(agent, SECRET)
    launcher.send(JOIN)
    next_message(launcher, local.LauncherFormed)
    rank = introduced(agent)
    rank.send(local.RestoreRequest())
    assert next_message(rank, local.RestoreDrained)[0].step == 2

    rank.send(local.DamagedDrained(2, "a flipped bit", (1,)))
    broken, _ = next_message(launcher, local.LauncherBroken)
    assert "drained step 2 is damaged" in broken.reason
    launcher.send(JOIN)
    next_message(launcher, local.LauncherFormed)
    rank = introduced(agent)
    rank.send(local.RestoreRequest())
    assert next_message(rank, local.RestoreDrained)[0].step == 1


@pytest.fixture
def slow_storage(tmp_path):
    """Whoever reads the manifest of a step there waits until somebody writes to it."""
    manifest = drained.step_directory(tmp_path, 1) / "manifest.json"
    manifest.parent.mkdir()
    os.mkfifo(manifest)
    return manifest


def test_slow_storage_holds_up_no_process_of_the_machine(slow_storage, agent):
    """The agent lists what is drained whenever it has found a root, which waits for that."""
    launcher = connect_to_agent(agent, SECRET)
    launcher.send(JOIN)
    slow_storage.write_text("now it answers")
    assert next_message(launcher, local.LauncherFormed)[0].generation == 1
