"""Plans for given clusters: what is recommended, what it costs, what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from twinckpt.core.placement import make_placement
from twinckpt.core.planning import (
    ClusterFacts,
    candidates,
    memory_plan,
    recommend,
    storage_plan,
)
from twinckpt.core.published import DAY_S
from twinckpt.core.wasted_time import Restart, Strategy
from twinckpt.errors import ConfigurationError
from twinckpt.simulation.goodput import FailureModel, RecoveryCosts, draw_failures, simulate

# The paper's 16 p4d with GPT-2 100B, as in core/published.py; 1.5 % of the machines fail a day.
P4D = ClusterFacts(
    num_machines=16, ranks_per_machine=8, bytes_per_rank=9.4 * 2**30,
    network_bytes_per_s=400e9 / 8, storage_bytes_per_s=20e9 / 8, copy_bytes_per_s=50e9,
    iteration_s=62.0, failures_per_day=0.24, memory_bytes=1152 * 1e9,
)  # fmt: skip


def test_the_papers_cluster_gets_the_papers_answer():
    """Two replicas in groups, a checkpoint every iteration; storage only every nine."""
    plan = recommend(P4D)
    assert (plan.placement, plan.num_replicas, plan.interval_iterations) == ("group", 2, 1)
    assert storage_plan(P4D).interval_iterations == 9
    assert plan.goodput > storage_plan(P4D).goodput


def test_the_prediction_agrees_with_the_simulator():
    """A thousand machines, a year of failures, the recommended plan."""
    facts = replace(P4D, num_machines=1000, failures_per_day=15.0, memory_bytes=None,
                    storage_bytes_per_s=1000 / 16 * 20e9 / 8)  # fmt: skip
    plan = memory_plan(facts, 2)
    strategy = Strategy(
        "plan", plan.safe_s, plan.interval_iterations * facts.iteration_s,
        facts.machine_bytes / facts.network_bytes_per_s,
    )  # fmt: skip
    around = Restart(facts.detection_s, 0.0, facts.replacement_s, facts.warm_up_s)
    outcome = simulate(
        draw_failures(FailureModel(0.015), 1000, 365 * DAY_S, np.random.default_rng(1)),
        {"software": strategy, "hardware": strategy},
        RecoveryCosts(around, around, plan.drain_interval_s, facts.drain_s),
        make_placement("mixed", 1000, 2),
    )
    assert plan.goodput == pytest.approx(outcome.goodput, abs=0.01)


def test_a_third_replica_must_be_worth_its_memory():
    """560 machines, eight failures a day: 0.03 % more goodput for half as much memory again."""
    facts = replace(P4D, num_machines=560, failures_per_day=8.0, iteration_s=44.4,
                    bytes_per_rank=1.42e9, network_bytes_per_s=2e11, storage_bytes_per_s=1.6e12,
                    memory_bytes=None)  # fmt: skip
    plans, _ = candidates(facts)
    assert plans[1].goodput > plans[0].goodput
    assert recommend(facts).num_replicas == 2


def test_an_odd_number_of_machines_gets_mixed_placement():
    """Groups of two do not cover seventeen machines."""
    assert recommend(replace(P4D, num_machines=17)).placement == "mixed"


def test_a_slow_network_lowers_the_frequency():
    """The copies must fit into what training leaves free of the network."""
    plan = memory_plan(replace(P4D, network_bytes_per_s=10e9 / 8), 2)
    assert plan.interval_iterations > 1
    assert plan.interval_iterations * P4D.iteration_s >= plan.safe_s


def test_a_stall_makes_checkpoints_rarer_as_failures_do_so():
    """Young's optimum: half the frequency at a quarter of the failures."""
    often, rarely = (
        memory_plan(replace(P4D, stall_s=5.0, failures_per_day=rate), 2) for rate in (8.0, 2.0)
    )
    assert rarely.interval_iterations == pytest.approx(2 * often.interval_iterations, abs=1)


def test_more_groups_lost_means_more_drains():
    """All machines in one rack: what takes the rack takes every replica."""
    apart = memory_plan(replace(P4D, rack_share=0.1, num_racks=4), 2)
    together = memory_plan(replace(P4D, rack_share=0.1, num_racks=1), 2)
    assert together.group_losses_per_day > 10 * apart.group_losses_per_day
    assert together.drain_interval_s < apart.drain_interval_s


def test_every_plan_names_what_dominates():
    """The causes add up to the waste."""
    for plan in [storage_plan(P4D), *candidates(P4D)[0]]:
        assert plan.waste[plan.dominant] == max(plan.waste.values())
        assert -np.log(plan.goodput) == pytest.approx(sum(plan.waste.values()))


def test_without_failures_nothing_is_wasted():
    """And nothing divides by zero."""
    assert recommend(replace(P4D, failures_per_day=0.0)).goodput == 1.0


def test_replicas_that_do_not_fit_are_left_out_with_the_reason():
    """Three replicas of 75 GiB in two slots need 451 GiB."""
    plans, reasons = candidates(replace(P4D, memory_bytes=400 * 2**30))
    assert [plan.num_replicas for plan in plans] == [2]
    assert reasons[0].startswith("3 replicas in 2 slots need 451.2 GiB")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_machines": 1}, "needs a second machine"),
        ({"iteration_s": 0.0}, "iteration_s=0: must be more than 0"),
        ({"failures_per_day": -1.0}, "failures_per_day=-1: must be at least 0"),
        ({"network_bytes_per_s": float("inf")}, "network_bytes_per_s=inf"),
        ({"hardware_share": 2.0}, "hardware_share=2: must be in"),
        ({"network_idle_share": 0.0}, "network_idle_share=0: must be in"),
        ({"num_racks": 17}, "num_racks=17 is more than num_machines=16"),
        ({"num_slots": 1}, "needs 2, the committed step"),
        ({"memory_bytes": 2**30}, "no plan with replicas in memory: 2 replicas"),
        ({"failures_per_day": 2000.0}, r"0\.0 % of the time to train"),
    ],
)
def test_impossible_inputs_are_refused_with_the_reason(change, says):
    """In one line that names the value."""
    with pytest.raises(ConfigurationError, match=says):
        recommend(replace(P4D, **change))
