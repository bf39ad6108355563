"""Goodput over months: agreement with the closed form, and what the closed form leaves out."""

import numpy as np
import pytest

from twinckpt.core import published as setup
from twinckpt.core.placement import make_placement
from twinckpt.core.published import DAY_S
from twinckpt.core.wasted_time import Restart, Strategy, gemini, goodput, highfreq
from twinckpt.simulation.goodput import (
    FailureModel,
    Failures,
    RecoveryCosts,
    draw_failures,
    simulate,
)

STEADY = Strategy("x", checkpoint_s=4, interval_s=10, retrieval_s=2, stall_s=1)
BOTH = {"software": STEADY, "hardware": STEADY}
AROUND = RecoveryCosts(Restart(detection_s=5), Restart(detection_s=5, replacement_s=50))


def failures_at(*times_s: float, machines: tuple[int, ...], duration_s: float) -> Failures:
    """Return losses of whole machines at chosen times, in a cluster of four."""
    num = len(times_s)
    return Failures(
        4, duration_s, 2, np.array(times_s), np.array(machines),
        np.ones(num, dtype=bool), np.zeros(num, dtype=bool),
    )  # fmt: skip


@pytest.mark.parametrize("num_machines", [16, 1000])
def test_agrees_with_the_closed_form_where_that_holds(num_machines):
    """No group can be lost with storage alone: a year of failures gives the formula's value."""
    model = FailureModel(0.015)
    strategy = highfreq(setup.GPT2_100B_JOB, setup.STORAGE_BYTES_PER_S)
    costs = RecoveryCosts(setup.STORAGE_SOFTWARE, setup.STORAGE_HARDWARE)
    failures = draw_failures(model, num_machines, 3650 * DAY_S, np.random.default_rng(1))
    found = simulate(failures, {"software": strategy, "hardware": strategy}, costs, None)
    expected = goodput(strategy, model.events_per_s(num_machines), setup.STORAGE_HARDWARE)
    assert found.goodput == pytest.approx(expected, rel=0.01)


def test_every_second_is_accounted_for():
    """Useful, lost, stalled and down time add up to the whole, up to the last open interval."""
    failures = draw_failures(FailureModel(5.0), 16, 30 * DAY_S, np.random.default_rng(2))
    found = simulate(failures, BOTH, AROUND, make_placement("group", 16, 2))
    parts_s = found.useful_s + found.lost_work_s + found.stalled_s + found.down_s
    assert found.num_from_storage > 0
    # A fallback to a drained step turns useful time into lost time without its stalls.
    assert parts_s == pytest.approx(found.duration_s, abs=STEADY.interval_s + STEADY.checkpoint_s)


def test_one_failure_costs_its_lost_work_and_its_recovery():
    """At 97 s nine checkpoints are safe (90 + 4 s): 7 s are lost, 57 s nobody trains."""
    found = simulate(
        failures_at(97.0, machines=(0,), duration_s=1000.0), BOTH, AROUND,
        make_placement("group", 4, 2),
    )  # fmt: skip
    assert (found.lost_work_s, found.down_s) == (7.0, 57.0)
    assert found.wasted_s == 64.0
    assert found.useful_s == 9 * (9 + 84)


def test_a_failure_during_recovery_starts_it_anew():
    """The second failure comes 20 s into the first one's recovery."""
    found = simulate(
        failures_at(94.0, 114.0, machines=(0, 2), duration_s=1000.0), BOTH, AROUND,
        make_placement("group", 4, 2),
    )  # fmt: skip
    assert found.down_s == 20 + 57
    assert found.num_from_storage == 0


def test_losing_a_whole_group_goes_back_to_the_drained_step():
    """Machines 0 and 1 hold each other's shards; the drain of 400 s is the newest complete one."""
    costs = RecoveryCosts(
        AROUND.software, AROUND.hardware, drain_interval_s=200.0, storage_retrieval_s=30.0
    )
    failures = failures_at(494.0, 500.0, machines=(0, 1), duration_s=500.0)
    found = simulate(failures, BOTH, costs, make_placement("group", 4, 2))
    assert found.num_from_storage == 1
    assert found.useful_s == 39 * 9


def test_a_software_failure_keeps_the_memory():
    """Nothing is replaced, and no group can be lost by it."""
    failures = draw_failures(
        FailureModel(1.0, hardware_share=0.0), 4, DAY_S, np.random.default_rng(3)
    )
    found = simulate(failures, BOTH, AROUND, make_placement("group", 4, 2))
    assert found.num_from_storage == 0
    assert found.down_s <= found.num_failures * (5 + 2)


def test_racks_are_harmless_only_to_a_placement_that_knows_them():
    """Neighbours share a rack: groups of neighbours die with it, groups across racks do not."""
    model = FailureModel(0.05, correlated_share=1.0, rack_size=4)
    failures = draw_failures(model, 64, 365 * DAY_S, np.random.default_rng(4))
    naive = simulate(failures, BOTH, AROUND, make_placement("group", 64, 2))
    aware = simulate(failures, BOTH, AROUND, make_placement("group", 64, 2, model.racks(64)))
    assert naive.num_from_storage == naive.num_failures
    assert aware.num_from_storage == 0


@pytest.mark.parametrize("correlated_share", [0.0, 0.3, 1.0])
def test_correlation_keeps_each_machines_own_rate(correlated_share):
    """What changes is how losses come together, not how often a machine is lost."""
    model = FailureModel(0.1, correlated_share=correlated_share, rack_size=8)
    failures = draw_failures(model, 64, 1000 * DAY_S, np.random.default_rng(5))
    losses = sum(len(failures.lost_machines(i)) for i in range(len(failures.time_s)))
    assert losses == pytest.approx(0.1 * 64 * 1000, rel=0.05)
    rate_per_s = len(failures.time_s) / failures.duration_s
    assert rate_per_s == pytest.approx(model.events_per_s(64), rel=0.05)


def test_the_same_seed_gives_the_same_year():
    """A result can be replayed."""
    first, second = (
        draw_failures(FailureModel(0.015), 100, 365 * DAY_S, np.random.default_rng(6))
        for _ in range(2)
    )
    assert np.array_equal(first.time_s, second.time_s)
    assert np.array_equal(first.machine, second.machine)


def test_memory_beats_storage_on_the_same_failures():
    """The paper's order at 1,000 instances, 1.5 % of them failing a day."""
    job, rng = setup.GPT2_100B_JOB, np.random.default_rng(7)
    failures = draw_failures(FailureModel(0.015), 1000, 365 * DAY_S, rng)
    peer = gemini(job, setup.P4D_NETWORK_BYTES_PER_S, from_peer=True)
    remote = highfreq(job, setup.STORAGE_BYTES_PER_S)
    in_memory = simulate(
        failures, {"software": peer, "hardware": peer},
        RecoveryCosts(setup.GEMINI_SOFTWARE, setup.GEMINI_HARDWARE, 3 * 3600, remote.retrieval_s),
        make_placement("mixed", 1000, 2),
    )  # fmt: skip
    from_storage = simulate(
        failures, {"software": remote, "hardware": remote},
        RecoveryCosts(setup.STORAGE_SOFTWARE, setup.STORAGE_HARDWARE), None,
    )  # fmt: skip
    assert in_memory.goodput > from_storage.goodput


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"failed_share_per_day": -1.0}, "failed_share_per_day=-1.0"),
        ({"failed_share_per_day": 0.1, "hardware_share": 1.5}, "hardware_share=1.5"),
        ({"failed_share_per_day": 0.1, "rack_size": 0}, "rack_size=0"),
    ],
)
def test_impossible_failure_models_are_refused(settings, says):
    """The value and the limit."""
    with pytest.raises(ValueError, match=says):
        FailureModel(**settings)
