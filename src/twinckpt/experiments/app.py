"""What all experiments share: the Hydra entry point, the output directory, running clusters."""

import logging
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from twinckpt.agents.local_cluster import ClusterConfig, LocalCluster
from twinckpt.errors import ConfigurationError, TwinckptError
from twinckpt.experiments.compose import (
    config_directory,
    jobs_of,
    load,
    register_schema,
    validated,
)
from twinckpt.experiments.config import ExperimentConfig, own_settings, relevant
from twinckpt.results.atomic import write_text
from twinckpt.results.jsonl import last_event, rank_log, read_jsonl
from twinckpt.results.provenance import collect, write_provenance
from twinckpt.results.samples import Sample, write_samples
from twinckpt.training.config import TrainingConfig

logger = logging.getLogger("twinckpt.experiments")

_MULTIRUN = ("-m", "--multirun")
# Hydra's own options, plugins and values, which only its entry point understands.
_LEFT_TO_HYDRA = re.compile(r"-(?!m$|-multirun$)|\+?hydra/|.*\$\{hydra[:.]")


class Experiment:
    """One run of one experiment: where it writes, and how it starts clusters."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        self.out = Path(config.out)
        self.samples: list[Sample] = []
        self._has_data_file = False
        self.facts: dict[str, Any] = {}  # further entries of the provenance

    def add(self, method: str, metric: str, value: float, unit: str, **place: Any) -> None:
        """Add one sample; `place` names rank, step, repeat or phase where they apply."""
        self.samples.append(
            Sample(
                experiment=self.config.experiment,
                variant=self.config.variant,
                method=method,
                metric=metric,
                value=float(value),
                unit=unit,
                **place,
            )
        )

    def cluster(
        self,
        name: str,
        program: Sequence[str],
        training: TrainingConfig,
        *,
        warm: bool = False,
        env: Mapping[str, str] | None = None,
        **cluster: Any,
    ) -> LocalCluster:
        """Return a cluster that will run `program CONFIG.json` below `logs/<name>`."""
        logger.info("%s: running", name)
        run_dir = self.fresh_log_directory(name)
        path = (run_dir / "training.json").resolve()
        data = replace(training.data, path=str(self._data_file()))
        replace(training, data=data).write(path)
        section = asdict(self.config.cluster)
        launcher = ["-m", "twinckpt.run", "--preload=twinckpt.training.setup"] if warm else []
        return LocalCluster(
            ClusterConfig(**{**section, "num_slots": self.config.checkpoint.num_slots, **cluster}),
            [*launcher, *program, str(path)],
            run_dir,
            env,
        )

    def _data_file(self) -> Path:
        """Return a file of the training data, for ranks to map; written at the first use."""
        from twinckpt.training.corpus import Corpus  # imports torch: not before it is needed

        path = (self.out / "logs" / "data.bin").resolve()
        if not self._has_data_file:
            path.parent.mkdir(parents=True, exist_ok=True)
            Corpus.load(self.config.data).write(path)
            self._has_data_file = True
        return path

    def fresh_log_directory(self, name: str) -> Path:
        """Return `logs/<name>`, after deleting what an earlier run left there."""
        directory = self.out / "logs" / name
        if directory.exists():
            shutil.rmtree(directory)
        return directory

    def log_of(self, cluster: LocalCluster, rank: int) -> list[dict[str, Any]]:
        """Return all that a rank has logged in a run."""
        return read_jsonl(rank_log(cluster.run_dir, rank))

    def measured(self, cluster: LocalCluster, rank: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (repeat, entry) for each sample of a rank; repeats count from after the warm-up."""
        for entry in self.log_of(cluster, rank):
            if entry["event"] == "sample" and entry["repeat"] >= self.config.measure.warmup:
                yield entry["repeat"] - self.config.measure.warmup, entry

    def last_of(self, cluster: LocalCluster, rank: int) -> dict[str, Any] | None:
        """Return the last entry of a rank's log, or None; does not disturb measuring."""
        return last_event(rank_log(cluster.run_dir, rank))

    @property
    def rounds(self) -> int:
        """Return how often each rank measures, warm-up included."""
        return self.config.measure.warmup + self.config.measure.repeats

    @property
    def num_ranks(self) -> int:
        """Return the number of ranks in the whole cluster."""
        return self.config.cluster.num_machines * self.config.cluster.ranks_per_machine


def run_app(name: str, measure: Callable[[Experiment], None]) -> None:
    """Run an experiment as `python -m twinckpt.experiments.<name> key=value …`.

    Results are written when they are complete: a failed or interrupted run leaves only its logs.
    Wrong settings end the process with exit status 2 and one line, before anything starts.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # If Snakemake or a time limit ends this process, its clusters end too, as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    arguments = [_in_full(name, argument) for argument in sys.argv[1:]]
    _refuse_wrong_settings(name, arguments)
    register_schema()
    sys.argv[1:] = _with_experiment(name, arguments)
    done: set[str] = set()

    def task(composed: DictConfig) -> None:
        try:
            config = validated(composed, name)
            _refuse_same_place(config.out, done)
            _run(config, OmegaConf.to_yaml(composed, resolve=True), measure)
        except TwinckptError as error:
            sys.exit(f"twinckpt: {name} failed: {error}")

    directory = str(config_directory())
    hydra.main(version_base="1.3", config_path=directory, config_name="config")(task)()


def _in_full(name: str, argument: str) -> str:
    """Return an argument with the section of the experiment's own settings: `clusters=100`."""
    key, equals, value = argument.partition("=")
    return own_settings(name).get(key, key) + equals + value


def _with_experiment(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the experiment before the first setting.

    No option of Hydra's may stand between settings; `--multirun` comes first.
    """
    arguments = sorted(arguments, key=lambda word: word not in _MULTIRUN)  # before all settings
    settings = [i for i, word in enumerate(arguments) if "=" in word and not word.startswith("-")]
    at = settings[0] if settings else 0
    return [*arguments[:at], f"experiment={name}", *arguments[at:]]


def _refuse_wrong_settings(name: str, arguments: Sequence[str]) -> None:
    """Exit with status 2 and one line if a setting is wrong, in any job of a sweep."""
    if any(_LEFT_TO_HYDRA.match(argument) for argument in arguments):
        return
    settings = [argument for argument in arguments if argument not in _MULTIRUN]
    done: set[str] = set()
    try:
        for job in jobs_of(settings) if len(settings) < len(arguments) else [settings]:
            _refuse_same_place(load(name, job).out, done)
    except ConfigurationError as error:
        print(f"twinckpt: {error}", file=sys.stderr)
        sys.exit(2)


def _refuse_same_place(out: str, done: set[str]) -> None:
    """Add a job's directory to `done`; ConfigurationError if an earlier job of the sweep has it."""
    if out in done:
        raise ConfigurationError(
            f"out={out} holds the job before: let it differ from job to job of a sweep, as "
            "out='results/sweep/${model.layers}' does"
        )
    done.add(out)


def _run(config: ExperimentConfig, resolved: str, measure: Callable[[Experiment], None]) -> None:
    experiment = Experiment(config)
    settings = relevant(config)
    facts: dict[str, Any] = {}
    if "data" in settings:
        facts["data_sha256"] = _data_sha256(config)
    provenance = collect(settings, [config.optimization.seed], facts)
    _clear(experiment.out)
    logger.info("%s (%s) → %s", config.experiment, config.scale, experiment.out)
    measure(experiment)
    write_text(experiment.out / "config.yaml", resolved)
    write_provenance(experiment.out / "provenance.json", provenance | experiment.facts)
    write_samples(experiment.out / "samples.csv", experiment.samples)
    logger.info("%s: %d samples", config.experiment, len(experiment.samples))


def _clear(out: Path) -> None:
    """Make the directory and remove older results; ConfigurationError if it is not writable.

    It is tried now, so that a run does not fail after hours.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in ("samples.csv", "provenance.json", "config.yaml"):
            (out / stale).unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigurationError(f"out={out}: {error.strerror}") from error


def _data_sha256(config: ExperimentConfig) -> str:
    """Return the digest of the training data; ConfigurationError if there is too little of it."""
    from twinckpt.training.corpus import Corpus  # imports torch: not before settings are right

    corpus = Corpus.load(config.data)
    if len(corpus.data) <= config.model.context + 1:
        raise ConfigurationError(
            f"{len(corpus.data)} bytes of training data: model.context={config.model.context} "
            "needs more"
        )
    return corpus.sha256
