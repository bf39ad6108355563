"""Settings of the experiments, as Hydra composes them from conf/; validated before anything starts.

All experiments share one schema, so any override works with any of them; `relevant` says
which part of it an experiment depends on.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from twinckpt.errors import ConfigurationError
from twinckpt.experiments.sections import (
    CheckpointSection,
    ClusterSection,
    ControlPlaneSection,
    FailureSection,
    GoodputSection,
    InterleavingSection,
    LimitsSection,
    MeasureSection,
    OptimizationSection,
    PeersSection,
    PlacementSection,
    RecoverySection,
    SaveCostSection,
    ScalingSection,
    SoakSection,
)
from twinckpt.results.samples import VARIANT, VARIANT_IN_WORDS
from twinckpt.training.config import DataConfig, ModelConfig, TrainingConfig, one_of

EXPERIMENTS = (
    *("save_cost", "recovery_time", "throughput", "training", "wasted_time", "limits"),
    *("placement", "interleaving", "control_plane"),
)
ON_REQUEST = ("peers", "scaling", "soak")  # not part of the default workflow


@dataclass
class ExperimentConfig:
    """All settings; `out` is the directory for results, `variant` the name of this variant."""

    experiment: str
    scale: str = "laptop"
    out: str = ""
    variant: str = "default"
    cluster: ClusterSection = field(default_factory=ClusterSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    failure: FailureSection = field(default_factory=FailureSection)
    recovery: RecoverySection = field(default_factory=RecoverySection)
    measure: MeasureSection = field(default_factory=MeasureSection)
    save_cost: SaveCostSection = field(default_factory=SaveCostSection)
    limits: LimitsSection = field(default_factory=LimitsSection)
    optimization: OptimizationSection = field(default_factory=OptimizationSection)
    goodput: GoodputSection = field(default_factory=GoodputSection)
    placement: PlacementSection = field(default_factory=PlacementSection)
    control_plane: ControlPlaneSection = field(default_factory=ControlPlaneSection)
    peers: PeersSection = field(default_factory=PeersSection)
    interleaving: InterleavingSection = field(default_factory=InterleavingSection)
    scaling: ScalingSection = field(default_factory=ScalingSection)
    soak: SoakSection = field(default_factory=SoakSection)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        one_of("experiment", self.experiment, EXPERIMENTS + ON_REQUEST)
        if not VARIANT.fullmatch(self.variant):
            raise ConfigurationError(f"variant={self.variant}: {VARIANT_IN_WORDS}")
        if self.experiment == "recovery_time":
            self.recovery.check(self.cluster)
        if self.experiment == "throughput":
            self.measure.check(self.checkpoint)
        if self.experiment == "scaling":
            self.scaling.check(self.cluster)
        if self.experiment == "soak":
            self.soak.check(self.cluster, self.checkpoint)

    def training(self, *, method: str, steps: int, disk_directory: str = "") -> TrainingConfig:
        """Return the configuration of one training run."""
        return TrainingConfig(
            steps=steps,
            batch=self.optimization.batch,
            learning_rate=self.optimization.learning_rate,
            seed=self.optimization.seed,
            sharding=self.optimization.sharding,
            method=method,
            checkpoint_every=self.checkpoint.every,
            disk_directory=disk_directory,
            model=self.model,
            data=self.data,
        )


# Settings without influence on an experiment: changing one of them does not rerun it.
_IRRELEVANT = {
    "limits": (
        *("failure", "optimization", "model", "data", "checkpoint.every"),
        *("checkpoint.drain_every_commits", "cluster.ranks_per_machine"),
        *("measure.steps", "measure.blocks", "measure.block_steps"),
    ),
    "save_cost": (
        *("failure", "measure.steps", "measure.blocks", "measure.block_steps"),
        *("checkpoint.every", "checkpoint.drain_every_commits"),
    ),
    "throughput": (
        *("failure", "measure.steps", "measure.repeats", "measure.warmup"),
        "checkpoint.drain_every_commits",
    ),
    "recovery_time": ("measure", "failure.kinds", "checkpoint.drain_every_commits"),
    "training": (
        "failure.repeats",
        "failure.gap_steps",
        "measure.repeats",
        "measure.warmup",
        "measure.blocks",
        "measure.block_steps",
    ),
    "placement": (
        *("cluster", "checkpoint", "failure", "measure", "model", "data"),
        *("optimization.batch", "optimization.learning_rate", "optimization.sharding"),
    ),
    "interleaving": ("cluster", "checkpoint", "failure", "measure", "optimization.sharding"),
    "wasted_time": ("model", "data", "checkpoint", "failure", "measure"),
    "control_plane": (
        *("cluster", "checkpoint", "failure", "measure", "optimization", "model", "data"),
    ),
}
_IRRELEVANT["soak"] = ("failure", "measure")
_IRRELEVANT["peers"] = _IRRELEVANT["scaling"] = _IRRELEVANT["limits"]
# Sections that one experiment alone uses.
_ONLY = {
    "recovery": "recovery_time",
    "save_cost": "save_cost",
    "goodput": "wasted_time",
    "limits": "limits",
    "placement": "placement",
    "control_plane": "control_plane",
    "peers": "peers",
    "interleaving": "interleaving",
    "scaling": "scaling",
    "soak": "soak",
}


def own_settings(experiment: str) -> dict[str, str]:
    """Return the settings that only this experiment has: short name → `section.name`."""
    sections = [section for section, user in _ONLY.items() if user == experiment]
    known = {f.name: f.default_factory for f in fields(ExperimentConfig)}
    return {
        setting.name: f"{section}.{setting.name}"
        for section in sections
        for setting in fields(known[section])  # type: ignore[arg-type]
    }


def relevant(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings that the results of this experiment depend on, as plain data."""
    values = asdict(config)
    del values["out"], values["scale"]
    others = [section for section, user in _ONLY.items() if user != config.experiment]
    for path in (*_IRRELEVANT[config.experiment], *others):
        section, _, name = path.partition(".")
        if name:
            del values[section][name]
        else:
            del values[section]
    return values
