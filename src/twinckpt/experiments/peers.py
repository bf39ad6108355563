"""`peers`: what users would take instead of this library, on the same state, ranks and clocks.

Their packages lie in a directory of their own (`peers.packages`), which only the ranks of this
experiment see: `snakemake peers` installs them there. Not part of the default workflow.
"""

import json
import os
import shutil
from importlib import metadata
from pathlib import Path

from twinckpt.agents.local_cluster import LocalCluster
from twinckpt.errors import ConfigurationError
from twinckpt.experiments.app import Experiment, run_app

TIMEOUT_S = 3600.0
PACKAGES = ("lm-resiliency", "torchft")


def measure(experiment: Experiment) -> None:
    """Run one cluster; every rival saves and restores in turn on it."""
    section, config = experiment.config.peers, experiment.config
    packages = Path(section.packages).resolve()
    if not packages.is_dir():
        raise ConfigurationError(
            f"peers.packages={section.packages}: no such directory; `snakemake --cores all peers` "
            "installs the peers there and measures"
        )
    rounds = config.measure.warmup + config.measure.repeats
    scratch = (experiment.out / "scratch").resolve()
    program = ["-m", "twinckpt.experiments.ranks.peers"]
    arguments = [str(section.size_mib), str(section.num_tensors), str(rounds), str(scratch)]
    paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        with experiment.cluster(
            "cluster",
            program + arguments,
            config.training(method="none", steps=rounds),
            warm=True,
            env={"PYTHONPATH": os.pathsep.join(paths)},
            ranks_per_machine=1,
        ) as cluster:
            num_ranks = experiment.num_ranks
            cluster.wait_until(lambda: _all_saved(experiment, cluster), timeout_s=TIMEOUT_S)
            cluster.kill_rank(0)
            cluster.wait(TIMEOUT_S)
            for rank in range(num_ranks):
                _add_rank(experiment, rank, experiment.log_of(cluster, rank))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    experiment.facts["peers"] = {name: _version(packages, name) for name in PACKAGES} | {
        "reasons": _reasons(experiment, num_ranks, cluster)
    }


def _all_saved(experiment: Experiment, cluster: LocalCluster) -> bool:
    paths = (cluster.run_dir / "ranks" / f"rank-{r}.jsonl" for r in range(experiment.num_ranks))
    return all(
        path.exists() and any(json.loads(line)["event"] == "saved" for line in path.open())
        for path in paths
    )


def _add_rank(experiment: Experiment, rank: int, log: list[dict[str, object]]) -> None:
    warmup = experiment.config.measure.warmup
    for entry in log:
        repeat = int(str(entry.get("repeat", -1))) - warmup
        if entry["event"] == "sample" and repeat >= 0:
            method, metric = str(entry["method"]), str(entry["metric"])
            value = float(str(entry["value"]))
            experiment.add(method, metric, value, "s", rank=rank, repeat=repeat)


def _reasons(experiment: Experiment, num_ranks: int, cluster: LocalCluster) -> dict[str, str]:
    """Return why a rival was left out."""
    return {
        entry["method"]: entry["reason"]
        for rank in range(num_ranks)
        for entry in experiment.log_of(cluster, rank)
        if entry["event"] == "failed"
    }


def _version(packages: Path, name: str) -> str | None:
    found = metadata.distributions(name=name, path=[str(packages)])
    return next((one.version for one in found), None)


if __name__ == "__main__":
    run_app("peers", measure)
