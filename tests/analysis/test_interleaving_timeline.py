"""The timeline of one iteration shows what its samples say."""

from conftest import write_experiment

from twinckpt.analysis import interleaving
from twinckpt.analysis.dataset import Dataset


def test_the_timeline_is_of_the_median_iteration_of_one_rank(tmp_path):
    """Three busy intervals, in milliseconds."""
    write_experiment(tmp_path, "interleaving")
    busy = interleaving.typical_iteration(Dataset(tmp_path), "blocking")
    assert sorted(busy.phase) == ["checkpoint", "compute", "training"]
    assert sorted(busy.busy_from_s) == [0.0, 300.0, 600.0]
