"""Experiments on clusters of other sizes than the default's, run as their commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from twinckpt.results.samples import Sample, read_samples

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def run(experiment: str, out: Path, *settings: str) -> list[Sample]:
    """Run an experiment, short, and return its samples."""
    command = [sys.executable, "-m", f"twinckpt.experiments.{experiment}", "scale=quick"]
    subprocess.run([*command, *settings, f"out={out}"], check=True, timeout=280)
    return read_samples(out / "samples.csv")


def test_a_single_machine_is_its_own_victim(tmp_path):
    cluster = ("cluster.num_machines=1", "cluster.replicas=1")
    samples = run("training", tmp_path, *cluster, "failure.kinds=[rank_loss]", "measure.steps=8")
    identical = {s.method: s.value for s in samples if s.metric == "identical"}
    assert identical == {"disk": 1.0, "rank_loss": 1.0}


def test_peers_run_a_rank_a_machine_whatever_the_cluster(tmp_path):
    """Ranks that were never started are not waited for."""
    packages = tmp_path / "none"
    packages.mkdir()
    settings = ("measure.repeats=1", "measure.warmup=0", f"peers.packages={packages}")
    samples = run("peers", tmp_path / "out", "cluster=two_machines", *settings)
    assert {s.rank for s in samples if s.metric == "done_s"} == {0, 1}
