"""Settings of a training run; Hydra fills them from conf/, a JSON file carries them to ranks.

Plain mutable dataclasses: the only place that defines the settings, their units and limits.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twinckpt.errors import ConfigurationError


@dataclass
class ModelConfig:
    """A GPT: `width` is the size of a token's vector, `context` the window in tokens."""

    vocabulary: int = 256
    context: int = 64
    width: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "width", "layers", "heads"):
            at_least("model." + name, getattr(self, name), 1)
        if self.width % self.heads:
            raise ConfigurationError(
                f"model.width={self.width} must be a multiple of model.heads={self.heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"model.dropout={self.dropout} must be in [0, 1)")
        if self.vocabulary < 256:
            raise ConfigurationError(f"model.vocabulary={self.vocabulary}: bytes need at least 256")


@dataclass
class DataConfig:
    """Where the bytes come from: a file, or the sources of Python's standard library."""

    path: str = ""
    max_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        at_least("data.max_bytes", self.max_bytes, 1 << 12)
        if self.path and not Path(self.path).is_file():
            raise ConfigurationError(f"data.path={self.path}: no such file")


@dataclass
class TrainingConfig:
    """One training run. `method` is how it checkpoints: none, disk or ram.

    Every `fingerprint_every` steps (0: only at the end) each rank logs a hash of its state.
    """

    steps: int = 60
    batch: int = 4
    learning_rate: float = 1e-3
    seed: int = 0
    sharding: str = "fsdp"
    ddp_bucket_bytes: int = 25 << 20
    method: str = "ram"
    checkpoint_every: int = 1
    disk_directory: str = ""
    threads: int = 1
    fingerprint_every: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every", "threads"):
            at_least(name, getattr(self, name), 1)
        at_least("ddp_bucket_bytes", self.ddp_bucket_bytes, 1)
        at_least("fingerprint_every", self.fingerprint_every, 0)
        one_of("sharding", self.sharding, ("fsdp", "ddp"))
        one_of("method", self.method, ("none", "disk", "ram"))
        if self.method == "disk" and not self.disk_directory:
            raise ConfigurationError("method=disk needs disk_directory")

    def write(self, path: Path) -> None:
        """Write the configuration where the ranks can read it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, path: Path) -> "TrainingConfig":
        """Read a configuration that `write` wrote."""
        values: dict[str, Any] = json.loads(path.read_text())
        values["model"] = ModelConfig(**values["model"])
        values["data"] = DataConfig(**values["data"])
        return cls(**values)


def at_least(name: str, value: float, minimum: float) -> None:
    """Raise ConfigurationError unless value ≥ minimum, and finite."""
    if not value >= minimum:  # which NaN is not either
        raise ConfigurationError(f"{name}={value} must be at least {minimum}")
    if value == math.inf:
        raise ConfigurationError(f"{name}={value} must be finite")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigurationError unless value is one of the choices."""
    if value not in choices:
        raise ConfigurationError(f"{name}={value} must be one of {', '.join(choices)}")


def some_of(name: str, values: list[str], choices: tuple[str, ...]) -> None:
    """Raise ConfigurationError unless there are values, and all of them are among the choices."""
    if not values:
        raise ConfigurationError(f"{name}=[]: at least one of {', '.join(choices)}")
    for value in values:
        one_of(name, value, choices)
