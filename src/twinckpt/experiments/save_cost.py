"""`save_cost`: what a checkpoint costs, to disk, to RAM, and to RAM on two machines.

First the training's own state is saved, with the seed's methods; then states of several sizes,
with DCP and other placements beside them. Clocks are described in docs/results-schema.md.
"""

import shutil

from twinckpt.experiments.app import Experiment, run_app

TIMEOUT_S = 1800.0


def measure(experiment: Experiment) -> None:
    """Run one job in which the methods alternate, then one per size, and one with groups."""
    config = experiment.config
    rounds = experiment.rounds
    disk = (experiment.out / "logs" / "save_cost" / "disk").resolve()
    training = config.training(method="disk", steps=rounds, disk_directory=str(disk))
    program = ["-m", "twinckpt.experiments.ranks.save_cost"]
    with experiment.cluster("save_cost", program, training) as cluster:
        cluster.wait(TIMEOUT_S)
        for rank in range(experiment.num_ranks):
            for repeat, entry in experiment.measured(cluster, rank):
                place = {"rank": rank, "repeat": repeat}
                method = entry["method"]
                experiment.add(method, "stall_s", entry["stall_s"], "s", **place)
                experiment.add(method, "recoverable_s", entry["recoverable_s"], "s", **place)
                experiment.add(method, "bytes", entry["bytes"], "bytes", **place)
    for size_mib in config.save_cost.sizes_mib:
        _sweep(experiment, size_mib, "ring")
    divisible = config.cluster.num_machines % config.cluster.replicas == 0
    _sweep(experiment, max(config.save_cost.sizes_mib), "group" if divisible else "mixed")


def _sweep(experiment: Experiment, size_mib: int, placement: str) -> None:
    """Add the samples of one size under one placement; `step` is the size in MiB."""
    config = experiment.config
    rounds = experiment.rounds
    name = f"{placement}_mib{size_mib}"
    disk = (experiment.out / "scratch").resolve()
    program = ["-m", "twinckpt.experiments.ranks.save_sweep"]
    arguments = [str(size_mib), str(config.save_cost.num_tensors), str(rounds), placement]
    try:
        with experiment.cluster(
            name,
            [*program, *arguments, str(disk)],
            config.training(method="none", steps=rounds),
            placement=placement,
            ranks_per_machine=1,
        ) as cluster:
            cluster.wait(TIMEOUT_S)
            for rank in range(config.cluster.num_machines):
                for repeat, entry in experiment.measured(cluster, rank):
                    for metric, value in entry.items():
                        if metric.startswith("sweep_"):
                            place = {"rank": rank, "repeat": repeat, "step": size_mib}
                            experiment.add(entry["method"], metric, value, "s", **place)
    finally:
        shutil.rmtree(disk, ignore_errors=True)


if __name__ == "__main__":
    run_app("save_cost", measure)
