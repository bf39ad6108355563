"""The type of a headline metric; `metrics` has all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from twinckpt.analysis.dataset import Dataset
from twinckpt.analysis.statistics import Estimate

Unit = Literal[
    "s", "min", "ms", "x", "it/s", "percent", "bool", "bits_per_byte", "bytes", "MiB", "steps",
    "iterations", "count", "per_s", "ratio", "GB", "GPU-h",
]  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A headline number. `definition` is one phrase that says what the clock measures."""

    name: str
    unit: Unit
    experiment: str
    definition: str
    compute: Callable[[Dataset], Estimate]
    seed_value: float | None = None
    paper_value: float | None = None
