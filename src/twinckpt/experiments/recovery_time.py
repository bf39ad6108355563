"""`recovery_time`: from SIGKILL to the next finished step, by where the state comes from.

| method | killed | restart by | state from |
|---|---|---|---|
| disk | a rank | torchrun | a file, written durably, read cold |
| ram_local | a rank | torchrun | its own machine's RAM |
| ram_peer | a machine | a new machine | a peer's RAM |
| warm_local | a rank | fork of a warm image | its own machine's RAM |
| warm_peer | a machine | a warm spare | a peer's RAM |
| group_drained | a replica group | new machines | a drained step on disk |
| torchrun | a rank | torchrun | nothing: it trains from the start |
"""

from dataclasses import dataclass

from twinckpt.agents.local_cluster import ClusterFailed
from twinckpt.experiments.app import Experiment, run_app
from twinckpt.experiments.failures import TRAINING, FailureRun, Recovery
from twinckpt.training.config import TrainingConfig

TIMEOUT_S = 1800.0
ENDLESS_STEPS = 1_000_000


@dataclass(frozen=True, slots=True)
class Method:
    """How a training is disturbed, and where a lost rank's state is to come from."""

    name: str
    kind: str
    source: str | None
    checkpoint: str = "ram"
    warm: bool = False
    num_spares: int = 0
    drain_every_commits: int = 0
    max_repeats: int = 1_000_000


METHODS = (
    Method("disk", "rank_loss", "disk", checkpoint="disk"),
    Method("ram_local", "rank_loss", "local"),
    Method("ram_peer", "machine_loss", "peer"),
    Method("warm_local", "rank_loss", "local", warm=True),
    Method("warm_peer", "machine_loss", "peer", warm=True, num_spares=1),
    Method("group_drained", "group_loss", "disk", drain_every_commits=1, max_repeats=3),
    Method("torchrun", "rank_loss", None, checkpoint="none", max_repeats=3),
)


def measure(experiment: Experiment) -> None:
    """Disturb one training per method, several times; compare all with an undisturbed one."""
    chosen = [method for method in METHODS if method.name in experiment.config.recovery.methods]
    found = {method.name: _disturb(experiment, method) for method in chosen}
    steps = max(step for step, _ in found.values())
    training = _training(experiment, "none", steps=steps)
    with experiment.cluster("undisturbed", TRAINING, training) as cluster:
        cluster.wait(TIMEOUT_S)
        undisturbed = FailureRun(cluster, experiment.num_ranks)
        for name, (step, fingerprints) in found.items():
            identical = fingerprints == undisturbed.fingerprints_at(step)
            experiment.add(name, "identical", float(identical), "bool", step=step)


def _disturb(experiment: Experiment, method: Method) -> tuple[int, list[str]]:
    """Kill and measure; return a step after the last recovery and the fingerprints there."""
    failure = experiment.config.failure
    training = _training(experiment, method.checkpoint, steps=ENDLESS_STEPS, name=method.name)
    cluster = experiment.cluster(
        method.name,
        TRAINING,
        training,
        warm=method.warm,
        num_spares=method.num_spares,
        drain_every_commits=method.drain_every_commits,
    )
    with cluster:
        run = FailureRun(cluster, experiment.num_ranks)
        step = 0
        for repeat in range(min(failure.repeats, method.max_repeats)):
            if method.num_spares:
                if repeat:
                    cluster.add_machine(spare=True)
                cluster.wait_for_spare()
            run.wait_for_step(step + failure.gap_steps)
            if method.checkpoint != "none":
                run.wait_for_checkpoint()
            if method.drain_every_commits:
                run.wait_until_drained()
            victim = (1 + repeat) % experiment.config.cluster.num_machines
            recovery = run.inject(method.kind, victim)
            _require_source(experiment, method, victim, recovery)
            _add_samples(experiment, method, repeat, victim, recovery)
            step = recovery.resumed_step
        logs = [experiment.log_of(cluster, rank) for rank in range(experiment.num_ranks)]
        if cold := [entry["is_cold"] for log in logs for entry in log if "is_cold" in entry]:
            experiment.facts["read_cold"] = all(cold)
        checked_step = (step // failure.gap_steps + 1) * failure.gap_steps
        return checked_step, run.fingerprints_at(checked_step)


def _require_source(
    experiment: Experiment, method: Method, victim: int, recovery: Recovery
) -> None:
    """Raise ClusterFailed if a lost rank's state came from elsewhere than the method says.

    Its time would mean something else.
    """
    lost = [victim] if method.kind == "rank_loss" else _ranks_of(victim, experiment)
    for rank in lost:
        if (source := recovery.sources[rank]) != method.source:
            raise ClusterFailed(
                f"{method.name}: rank {rank} has its state from {source or 'nowhere'}, not from "
                f"{method.source or 'nowhere'}"
            )


def _add_samples(
    experiment: Experiment, method: Method, repeat: int, victim: int, recovery: Recovery
) -> None:
    for phase, duration_s in recovery.phases(machine=method.kind != "rank_loss").items():
        experiment.add(method.name, "duration_s", duration_s, "s", phase=phase, repeat=repeat)
    for rank, retrieve_s in recovery.retrieve_s.items():
        # After one machine's loss the survivors read their own RAM: only the replacement's time
        # is that of a retrieval from a peer.
        if method.kind != "machine_loss" or rank in _ranks_of(victim, experiment):
            experiment.add(method.name, "retrieve_s", retrieve_s, "s", rank=rank, repeat=repeat)
    if recovery.step_s is not None:
        experiment.add(method.name, "step_s", recovery.step_s, "s", repeat=repeat)
    experiment.add(method.name, "lost_steps", recovery.lost_steps, "steps", repeat=repeat)


def _training(
    experiment: Experiment, checkpoint: str, *, steps: int, name: str = ""
) -> TrainingConfig:
    disk = str((experiment.out / "logs" / name / "disk").resolve())
    training = experiment.config.training(method=checkpoint, steps=steps, disk_directory=disk)
    training.fingerprint_every = experiment.config.failure.gap_steps
    return training


def _ranks_of(machine: int, experiment: Experiment) -> range:
    per_machine = experiment.config.cluster.ranks_per_machine
    return range(machine * per_machine, (machine + 1) * per_machine)


if __name__ == "__main__":
    run_app("recovery_time", measure)
