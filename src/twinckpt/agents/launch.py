"""Where a job's settings come from, and the start of a machine's agents.

Settings of a job come through torchrun's `--rdzv-conf`, arguments of `Checkpointer`, or
`TWINCKPT_*` in the environment; an explicit one wins. All of them are listed in
docs/configuration.md.
"""

import difflib
import math
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec

from twinckpt.agents.config import RootAgentConfig, WorkerAgentConfig
from twinckpt.agents.control_store import ETCD_SCHEME, ControlStore, open_store
from twinckpt.agents.process import start_root_agent, start_worker_agent
from twinckpt.core.placement import check_kind
from twinckpt.core.root import RootConfig
from twinckpt.errors import AgentUnavailableError, ConfigurationError
from twinckpt.memory.drained import check_readable, location
from twinckpt.net.local import AgentLink
from twinckpt.net.tls import TlsFiles

START_TIMEOUT_S = 30.0
_RESTART_S = 1.0

_PREFIX = "TWINCKPT_"
_MISSPELT = 0.8  # likeness of two names, from 0 to 1; other variables of ours are below it

# Where torchrun's rendezvous backend tells the ranks what it has decided.
LAUNCHED = "TWINCKPT_LAUNCHED"
# What torchrun itself, or our backend, takes from --rdzv-conf beside our settings.
_OF_TORCHRUN = {"join_timeout", "rank", "timeout"}

_NEVER_NEGATIVE = (
    *("heartbeat_interval_s", "heartbeat_timeout_s", "hang_timeout_s", "last_call_s"),
    *("scrub_mib_per_s", "drain_every_commits", "drain_every_s", "drain_mib_per_s"),
    *("capacity_mib", "metrics_port"),
)
_MAX_PORT = 65535


@dataclass(slots=True)
class JobSettings:
    """Settings of a job, on which its machines agree; durations in seconds.

    docs/configuration.md says what each means. Raises ConfigurationError for impossible ones.

    >>> JobSettings(replicas=3, drain_every_s=600, drain_directory="/shared/run1").num_slots
    2
    >>> JobSettings(num_slots=1)
    Traceback (most recent call last):
    twinckpt.errors.ConfigurationError: num_slots=1: at least 2, the committed step and the next
    """

    replicas: int = 2
    placement: str = "ring"
    num_slots: int = 2
    heartbeat_interval_s: float = 0.1
    heartbeat_timeout_s: float = 1.0
    hang_timeout_s: float = 0.0
    scrub_mib_per_s: float = 64.0
    last_call_s: float = 5.0
    drain_every_commits: int = 0
    drain_every_s: float = 0.0
    drain_mib_per_s: float = 0.0
    drain_directory: str = ""
    drain_keep: int = 2
    event_log: str = ""
    agent_log: str = ""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    capacity_mib: int = 0
    machine: str = ""
    failure_domain: str = ""
    warm_spare: int = 0
    host: str = "127.0.0.1"
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigurationError(f"replicas={self.replicas}: at least 1, the local copy")
        if self.num_slots < 2:
            raise ConfigurationError(
                f"num_slots={self.num_slots}: at least 2, the committed step and the next"
            )
        if self.heartbeat_interval_s == 0:
            raise ConfigurationError("heartbeat_interval_s=0: it must be more than 0")
        if self.heartbeat_timeout_s < 3 * self.heartbeat_interval_s:
            raise ConfigurationError(
                f"heartbeat_timeout_s={self.heartbeat_timeout_s} is too short for "
                f"heartbeat_interval_s={self.heartbeat_interval_s}: make it at least three times"
            )
        check_kind(self.placement)
        for name in _NEVER_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name}={getattr(self, name)}: 0 or more, and finite")
        if self.drain_keep < 1:
            raise ConfigurationError(f"drain_keep={self.drain_keep}: at least 1, the newest step")
        if self.metrics_port > _MAX_PORT:
            raise ConfigurationError(
                f"metrics_port={self.metrics_port}: a port is at most {_MAX_PORT}"
            )
        if (self.drain_every_commits or self.drain_every_s) and not self.drain_directory:
            raise ConfigurationError("draining needs drain_directory, where to drain to")
        location(self.drain_directory)  # a URL without a driver is refused here
        self.tls.load()  # what agents would refuse is refused here

    @classmethod
    def load(cls, explicit: Mapping[str, Any]) -> "JobSettings":
        """Read `explicit` values, else `TWINCKPT_<NAME>` from the environment, else defaults.

        Raises ConfigurationError for an unknown name, a value of the wrong type or out of range,
        and for a variable that is called nearly like a setting: it would change nothing.
        """
        names = {field.name for field in fields(cls)}
        for unknown in explicit.keys() - names - _OF_TORCHRUN:
            near = difflib.get_close_matches(unknown, names, n=1, cutoff=0.0)[0]
            raise ConfigurationError(
                f"{unknown}={explicit[unknown]!r}: there is no such setting; is it {near}? "
                "docs/configuration.md lists them"
            )
        ours = {variable for variable in os.environ if variable.startswith(_PREFIX)}
        for variable in ours - {_variable(name) for name in names}:
            suffix = variable.removeprefix(_PREFIX).lower()
            meant = difflib.get_close_matches(suffix, names, n=1, cutoff=_MISSPELT)
            if meant:
                raise ConfigurationError(
                    f"{variable}={os.environ[variable]!r}: there is no such setting; is it "
                    f"{_variable(meant[0])}? docs/configuration.md lists them"
                )
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = explicit.get(field.name, os.environ.get(_variable(field.name)))
            if value is not None:
                values[field.name] = _converted(field.name, value, type(field.default))
        return cls(**values)

    @classmethod
    def launched(cls) -> "JobSettings | None":
        """Return what torchrun's rendezvous backend has decided; None under another launcher."""
        text = os.environ.get(LAUNCHED)
        return msgspec.json.decode(text, type=cls) if text else None

    def to_json(self) -> str:
        """Return the settings as `launched` reads them, in the environment variable LAUNCHED."""
        return msgspec.json.encode(self).decode()

    def check_agrees(self, explicit: Mapping[str, Any], refusal: str) -> None:
        """Raise ConfigurationError if a program asks for other settings than these.

        The text is `refusal` with what was `asked`, what is `decided`, and `conf`, what was asked
        as `--rdzv-conf` takes it.
        """
        own = asdict(self)
        differing = {
            name: _converted(name, value, type(own[name]))
            for name, value in explicit.items()
            if _converted(name, value, type(own[name])) != own[name]
        }
        if differing:
            asked = ", ".join(f"{name}={value}" for name, value in differing.items())
            decided = ", ".join(f"{name}={own[name]}" for name in differing)
            conf = asked.replace(", ", ",")
            raise ConfigurationError(refusal.format(asked=asked, decided=decided, conf=conf))

    def environment(self) -> dict[str, str]:
        """Return the variables from which `load` makes these settings again."""
        return {_variable(f.name): str(getattr(self, f.name)) for f in fields(self)}

    @property
    def tls(self) -> TlsFiles:
        """Return the files for TLS, as absolute paths: agents work in another directory."""
        paths = (self.tls_cert, self.tls_key, self.tls_ca)
        return TlsFiles(*(os.path.abspath(path) if path else "" for path in paths))

    def root(self) -> RootConfig:
        """Return the part that the root agent needs."""
        return RootConfig(
            replicas=self.replicas,
            placement=self.placement,
            num_slots=self.num_slots,
            heartbeat_timeout_s=self.heartbeat_timeout_s,
            last_call_s=self.last_call_s,
            drain_every_commits=self.drain_every_commits,
            drain_every_s=self.drain_every_s,
        )


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.upper()}"


def _converted(name: str, value: Any, kind: type) -> Any:
    try:
        converted = kind(value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name}={value!r}: {error}") from error
    if isinstance(value, float) and converted != value:
        raise ConfigurationError(f"{name}={value!r}: a whole number")
    return converted


class RootCandidate:
    """This machine's part in the job having a root agent, under the store that an endpoint names.

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
        """Return where the root agent is, if that is fixed; else a port that is none."""
        root = None if self.store.elects_successors else self.store.root()
        return (root.host, root.port) if root else ("", 0)

    def start(self) -> None:
        """Do it now; called before each generation.

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

    def _start(self) -> None:
        self._looked_s = time.monotonic()
        host, port = self.address if self.address[0] else (self._settings.host, 0)
        self.process = start_root_agent(
            _root_agent(self._settings, host, port, os.getpid(), self.endpoint, self._run_id)
        )


def start_root_if_local(
    settings: JobSettings, host: str, port: int, watch_pid: int | None = None, run_id: str = ""
) -> subprocess.Popen[bytes] | None:
    """Start the job's root agent here if `host` is this machine and nobody listens yet.

    It ends with process `watch_pid`, by default the calling one. Returns it; None if not needed.
    """
    if _listens(host, port) or not _is_local(host):
        return None
    config = _root_agent(settings, host, port, watch_pid or os.getpid(), run_id=run_id)
    process = start_root_agent(config)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not _listens(host, port):
        # One that lost the race for the port ends, and the winner listens.
        if time.monotonic() > deadline_s:
            raise AgentUnavailableError(
                f"no root agent listens on {host}:{port} after {START_TIMEOUT_S:.0f} s "
                f"(exit status {process.poll()}); see its messages above"
            )
        time.sleep(0.02)
    return process


def _root_agent(
    settings: JobSettings, host: str, port: int, watch_pid: int, store: str = "", run_id: str = ""
) -> RootAgentConfig:
    return RootAgentConfig(
        host,
        port,
        settings.root(),
        watch_pid=watch_pid,
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
    watch_pid: int,
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
        watch_pid=watch_pid,
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


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of this machine that nobody uses now.

    Raises ConfigurationError if `host` is not this machine.
    """
    try:
        with socket.create_server((host, 0)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigurationError(
            f"host={host}: {error.strerror}; name an address of this machine that its peers reach"
        ) from error
