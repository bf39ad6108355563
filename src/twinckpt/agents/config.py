"""What an agent process is told when it starts: one JSON argument, no secrets in it."""

from dataclasses import asdict, dataclass, field

import msgspec

from twinckpt.core.root import RootConfig
from twinckpt.net.tls import TlsFiles

UNNAMED = {"", "none"}  # what torchrun says where --rdzv-id is left out


@dataclass(frozen=True, slots=True)
class RootAgentConfig:
    """Settings of the root agent.

    It listens at `host` and `port`; or is elected in the control `store` that is named, and
    listens at some port of `host`. The agent ends with the last of the processes `watched`.
    `event_log` is a JSON-lines file, or a directory of them; Prometheus metrics are served where
    `metrics_port` is not 0.
    """

    host: str
    port: int
    job: RootConfig = field(default_factory=RootConfig)
    watched: tuple[int, ...] = ()
    event_log: str = ""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    tls: TlsFiles = field(default_factory=TlsFiles)
    store: str = ""
    machine: str = ""
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class WorkerAgentConfig:
    """Settings of one machine's worker agent.

    The root agent is at `root_host` and `root_port`, or where the control `store` says.
    `host` is the address that peers use to reach this machine's slots; `capacity_bytes`
    limits the arena (None: what the machine has); what the root's host does not acknowledge for
    `heartbeat_timeout_s` means that it is out of reach; ranks silent for `hang_timeout_s` are
    killed (0: never). Resident copies are verified again at `scrub_bytes_per_s` (0: never),
    and copied to persistent storage at no more than `drain_bytes_per_s` (0: as fast as it goes).
    `job` is what this machine was told of the job, and `run_id` is its name; the root compares
    them with its own.
    """

    machine: str
    socket_name: str
    root_host: str
    root_port: int
    host: str = "127.0.0.1"
    num_slots: int = 2
    capacity_bytes: int | None = None
    heartbeat_interval_s: float = 0.1
    heartbeat_timeout_s: float = 1.0
    hang_timeout_s: float = 0.0
    scrub_bytes_per_s: float = 64.0 * (1 << 20)
    drain_directory: str = ""
    drain_keep: int = 2
    drain_bytes_per_s: float = 0.0
    watched: tuple[int, ...] = ()
    log_file: str = ""
    event_log: str = ""
    failure_domain: str = ""
    tls: TlsFiles = field(default_factory=TlsFiles)
    store: str = ""
    job: RootConfig | None = None
    run_id: str = ""


def to_json(config: RootAgentConfig | WorkerAgentConfig) -> str:
    """Return the configuration as the argument of an agent's command line."""
    return msgspec.json.encode(config).decode()


def named_settings(job: RootConfig) -> dict[str, str]:
    """Return what a machine was told of the job, for the root to compare."""
    return {name: str(value) for name, value in asdict(job).items()}


def worker_config(text: str) -> WorkerAgentConfig:
    """Parse a worker agent's argument."""
    return msgspec.json.decode(text, type=WorkerAgentConfig)


def root_config(text: str) -> RootAgentConfig:
    """Parse a root agent's argument."""
    return msgspec.json.decode(text, type=RootAgentConfig)
