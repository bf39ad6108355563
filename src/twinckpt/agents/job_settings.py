"""Where a job's settings come from.

They come through torchrun's `--rdzv-conf`, arguments of `Checkpointer`, or `TWINCKPT_*` in the
environment; an explicit one wins. All of them are listed in docs/configuration.md.
"""

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec

from twinckpt.core.root import RootConfig
from twinckpt.errors import ConfigurationError
from twinckpt.memory.drained import location
from twinckpt.net.tls import TlsFiles

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
        self.root()  # what the root agent would refuse is refused here
        if self.heartbeat_interval_s == 0:
            raise ConfigurationError("heartbeat_interval_s=0: it must be more than 0")
        if self.heartbeat_timeout_s < 3 * self.heartbeat_interval_s:
            raise ConfigurationError(
                f"heartbeat_timeout_s={self.heartbeat_timeout_s} is too short for "
                f"heartbeat_interval_s={self.heartbeat_interval_s}: make it at least three times"
            )
        for name in _NEVER_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name}={getattr(self, name)}: 0 or more, and finite")
        if self.drain_keep < 1:
            raise ConfigurationError(f"drain_keep={self.drain_keep}: at least 1, the newest step")
        if self.metrics_port > _MAX_PORT:
            raise ConfigurationError(
                f"metrics_port={self.metrics_port}: a port is at most {_MAX_PORT}"
            )
        if self.is_draining and not self.drain_directory:
            raise ConfigurationError("draining needs drain_directory, where to drain to")
        for name, value in asdict(self).items():
            if isinstance(value, str) and not _is_text(value):
                raise ConfigurationError(f"{name}={value!a}: not in UTF-8")
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
    def is_draining(self) -> bool:
        """Return whether committed steps go to persistent storage."""
        return bool(self.drain_every_commits or self.drain_every_s)

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


def _is_text(value: str) -> bool:
    """Return whether a value is text that agents can be told; environments may hold any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


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
