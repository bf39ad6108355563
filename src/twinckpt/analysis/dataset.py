"""A variant's results, each `<results>/<experiment>/samples.csv`, read into one table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from twinckpt.results.provenance import read_provenance
from twinckpt.results.samples import COLUMNS, Sample, SampleError, read_samples

EXPERIMENTS = (
    *("save_cost", "recovery_time", "throughput", "training", "wasted_time", "limits"),
    *("placement", "interleaving", "control_plane", "peers", "scaling", "soak"),
)


class NotMeasured(Exception):
    """Samples that a result needs are missing; the message says which and how to get them."""


class Dataset:
    """All samples and provenance below one results directory. Reading validates them."""

    def __init__(self, results: Path) -> None:
        self.results = Path(results)
        if not self.results.is_dir():
            raise SampleError(f"{self.results}: no such directory; run an experiment first")
        self.paths = {path.parent.name: path for path in self.results.glob("*/samples.csv")}
        if not self.paths:
            raise SampleError(f"{self.results}: no */samples.csv below it; run an experiment first")
        read = {path: read_samples(path) for path in self.paths.values()}
        _refuse_second_ones(read)
        rows = [asdict(sample) for samples in read.values() for sample in samples]
        self.samples = pd.DataFrame(rows, columns=list(COLUMNS))
        self.provenance: dict[str, dict[str, Any]] = {
            name: read_provenance(path.with_name("provenance.json"))
            for name, path in sorted(self.paths.items())
            if path.with_name("provenance.json").exists()
        }

    def has(self, experiment: str) -> bool:
        """Return whether the experiment has samples."""
        return experiment in self.paths

    def select(self, experiment: str, metric: str, **columns: str) -> pd.DataFrame:
        """Return the rows of one experiment and metric whose further columns equal these values.

        Raises `NotMeasured` rather than returning an empty table.
        """
        if not self.has(experiment):
            raise NotMeasured(
                f"{self.results / experiment}: not measured; run "
                f"python -m twinckpt.experiments.{experiment} out={self.results / experiment}"
            )
        table = self.samples
        table = table[(table.experiment == experiment) & (table.metric == metric)]
        for column, value in columns.items():
            table = table[table[column] == value]
        if table.empty:
            wanted = {"metric": metric, **columns}
            raise NotMeasured(f"{self.paths[experiment]}: no sample with {wanted}")
        return table

    def repeats(
        self, experiment: str, metric: str, over_ranks: str = "max", **columns: str
    ) -> list[float]:
        """Return one value per repeat: the ranks' highest (`max`) or lowest (`min`) one.

        A checkpoint is only as good as its last shard, so ranks are reduced, not averaged.
        """
        table = self.select(experiment, metric, **columns)
        groups = table.groupby(["repeat", "step"], dropna=False).value
        return [float(value) for value in groups.agg(over_ranks)]

    def setting(self, experiment: str, section: str, name: str, default: Any) -> Any:
        """Return a setting that the experiment ran with, from its provenance."""
        config = self.provenance.get(experiment, {}).get("config", {})
        return config.get(section, {}).get(name, default)

    def hardware(self) -> dict[str, Any]:
        """Return the hardware of the results; SampleError if they come from different machines."""
        found = {
            name: provenance.get("hardware", {}) for name, provenance in self.provenance.items()
        }
        distinct: list[dict[str, Any]] = []
        for hardware in found.values():
            if not any(_same_machine(hardware, other) for other in distinct):
                distinct.append(hardware)
        if len(distinct) > 1:
            raise SampleError(
                f"{self.results}: results of different hardware in one variant "
                f"({', '.join(found)}); rerun them on one machine or under another name"
            )
        return distinct[0] if distinct else {}


def _refuse_second_ones(read: Mapping[Path, Sequence[Sample]]) -> None:
    """Raise SampleError if two files hold the same experiment: their repeats would be mixed."""
    first: dict[str, Path] = {}
    for path, samples in sorted(read.items()):
        for experiment in {sample.experiment for sample in samples}:
            other = first.setdefault(experiment, path)
            if other != path:
                raise SampleError(
                    f"{path}: samples of {experiment}, which {other} holds as well; move one of "
                    "them to a directory of its own, outside this variant's"
                )


def _same_machine(first: dict[str, Any], second: dict[str, Any]) -> bool:
    keys = ("cpu_model", "num_cores", "gpus")
    return all(first.get(key) == second.get(key) for key in keys)
