"""The profile of idle spans: twenty iterations, mean and normalised deviation."""

import pytest

from twinckpt.core.idle_spans import IdleSpanProfiler


def test_the_first_twenty_iterations_count():
    """Later ones change nothing."""
    profiler = IdleSpanProfiler()
    for _ in range(20):
        assert not profiler.is_complete
        profiler.observe([1.0, 3.0])
    assert profiler.is_complete
    profiler.observe([100.0, 100.0])
    assert profiler.result().mean_s == (1.0, 3.0)


def test_deviation_is_relative_to_the_mean():
    """0.9 and 1.1 deviate by a tenth; 0.99 and 1.01 by a hundredth."""
    profiler = IdleSpanProfiler(num_iterations=2)
    profiler.observe([0.9, 0.99])
    profiler.observe([1.1, 1.01])
    assert profiler.result().normalised_deviation == pytest.approx((0.1, 0.01))
    assert not profiler.result().is_stable(limit=0.09)
    assert profiler.result().is_stable(limit=0.11)


def test_a_span_that_is_always_empty_is_stable():
    """No division by its mean of zero."""
    profiler = IdleSpanProfiler(num_iterations=2)
    profiler.observe([0.0])
    profiler.observe([0.0])
    assert profiler.result().is_stable()


def test_spans_must_correspond():
    """Another number of spans is another iteration shape, not noise."""
    profiler = IdleSpanProfiler()
    profiler.observe([1.0, 1.0])
    with pytest.raises(ValueError, match="1 idle spans in iteration 1: must be 2"):
        profiler.observe([1.0])


@pytest.mark.parametrize("spans_s", [[], [-1.0], [float("nan")]])
def test_impossible_spans_are_refused(spans_s):
    """A length is at least 0 and finite."""
    with pytest.raises(ValueError, match="at least 0, finite"):
        IdleSpanProfiler().observe(spans_s)


def test_two_iterations_are_needed():
    """One says nothing about deviation."""
    with pytest.raises(ValueError, match="num_iterations=1"):
        IdleSpanProfiler(num_iterations=1)
    profiler = IdleSpanProfiler()
    profiler.observe([1.0])
    with pytest.raises(ValueError, match="1 iterations seen: must be at least 2"):
        profiler.result()
