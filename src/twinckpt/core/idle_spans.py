"""The idle spans of the training network, profiled online over the first iterations (§5).

The profiler is told how long each span of an iteration was, by whoever watches the
collectives; it decides when it has seen enough, and whether the spans repeat well enough to
schedule by.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_ITERATIONS = 20
MAX_NORMALISED_DEVIATION = 0.1


@dataclass(frozen=True, slots=True)
class IdleSpans:
    """Mean length of each span in seconds, and its standard deviation divided by the mean."""

    mean_s: tuple[float, ...]
    normalised_deviation: tuple[float, ...]

    def is_stable(self, limit: float = MAX_NORMALISED_DEVIATION) -> bool:
        """Return whether every span stays below the paper's limit of 10 %."""
        return all(deviation < limit for deviation in self.normalised_deviation)


class IdleSpanProfiler:
    """Collects the spans of `num_iterations` iterations, then ignores further ones."""

    def __init__(self, num_iterations: int = NUM_ITERATIONS) -> None:
        if num_iterations < 2:
            raise ValueError(
                f"num_iterations={num_iterations}: a deviation needs at least 2 iterations"
            )
        self.num_iterations = num_iterations
        self._seen: list[tuple[float, ...]] = []

    @property
    def is_complete(self) -> bool:
        """Return whether `result` is final."""
        return len(self._seen) == self.num_iterations

    def observe(self, spans_s: Sequence[float]) -> None:
        """Add one iteration's idle spans in seconds; called at each iteration's end.

        Raises:
            ValueError: if their number differs from the first iteration's.
        """
        if self.is_complete:
            return
        if not spans_s or not all(np.isfinite(span_s) and span_s >= 0 for span_s in spans_s):
            raise ValueError(f"spans_s={list(spans_s)}: must be one or more, at least 0, finite")
        if self._seen and len(spans_s) != len(self._seen[0]):
            raise ValueError(
                f"{len(spans_s)} idle spans in iteration {len(self._seen)}: must be "
                f"{len(self._seen[0])} as in the first"
            )
        self._seen.append(tuple(float(span_s) for span_s in spans_s))

    def result(self) -> IdleSpans:
        """Return the profile of the iterations seen.

        Raises:
            ValueError: before the second iteration.
        """
        if len(self._seen) < 2:
            raise ValueError(f"{len(self._seen)} iterations seen: must be at least 2")
        spans_s = np.array(self._seen)
        mean_s = spans_s.mean(axis=0)
        deviation_s = spans_s.std(axis=0)
        normalised = np.divide(deviation_s, mean_s, out=np.zeros_like(mean_s), where=mean_s > 0)
        return IdleSpans(tuple(mean_s.tolist()), tuple(normalised.tolist()))
