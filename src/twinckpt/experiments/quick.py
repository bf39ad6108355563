"""`quick`: under a minute from nothing to a proof. Train, kill a machine, recover, compare.

`python -m twinckpt.experiments.quick [key=value …]` prints what happens and ends with PASS and
exit status 0, or FAIL and 1. It measures nothing; `recovery_time` and `training` do.
"""

import sys
import tempfile
from collections.abc import Sequence

from twinckpt.errors import ConfigurationError, TwinckptError
from twinckpt.experiments.app import Experiment
from twinckpt.experiments.compose import load
from twinckpt.experiments.failures import FailureRun, Recovery

TIMEOUT_S = 300.0
PROGRAM = ["-m", "twinckpt.training.run"]
VICTIM = 1


def main(overrides: Sequence[str]) -> int:
    """Tell the story for the given settings; return the exit status."""
    chosen = [] if any(text.startswith("scale=") for text in overrides) else ["scale=quick"]
    with tempfile.TemporaryDirectory(prefix="twinckpt-quick-") as folder:
        try:
            config = load("training", [f"out={folder}", *chosen, *overrides])
        except ConfigurationError as error:
            print(f"twinckpt: {error}", file=sys.stderr)
            return 2
        try:
            return 0 if _tell(Experiment(config)) else 1
        except TwinckptError as error:
            print(f"FAIL: {error}", file=sys.stderr)
            return 1


def _tell(experiment: Experiment) -> bool:
    """Train twice, once with a machine killed; return whether both ended the same."""
    config = experiment.config
    num_ranks, steps = experiment.num_ranks, config.measure.steps
    _say(f"{num_ranks} ranks train {steps} steps, without checkpoints or failures, to compare with")
    expected = _undisturbed(experiment)

    machines = config.cluster.num_machines
    _say(f"the same on {machines} machines, each step in the RAM of {config.cluster.replicas}")
    training = config.training(method="ram", steps=steps)
    with experiment.cluster("disturbed", PROGRAM, training, warm=True) as cluster:
        run = FailureRun(cluster, num_ranks)
        run.wait_for_step(steps // 2)
        _say(f"SIGKILL of machine {VICTIM} after step {steps // 2}: its processes and its memory")
        recovery = run.inject("machine_loss", VICTIM)
        _describe(recovery)
        for rank in range(num_ranks):
            restored = [e for e in experiment.log_of(cluster, rank) if e["event"] == "restored"][-1]
            origin = {"local": "its own machine's RAM", "peer": "a peer's RAM"}.get(
                restored["source"], restored["source"]
            )
            _say(f"  rank {rank} restored step {restored['at_step']} from {origin}")
        cluster.wait(TIMEOUT_S)
        found = run.fingerprints()
        losses = [e for e in experiment.log_of(cluster, 0) if e["event"] == "step"]
    first, last = losses[0]["bits_per_byte"], losses[-1]["bits_per_byte"]
    _say(f"trained to step {losses[-1]['step']}: {first:.2f} → {last:.2f} bits per byte")
    return _compare(expected, found)


def _undisturbed(experiment: Experiment) -> list[str]:
    """Return the fingerprints of a run on one machine that nothing happens to."""
    config = experiment.config
    training = config.training(method="none", steps=config.measure.steps)
    num_ranks = experiment.num_ranks
    cluster = experiment.cluster(
        "undisturbed", PROGRAM, training, num_machines=1, ranks_per_machine=num_ranks, replicas=1
    )
    with cluster:
        cluster.wait(TIMEOUT_S)
        return FailureRun(cluster, num_ranks).fingerprints()


def _describe(recovery: Recovery) -> None:
    phases = recovery.phases(machine=True)
    _say(
        f"  noticed after {phases['detect']:.2f} s, replaced in {phases['replace']:.1f} s, "
        f"training again after {phases['total']:.1f} s; {recovery.lost_steps} steps done again"
    )


def _compare(expected: list[str], found: list[str]) -> bool:
    pairs = zip(expected, found, strict=True)
    different = [rank for rank, (one, other) in enumerate(pairs) if one != other]
    if different or not all(found):
        _say(f"FAIL: ranks {different} ended with another state than the undisturbed run")
        return False
    _say(
        f"PASS: parameters, optimizer, random numbers and data position of all {len(found)} ranks "
        "equal the undisturbed run's, bit for bit"
    )
    return True


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
