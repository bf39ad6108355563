"""`./reproduce quick`: in under a minute, train, kill a machine, recover, show that all is well

`python -m twinckpt.experiments.quick` prints each event as it happens, and exits with 0 only if
training ended with the same bits as without the failure.
"""

import sys
import tempfile
import time
from pathlib import Path

from twinckpt.agents.local_cluster import ClusterConfig, LocalCluster
from twinckpt.errors import TwinckptError
from twinckpt.experiments.failures import TRAINING, FailureRun
from twinckpt.training.config import ModelConfig, TrainingConfig

NUM_RANKS = 2
STEPS, KILL_AT_STEP, VICTIM = 30, 15, 1
TIMEOUT_S = 120.0


def main() -> int:
    """Train twice, once with a failure; return 0 if both end with the same bits."""
    started_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="twinckpt-quick-") as folder:
            print(f"Training a small GPT on {NUM_RANKS} emulated machines, a rank each;")
            print("every step is checkpointed into the RAM of two machines.")
            undisturbed = _train(Path(folder) / "undisturbed", kill=False)
            print(f"Undisturbed run: {STEPS} steps. Now the same again, with a failure.")
            disturbed = _train(Path(folder) / "disturbed", kill=True)
    except TwinckptError as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return 1
    same = disturbed == undisturbed
    for rank, (expected, found) in enumerate(zip(undisturbed, disturbed, strict=True)):
        print(f"  rank {rank}: state hash {expected[:16]} undisturbed, {found[:16]} disturbed")
    took_s = time.monotonic() - started_s
    print(f"{'PASS: identical bit for bit' if same else 'FAIL: they differ'} ({took_s:.0f} s)")
    return 0 if same else 1


def _train(folder: Path, *, kill: bool) -> list[str]:
    folder.mkdir(parents=True)
    model = ModelConfig(width=64, layers=2, heads=2, context=32)
    training = TrainingConfig(steps=STEPS, batch=2, model=model)
    training.write(folder / "training.json")
    command = ["-m", "twinckpt.run", *TRAINING, str(folder / "training.json")]
    config = ClusterConfig(num_machines=NUM_RANKS, num_spares=int(kill))
    with LocalCluster(config, command, folder) as cluster:
        run = FailureRun(cluster, NUM_RANKS)
        if kill:
            run.wait_for_step(KILL_AT_STEP)
            print(f"  step {KILL_AT_STEP}: SIGKILL of machine {VICTIM}, its memory included …")
            recovery = run.inject("machine_loss", VICTIM)
            for phase, duration_s in recovery.phases(machine=True).items():
                print(f"    {phase:<10} {1000 * duration_s:8.0f} ms")
            lost = f"{recovery.lost_steps} step{'' if recovery.lost_steps == 1 else 's'}"
            print(f"    resumed at step {recovery.resumed_step}, lost {lost}")
        cluster.wait(TIMEOUT_S)
        return run.fingerprints()


if __name__ == "__main__":
    sys.exit(main())
