"""ZeRO-1: each rank's optimizer holds the state of other parameters."""

import subprocess
import sys
from pathlib import Path

import pytest

from twinckpt.memory.drained import drained_steps

SCRIPT = Path(__file__).parent / "scripts" / "zero.py"


def train(folder, num_ranks):
    """Run the script under plain torchrun."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={num_ranks}", str(SCRIPT), str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.cluster
def test_each_rank_restores_its_own_part_and_no_other_number_of_ranks_does(tmp_path):
    """The sizes of the parts depend on how many there are."""
    run = train(tmp_path, 2)
    assert run.stdout.count("same") == 2, run.stdout + run.stderr
    assert drained_steps(tmp_path) == (1,)
    run = train(tmp_path, 1)
    assert run.returncode != 0
    assert "is of 2 ranks, there are 1: resume on as many" in run.stderr
