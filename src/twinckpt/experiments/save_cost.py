"""`save_cost`: what a checkpoint costs, to disk, to RAM, and to RAM on two machines.

Clocks and their limits are described in docs/results-schema.md.
"""

from twinckpt.experiments.app import Experiment, run_app

TIMEOUT_S = 1800.0


def measure(experiment: Experiment) -> None:
    """Run one job in which the methods alternate, and collect every rank's samples."""
    config = experiment.config
    rounds = config.measure.warmup + config.measure.repeats
    disk = (experiment.out / "logs" / "save_cost" / "disk").resolve()
    training = config.training(method="disk", steps=rounds, disk_directory=str(disk))
    program = ["-m", "twinckpt.experiments.ranks.save_cost"]
    with experiment.cluster("save_cost", program, training) as cluster:
        cluster.wait(TIMEOUT_S)
        for rank in range(experiment.num_ranks):
            for entry in experiment.log_of(cluster, rank):
                repeat = entry.get("repeat", -1) - config.measure.warmup
                if entry["event"] != "sample" or repeat < 0:
                    continue
                place = {"rank": rank, "repeat": repeat}
                method = entry["method"]
                experiment.add(method, "stall_s", entry["stall_s"], "s", **place)
                experiment.add(method, "recoverable_s", entry["recoverable_s"], "s", **place)
                experiment.add(method, "bytes", entry["bytes"], "bytes", **place)


if __name__ == "__main__":
    run_app("save_cost", measure)
