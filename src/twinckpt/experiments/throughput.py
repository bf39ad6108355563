"""`throughput`: iterations per second without checkpoints, with disk, and with peers' RAM."""

from twinckpt.experiments.app import Experiment, run_app
from twinckpt.experiments.ranks.throughput import BLOCK_STEPS_VARIABLE

TIMEOUT_S = 3600.0
WARMUP_BLOCKS = 1


def measure(experiment: Experiment) -> None:
    """Run one job in which blocks of steps alternate, and collect every rank's samples."""
    config = experiment.config
    steps = (WARMUP_BLOCKS + config.measure.blocks) * config.measure.block_steps
    disk = (experiment.out / "logs" / "throughput" / "disk").resolve()
    training = config.training(method="disk", steps=steps, disk_directory=str(disk))
    program = ["-m", "twinckpt.experiments.ranks.throughput"]
    environment = {BLOCK_STEPS_VARIABLE: str(config.measure.block_steps)}
    with experiment.cluster("throughput", program, training, env=environment) as cluster:
        cluster.wait(TIMEOUT_S)
        for rank in range(experiment.num_ranks):
            for entry in experiment.log_of(cluster, rank):
                block = entry.get("block", -1) - WARMUP_BLOCKS
                if entry["event"] != "block" or block < 0:
                    continue
                place = {"rank": rank, "repeat": block}
                method = entry["method"]
                rate = entry["iterations_per_s"]
                experiment.add(method, "iterations_per_s", rate, "iterations_per_s", **place)
                for name in ("stall_share", "committed_share"):
                    if entry[name] is not None:
                        experiment.add(method, name, entry[name], "ratio", **place)


if __name__ == "__main__":
    run_app("throughput", measure)
