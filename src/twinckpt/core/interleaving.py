"""Checkpoint traffic in the network's idle spans: the paper's Algorithm 2, corrected.

A schedule says which bytes of which remote copy are sent in which idle span of an iteration.
Sending s bytes costs f(s) = α + s/B, and of each span t only μ·t is used; the last span takes
what is left, however long. The baselines of the ablation (§7.4) are schedules too, so all can
be compared by how much longer they make an iteration. The local copy to the machine's own
memory uses no network and is not scheduled here.

What differs from the paper's listing is in docs/deviations.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

STRATEGIES = ("none", "blocking", "naive", "no_pipeline", "gemini")

_MAX_INTERVAL_ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Link:
    """What carries a chunk to a peer's memory.

    latency_s is α and bandwidth_bytes_per_s is B. copy_bytes_per_s is the rate at which the
    receiver moves a chunk from its reserved buffer on to its main memory.
    """

    latency_s: float
    bandwidth_bytes_per_s: float
    copy_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        if not (self.latency_s >= 0 and math.isfinite(self.latency_s)):
            raise ValueError(f"latency_s={self.latency_s:g}: must be at least 0 and finite")
        for name in ("bandwidth_bytes_per_s", "copy_bytes_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name):g}: must be more than 0")

    def transfer_s(self, size_bytes: int) -> float:
        """Return f(s) = α + s/B, in seconds."""
        return self.latency_s + size_bytes / self.bandwidth_bytes_per_s

    def fitting_bytes(self, budget_s: float) -> int:
        """Return the most bytes s with f(s) ≤ budget_s; 0 if α alone is too long."""
        size_bytes = max(0, math.floor((budget_s - self.latency_s) * self.bandwidth_bytes_per_s))
        while size_bytes and self.transfer_s(size_bytes) > budget_s:
            size_bytes -= 1
        return size_bytes


@dataclass(frozen=True, slots=True)
class Buffer:
    """The receiver's reserved buffer R, split into p equal sub-buffers."""

    size_bytes: int = 128 * 2**20
    num_sub_buffers: int = 4

    def __post_init__(self) -> None:
        if self.num_sub_buffers < 1:
            raise ValueError(f"num_sub_buffers={self.num_sub_buffers}: must be at least 1")
        if self.size_bytes < self.num_sub_buffers:
            raise ValueError(
                f"size_bytes={self.size_bytes}: must be at least one byte for each of "
                f"num_sub_buffers={self.num_sub_buffers}"
            )

    @property
    def sub_buffer_bytes(self) -> int:
        """R/p, the largest chunk."""
        return self.size_bytes // self.num_sub_buffers


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one machine sends: its shards' bytes, to each of m − 1 peers."""

    size_bytes: int
    num_remote_copies: int = 1

    def __post_init__(self) -> None:
        for name in ("size_bytes", "num_remote_copies"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes [offset_bytes, offset_bytes + size_bytes) of a remote copy, sent in a span.

    start_s and end_s count from the beginning of the span.
    """

    span: int
    copy: int
    offset_bytes: int
    size_bytes: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """Every chunk of an iteration, in sending order, and what sending them costs.

    spans_s: the idle spans it was made for. lengthening_s: predicted lengthening of the
    iteration. buffer_bytes: what the receiver must reserve.
    """

    strategy: str
    spans_s: tuple[float, ...]
    chunks: tuple[Chunk, ...]
    lengthening_s: float
    buffer_bytes: int


def make_schedule(
    strategy: str,
    spans_s: Sequence[float],
    checkpoint: Checkpoint,
    link: Link,
    buffer: Buffer | None = None,
    utilisation: float = 0.9,
) -> Schedule:
    """Return the schedule of a checkpoint over an iteration's idle spans.

    Args:
        strategy: "gemini", the full schedule; "no_pipeline", the same with one undivided
            buffer, so that receiving waits for copying; "naive", one chunk a span, however
            large; "blocking", all of it while training waits; "none", no checkpoint.
        spans_s: idle spans of the training network in an iteration, in order, in seconds.
        utilisation: μ, the share of a span that is used, 0 < μ < 1.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}: must be one of {', '.join(STRATEGIES)}")
    if not 0 < utilisation < 1:
        raise ValueError(f"utilisation={utilisation:g}: must be between 0 and 1, both excluded")
    spans = tuple(float(span_s) for span_s in spans_s)
    if not spans:
        raise ValueError("spans_s is empty: at least one span is needed, if only of 0 s")
    if not all(span_s >= 0 and math.isfinite(span_s) for span_s in spans):
        raise ValueError(f"spans_s={spans}: each must be at least 0 and finite")
    buffer = buffer or Buffer()
    if strategy == "none":
        return Schedule(strategy, spans, (), 0.0, 0)
    if strategy == "blocking":
        chunks = _fill((0.0,), checkpoint, link, buffer, utilisation)
        return Schedule(strategy, spans, chunks, _last_end_s(chunks, 0), buffer.size_bytes)
    if strategy == "naive":
        chunks = _one_a_span(spans, checkpoint, link, utilisation)
        buffer_bytes = max((chunk.size_bytes for chunk in chunks), default=0)
    else:
        used = buffer if strategy == "gemini" else Buffer(buffer.size_bytes, 1)
        chunks = _fill(spans, checkpoint, link, used, utilisation)
        buffer_bytes = buffer.size_bytes
    last = len(spans) - 1
    lengthening_s = max(0.0, _last_end_s(chunks, last) - spans[last])
    return Schedule(strategy, spans, chunks, lengthening_s, buffer_bytes)


def smallest_interval_iterations(
    spans_s: Sequence[float],
    checkpoint: Checkpoint,
    link: Link,
    buffer: Buffer | None = None,
    utilisation: float = 0.9,
) -> int:
    """Return over how many iterations to spread one checkpoint so that none gets longer.

    The paper's remedy where an iteration's spans are too short: a lower frequency.

    Raises:
        ValueError: if 1,000 iterations are not enough.
    """
    for num_iterations in range(1, _MAX_INTERVAL_ITERATIONS + 1):
        spans = tuple(spans_s) * num_iterations
        schedule = make_schedule("gemini", spans, checkpoint, link, buffer, utilisation)
        if schedule.lengthening_s == 0:
            return num_iterations
        sent_bytes = sum(c.size_bytes for c in schedule.chunks if c.span < len(spans) - 1)
        if num_iterations > 1 and not sent_bytes:
            break
    raise ValueError(
        f"{checkpoint.num_remote_copies} copies of {checkpoint.size_bytes} bytes do not fit the "
        f"idle spans (of {max(spans_s):g} s at most) of {num_iterations} iterations"
    )


def _fill(
    spans_s: Sequence[float],
    checkpoint: Checkpoint,
    link: Link,
    buffer: Buffer,
    utilisation: float,
) -> tuple[Chunk, ...]:
    """Algorithm 2: as many chunks a span as its budget allows, each at most a sub-buffer.

    A chunk waits for the sub-buffer that it reuses to be copied out. Between two spans all
    copying ends, since it needs no network and training's own traffic fills that time.
    """
    chunks: list[Chunk] = []
    copy, offset_bytes = _skip_empty(checkpoint), 0
    for span, span_s in enumerate(spans_s):
        budget_s = math.inf if span == len(spans_s) - 1 else utilisation * span_s
        free_at_s = [0.0] * buffer.num_sub_buffers
        sent_s = copied_s = 0.0
        while copy < checkpoint.num_remote_copies:
            turn = len(chunks) % buffer.num_sub_buffers
            start_s = max(sent_s, free_at_s[turn])
            size_bytes = min(buffer.sub_buffer_bytes, checkpoint.size_bytes - offset_bytes)
            if link.transfer_s(size_bytes) > budget_s - start_s:
                size_bytes = min(size_bytes, link.fitting_bytes(budget_s - start_s))
            if size_bytes == 0:
                break
            sent_s = start_s + link.transfer_s(size_bytes)
            copied_s = max(sent_s, copied_s) + size_bytes / link.copy_bytes_per_s
            free_at_s[turn] = copied_s
            chunks.append(Chunk(span, copy, offset_bytes, size_bytes, start_s, sent_s))
            offset_bytes += size_bytes
            if offset_bytes == checkpoint.size_bytes:
                copy, offset_bytes = copy + 1, 0
    return tuple(chunks)


def _one_a_span(
    spans_s: Sequence[float], checkpoint: Checkpoint, link: Link, utilisation: float
) -> tuple[Chunk, ...]:
    """One chunk a span, as large as its budget; the last span takes one for each copy left."""
    chunks: list[Chunk] = []
    copy, offset_bytes = _skip_empty(checkpoint), 0
    for span, span_s in enumerate(spans_s[:-1]):
        if copy == checkpoint.num_remote_copies:
            return tuple(chunks)
        left_bytes = checkpoint.size_bytes - offset_bytes
        size_bytes = min(left_bytes, link.fitting_bytes(utilisation * span_s))
        if size_bytes:
            end_s = link.transfer_s(size_bytes)
            chunks.append(Chunk(span, copy, offset_bytes, size_bytes, 0.0, end_s))
            offset_bytes += size_bytes
        if offset_bytes == checkpoint.size_bytes:
            copy, offset_bytes = copy + 1, 0
    sent_s = 0.0
    while copy < checkpoint.num_remote_copies:
        size_bytes = checkpoint.size_bytes - offset_bytes
        start_s, sent_s = sent_s, sent_s + link.transfer_s(size_bytes)
        chunks.append(Chunk(len(spans_s) - 1, copy, offset_bytes, size_bytes, start_s, sent_s))
        copy, offset_bytes = copy + 1, 0
    return tuple(chunks)


def _skip_empty(checkpoint: Checkpoint) -> int:
    """Return the first copy with a byte to send; none has, if the checkpoint is empty."""
    return 0 if checkpoint.size_bytes else checkpoint.num_remote_copies


def _last_end_s(chunks: Sequence[Chunk], span: int) -> float:
    return max((chunk.end_s for chunk in chunks if chunk.span == span), default=0.0)
