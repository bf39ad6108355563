"""The traffic schedule: every byte once, within budget, and no slower than its baselines."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twinckpt.core.interleaving import (
    STRATEGIES,
    Buffer,
    Checkpoint,
    Link,
    make_schedule,
    smallest_interval_iterations,
)

# 100 Gbps, 30 GB a machine, one peer; 30 spans of 0.1 s: enough idle time, in short pieces.
LINK = Link(latency_s=1e-4, bandwidth_bytes_per_s=12.5e9, copy_bytes_per_s=12.5e9)
CHECKPOINT = Checkpoint(size_bytes=30 * 10**9)
SPANS_S = (0.1,) * 30
SENDING = tuple(strategy for strategy in STRATEGIES if strategy != "none")

LINKS = st.builds(
    Link,
    latency_s=st.floats(0, 0.1),
    bandwidth_bytes_per_s=st.floats(1, 1e6),
    copy_bytes_per_s=st.one_of(st.just(math.inf), st.floats(1, 1e6)),
)
CASES = st.fixed_dictionaries(
    {
        "spans_s": st.lists(st.floats(0, 2), min_size=1, max_size=12),
        "checkpoint": st.builds(Checkpoint, st.integers(0, 2000), st.integers(0, 3)),
        "link": LINKS,
        "buffer": st.integers(1, 5).flatmap(
            lambda p: st.builds(Buffer, st.integers(20 * p, 1000), st.just(p))
        ),
        "utilisation": st.floats(0.05, 0.95),
    }
)


@given(CASES, st.sampled_from(SENDING))
def test_every_byte_of_every_copy_is_sent_once_and_in_order(case, strategy):
    """Copy after copy, each from its first byte to its last; so it also terminates."""
    schedule = make_schedule(strategy, **case)
    checkpoint = case["checkpoint"]
    copies = checkpoint.num_remote_copies if checkpoint.size_bytes else 0
    position = 0
    for chunk in schedule.chunks:
        assert chunk.size_bytes > 0
        assert position == chunk.copy * checkpoint.size_bytes + chunk.offset_bytes
        position += chunk.size_bytes
    assert position == copies * checkpoint.size_bytes
    spans = [chunk.span for chunk in schedule.chunks]
    assert spans == sorted(spans)


@given(CASES, st.sampled_from(["naive", "no_pipeline", "gemini"]))
def test_every_span_but_the_last_keeps_to_its_budget(case, strategy):
    """μ·t_i, latency included; chunks of a span follow each other."""
    schedule = make_schedule(strategy, **case)
    last_span = len(case["spans_s"]) - 1
    for chunk in schedule.chunks:
        if chunk.span < last_span:
            budget_s = case["utilisation"] * case["spans_s"][chunk.span]
            assert chunk.end_s <= budget_s * (1 + 1e-9)
    for before, after in zip(schedule.chunks, schedule.chunks[1:], strict=False):
        assert before.span < after.span or before.end_s <= after.start_s


@given(CASES)
def test_no_chunk_is_larger_than_its_buffer(case):
    """A sub-buffer with the pipeline, the whole buffer without, what it declares if naive."""
    buffer = case["buffer"]
    limits = {"gemini": buffer.sub_buffer_bytes, "blocking": buffer.sub_buffer_bytes}
    limits["no_pipeline"] = buffer.size_bytes
    for strategy in SENDING:
        schedule = make_schedule(strategy, **case)
        limit_bytes = limits.get(strategy, schedule.buffer_bytes)
        assert all(chunk.size_bytes <= limit_bytes for chunk in schedule.chunks)


@given(CASES)
def test_a_sub_buffer_is_copied_out_before_it_is_reused(case):
    """At most p chunks are received and not yet copied."""
    schedule = make_schedule("gemini", **case)
    num_sub_buffers = case["buffer"].num_sub_buffers
    copy_bytes_per_s = case["link"].copy_bytes_per_s
    for span in range(len(case["spans_s"])):
        chunks = [chunk for chunk in schedule.chunks if chunk.span == span]
        for old, new in zip(chunks, chunks[num_sub_buffers:], strict=False):
            copied_s = old.end_s + old.size_bytes / copy_bytes_per_s
            assert new.start_s >= copied_s * (1 - 1e-12)


@given(CASES)
def test_interleaving_never_costs_more_than_blocking(case):
    """With copying that keeps up and no latency, idle time can only help."""
    case["link"] = Link(0.0, case["link"].bandwidth_bytes_per_s)
    lengthening_s = {s: make_schedule(s, **case).lengthening_s for s in STRATEGIES}
    assert lengthening_s["none"] == 0
    assert lengthening_s["gemini"] <= lengthening_s["blocking"] * (1 + 1e-9)


def test_figure_16_in_shape():
    """Blocking costs most, no pipeline less, the full schedule nothing; naive runs out of
    memory."""
    schedules = {s: make_schedule(s, SPANS_S, CHECKPOINT, LINK) for s in STRATEGIES}
    assert schedules["gemini"].lengthening_s == 0
    assert schedules["no_pipeline"].lengthening_s > 0.5
    assert schedules["blocking"].lengthening_s > schedules["no_pipeline"].lengthening_s
    too_large = [s for s in STRATEGIES if schedules[s].buffer_bytes > Buffer().size_bytes]
    assert too_large == ["naive"]


def test_the_cost_taken_off_the_budget_is_the_chunks():
    """The listing takes off that of all that remains, and would send one chunk a span."""
    schedule = make_schedule(
        "gemini", [1.0, 1.0], Checkpoint(1024), Link(0.0, 1024.0), Buffer(512, 4), 0.5
    )
    assert [chunk.size_bytes for chunk in schedule.chunks if chunk.span == 0] == [128] * 4


def test_a_residual_budget_below_the_latency_ends_the_span():
    """The listing would go round for ever there."""
    schedule = make_schedule(
        "gemini", [0.3, 1.0], Checkpoint(100), Link(0.2, 1000.0), Buffer(400, 4), 0.5
    )
    assert [chunk.span for chunk in schedule.chunks] == [1]


def test_what_does_not_fit_lengthens_the_iteration():
    """1,000 bytes at 100 a second, and 4 s idle of which the last span is used whole."""
    schedule = make_schedule(
        "gemini", [2.0, 2.0], Checkpoint(1000), Link(0.0, 100.0), Buffer(400, 4), 0.5
    )
    assert schedule.lengthening_s == pytest.approx(10 - 1 - 2)
    assert sum(chunk.end_s - chunk.start_s for chunk in schedule.chunks) == pytest.approx(10)


def test_one_replica_sends_nothing():
    """m − 1 remote copies, not m."""
    for strategy in STRATEGIES:
        schedule = make_schedule(strategy, SPANS_S, Checkpoint(10**9, 0), LINK)
        assert (schedule.chunks, schedule.lengthening_s) == ((), 0)


def test_a_lower_frequency_makes_it_fit():
    """1,000 bytes at 50 a span: spread over ten iterations, no iteration gets longer."""
    checkpoint = Checkpoint(1000)
    interval = smallest_interval_iterations(
        [1.0, 1.0], checkpoint, Link(0.0, 100.0), Buffer(400, 4), 0.5
    )
    # The last span counts whole: n iterations give 2n − 1 spans of 50 bytes and one of 100.
    assert interval == 10
    with pytest.raises(ValueError, match="do not fit"):
        smallest_interval_iterations([0.1], checkpoint, Link(0.2, 100.0))


@given(LINKS, st.floats(0, 10))
@example(Link(0.1, 3.0), 0.1 + 1 / 3)
def test_fitting_bytes_fit(link, budget_s):
    """Rounding never overdraws the budget."""
    size_bytes = link.fitting_bytes(budget_s)
    assert size_bytes == 0 or link.transfer_s(size_bytes) <= budget_s


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_schedule("x", [1], CHECKPOINT, LINK), "strategy='x': must be one of"),
        (lambda: make_schedule("gemini", [], CHECKPOINT, LINK), "spans_s is empty"),
        (lambda: make_schedule("gemini", [-1], CHECKPOINT, LINK), "each must be at least 0"),
        (
            lambda: make_schedule("gemini", [1], CHECKPOINT, LINK, utilisation=1),
            "utilisation=1: must be between 0 and 1",
        ),
        (lambda: Link(-1, 1), "latency_s=-1"),
        (lambda: Link(0, 0), "bandwidth_bytes_per_s=0: must be more than 0"),
        (lambda: Buffer(3, 4), "size_bytes=3: must be at least one byte for each"),
        (lambda: Buffer(3, 0), "num_sub_buffers=0"),
        (lambda: Checkpoint(-1), "size_bytes=-1"),
    ],
)
def test_impossible_values_name_the_limit(call, message):
    """A value outside its range is refused, with the range."""
    with pytest.raises(ValueError, match=message):
        call()
