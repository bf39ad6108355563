"""What tests of several layers need: real etcd servers."""

import os
import shutil
import subprocess

import pytest

from helpers import agents_of_tests, wait_until
from twinckpt.agents.emulated_machines import die_with_parent
from twinckpt.agents.etcd_client import Access, EtcdClient
from twinckpt.agents.process import allow_all_descriptors
from twinckpt.errors import AgentUnavailableError, ConfigurationError
from twinckpt.net.ports import free_port

allow_all_descriptors()  # as agents do: some tests open more than the usual thousand


class EtcdCluster:
    """Members of an etcd cluster on loopback; each is a process that can be killed.

    With `tls` (certificate and key files) clients must use TLS.
    """

    def __init__(self, directory, num_members, tls=()):
        scheme = "https" if tls else "http"
        self.ports = [free_port() for _ in range(num_members)]
        peers = [f"http://127.0.0.1:{free_port()}" for _ in range(num_members)]
        names = [f"m{index}" for index in range(num_members)]
        initial = ",".join(f"{name}={peer}" for name, peer in zip(names, peers, strict=True))
        self._commands = [
            [
                *("etcd", "--name", name, "--data-dir", str(directory / name)),
                *("--listen-client-urls", f"{scheme}://127.0.0.1:{self.ports[index]}"),
                *("--advertise-client-urls", f"{scheme}://127.0.0.1:{self.ports[index]}"),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", initial, "--unsafe-no-fsync"),
                *(("--cert-file", tls[0], "--key-file", tls[1]) if tls else ()),
            ]
            for index, (name, peer) in enumerate(zip(names, peers, strict=True))
        ]
        self._directory = directory
        self._access = Access(ca_file=tls[0] if tls else "")
        self.members = [self._start(index) for index in range(num_members)]
        for index in range(num_members):
            self._wait(index)

    @property
    def endpoint(self):
        """What names this cluster to torchrun."""
        return "etcd://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def kill(self, index):
        """SIGKILL a member."""
        self.members[index].kill()
        self.members[index].wait()

    def restart(self, index):
        """Start a member that was killed, with what it had on disk."""
        self.members[index] = self._start(index)
        self._wait(index)

    def stop(self):
        """End all members."""
        for member in self.members:
            member.kill()
            member.wait()

    def _start(self, index):
        with open(self._directory / f"m{index}.log", "ab") as log:
            return subprocess.Popen(
                self._commands[index],
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def _wait(self, index):
        """Wait until a member takes part in the cluster."""
        client = EtcdClient([("127.0.0.1", self.ports[index])], self._access)

        def answers():
            try:
                client.get("/")
            except AgentUnavailableError:
                return False
            except ConfigurationError:  # it asks for a user
                return True
            return True

        wait_until(answers, "member of etcd")


@pytest.fixture(scope="module", autouse=True)
def _agents_end_with_their_module():
    """They serve all Checkpointers of a process; those of the next file begin anew."""
    yield
    for agent in agents_of_tests():
        agent.kill()
        agent.wait()


@pytest.fixture(scope="session")
def until():
    """Wait until a condition returns something true, and return that."""
    return wait_until


@pytest.fixture(scope="session")
def start_etcd():
    """Start an `EtcdCluster` of these arguments; skips the test where etcd is not installed."""
    if shutil.which("etcd") is None:
        pytest.skip("no etcd on PATH: install etcd-server to run the tests of the etcd store")
    return EtcdCluster


@pytest.fixture(scope="session")
def etcd(tmp_path_factory, start_etcd):
    """One member, which all tests share: each takes a job of its own."""
    cluster = start_etcd(tmp_path_factory.mktemp("etcd"), 1)
    yield cluster
    cluster.stop()


@pytest.fixture
def three_etcds(tmp_path, start_etcd):
    """Three members, of which a test may kill any."""
    cluster = start_etcd(tmp_path, 3)
    yield cluster
    cluster.stop()
