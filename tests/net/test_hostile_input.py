"""Random bytes, floods and wrong secrets at every open port and socket of a real job."""

import contextlib
import os
import random
import socket
import struct
import time
from dataclasses import dataclass

import msgspec
import psutil
import pytest
import torch

from helpers import agents_of_tests
from twinckpt import Checkpointer
from twinckpt.core.messages import Address
from twinckpt.errors import AuthenticationError, DamagedCopyError
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.net.auth import authenticate, client_exchange
from twinckpt.net.bulk import BulkClient, BulkServer
from twinckpt.net.local import TO_AGENT
from twinckpt.net.local_socket import AgentLink
from twinckpt.net.secret import load_secret
from twinckpt.net.wire import ProtocolError

SECRET = b"a secret of the job that is long"
MAX_GROWTH_BYTES = 48 << 20


@dataclass
class Job:
    """A Checkpointer of this process with the agents that it started."""

    checkpointer: Checkpointer
    agents: list[psutil.Process]
    step: int = 1

    @property
    def ports(self) -> list[int]:
        """All TCP ports on which the agents listen."""
        connections = [c for agent in self.agents for c in agent.net_connections("tcp")]
        return sorted({c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN})

    @property
    def sockets(self) -> list[str]:
        """The abstract Unix sockets on which they listen."""
        with open("/proc/net/unix") as lines:
            names = {line.split("@")[1].strip() for line in lines if "@twinckpt-" in line}
        return sorted(name for name in names if str(os.getpid()) in name)

    @property
    def memory_bytes(self) -> int:
        return sum(agent.memory_info().rss for agent in self.agents)

    def connections(self):
        """One new connection to each door."""
        for port in self.ports:
            yield socket.create_connection(("127.0.0.1", port), timeout=5)
        for name in self.sockets:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.settimeout(5)
            sock.connect("\0" + name)
            yield sock

    def assert_it_goes_on(self) -> None:
        self.step += 1
        assert self.checkpointer.save(self.step, block=True).status == "committed"
        assert all(agent.is_running() for agent in self.agents)


@pytest.fixture(scope="module")
def job():
    with Checkpointer({"weight": torch.rand(100_000)}) as checkpointer:
        checkpointer.save(1, block=True)
        found = Job(checkpointer, agents_of_tests())
        assert len(found.ports) == 2  # the root's, and the worker's for shards
        assert found.sockets
        yield found


def test_random_bytes_at_every_door_are_refused_and_the_job_goes_on(job):
    randomly = random.Random(0)
    before_bytes = job.memory_bytes
    for _ in range(40):
        for sock in job.connections():
            with sock, contextlib.suppress(OSError):
                size = randomly.choice([1, 31, 32, 64, 65, 1000, 100_000])
                sock.sendall(randomly.randbytes(size))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
    job.assert_it_goes_on()
    assert job.memory_bytes - before_bytes < MAX_GROWTH_BYTES


def test_hundreds_of_silent_callers_keep_nobody_out(job):
    silent = [sock for _ in range(100) for sock in job.connections()]
    try:
        job.assert_it_goes_on()
        assert len(silent) == 300
    finally:
        for sock in silent:
            sock.close()
    job.assert_it_goes_on()


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack(">I", 2**32 - 1),
        struct.pack(">I", 100) + os.urandom(100),
        struct.pack(">QQ", 2**64 - 1, 2**64 - 1),
        os.urandom(1000),
        b"\x00" * 1000,
    ],
)
def test_a_caller_that_knows_the_secret_but_talks_nonsense_is_cut_off(job, payload):
    before_bytes = job.memory_bytes
    for sock in job.connections():
        with sock, contextlib.suppress(OSError):
            authenticate(sock, client_exchange(load_secret()))
            sock.sendall(payload)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
    job.assert_it_goes_on()
    assert job.memory_bytes - before_bytes < MAX_GROWTH_BYTES


def test_a_message_that_is_nested_without_end_is_refused_as_any_nonsense():
    """The decoder's limit is no error of the agent, which would end with it."""
    nested = b"\x92" + b"\xa9RankHello" + b"\x91" * 1_000_000
    with pytest.raises(ProtocolError, match=r"recursion|Stack overflow"):
        TO_AGENT.decode(nested)


@pytest.mark.parametrize("chunk_bytes", [-1, 2**62])
def test_a_seal_that_seals_nothing_is_refused_as_any_nonsense(chunk_bytes):
    """Its claims about itself used to be logged as an error of the agent, over many lines."""
    seal = {"rank": 0, "ticket": 1, "step": 1, "home": 0, "world_size": 1, "size_bytes": 10}
    seal |= {"digests": b"", "chunk_bytes": chunk_bytes}
    with pytest.raises(ProtocolError, match="seal of rank 0 at step 1 has"):
        TO_AGENT.decode(msgspec.msgpack.encode(["Staged", {"seal": seal}]))


def test_who_has_a_wrong_secret_is_told_so(job):
    wrong = b"not the secret of this job at all"
    for name in job.sockets:
        with pytest.raises(AuthenticationError):
            AgentLink(name, wrong)
    for port in job.ports:
        with pytest.raises(AuthenticationError):
            BulkClient(wrong).fetch(Address("m", "127.0.0.1", port), 0, 1, memoryview(b""))
    job.assert_it_goes_on()


def test_more_callers_than_descriptors_keep_nobody_out_for_long(job, until):
    """Some will be closed; the agents do not end for it."""
    allowed = [agent.rlimit(psutil.RLIMIT_NOFILE) for agent in job.agents]
    most = [agent.num_fds() + 2 for agent in job.agents]
    for agent, limit, (_, hard) in zip(job.agents, most, allowed, strict=True):
        agent.rlimit(psutil.RLIMIT_NOFILE, (limit, hard))
    silent = [sock for _ in range(20) for sock in job.connections()]
    until(
        lambda: all(
            agent.num_fds() >= limit for agent, limit in zip(job.agents, most, strict=True)
        ),
        "no descriptor left",
    )
    for sock in silent:
        sock.close()
    for agent, limits in zip(job.agents, allowed, strict=True):
        agent.rlimit(psutil.RLIMIT_NOFILE, limits)
    job.assert_it_goes_on()


def test_an_agent_may_have_as_many_connections_as_its_user(job):
    """A thousand machines are as many connections to the root; 1024 descriptors are usual."""
    for agent in job.agents:
        soft, hard = agent.rlimit(psutil.RLIMIT_NOFILE)
        assert soft == hard


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can call as another user")
def test_other_users_of_the_host_are_not_even_asked_for_the_secret(job):
    """An abstract name is open to all of them."""
    for name in job.sockets:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(5)
            os.seteuid(65534)
            try:
                sock.connect("\0" + name)
            finally:
                os.seteuid(0)
            assert sock.recv(64) == b""


@pytest.fixture
def address():
    """A machine that serves shards and has none."""
    with contextlib.closing(BulkServer(InMemoryCheckpoint(), SECRET, "127.0.0.1")) as server:
        yield Address("m", "127.0.0.1", server.port)


def test_who_holds_the_secret_is_served_however_many_strangers_wait(address):
    """The strangers came first, and are disconnected first."""
    strangers = [socket.create_connection(("127.0.0.1", address.bulk_port)) for _ in range(300)]
    try:
        with pytest.raises(DamagedCopyError, match="has no copy of rank 0"):
            BulkClient(SECRET).fetch(address, 0, 1, memoryview(b""))
    finally:
        for sock in strangers:
            sock.close()


def test_who_is_refused_for_shards_again_and_again_is_logged_once(address, caplog):
    """Otherwise a neighbour could fill the disk with log lines."""
    for _ in range(5):
        with pytest.raises(AuthenticationError):
            BulkClient(b"another secret").fetch(address, 0, 1, memoryview(b""))
    assert [record.message for record in caplog.records] == [
        "refused 127.0.0.1: the caller does not hold this job's secret"
    ]


def test_a_caller_that_dribbles_is_cut_off_in_time(job):
    for sock in job.connections():
        if sock.family == socket.AF_UNIX:
            continue
        with sock:
            sock.settimeout(1)
            started_s = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - started_s < 60:
                    sock.sendall(b"x")
                    with contextlib.suppress(TimeoutError):
                        while sock.recv(64):
                            pass
                        break
            assert time.monotonic() - started_s < 30
