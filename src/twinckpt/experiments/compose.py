"""Composing a configuration from conf/ and overrides, for experiments and the workflow."""

import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twinckpt.errors import ConfigurationError
from twinckpt.experiments.config import ExperimentConfig


def config_directory() -> Path:
    """Return conf/: `TWINCKPT_CONF`, or that of the checkout that this package lies in."""
    named = os.environ.get("TWINCKPT_CONF")
    path = Path(named) if named else Path(__file__).parents[3] / "conf"
    if not (path / "config.yaml").is_file():
        raise ConfigurationError(
            f"{path} holds no config.yaml; run from a checkout, or set TWINCKPT_CONF to its conf/"
        )
    return path.resolve()


def register_schema() -> None:
    """Let Hydra check every key and type against `ExperimentConfig`."""
    ConfigStore.instance().store(name="schema", node=ExperimentConfig)


def load(experiment: str, overrides: Sequence[str]) -> ExperimentConfig:
    """Return the validated configuration of an experiment.

    Raises ConfigurationError, in one line, for an unknown key or an impossible value.
    """
    register_schema()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            composed = compose("config", overrides=[f"experiment={experiment}", *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(_one_line(error)) from error
    return validated(composed, experiment)


def jobs_of(sweep: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep; raises ConfigurationError."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(list(sweep)), None)
    except HydraException as error:
        raise ConfigurationError(_one_line(error)) from error
    return jobs


def validated(composed: DictConfig, experiment: str) -> ExperimentConfig:
    """Return what Hydra composed for an experiment as dataclasses; raises ConfigurationError."""
    _refuse_other_keys(composed, "")
    try:
        config = OmegaConf.to_object(composed)
    except ConfigurationError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigurationError(_one_line(error)) from error
    assert isinstance(config, ExperimentConfig)
    if not config.out:
        raise ConfigurationError("out=: name a directory for the results, as out=results/mine does")
    if config.experiment != experiment:
        raise ConfigurationError(
            f"experiment={config.experiment}: this is {experiment}; for the other one run "
            f"python -m twinckpt.experiments.{config.experiment}"
        )
    return config


def _refuse_other_keys(section: DictConfig, name: str) -> None:
    """Raise ConfigurationError for a key that `+KEY=VALUE` added or `~KEY` removed.

    An added key would have no effect.
    """
    kind = OmegaConf.get_type(section)
    if not is_dataclass(kind):
        return
    for key in sorted({f.name for f in fields(kind)} ^ set(map(str, section))):
        raise ConfigurationError(
            f"{name}{key}: settings can be changed, not added or left out; --help lists them"
        )
    for inner, value in section.items_ex(resolve=False):
        if isinstance(value, DictConfig):
            _refuse_other_keys(value, f"{name}{inner!s}.")


def _one_line(error: BaseException) -> str:
    """Return what went wrong in one line, with the cause where Hydra's message leaves it out."""
    told, _, _ = str(error).partition("Config search path")
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    hints = ("full_key", "object_type", "reference_type", "To append to your config")
    said = "; ".join(line for line in lines if not line.startswith(hints))
    if said.startswith("LexerNoViableAltException"):
        setting = lines[0].partition(": ")[2]
        return f"{setting}: Hydra wants such characters between quotes, KEY='\"VALUE\"'"
    if said.startswith("Error merging override") and error.__cause__:
        return f"{said}: {_one_line(error.__cause__)}"
    if said.startswith("Could not override"):
        return f"{said} There is no such setting; --help lists them"
    return said
