"""The sample: one measured value and what it was measured on. Each is a row of a CSV file.

Samples are validated when they are read as well as when they are made, and an error of reading
names the file, the line and the column. Names of methods and metrics are free: experiments may
add some.
"""

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from twinckpt.results.atomic import atomic_text

NAME = re.compile(r"[a-z][a-z0-9_]*")
VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VARIANT_IN_WORDS = "ASCII letters, digits, '.', '_' and '-' only, and a letter or digit first"
UNITS = frozenset(
    {
        "s",
        "bytes",
        "iterations_per_s",
        "steps",
        "count",
        "bool",
        "ratio",
        "percent",
        "nats_per_byte",
        "bits_per_byte",
    }
)


class SampleError(ValueError):
    """A sample breaks the schema; the message says where and what would be right."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One value. `unit` is one of `UNITS`; a `bool` is 1.0 or 0.0; times are seconds."""

    experiment: str
    variant: str
    method: str
    metric: str
    value: float
    unit: str
    rank: int | None = None
    machine: int | None = None
    step: int | None = None
    repeat: int | None = None
    phase: str = ""

    def __post_init__(self) -> None:
        for column in ("experiment", "method", "metric"):
            _require_name(column, getattr(self, column))
        if self.phase:
            _require_name("phase", self.phase)
        if not VARIANT.fullmatch(self.variant):
            raise SampleError(f"column variant: {self.variant!r} is not a plain name")
        if self.unit not in UNITS:
            raise SampleError(
                f"column unit: {self.unit!r} is not a known unit; use one of {sorted(UNITS)}"
            )
        for column in ("rank", "machine", "step", "repeat"):
            number = getattr(self, column)
            if number is not None and number < 0:
                raise SampleError(f"column {column}: {number} is negative")
        if not math.isfinite(self.value):
            raise SampleError(f"column value: {self.value} is not a finite number")
        if self.unit == "bool" and self.value not in (0.0, 1.0):
            raise SampleError(f"column value: a bool is 1.0 or 0.0, not {self.value}")


COLUMNS = (
    "experiment",
    "variant",
    "method",
    "rank",
    "machine",
    "step",
    "repeat",
    "phase",
    "metric",
    "value",
    "unit",
)
assert set(COLUMNS) == {field.name for field in fields(Sample)}
INTEGER_COLUMNS = frozenset({"rank", "machine", "step", "repeat"})


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples as CSV, all or nothing."""
    with atomic_text(Path(path)) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for sample in samples:
            writer.writerow([_to_text(getattr(sample, column)) for column in COLUMNS])


def read_samples(path: Path) -> list[Sample]:
    """Read and validate a CSV of samples; raises `SampleError` naming file, line and column."""
    path = Path(path)
    samples = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if header is None:
                raise SampleError(f"{path}: the file is empty; rerun the experiment")
            if tuple(header) != COLUMNS:
                raise SampleError(
                    f"{path}:1: the columns are {','.join(header)}; expected {','.join(COLUMNS)}"
                )
            for row in reader:
                try:
                    samples.append(_parse(row))
                except SampleError as error:
                    raise SampleError(f"{path}:{reader.line_num}: {error}") from None
    except UnicodeDecodeError as error:
        raise SampleError(f"{path}: not a text file ({error})") from None
    except csv.Error as error:
        raise SampleError(f"{path}: not a CSV file ({error})") from None
    if not samples:
        raise SampleError(f"{path}: no samples; rerun the experiment")
    return samples


def _parse(row: list[str]) -> Sample:
    if len(row) != len(COLUMNS):
        raise SampleError(f"column count: {len(row)} columns, expected {len(COLUMNS)}")
    cells = dict(zip(COLUMNS, row, strict=True))
    integers = {column: _parse_integer(column, cells[column]) for column in INTEGER_COLUMNS}
    try:
        value = float(cells["value"])
    except ValueError:
        raise SampleError(f"column value: {cells['value']!r} is not a number") from None
    return Sample(
        experiment=cells["experiment"],
        variant=cells["variant"],
        method=cells["method"],
        rank=integers["rank"],
        machine=integers["machine"],
        step=integers["step"],
        repeat=integers["repeat"],
        phase=cells["phase"],
        metric=cells["metric"],
        value=value,
        unit=cells["unit"],
    )


def _parse_integer(column: str, text: str) -> int | None:
    if text == "":
        return None
    try:
        return int(text)
    except ValueError:
        raise SampleError(f"column {column}: {text!r} is not an integer") from None


def _to_text(value: object) -> str:
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _require_name(column: str, text: str) -> None:
    if not NAME.fullmatch(text):
        raise SampleError(
            f"column {column}: {text!r} is not a name of lower-case letters, digits and _"
        )
