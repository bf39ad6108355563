"""Where the machines of a job agree on who is its root; chosen by the rendezvous endpoint.

`HOST:PORT` is the embedded store: the root agent itself, on the machine that has this address.
`etcd://HOST:PORT,…` is an etcd cluster, by which any machine can become root. Both keep one
promise: at most one root agent is followed at any time.
"""

import socket
from dataclasses import dataclass
from typing import Protocol

from twinckpt.core.adoption import GenerationRecord

ETCD_SCHEME = "etcd://"


@dataclass(frozen=True, slots=True)
class RootEntry:
    """The root agent to follow: where it listens, and what tells it from any other.

    `num_machines` is the size of its generation: as many candidates watch it.
    """

    host: str
    port: int
    identity: str = ""
    num_machines: int = 0


class Leadership(Protocol):
    """What an elected root agent has."""

    listener: socket.socket
    record: GenerationRecord | None

    def leave(self, record: GenerationRecord | None) -> None:
        """Leave this record to a successor, before long; None: there is nothing to go on with."""

    def hold(self) -> None:
        """Stay the root; returns once another one is. Called in a thread of its own."""


class ControlStore(Protocol):
    """What a machine needs of the store; every method may raise AgentUnavailableError.

    `elects_successors`: another machine can become root, so training goes on without one.
    `pause_s` is how long a candidate should let pass between campaigns.
    """

    elects_successors: bool

    @property
    def pause_s(self) -> float: ...

    def root(self) -> RootEntry | None:
        """Return the root agent to follow now; None while there is none."""

    def wait_for_change(self, timeout_s: float) -> None:
        """Return once another root may have been elected since `root`, or after `timeout_s`."""

    def campaign(self, host: str) -> Leadership | None:
        """Become the root, listening at `host`, if there is none that lives; else return None."""


def open_store(endpoint: str, run_id: str = "") -> ControlStore:
    """Return the store that an endpoint names; raises ConfigurationError for one that names none.

    Of an etcd cluster it holds the keys of job `run_id`, unless the endpoint ends in `/RUN_ID`.
    """
    if endpoint.startswith(ETCD_SCHEME):
        from twinckpt.agents.etcd_store import EtcdStore

        return EtcdStore.at(endpoint.removeprefix(ETCD_SCHEME), run_id)
    from twinckpt.agents.embedded_store import EmbeddedStore

    return EmbeddedStore.at(endpoint)


def split_address(address: str, default_port: int) -> tuple[str, int]:
    """Return host and port of `HOST[:PORT]`, `[IPV6]:PORT`; raises ValueError for anything else."""
    host, colon, port = address.strip().rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address.strip(), str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{address!r} is no HOST:PORT")
    return host, int(port)


def listen_at(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of this machine; port 0: at any free one."""
    families = [found[0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    family = socket.AF_INET if socket.AF_INET in families else families[0]
    listener = socket.create_server((host, port), family=family)
    # Connections inherit it; without it a second message waits 40 ms for the first one's receipt.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
