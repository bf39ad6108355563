"""Every copy in RAM of what a running program wants back is damaged: storage has it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinckpt.net.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
TIMEOUT_S = 90  # less than a rank waits for an answer

SCRIPT = """
import sys, time
from pathlib import Path
import torch
from twinckpt import Checkpointer
from twinckpt.memory.drained import drained_steps

folder = Path(sys.argv[1])
weight = torch.zeros(8)
with Checkpointer({"weight": weight}) as twin:
    begun_at = twin.restore()
    with (folder / "begun").open("a") as log:
        log.write(f"{begun_at} {twin.restore_report.get('source')} {weight.sum():.0f}\\n")
    if begun_at is None:
        weight.fill_(1)
        twin.save(1, block=True)
        while drained_steps(folder / "drained") != (1,):
            time.sleep(0.05)
        for slot in twin._client._mappings._slots.values():
            slot.buffer[0] ^= 4
        weight.zero_()
        twin.restore()
        raise AssertionError("nothing intact was there to restore")
"""


def run(folder: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run the script, which drains every commit, and resumes where it drained to."""
    (folder / "train.py").write_text(SCRIPT)
    settings = {"REPLICAS": "1", "DRAIN_EVERY_COMMITS": "1", "DRAIN_DIRECTORY": folder / "drained"}
    env = {f"TWINCKPT_{name}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, *launcher, str(folder / "train.py"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


def test_the_ranks_begin_anew_from_storage(tmp_path):
    """They are started again, and none of them waits for a copy that will not come."""
    rendezvous = ("--rdzv-backend=twinckpt", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    done = run(tmp_path, "-m", "torch.distributed.run", *rendezvous, "--max-restarts=2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "begun").read_text().splitlines() == ["None None 0", "1 disk 8"]


def test_a_program_without_a_launcher_is_told_to_start_anew(tmp_path):
    """Nobody else would end it."""
    told = run(tmp_path)
    assert "RestoreError: no intact copy of rank 0" in told.stderr
    assert "start the process anew" in told.stderr
    assert run(tmp_path).returncode == 0
    assert (tmp_path / "begun").read_text().splitlines() == ["None None 0", "1 disk 8"]
