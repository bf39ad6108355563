"""`wasted_time` on a small scale: the paper's durations, and this machine's where they exist."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from twinckpt.experiments.compose import config_directory
from twinckpt.experiments.rates import measured_strategies
from twinckpt.results.samples import Sample, read_samples, write_samples

SMALL = ("goodput.machines=[16,17]", "goodput.repeats=2", "goodput.days=60",
         "goodput.correlated_percents=[10]")  # fmt: skip
PHASES_S = {"detect": 0.5, "decide": 0.1, "replace": 2.0, "restart": 3.0, "first_step": 0.4}


def measured() -> Iterator[Sample]:
    """Yield samples of the three experiments that are read: two ranks, two repeats."""
    for repeat in range(2):
        for rank, factor in ((0, 1.0), (1, 2.0)):
            at = {"variant": "default", "rank": rank, "repeat": repeat}
            for method, stall_s, safe_s in (("disk", 1.5, 1.5), ("ram_replica", 0.01, 0.25)):
                for metric, value in (("stall_s", stall_s), ("recoverable_s", safe_s)):
                    yield Sample(experiment="save_cost", method=method, metric=metric, unit="s",
                                 value=value * factor, **at)  # fmt: skip
            for method, value in (("disk", 0.4), ("ram_local", 0.1), ("ram_peer", 0.2)):
                yield Sample(experiment="recovery_time", method=method, metric="retrieve_s",
                             unit="s", value=value * factor, **at)  # fmt: skip
        for method in ("disk", "ram_local", "ram_peer"):
            for phase, seconds in PHASES_S.items():
                yield Sample(experiment="recovery_time", variant="default", method=method,
                             metric="duration_s", phase=phase, unit="s", value=seconds,
                             repeat=repeat)  # fmt: skip
        for method, rate in (("none", 1.0), ("ram", 0.8)):
            yield Sample(experiment="throughput", variant="default", method=method,
                         metric="iterations_per_s", unit="iterations_per_s", value=rate,
                         repeat=repeat)  # fmt: skip


def write_measured(results: Path) -> None:
    """Write them below `results`, an experiment a directory."""
    for name in ("save_cost", "recovery_time", "throughput"):
        own = (sample for sample in measured() if sample.experiment == name)
        write_samples(results / name / "samples.csv", own)


def run(results: Path) -> list[Sample]:
    """Run the command, small, and return its samples."""
    out = results / "wasted_time"
    subprocess.run(
        [sys.executable, "-m", "twinckpt.experiments.wasted_time", f"out={out}", *SMALL],
        cwd=Path(config_directory()).parent, env=dict(os.environ), check=True, timeout=120,
        capture_output=True,
    )  # fmt: skip
    return read_samples(out / "samples.csv")


def test_without_measurements_only_the_papers_durations_are_used(tmp_path):
    """And every strategy is there at every size."""
    samples = run(tmp_path / "results")
    assert not any(sample.phase.endswith("_measured") for sample in samples)
    found = {
        (sample.method, sample.machine)
        for sample in samples
        if sample.metric == "goodput" and sample.phase == "gemini"
    }
    strategies = ("strawman", "highfreq", "gemini", "twinckpt")
    assert found == {(name, size) for name in strategies for size in (16, 17)}


def test_with_measurements_both_are_there_and_apart(tmp_path):
    """Measured durations have phases of their own, and their own two strategies."""
    write_measured(tmp_path / "results")
    samples = run(tmp_path / "results")
    here = {s.method for s in samples if s.metric == "goodput" and s.phase == "llama3_measured"}
    paper = {s.method for s in samples if s.metric == "goodput" and s.phase == "llama3"}
    assert here == {"twinckpt", "disk"}
    assert "disk" not in paper


def test_a_seed_gives_the_same_year_again(tmp_path):
    """All but how long it took."""
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert [s for s in first if s.metric != "seconds"] == [
        s for s in second if s.metric != "seconds"
    ]


def test_measured_durations_are_the_slowest_ranks(tmp_path):
    """A checkpoint is as good as its last shard; its stall is what it adds to an iteration."""
    write_measured(tmp_path)
    found = measured_strategies(tmp_path)
    ram, disk = found["twinckpt"], found["disk"]
    assert ram.hardware.checkpoint_s == 0.5
    assert ram.hardware.stall_s == pytest.approx(0.25)
    assert (ram.software.retrieval_s, ram.hardware.retrieval_s) == (0.2, 0.4)
    assert ram.hardware.interval_s == 1.0
    assert disk.hardware.interval_s == 3.0
    assert ram.around_hardware.total_s == pytest.approx(0.5 + 2.0 + 3.0 + 0.4)
    assert ram.around_software.total_s == pytest.approx(0.5 + 0.1 + 3.0 + 0.4)


def test_half_of_the_measurements_are_none(tmp_path):
    """A strategy is never completed from somewhere else."""
    write_measured(tmp_path)
    (tmp_path / "throughput" / "samples.csv").unlink()
    assert measured_strategies(tmp_path) == {}


def test_a_method_that_was_left_out_leaves_none(tmp_path):
    """As with `recovery.methods=[disk]`."""
    write_measured(tmp_path)
    path = tmp_path / "recovery_time" / "samples.csv"
    write_samples(path, [sample for sample in read_samples(path) if sample.method == "disk"])
    assert measured_strategies(tmp_path) == {}
