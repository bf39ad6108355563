"""The start of a job's agents on a machine, as its settings say."""

import contextlib
import os
import socket
import subprocess
import time
import uuid

from twinckpt.agents.config import RootAgentConfig, WorkerAgentConfig
from twinckpt.agents.control_store import ETCD_SCHEME, ControlStore, open_store
from twinckpt.agents.job_settings import JobSettings
from twinckpt.agents.process import start_root_agent, start_worker_agent
from twinckpt.agents.status import ask
from twinckpt.errors import AgentUnavailableError, TwinckptError
from twinckpt.memory.drained import check_readable, location
from twinckpt.net.local_socket import AgentLink
from twinckpt.net.secret import load_secret

START_TIMEOUT_S = 30.0
_RESTART_S = 1.0
_EXIT_BARRIER_S = 300.0
_LOOK_S = 0.5


class RootCandidate:
    """This machine's part in providing the job's root agent, by the store that an endpoint names.

    With the embedded store it starts the root agent if that belongs here. With one that elects
    roots it keeps a `process` that stands by, so that this machine can become root at any time.
    """

    def __init__(self, settings: JobSettings, endpoint: str, run_id: str) -> None:
        self.store: ControlStore = open_store(endpoint, run_id)
        self.endpoint = f"{endpoint}/{run_id}" if endpoint.startswith(ETCD_SCHEME) else ""
        self._settings = settings
        self._run_id = run_id
        self.process: subprocess.Popen[bytes] | None = None
        self._looked_s = 0.0
        self._is_here = False

    @property
    def address(self) -> tuple[str, int]:
        """Return the root agent's host and port if they are fixed; else `("", 0)`."""
        root = None if self.store.elects_successors else self.store.root()
        return (root.host, root.port) if root else ("", 0)

    def start(self) -> None:
        """Start a root agent's process if one is needed here; called before each generation.

        Raises AgentUnavailableError if the store does not answer; later only the election of a
        successor depends on that.
        """
        if not self.store.elects_successors:
            self._is_here = _is_local(self.address[0])
            started = start_root_if_local(self._settings, *self.address, run_id=self._run_id)
            self.process = started or self.process
        elif self.process is None:
            self.store.root()
            self._start()
        else:
            self.keep()

    def keep(self) -> None:
        """Replace a process that has died, be it root or standing by; called often.

        An embedded root that another launcher of this machine had started may be gone with it.
        """
        is_alive = self.process is not None and self.process.poll() is None
        if is_alive or time.monotonic() - self._looked_s < _RESTART_S:
            return
        self._looked_s = time.monotonic()
        if self.store.elects_successors:
            if self.process is not None:
                self._start()
        elif self._is_here and not _listens(*self.address):
            self._start()

    def wait_for_the_others(self) -> None:
        """Let the other machines end first, if the job's only root agent would end with this one.

        For as long as torchrun's own rendezvous would wait for them.
        """
        is_alive = self.process is not None and self.process.poll() is None
        if not is_alive or self.store.elects_successors:
            return
        secret, tls = load_secret(), self._settings.tls.load()
        deadline_s = time.monotonic() + _EXIT_BARRIER_S
        with contextlib.suppress(TwinckptError, OSError, EOFError):
            while ask(*self.address, secret, tls).num_members and time.monotonic() < deadline_s:
                time.sleep(_LOOK_S)

    def _start(self) -> None:
        self._looked_s = time.monotonic()
        host, port = self.address if self.address[0] else (self._settings.host, 0)
        self.process = start_root_agent(
            _root_agent(self._settings, host, port, (os.getpid(),), self.endpoint, self._run_id)
        )


def start_root_if_local(
    settings: JobSettings, host: str, port: int, watched: tuple[int, ...] = (), run_id: str = ""
) -> subprocess.Popen[bytes] | None:
    """Start the job's root agent here if `host` is this machine and nobody listens yet.

    It ends with the last of the `watched` processes, by default the calling one. Returns it; None
    if not needed.
    """
    if _listens(host, port) or not _is_local(host):
        return None
    config = _root_agent(settings, host, port, watched or (os.getpid(),), "", run_id)
    process = start_root_agent(config)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not _listens(host, port):
        status = process.poll()
        # One that lost the race for the port ends, and the winner listens.
        if status is not None and not _listens(host, port):
            raise AgentUnavailableError(
                f"the root agent for {host}:{port} has ended with status {status}: see its "
                "messages above, or whether another program has that port"
            )
        if time.monotonic() > deadline_s:
            raise AgentUnavailableError(
                f"no root agent listens on {host}:{port} after {START_TIMEOUT_S:.0f} s"
            )
        time.sleep(0.02)
    return process


def _root_agent(
    settings: JobSettings,
    host: str,
    port: int,
    watched: tuple[int, ...],
    store: str,
    run_id: str,
) -> RootAgentConfig:
    return RootAgentConfig(
        host,
        port,
        settings.root(),
        watched=watched,
        event_log=settings.event_log,
        metrics_host=settings.metrics_host,
        metrics_port=settings.metrics_port,
        tls=settings.tls,
        store=store,
        machine=settings.machine,
        run_id=run_id,
    )


def start_machine_agent(
    settings: JobSettings,
    root: tuple[str, int],
    watched: tuple[int, ...],
    *,
    socket_name: str = "",
    store: str = "",
    run_id: str = "",
) -> str:
    """Start this machine's worker agent and return the name of its socket.

    The root agent is at the address `root`, or wherever the `store` says. Raises
    ConfigurationError if what was drained cannot be read.
    """
    if settings.drain_directory:
        check_readable(location(settings.drain_directory))
    unique = uuid.uuid4().hex[:12]
    config = WorkerAgentConfig(
        machine=settings.machine or unique,
        socket_name=socket_name or f"twinckpt-{unique}",
        root_host=root[0],
        root_port=root[1],
        host=settings.host,
        num_slots=settings.num_slots,
        capacity_bytes=settings.capacity_mib << 20 if settings.capacity_mib else None,
        heartbeat_interval_s=settings.heartbeat_interval_s,
        heartbeat_timeout_s=settings.heartbeat_timeout_s,
        hang_timeout_s=settings.hang_timeout_s,
        scrub_bytes_per_s=settings.scrub_mib_per_s * (1 << 20),
        drain_directory=settings.drain_directory,
        drain_keep=settings.drain_keep,
        drain_bytes_per_s=settings.drain_mib_per_s * (1 << 20),
        watched=watched,
        log_file=settings.agent_log,
        event_log=settings.event_log,
        failure_domain=settings.failure_domain,
        tls=settings.tls,
        store=store,
        job=settings.root(),
        run_id=run_id,
    )
    start_worker_agent(config)
    return config.socket_name


def connect_to_agent(name: str, secret: bytes) -> AgentLink:
    """Connect to an agent that may still be starting."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return AgentLink(name, secret)
        except AgentUnavailableError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _is_local(host: str) -> bool:
    """Return whether `host` is an address of this machine: one that can be bound here."""
    try:
        address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], address[1]) as probe:
            probe.bind(address[4])
    except OSError:
        return False
    return True
