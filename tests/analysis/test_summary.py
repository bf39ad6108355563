"""From samples to the headline metrics."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from twinckpt.analysis import summary
from twinckpt.analysis.claims import CLAIMS
from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.results.provenance import read_provenance, write_provenance
from twinckpt.results.samples import Sample, SampleError, read_samples, write_samples

HEADLINES = (
    "save_disk_ms", "save_ram_ms", "save_speedup_x", "recovery_disk_ms", "recovery_ram_ms",
    "recovery_speedup_x", "throughput_none_it_s", "throughput_disk_it_s", "throughput_ram_it_s",
    "throughput_overhead_percent",
)  # fmt: skip


def test_headline_metrics_follow_from_the_samples(results: Path, summary_of) -> None:
    """All are there, computed from the slowest rank, with interval, size and source."""
    metrics = summary_of(results)
    assert set(HEADLINES) <= metrics.keys()
    assert metrics["save_disk_ms"]["value"] == pytest.approx(2000)  # rank 1 takes twice 1 s
    assert metrics["save_disk_ms"]["n"] == 10
    assert metrics["save_speedup_x"]["value"] == pytest.approx(10)
    # Both sides were disturbed alike in each repeat, which cancels; recoveries have no pairs.
    assert metrics["save_speedup_x"]["low"] == pytest.approx(10)
    assert metrics["save_speedup_x"]["high"] == pytest.approx(10)
    gain = metrics["goodput_gain_1000_x"]  # the same simulated failures strike both
    assert gain["low"] == pytest.approx(gain["value"]) == pytest.approx(gain["high"])
    assert metrics["recovery_speedup_x"]["low"] < 3 < metrics["recovery_speedup_x"]["high"]
    assert metrics["save_speedup_x"]["seed_value"] == 13.7
    assert metrics["recovery_speedup_x"]["value"] == pytest.approx(3)
    assert metrics["throughput_overhead_percent"]["value"] == pytest.approx(100 * (10 / 9.8 - 1))
    assert metrics["save_vs_dcp_x"]["value"] == pytest.approx(8)  # at the largest size
    assert metrics["save_disk_ms"]["source"].endswith("save_cost/samples.csv")
    assert all(set(metric) == set(summary.KEYS) for metric in metrics.values())


def test_only_what_was_measured_is_there(results: Path, summary_of) -> None:
    """Without an experiment its metrics are left out, and the others stay."""
    shutil.rmtree(results / "throughput")
    names = summary_of(results).keys()
    assert "save_disk_ms" in names
    assert not any(name.startswith("throughput") for name in names)


def test_what_a_loop_waits_has_its_target_where_a_gpu_trains(results: Path, summary_of) -> None:
    name = "device_training_stall_percent"
    assert name not in summary_of(results)
    for path in results.glob("*/provenance.json"):
        provenance = read_provenance(path)
        provenance["hardware"]["gpus"] = ["Test GPU"]
        write_provenance(path, provenance)
    assert summary_of(results)[name]["value"] == pytest.approx(0.4, rel=0.1)


def test_what_holds_of_a_checkpoint_in_each_step_is_not_said_of_fewer(results, summary_of) -> None:
    """Neither the paper's claim nor our target is met by saving seldom; the rest is measured."""
    name = "training_overhead_percent"
    (claim,) = [claim for claim in CLAIMS if claim.name == "paper_iteration"]
    assert claim.metric == name
    assert name in summary_of(results)
    path = results / "throughput" / "provenance.json"
    write_provenance(path, read_provenance(path) | {"config": {"checkpoint": {"every": 25}}})
    found = summary_of(results)
    assert name not in found
    assert "throughput_overhead_percent" in found


def test_numbers_of_16_machines_are_of_no_other_cluster(results: Path, summary_of) -> None:
    """As placement.num_machines=12 has it: the paper's numbers would stand beside other ones."""
    name = "placement_group_k2_percent"
    assert name in summary_of(results)
    path = results / "placement" / "samples.csv"
    smaller = [replace(s, machine=12 if s.machine == 16 else s.machine) for s in read_samples(path)]
    write_samples(path, smaller)
    assert name not in summary_of(results)


def test_a_year_of_10000_machines_is_not_said_of_less(results: Path, summary_of) -> None:
    """Our target is not met by simulating a day, or few machines."""
    name, path = "simulated_year_s", results / "wasted_time" / "samples.csv"
    (any_one, *_), provenance = read_samples(path), path.with_name("provenance.json")
    year = replace(any_one, metric="seconds", phase="gemini", machine=10_000, value=4.0)
    write_samples(path, [*read_samples(path), year])
    assert name in summary_of(results)
    write_provenance(provenance, read_provenance(provenance) | {"config": {"goodput": {"days": 1}}})
    assert name not in summary_of(results)


def test_clusters_without_a_closed_form_have_no_gap_to_it(results: Path, summary_of) -> None:
    """As goodput.machines=[4000] has it: the summary holds numbers only."""
    path = results / "wasted_time" / "samples.csv"
    larger = [replace(s, machine=4000 if s.machine else None) for s in read_samples(path)]
    write_samples(path, larger)
    assert "goodput_gap_percent" not in summary_of(results)


def test_further_methods_and_metrics_are_tolerated(results: Path, summary_of) -> None:
    """A method or metric that the analysis does not know changes nothing else."""
    path = results / "save_cost" / "samples.csv"
    before = summary_of(results)
    extra = Sample(
        experiment="save_cost", variant="default", method="dcp_async", metric="new_thing",
        value=1.0, unit="count",
    )  # fmt: skip
    write_samples(path, [*read_samples(path), extra])
    assert summary_of(results) == before


def test_results_of_two_machines_do_not_mix(results: Path) -> None:
    """One variant, one machine: else the summary is refused."""
    path = results / "training" / "provenance.json"
    other = read_provenance(path)
    other["hardware"]["cpu_model"] = "Another CPU"
    write_provenance(path, other)
    with pytest.raises(SampleError, match="different hardware"):
        summary.summarise(Dataset(results))


def test_a_run_that_was_kept_beside_the_new_one_does_not_mix_with_it(results: Path) -> None:
    """Each repeat would be the worse one of both, and nothing would say so."""
    shutil.copytree(results / "save_cost", results / "save_cost_before")
    with pytest.raises(SampleError, match="move one of them"):
        Dataset(results)


def test_second_copy_is_identical(results: Path, tmp_path: Path) -> None:
    """`--also` writes the same bytes elsewhere."""
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    summary.main(["--results", str(results), "--output", str(first), "--also", str(second)])
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(first.read_text())["hardware"]["cpu_model"] == "Test & Sons CPU_1"


def test_missing_experiment_says_how_to_get_it(results: Path) -> None:
    """The error names the command to run."""
    shutil.rmtree(results / "training")
    with pytest.raises(NotMeasured, match=r"python -m twinckpt\.experiments\.training"):
        Dataset(results).select("training", "loss")


def test_a_file_that_is_no_summary_is_refused(tmp_path: Path) -> None:
    """By name, with the reason."""
    path = tmp_path / "summary.json"
    path.write_text('{"hardware": {}, "metrics": [{"name": "x"}]}')
    with pytest.raises(summary.SummaryError, match=r"summary\.json: metric 0 lacks value"):
        summary.read_summary(path)
