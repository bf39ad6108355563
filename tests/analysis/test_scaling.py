"""Growth with ranks and state, fitted to samples whose growth the test chooses."""

import pytest

from twinckpt.analysis.dataset import Dataset
from twinckpt.analysis.scaling import exponent, series


@pytest.mark.parametrize(("along", "expected"), [("mib", 1.0), ("ranks", 0.5)])
def test_the_exponent_is_that_of_the_samples(results, along, expected):
    """Proportional to the state, root of the ranks; the interval covers it."""
    found = exponent("done_s", along)(Dataset(results))
    assert found.value == pytest.approx(expected)
    assert found.low <= expected <= found.high


def test_a_series_varies_one_thing_only(results):
    """Ranks at the size that most clusters had; sizes at the most measured number of ranks."""
    assert sorted(series(Dataset(results), "stall_s", "ranks")) == [2, 4, 8]
    assert sorted(series(Dataset(results), "stall_s", "mib")) == [8, 16, 32]
