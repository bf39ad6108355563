"""Real trainers of other libraries, killed and resumed, end as if nothing had happened."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
TIMEOUT_S = 240


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("package", "script", "kills"),
    [("transformers", "hf_trainer.py", 2), ("lightning", "lightning_fit.py", 3)],
)
def test_a_killed_training_ends_with_the_same_bits(package, script, kills, tmp_path):
    """The script compares; under plain torchrun, so that an agent outlives the process."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'twinckpt[integrations]'")
    environment = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--max-restarts={kills}", str(SCRIPTS / script), str(tmp_path)),
        ],
        env={**os.environ, **environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "done").read_text() == str(kills)
