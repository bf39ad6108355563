"""`training`: the loss curve of a real training, undisturbed and with each kind of failure.

`disk` is the baseline run: the same training with blocking checkpoints to disk.
"""

import time

from twinckpt.experiments.app import Experiment, run_app
from twinckpt.experiments.failures import TRAINING, FailureRun

TIMEOUT_S = 3600.0


def measure(experiment: Experiment) -> None:
    """Run the same training undisturbed, with checkpoints to disk, and once per kind of failure."""
    expected = _train(experiment, "undisturbed", None)
    baseline = _train(experiment, "disk", None)
    experiment.add("disk", "identical", float(baseline == expected), "bool")
    for kind in experiment.config.failure.kinds:
        found = _train(experiment, kind, kind)
        experiment.add(kind, "identical", float(found == expected), "bool")


def _train(experiment: Experiment, method: str, failure: str | None) -> list[str]:
    """Train to the end, with a failure half-way unless None; return the ranks' fingerprints."""
    config = experiment.config
    disk = str((experiment.out / "logs" / method / "disk").resolve())
    checkpoint = "disk" if method == "disk" else "ram"
    training = config.training(method=checkpoint, steps=config.measure.steps, disk_directory=disk)
    started_s = time.monotonic()
    cluster = experiment.cluster(
        method,
        TRAINING,
        training,
        warm=True,
        drain_every_commits=config.checkpoint.drain_every_commits,
    )
    with cluster:
        run = FailureRun(cluster, experiment.num_ranks)
        if failure is not None:
            run.wait_for_step(config.measure.steps // 2)
            recovery = run.inject(failure, victim=1 % config.cluster.num_machines)
            experiment.add(method, "lost_steps", recovery.lost_steps, "steps")
        cluster.wait(TIMEOUT_S)
        experiment.add(method, "seconds", time.monotonic() - started_s, "s")
        # A step trained again after a failure counts with its last value.
        entries = {e["step"]: e for e in experiment.log_of(cluster, 0) if e["event"] == "step"}
        for step, entry in sorted(entries.items()):
            experiment.add(method, "loss", entry["loss"], "nats_per_byte", step=step)
            bits = entry["bits_per_byte"]
            experiment.add(method, "bits_per_byte", bits, "bits_per_byte", step=step)
            experiment.add(method, "stall_s", entry["stall_s"], "s", step=step)
        saves = [e for e in experiment.log_of(cluster, 0) if e["event"] == "checkpoints"]
        for entry in saves[-1:]:
            share = entry["committed"] / max(1, entry["saves"])
            experiment.add(method, "committed_share", share, "ratio")
        return run.fingerprints()


if __name__ == "__main__":
    run_app("training", measure)
