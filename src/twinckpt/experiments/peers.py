"""`peers`: the alternatives to this library, measured on the same state, ranks and clocks.

Their packages lie in a directory of their own (`peers.packages`), which only the ranks of this
experiment see; `snakemake peers` installs them there. Not part of the default workflow.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from twinckpt.agents.local_cluster import ClusterFailed, LocalCluster
from twinckpt.errors import ConfigurationError
from twinckpt.experiments.app import Experiment, run_app

TIMEOUT_S = 3600.0
TRIAL_TIMEOUT_S = 90.0
PACKAGES = ("torchsnapshot", "lm-resiliency", "nvidia-resiliency-ext", "dlrover", "torchft")
MEMORY = Path("/dev/shm")  # what the peers themselves recommend
DLROVER_SOCKETS = Path("/tmp/ckpt_sock")  # hard-coded in DLRover


def measure(experiment: Experiment) -> None:
    """Run one cluster, on which every rival saves and restores in turn, and add all samples."""
    section, config = experiment.config.peers, experiment.config
    packages = Path(section.packages).resolve()
    if not packages.is_dir():
        raise ConfigurationError(
            f"peers.packages={section.packages}: no such directory; `snakemake --cores all peers` "
            "installs the peers there and measures"
        )
    rounds = experiment.rounds
    program = ["-m", "twinckpt.experiments.ranks.peers"]
    arguments = [str(section.size_mib), str(section.num_tensors), str(rounds)]
    paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths)}
    with _directories(experiment) as (disk, memory):
        with experiment.cluster(
            "cluster",
            [*program, *arguments, str(disk), str(memory)],
            config.training(method="none", steps=rounds),
            warm=True,
            env=environment,
            ranks_per_machine=1,
        ) as cluster:
            num_ranks = config.cluster.num_machines  # a rank each
            cluster.wait_until(
                lambda: _all_saved(experiment, cluster, num_ranks), timeout_s=TIMEOUT_S
            )
            cluster.kill_rank(0)
            cluster.wait(TIMEOUT_S)
            for rank in range(num_ranks):
                for repeat, entry in experiment.measured(cluster, rank):
                    method, metric, value = entry["method"], entry["metric"], entry["value"]
                    experiment.add(method, metric, value, "s", rank=rank, repeat=repeat)
        replicas = _try_dlrover_replicas(disk, memory, environment)
    experiment.facts["peers"] = {name: _version(packages, name) for name in PACKAGES} | {
        "reasons": _reasons(experiment, num_ranks, cluster),
        "dlrover_replicas": replicas,
    }


@contextmanager
def _directories(experiment: Experiment) -> Iterator[tuple[Path, Path]]:
    """Yield directories for files, on a disk and in memory; delete all that peers left behind."""
    disk = (experiment.out / "scratch").resolve()
    memory = MEMORY / f"twinckpt-peers-{os.getpid()}"
    DLROVER_SOCKETS.mkdir(exist_ok=True)  # else its ranks, which share a host here, race for it
    try:
        yield disk, memory
    finally:
        left = [disk, *MEMORY.glob(f"{memory.name}*"), *DLROVER_SOCKETS.glob(f"{memory.name}*")]
        for path in left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _try_dlrover_replicas(disk: Path, memory: Path, environment: dict[str, str]) -> str:
    """Return the result of restoring a lost machine's shard from DLRover's replicas, in words."""
    trial = memory.with_name(f"{memory.name}-trial")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "twinckpt.experiments.ranks.rival_dlrover", str(trial), str(disk / "trial")),
    ]
    with subprocess.Popen(
        command, env=os.environ | environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=TRIAL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"no answer within {TRIAL_TIMEOUT_S:.0f} s"
    if process.returncode == 0:
        return "restored"
    errors = re.findall(r"^\[rank\d+\]: (\w+(?:Error|Exception): .*)$", output, re.MULTILINE)
    return str(errors[0]) if errors else f"exit status {process.returncode}"


def _all_saved(experiment: Experiment, cluster: LocalCluster, num_ranks: int) -> bool:
    if any(event["event"] == "generation_broken" for event in cluster.events):
        raise ClusterFailed(f"a rank was lost while it measured; see {cluster.run_dir}")
    last = (experiment.last_of(cluster, rank) for rank in range(num_ranks))
    return all(entry is not None and entry["event"] == "saved" for entry in last)


def _reasons(experiment: Experiment, num_ranks: int, cluster: LocalCluster) -> dict[str, str]:
    """Return why each rival that was left out failed."""
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
