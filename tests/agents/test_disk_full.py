"""A full disk under the drain: training and checkpoints in RAM go on."""

import os
import subprocess
import sys

import pytest

DISK_BYTES = 1 << 20

JOB = """
import torch
from twinckpt import Checkpointer
from twinckpt.memory.drained import drained_steps
from pathlib import Path
weight = torch.rand(1 << 20)
with Checkpointer({"weight": weight}, strict=True) as checkpointer:
    for step in range(1, 4):
        assert checkpointer.save(step, block=True).status == "committed"
    weight.zero_()
    assert checkpointer.restore() == 3
    assert weight.count_nonzero() > 0
print("went on")
"""


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of a mebibyte, where this user may mount one."""
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(["mount", *options], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_training_goes_on_and_a_warning_says_why_nothing_was_drained(tiny_disk):
    environment = {
        **os.environ,
        "TWINCKPT_DRAIN_EVERY_COMMITS": "1",
        "TWINCKPT_DRAIN_DIRECTORY": str(tiny_disk),
    }
    result = subprocess.run(
        [sys.executable, "-c", JOB], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "went on\n"
    assert "was not drained" in result.stderr
    assert "No space left on device" in result.stderr
    assert not list(tiny_disk.glob("step-*/manifest.json"))
