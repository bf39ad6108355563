"""The timeline of one iteration shows its samples."""

from twinckpt.analysis import interleaving
from twinckpt.analysis.dataset import Dataset


def test_the_timeline_is_of_the_median_iteration_of_one_rank(results):
    """Three busy intervals, in milliseconds."""
    busy = interleaving.typical_iteration(Dataset(results), "blocking")
    assert sorted(busy.phase) == ["checkpoint", "compute", "training"]
    assert sorted(busy.busy_from_s) == [0.0, 300.0, 600.0]
