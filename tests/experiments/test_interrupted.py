"""`placement` kills real worker agents, for minutes; it ends when it is told to."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import wait_until
from twinckpt.experiments.compose import config_directory


@pytest.mark.cluster
def test_an_interrupted_run_starts_no_further_cluster(tmp_path):
    """As Snakemake and Ctrl-C have it: of the four, two run at once."""
    out, log = tmp_path / "out", tmp_path / "log"
    sizes = ["killed_sizes=[5,6]", "max_lost=3", f"out={out}"]
    with log.open("w") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", "twinckpt.experiments.placement", *sizes],
            stderr=file,
            cwd=Path(config_directory()).parent,
        )
    wait_until(lambda: len(list(out.glob("logs/*/events"))) == 2, "both clusters")
    running.send_signal(signal.SIGTERM)
    assert running.wait(240) == 128 + signal.SIGTERM
    assert log.read_text().count("killing every set") == 2
    assert not (out / "samples.csv").exists()
