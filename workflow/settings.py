"""What `--config` may say, and what each rule depends on. Called when the workflow is parsed."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinckpt.errors import ConfigurationError
from twinckpt.experiments.compose import load
from twinckpt.experiments.config import EXPERIMENTS, relevant
from twinckpt.results.provenance import config_sha256

SOURCE = Path("src/twinckpt")
# Layers whose sources an experiment runs; an edit of one of them measures anew.
MEASURED_LAYERS = ("core", "memory", "net", "agents", "checkpointer", "training", "experiments")
_KEYS = {"scale": "laptop", "name": "default", "overrides": ""}


class Settings:
    """The validated settings of one invocation."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Check everything before any rule runs; ends Snakemake with one clear line if wrong."""
        unknown = sorted(set(config) - set(_KEYS))
        if unknown:
            _stop(f"--config knows {', '.join(_KEYS)}, not {', '.join(unknown)}")
        chosen = {key: str(config.get(key, default)) for key, default in _KEYS.items()}
        self.name, self.scale = chosen["name"], chosen["scale"]
        if not self.name.replace("-", "").replace("_", "").isalnum():
            _stop(f"--config name={self.name}: letters, digits, - and _ only")
        self.results = Path("results") / self.name
        self.overrides = [f"scale={self.scale}", f"variant={self.name}"]
        self.overrides += chosen["overrides"].split()
        self.is_default = self.name == "default"

    def arguments(self, experiment: str) -> str:
        """Return the command line of an experiment."""
        return " ".join(_quoted([*self.overrides, f"out={self.results / experiment}"]))

    def digest(self, experiment: str) -> str:
        """Return a hash of the settings that this experiment's results depend on."""
        try:
            return config_sha256(relevant(load(experiment, self.overrides)))
        except ConfigurationError as error:
            _stop(str(error))
            raise


def sources(*layers: str) -> list[str]:
    """Return the files of some layers, as inputs of a rule."""
    return sorted(str(path) for layer in layers for path in (SOURCE / layer).rglob("*.py"))


def _quoted(words: list[str]) -> list[str]:
    return ["'" + word.replace("'", "'\\''") + "'" for word in words]


def _stop(message: str) -> None:
    print(f"twinckpt: {message}", file=sys.stderr)
    sys.exit(2)


__all__ = ["EXPERIMENTS", "MEASURED_LAYERS", "Settings", "sources"]
