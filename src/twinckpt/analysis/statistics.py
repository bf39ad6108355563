"""Medians with 95 % bootstrap intervals, and functions of two medians (ratios, overheads).

Percentile bootstrap, seeded: the same samples give the same interval. Samples are taken to be
independent repeats; one sample has a value but no interval.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 20231023
MS_PER_S = 1000.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are None if the value has no interval."""

    value: float
    low: float | None
    high: float | None
    n: int


def exactly(value: float, n: int = 1) -> Estimate:
    """Return a count, an extreme or another value without interval, from `n` samples."""
    return Estimate(float(value), None, None, n)


def median(samples: Sequence[float]) -> Estimate:
    """Return the median of the samples and its interval."""
    values = _checked(samples)
    return Estimate(float(np.median(values)), *_interval(_resampled_medians(values)), len(values))


def combine(
    first: Sequence[float],
    second: Sequence[float],
    function: Callable[[Array, Array], Array],
    paired: bool = False,
) -> Estimate:
    """Return `function(median of first, median of second)` with its interval.

    `paired`: sample i of both was measured in the same repeat, in alternation, so that whole
    repeats are resampled; otherwise each side by itself. `n` is the size of the smaller side.
    """
    a, b = _checked(first), _checked(second)
    value = function(np.median(a, keepdims=True), np.median(b, keepdims=True))
    together = paired and len(a) == len(b)
    medians_a = _resampled_medians(a)
    medians_b = _resampled_medians(b, SEED if together else SEED + 1)
    if medians_a is None or medians_b is None:
        low, high = None, None
    else:
        low, high = _interval(function(medians_a, medians_b))
    return Estimate(float(value[0]), low, high, min(len(a), len(b)))


def ratio(
    numerator: Sequence[float], denominator: Sequence[float], paired: bool = False
) -> Estimate:
    """Return the numerator's median over the denominator's."""
    return combine(numerator, denominator, lambda a, b: a / b, paired)


def percent_more(first: Sequence[float], second: Sequence[float], paired: bool = False) -> Estimate:
    """Return by how many percent the first median exceeds the second (negative: falls short)."""
    return combine(first, second, lambda a, b: 100 * (a / b - 1), paired)


def power_law(samples: Mapping[float, Sequence[float]]) -> tuple[Estimate, float]:
    """Fit y = c * x ** k to the medians at each x; return k with its interval, and c.

    Least squares of log y on log x. The interval resamples repeats within each x: it says how
    sure the exponent of these points is, not whether a power law holds beyond them.
    """
    if len(samples) < 3:
        raise ValueError(f"a power law needs three points or more, not {len(samples)}")
    xs = sorted(samples)
    values = [_checked(samples[x]) for x in xs]
    log_x = np.log(xs)
    exponent, intercept = np.polyfit(log_x, np.log([np.median(ys) for ys in values]), 1)
    resampled = [_resampled_medians(ys, SEED + index) for index, ys in enumerate(values)]
    known = [medians for medians in resampled if medians is not None]
    exponents = np.polyfit(log_x, np.log(known), 1)[0] if len(known) == len(xs) else None
    estimate = Estimate(float(exponent), *_interval(exponents), min(map(len, values)))
    return estimate, float(np.exp(intercept))


def _checked(samples: Sequence[float]) -> Array:
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no samples to estimate from")
    return values


def _resampled_medians(values: Array, seed: int = SEED) -> Array | None:
    if len(values) < 2:
        return None
    picks = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    return np.asarray(np.median(values[picks], axis=1))


def _interval(resampled: Array | None) -> tuple[float | None, float | None]:
    if resampled is None:
        return None, None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)
