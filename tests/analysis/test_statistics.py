"""Medians and their bootstrap intervals."""

import numpy as np
import pytest

from twinckpt.analysis.statistics import median, percent_more, power_law, ratio


def test_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    """Of 200 samples of 20 from a known distribution, at least 88 % of the intervals cover."""
    rng = np.random.default_rng(1)
    estimates = [median(rng.lognormal(sigma=0.5, size=20).tolist()) for _ in range(200)]
    covered = sum(one.low <= 1.0 <= one.high for one in estimates)
    assert covered >= 176


def test_same_samples_give_the_same_interval() -> None:
    """The resampling is seeded."""
    assert median([1.0, 2.0, 4.0, 8.0]) == median([1.0, 2.0, 4.0, 8.0])


def test_one_sample_has_no_interval() -> None:
    """A single value does not pretend to be precise."""
    one = median([3.0])
    assert (one.value, one.low, one.high, one.n) == (3.0, None, None, 1)
    assert ratio([3.0], [1.0, 2.0]).low is None


def test_ratio_and_percent_are_of_medians() -> None:
    """Both come with intervals around them, and n of the smaller side."""
    doubled = ratio([19.0, 20.0, 21.0], [9.0, 10.0, 10.0, 11.0])
    assert doubled.value == 2.0
    assert doubled.low <= 2.0 <= doubled.high
    assert doubled.n == 3
    assert percent_more([30.0, 30.0], [20.0, 20.0]).value == pytest.approx(50.0)


def test_a_disturbance_of_both_sides_cancels_in_pairs() -> None:
    """Twice as slow, in a machine whose speed varies by ten: pairs know it, halves do not."""
    speeds = [1.0, 3.0, 10.0, 2.0, 5.0]
    slow = [2 * one for one in speeds]
    paired, apart = ratio(slow, speeds, paired=True), ratio(slow, speeds)
    assert paired.value == apart.value == 2.0
    assert (paired.low, paired.high) == (2.0, 2.0)
    assert apart.low < 1 < apart.high


def test_no_samples_is_an_error() -> None:
    """An estimate from nothing is refused."""
    with pytest.raises(ValueError, match="no samples"):
        median([])


def test_a_power_law_is_found_again() -> None:
    """Exponent and factor of y = 3 * x ** 2; one repeat each gives no interval."""
    exponent, factor = power_law({x: [3.0 * x**2] for x in (1.0, 2.0, 4.0)})
    assert (exponent.value, factor) == (pytest.approx(2.0), pytest.approx(3.0))
    assert exponent.low is None


def test_two_points_are_no_power_law() -> None:
    """A line through two points always fits."""
    with pytest.raises(ValueError, match="three points"):
        power_law({1.0: [1.0], 2.0: [2.0]})
