"""`soak`: a training under random failures, compared with the same training left alone.

`python -m twinckpt.experiments.soak minutes=60 failures_per_minute=4` kills ranks, warm parents,
worker agents, machines and roots at random moments. Every loss that was logged, and the state at
the end, must equal those of the undisturbed run, and nothing may pile up meanwhile. Clocks are
described in docs/results-schema.md.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from twinckpt.agents.local_cluster import ClusterFailed, LocalCluster
from twinckpt.experiments import residue
from twinckpt.experiments.app import Experiment, run_app
from twinckpt.experiments.disturbance import Disturber, Failure, schedule
from twinckpt.experiments.failures import TRAINING, FailureRun

logger = logging.getLogger("twinckpt.experiments")

ENDLESS_STEPS = 1_000_000_000
UNLIMITED_RESTARTS = 1_000_000
TIMEOUT_S = 600.0
SETTLED_COMMITS = 3
FINGERPRINT_EVERY = 50
MAX_POINTS = 1000  # of a curve, evenly thinned; comparisons use every step


@dataclass(frozen=True, slots=True)
class _Disturbed:
    """What is compared: all losses logged for each step, and every rank's state at the last step.

    `resumed_steps` are those that recoveries went back to.
    """

    last_step: int
    resumed_steps: set[int]
    losses: dict[int, list[float]]
    fingerprints: list[str]


def measure(experiment: Experiment) -> None:
    """Train under failures, then equally many steps without, and compare."""
    num_descriptors = residue.own_descriptors()
    disturbed = _train_disturbed(experiment)
    _count(experiment, "descriptors", residue.own_descriptors() - num_descriptors)
    _compare(experiment, disturbed)


def _train_disturbed(experiment: Experiment) -> _Disturbed:
    """Train under failures up to a step after the last recovery; return what is to be compared."""
    section = experiment.config.soak
    training = experiment.config.training(method="ram", steps=ENDLESS_STEPS)
    training.fingerprint_every = FINGERPRINT_EVERY
    temporary = experiment.fresh_log_directory("temporary").resolve()
    temporary.mkdir(parents=True)
    cluster = experiment.cluster(
        "disturbed",
        TRAINING,
        training,
        warm=True,
        env={"TMPDIR": str(temporary)},
        num_spares=section.num_spares,
        max_restarts=UNLIMITED_RESTARTS,
        drain_every_commits=experiment.config.checkpoint.drain_every_commits,
    )
    with cluster:
        started_s = cluster.wait_for_event("committed", timeout_s=TIMEOUT_S)["monotonic_s"]
        failures = _strike(experiment, cluster, started_s)
        surplus = residue.surplus_processes(cluster)
        last_step = _next_fingerprint(cluster)
        fingerprints = FailureRun(cluster, experiment.num_ranks).fingerprints_at(last_step)
    remaining = residue.remaining_processes(cluster)
    _count(experiment, "processes", len(surplus) + len(remaining), *surplus, *remaining)
    files = residue.remaining_files(temporary, cluster.run_dir / "drained")
    _count(experiment, "files", len(files), *files)
    logs = _step_logs(experiment, cluster)
    _add_story(experiment, cluster, logs, failures, started_s)
    formed = [e for e in cluster.events if e["event"] == "generation_formed"]
    resumed_steps = {e["recover_step"] for e in formed}
    return _Disturbed(last_step, resumed_steps, _losses(logs), fingerprints)


def _strike(experiment: Experiment, cluster: LocalCluster, started_s: float) -> list[Failure]:
    """Let every failure of the schedule happen at its time, even during a recovery; return them.

    Whenever the job settles before the next failure, add samples of what its processes hold.
    Raises ClusterFailed if the job does not recover from the last failure.
    """
    section = experiment.config.soak
    planned = schedule(
        section.kinds, 60 * section.minutes, section.failures_per_minute / 60, section.seed
    )
    disturber, watch = Disturber(cluster, section.seed), residue.Watch(cluster)
    failures: list[Failure] = []
    num_events = 0
    for at_s, kind in planned:
        until_s = started_s + at_s
        if _settles(cluster, num_events, failures, until_s):
            _add_held(experiment, cluster, watch)
            _pause(cluster, until_s)
        num_events = len(cluster.events)
        failures.append(disturber.strike(kind))
        logger.info("%.0f s: %s of machine %d", at_s, kind, failures[-1].machine)
    if not _settles(cluster, num_events, failures, time.monotonic() + TIMEOUT_S):
        raise ClusterFailed(
            f"no {SETTLED_COMMITS} commits within {TIMEOUT_S:.0f} s after the last failure; see "
            f"{cluster.log_dir}"
        )
    _add_held(experiment, cluster, watch)
    _pause(cluster, started_s + 60 * section.minutes)
    _add_held(experiment, cluster, watch)
    return failures


def _settles(
    cluster: LocalCluster, num_events: int, failures: list[Failure], until_s: float
) -> bool:
    """Wait until generations formed after the last failure commit; return False if time is up.

    The first `num_events` events are older than the failure.
    """
    struck_s = failures[-1].struck_s if failures else 0.0

    def settled() -> bool:
        num_commits = -1
        for event in cluster.events[num_events:]:
            if event["event"] == "generation_formed" and event["monotonic_s"] > struck_s:
                num_commits = 0
            elif event["event"] == "committed" and num_commits >= 0:
                num_commits += 1
        return num_commits >= SETTLED_COMMITS

    cluster.wait_until(
        lambda: settled() or time.monotonic() >= until_s,
        timeout_s=TIMEOUT_S + max(0.0, until_s - time.monotonic()),
    )
    return settled()


def _pause(cluster: LocalCluster, until_s: float) -> None:
    timeout_s = TIMEOUT_S + max(0.0, until_s - time.monotonic())
    cluster.wait_until(lambda: time.monotonic() >= until_s, timeout_s=timeout_s)


def _next_fingerprint(cluster: LocalCluster) -> int:
    """Return the next step at which the ranks log the fingerprint of their state."""
    committed = [e["step"] for e in cluster.events if e["event"] == "committed"][-1]
    return (int(committed) // FINGERPRINT_EVERY + 1) * FINGERPRINT_EVERY


def _compare(experiment: Experiment, disturbed: _Disturbed) -> None:
    """Train equally far without checkpoints or failures; compare all losses, and the states."""
    last_step = disturbed.last_step
    training = experiment.config.training(method="none", steps=last_step)
    with experiment.cluster("undisturbed", TRAINING, training) as cluster:
        cluster.wait(TIMEOUT_S + 10 * 60 * experiment.config.soak.minutes)
        fingerprints = FailureRun(cluster, experiment.num_ranks).fingerprints()
    expected = _losses(_step_logs(experiment, cluster))
    found = {step: losses for step, losses in disturbed.losses.items() if step <= last_step}
    # A rank can be killed between its checkpoint of a step and its log line of it.
    same = expected.keys() - found.keys() <= disturbed.resumed_steps and all(
        set(losses) == set(expected.get(step, ())) for step, losses in found.items()
    )
    experiment.add("soak", "loss_identical", same, "bool")
    experiment.add("soak", "losses_compared", sum(map(len, found.values())), "count")
    same = fingerprints == disturbed.fingerprints
    experiment.add("soak", "identical", same, "bool", step=last_step)
    for method, losses_of in (("undisturbed", expected), ("soak", found)):
        for step in _thinned(losses_of):
            experiment.add(method, "loss", losses_of[step][-1], "nats_per_byte", step=step)


# Samples.


def _count(experiment: Experiment, what: str, number: int, *names: str) -> None:
    """Add how many of something were left over, and log their names."""
    experiment.add("soak", "leaked", max(0, number), "count", phase=what)
    if number > 0:
        logger.error("left over: %d %s %s", number, what, " ".join(names))


def _add_held(experiment: Experiment, cluster: LocalCluster, watch: residue.Watch) -> None:
    step = next(e["step"] for e in reversed(cluster.events) if e["event"] == "committed")
    for one in watch.look():
        at = {"phase": one.role, "machine": one.machine, "repeat": one.number, "step": step}
        experiment.add("soak", "rss_bytes", one.rss_bytes, "bytes", **at)
        experiment.add("soak", "open_descriptors", one.num_descriptors, "count", **at)


def _add_story(
    experiment: Experiment,
    cluster: LocalCluster,
    logs: list[list[dict[str, Any]]],
    failures: list[Failure],
    started_s: float,
) -> None:
    """Add when each failure struck and when training went on, and when each step was reached."""
    formed = [e for e in cluster.events if e["event"] == "generation_formed"]
    for number, failure in enumerate(failures):
        at = {"repeat": number, "machine": failure.machine}
        experiment.add(failure.kind, "struck_s", failure.struck_s - started_s, "s", **at)
        new = min(e["generation"] for e in formed if e["monotonic_s"] > failure.struck_s)
        went_on_s = max(
            min(e["monotonic_s"] for e in steps if e["generation"] >= new) for steps in logs
        )
        experiment.add(failure.kind, "went_on_s", went_on_s - started_s, "s", **at)
    reached_s: dict[int, float] = {}
    for entry in logs[0]:
        reached_s.setdefault(entry["step"], entry["monotonic_s"] - started_s)
    for step in _thinned(reached_s):
        experiment.add("soak", "reached_s", reached_s[step], "s", step=step)


def _step_logs(experiment: Experiment, cluster: LocalCluster) -> list[list[dict[str, Any]]]:
    logs = [experiment.log_of(cluster, rank) for rank in range(experiment.num_ranks)]
    return [[entry for entry in log if entry["event"] == "step"] for log in logs]


def _losses(logs: list[list[dict[str, Any]]]) -> dict[int, list[float]]:
    """Return every loss that any rank logged for each step; a step trained again has more."""
    found = defaultdict(list)
    for entry in (entry for log in logs for entry in log):
        found[entry["step"]].append(entry["loss"])
    return found


def _thinned(steps: Iterable[int]) -> list[int]:
    ordered = sorted(steps)
    return ordered[:: len(ordered) // MAX_POINTS + 1]


if __name__ == "__main__":
    run_app("soak", measure)
