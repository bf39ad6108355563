"""What `--config` may say, and what each rule depends on. Called when the workflow is parsed."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from twinckpt.errors import ConfigurationError
from twinckpt.experiments.compose import load
from twinckpt.experiments.config import EXPERIMENTS, relevant
from twinckpt.results.provenance import config_sha256
from twinckpt.results.samples import VARIANT, VARIANT_IN_WORDS

SOURCE = Path("src/twinckpt")
# What an experiment runs, layers and modules; an edit of one of them measures anew.
MEASURED_LAYERS = (
    *("core", "memory", "net", "agents", "checkpointer", "training", "results", "experiments"),
    *("errors.py", "meeting.py", "run.py"),
)
# What an experiment needs beyond those, and the experiments whose samples it reads.
ALSO_RUNS = {"wasted_time": ("simulation",), "control_plane": ("simulation",)}
READS = {"wasted_time": ("save_cost", "recovery_time", "throughput")}
_KEYS = {"scale": "laptop", "name": "default", "overrides": ""}
# Settings that the workflow itself decides, and what decides them.
_OWN = {
    "experiment": "each rule sets its own",
    "out": "use --config name=NAME",
    "variant": "use --config name=NAME",
    "scale": "use --config scale=SCALE",
}


class Settings:
    """The validated settings of one invocation."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Check everything before any rule runs; ends Snakemake with one clear line if wrong."""
        unknown = sorted(set(config) - set(_KEYS))
        if unknown:
            _stop(f"--config knows {', '.join(_KEYS)}, not {', '.join(unknown)}")
        given = {key: config.get(key, default) for key, default in _KEYS.items()}
        # Snakemake reads `KEY=` as None.
        chosen = {key: "" if value is None else str(value) for key, value in given.items()}
        self.name, self.scale = chosen["name"], chosen["scale"]
        if isinstance(given["name"], float):  # 1.10 would lie where 1.1 does
            _stop(f"--config name={self.name}: Snakemake reads a number; begin it with a letter")
        if not VARIANT.fullmatch(self.name):
            _stop(f"--config name={self.name}: {VARIANT_IN_WORDS}")
        if self.name == "recorded":
            _stop("--config name=recorded: results/recorded/ holds other machines' results")
        self.results = Path("results") / self.name
        self.overrides = [f"scale={self.scale}", f"variant={self.name}"]
        self.overrides += _checked(chosen["overrides"])
        self.is_default = self.name == "default"

    @property
    def arguments(self) -> str:
        """The settings as they stand on an experiment's command line.

        Not for `params`: Snakemake would measure everything anew when any of them changes,
        where `digest` names what an experiment depends on.
        """
        return shlex.join(self.overrides)

    def digest(self, experiment: str) -> str:
        """Return a hash of the settings that this experiment's results depend on."""
        return config_sha256(self._relevant(experiment))

    def files(self, experiment: str) -> list[str]:
        """Return the files that these settings have an experiment read."""
        path = self._relevant(experiment).get("data", {}).get("path")
        return [path] if path else []

    def _relevant(self, experiment: str) -> dict[str, Any]:
        try:
            return relevant(load(experiment, self.overrides))
        except ConfigurationError as error:
            _stop(str(error))


def sources(*layers: str) -> list[str]:
    """Return the files of some layers, as inputs of a rule; a layer may be a single module."""
    modules = [SOURCE / layer for layer in layers if layer.endswith(".py")]
    packages = [
        path
        for layer in layers
        for path in (SOURCE / layer).rglob("*")
        if path.suffix in (".py", ".c", ".cu")
    ]
    return sorted(str(path) for path in [*modules, *packages])


def _checked(text: str) -> list[str]:
    """Return the settings of `--config overrides`; blanks within a value part nothing."""
    overrides = re.split(r"\s+(?=[+~]*[\w./@]+=)", text.strip()) if text.strip() else []
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in _OWN:
            _stop(f"--config overrides cannot set {key}: {_OWN[key]}")
    return overrides


def _stop(message: str) -> NoReturn:
    print(f"twinckpt: {message}", file=sys.stderr)
    sys.exit(2)


__all__ = ["ALSO_RUNS", "EXPERIMENTS", "MEASURED_LAYERS", "READS", "Settings", "sources"]
