"""Wasted time and goodput: Eq. 1, the paper's figures predicted from its set-up, and limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinckpt.core.published import DAY_S
from twinckpt.core.wasted_time import (
    EndToEnd,
    Restart,
    Strategy,
    Workload,
    gemini,
    goodput,
    highfreq,
    smallest_interval_s,
    strawman,
)

# GPT-2 100B on 16 p4d (§7.1): 128 GPUs of 9.4 GiB, 62 s an iteration, storage of 20 Gbps.
GPT2_100B = Workload(iteration_s=62, checkpoint_bytes=128 * 9.4 * 2**30, num_machines=16)
STORAGE_BYTES_PER_S = 20e9 / 8
NETWORK_BYTES_PER_S = 400e9 / 8


def test_equation_1_is_its_three_terms():
    """t_ckpt + 1/(2f) + t_rtvl."""
    strategy = Strategy("x", checkpoint_s=3, interval_s=10, retrieval_s=2)
    assert strategy.wasted_s == 3 + 5 + 2
    assert strategy.checkpoints_per_s == 0.1


def test_highfreq_checkpoints_every_nine_iterations():
    """As the paper says of the 100B model."""
    strategy = highfreq(GPT2_100B, STORAGE_BYTES_PER_S)
    assert strategy.interval_s == 9 * 62
    assert strategy.interval_s >= strategy.checkpoint_s


def test_software_failure_costs_one_and_a_half_iterations():
    """Fig. 10: the local copy needs no retrieval."""
    strategy = gemini(GPT2_100B, NETWORK_BYTES_PER_S, from_peer=False)
    assert strategy.wasted_s == 1.5 * 62


@pytest.mark.parametrize("from_peer", [False, True])
def test_wasted_time_is_13_times_below_highfreq(from_peer):
    """Fig. 10, from either memory."""
    ratio = (
        highfreq(GPT2_100B, STORAGE_BYTES_PER_S).wasted_s
        / gemini(GPT2_100B, NETWORK_BYTES_PER_S, from_peer=from_peer).wasted_s
    )
    assert 13 < ratio < 15


def test_frequency_is_8_and_170_times_the_baselines():
    """Fig. 12: per HighFreq's bandwidth bound, and per Strawman's three hours."""
    frequency = gemini(GPT2_100B, NETWORK_BYTES_PER_S, from_peer=False).checkpoints_per_s
    high = highfreq(GPT2_100B, STORAGE_BYTES_PER_S)
    assert 8 <= frequency * high.checkpoint_s <= frequency / high.checkpoints_per_s <= 9
    assert frequency / strawman(GPT2_100B, STORAGE_BYTES_PER_S).checkpoints_per_s > 170


def test_end_to_end_keeps_the_restart_apart():
    """Fig. 14: about 7 minutes (software) and 12 (hardware) that Eq. 1 does not have."""
    software = Restart(detection_s=15, serialization_s=162, warm_up_s=253)
    hardware = Restart(detection_s=15, serialization_s=162, replacement_s=330, warm_up_s=253)
    assert round(software.total_s / 60) == 7
    assert 12 <= hardware.total_s / 60 < 13
    cost = EndToEnd(gemini(GPT2_100B, NETWORK_BYTES_PER_S, from_peer=True), hardware)
    assert cost.total_s == cost.wasted_s + cost.restart_s
    assert cost.downtime_s == cost.restart_s + cost.strategy.retrieval_s


def test_end_to_end_gain_is_about_3_times():
    """The 13x of Eq. 1 shrinks once the restart counts on both sides."""
    around = Restart(detection_s=15, warm_up_s=253)
    with_serialization = Restart(detection_s=15, serialization_s=162, warm_up_s=253)
    remote = EndToEnd(highfreq(GPT2_100B, STORAGE_BYTES_PER_S), around)
    memory = EndToEnd(gemini(GPT2_100B, NETWORK_BYTES_PER_S, from_peer=False), with_serialization)
    assert 2.5 < remote.total_s / memory.total_s < 3.5


@given(st.floats(0, 1e6), st.floats(1e-3, 1e4))
def test_interval_respects_both_bounds(checkpoint_s, iteration_s):
    """1/f ≥ max(t_ckpt, T_iter), and less than one iteration more than needed."""
    interval_s = smallest_interval_s(checkpoint_s, iteration_s)
    assert interval_s >= iteration_s
    assert interval_s >= checkpoint_s * (1 - 1e-12)
    assert interval_s <= max(checkpoint_s + iteration_s, iteration_s) * (1 + 1e-12)


def test_goodput_without_failures_is_what_the_stall_leaves():
    """No failure, no restart."""
    assert goodput(Strategy("x", 1, 10, 1, stall_s=2), 0.0) == 0.8


def test_goodput_loses_equation_1_a_failure_to_first_order():
    """For rare failures the closed form reduces to λ·(T_wasted + restart)."""
    strategy = Strategy("x", checkpoint_s=3, interval_s=10, retrieval_s=2)
    cost = EndToEnd(strategy, Restart(detection_s=5, warm_up_s=20))
    rate_per_s = 1e-8
    lost_share = 1 - goodput(strategy, rate_per_s, cost.restart)
    assert lost_share == pytest.approx(rate_per_s * cost.total_s, rel=1e-4)


def test_goodput_equals_a_simulation():
    """Draw failures, count the checkpoints that were safe; a recovery starts anew when struck."""
    strategy = Strategy("x", checkpoint_s=4, interval_s=10, retrieval_s=2, stall_s=1)
    downtime_s = EndToEnd(strategy, Restart(detection_s=5)).downtime_s
    gaps_s = np.random.default_rng(3).exponential(40.0, 400_000)
    safe = np.maximum(0, (gaps_s - downtime_s - strategy.checkpoint_s) // strategy.interval_s)
    simulated = 9 * safe.sum() / gaps_s.sum()
    assert goodput(strategy, 1 / 40, Restart(detection_s=5)) == pytest.approx(simulated, rel=0.01)


@given(st.floats(0, 1), st.floats(0, 5), st.floats(0, 100))
def test_goodput_is_a_share(rate_per_s, stall_s, checkpoint_s):
    """In [0, 1], however often the job fails."""
    strategy = Strategy("x", checkpoint_s, max(5.0, checkpoint_s), 1, stall_s)
    assert 0 <= goodput(strategy, rate_per_s, Restart(detection_s=1)) <= 1 + 1e-12


def test_goodput_ranks_the_strategies_at_1000_machines():
    """1.5 % of the machines fail a day (§7.3); each strategy beats the one before it."""
    workload = Workload(62, 128 * 9.4 * 2**30, 1000)
    rate_per_s = 1000 * 0.015 / DAY_S
    shares = [
        goodput(strategy, rate_per_s)
        for strategy in (
            strawman(workload, STORAGE_BYTES_PER_S),
            highfreq(workload, STORAGE_BYTES_PER_S),
            gemini(workload, NETWORK_BYTES_PER_S, from_peer=True),
        )
    ]
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Strategy("x", 11, 10, 0), "interval_s=10 of x: must be at least checkpoint_s=11"),
        (lambda: Strategy("x", 1, 10, 0, 11), "must be at least stall_s=11"),
        (lambda: Strategy("x", 1, 0, 0), "interval_s=0: must be more than 0"),
        (lambda: Strategy("x", -1, 1, 0), "checkpoint_s=-1: must be at least 0"),
        (lambda: Workload(0, 1, 1), "iteration_s=0"),
        (lambda: Restart(detection_s=float("nan")), "detection_s=nan"),
        (lambda: highfreq(GPT2_100B, 0), "storage_bytes_per_s=0"),
    ],
)
def test_impossible_values_name_the_limit(call, message):
    """A value outside its range is refused, with the range."""
    with pytest.raises(ValueError, match=message):
        call()
