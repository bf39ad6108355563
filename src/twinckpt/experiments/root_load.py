"""The load a root agent can bear: plans and commits of large clusters, heartbeats over sockets."""

import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass

from twinckpt.agents.config import RootAgentConfig
from twinckpt.agents.process import start_root_agent
from twinckpt.core import messages as m
from twinckpt.core.root import Root, RootConfig, Send
from twinckpt.net import wire
from twinckpt.net.auth import authenticate, client_exchange
from twinckpt.net.ports import free_port

_TIMEOUT_S = 60.0
_BEATS_A_SEND = 500


@dataclass(frozen=True, slots=True)
class Decisions:
    """How long the root's decisions took, in seconds; `told_bytes` is the size of the plan sent."""

    plan_s: float
    tick_s: float
    commit_s: float
    told_bytes: int


class LargeCluster:
    """A root and the messages of a cluster of one-rank machines, without machines.

    Every message is decoded from, and every answer encoded to, the bytes of the real link.
    """

    def __init__(self, num_machines: int, replicas: int) -> None:
        self._root = Root(RootConfig(replicas=replicas, heartbeat_timeout_s=1e6))
        self._replicas = replicas
        self._names = [f"machine-{index:05d}" for index in range(num_machines)]
        self._now_s = 0.0
        for name in self._names:
            self._hello(name)
        for name in self._names:
            self._tell(name, self._join())

    def decisions(self) -> Decisions:
        """Commit a step, lose a machine, let its replacement join; return what each took."""
        size = len(self._names)
        generation = self._root.generation
        for rank, name in enumerate(self._names):
            self._tell(name, m.Attached(generation, rank, size, 1 << 20))
        for rank in range(size):
            for holder in self._holders(rank)[1:]:
                self._tell(holder, m.Reserved(generation, rank, 1 << 20))
        ticket, step = self._root.commits.undecided()[0], 7
        began_s = time.perf_counter()
        for rank in range(size):
            holding = m.Holding(rank, ticket, step, rank, size, 1 << 20, "0" * 32)
            for holder in self._holders(rank):
                self._tell(holder, m.Holds(generation, holding))
        commit_s = time.perf_counter() - began_s
        assert self._root.commits.committed_step == step
        began_s = time.perf_counter()
        self._root.tick(self._now_s)
        tick_s = time.perf_counter() - began_s
        self._root.connection_lost(self._names[0], self._now_s)
        self._names[0] += "-again"
        self._hello(self._names[0])
        for name in self._names[1:]:
            self._tell(name, self._join())
        began_s = time.perf_counter()
        told = self._tell(self._names[0], self._join())
        plan_s = time.perf_counter() - began_s
        recovery = self._root.current.recovery if self._root.current else None
        assert recovery is not None
        assert (recovery.step, len(recovery.sources)) == (step, size)
        return Decisions(plan_s, tick_s, commit_s, told)

    def _holders(self, rank: int) -> list[str]:
        size = len(self._names)
        return [self._names[(rank + offset) % size] for offset in range(self._replicas)]

    def _hello(self, name: str) -> None:
        self._tell(name, m.Hello(m.Address(name, "10.0.0.1", 20000), self._root.generation))

    def _join(self) -> m.Join:
        size = len(self._names)
        return m.Join(self._root.generation, "10.0.0.1:29500", None, size, size)

    def _tell(self, name: str, message: m.ToRoot) -> int:
        decoded = wire.TO_ROOT.decode(wire.TO_ROOT.encode(message))
        actions = self._root.receive(name, decoded, self._now_s)
        sent = (action.message for action in actions if isinstance(action, Send))
        return sum(len(wire.TO_WORKER.encode(message)) for message in sent)


def heartbeats_per_s(num_connections: int, num_heartbeats: int) -> float:
    """Return how many heartbeats per second a root agent's process takes in, over loopback TCP.

    All connections send as fast as the root reads. The last message of each asks for a place in a
    generation, so the generation forms, and all are told, once the root has read every heartbeat.
    """
    secret = secrets.token_hex(32).encode()
    port = free_port()
    config = RootAgentConfig(
        "127.0.0.1", port, RootConfig(replicas=1, heartbeat_timeout_s=_TIMEOUT_S), (os.getpid(),)
    )
    process = start_root_agent(config, secret)
    connections: list[socket.socket] = []
    try:
        connections += [_connect(port, secret, index) for index in range(num_connections)]
        beat = wire.frame(wire.TO_ROOT.encode(m.Heartbeat()))
        join = wire.frame(
            wire.TO_ROOT.encode(m.Join(0, "a:1", None, num_connections, num_connections))
        )

        def send() -> None:
            for _ in range(-(-num_heartbeats // _BEATS_A_SEND)):
                for connection in connections:
                    connection.sendall(beat * _BEATS_A_SEND)
            for connection in connections:
                connection.sendall(join)

        sender = threading.Thread(target=send)
        began_s = time.perf_counter()
        sender.start()
        for connection in connections:
            connection.recv(1)
        took_s = time.perf_counter() - began_s
        sender.join()
    finally:
        process.kill()
        process.wait()
        for connection in connections:
            connection.close()
    num_sent = -(-num_heartbeats // _BEATS_A_SEND) * _BEATS_A_SEND * num_connections
    return num_sent / took_s


def _connect(port: int, secret: bytes, index: int) -> socket.socket:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
    authenticate(connection, client_exchange(secret))
    hello = m.Hello(m.Address(f"m{index}", "127.0.0.1", 1), 0)
    connection.sendall(wire.frame(wire.TO_ROOT.encode(hello)))
    return connection
