"""Recovery probability: the paper's numbers, and four methods that agree."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinckpt.core.placement import make_placement
from twinckpt.core.recovery_probability import (
    corollary_1,
    exact_probability,
    probability_by_domains,
    probability_by_enumeration,
    probability_by_monte_carlo,
    recovery_probability,
    ring_union_bound,
    survives,
)


@pytest.mark.parametrize(("num_lost", "percent"), [(1, 100.0), (2, 93.3), (3, 80.0)])
def test_figure_9_group(num_lost, percent):
    """16 machines, two replicas: the closed form is exact below k = 4."""
    assert round(100 * corollary_1(16, 2, num_lost), 1) == percent
    assert exact_probability("group", 16, 2, num_lost) == pytest.approx(
        corollary_1(16, 2, num_lost)
    )


def test_figure_9_ring_is_a_bound():
    """The plotted 0.600 at k = 3 is a union bound; the value is 0.6286."""
    assert ring_union_bound(16, 2, 3) == pytest.approx(0.600)
    assert round(exact_probability("ring", 16, 2, 3), 4) == 0.6286
    assert round(probability_by_enumeration(make_placement("ring", 16, 2), 3), 4) == 0.6286


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_exact_counts_equal_enumeration(data):
    """For every kind, size and number of lost machines of a small cluster."""
    num_machines = data.draw(st.integers(1, 11))
    num_replicas = data.draw(st.integers(1, num_machines))
    kinds = ["ring", "mixed"] + ["group"] * (num_machines % num_replicas == 0)
    placement = make_placement(data.draw(st.sampled_from(kinds)), num_machines, num_replicas)
    num_lost = data.draw(st.integers(0, num_machines))
    assert recovery_probability(placement, num_lost) == pytest.approx(
        probability_by_enumeration(placement, num_lost), abs=1e-12
    )


@given(st.integers(1, 30), st.integers(1, 10), st.data())
def test_corollary_1_is_a_bound_and_exact_below_two_groups(num_groups, num_replicas, data):
    """Two groups can be lost whole only from k = 2m on."""
    num_machines = num_groups * num_replicas
    num_lost = data.draw(st.integers(0, num_machines))
    exact = exact_probability("group", num_machines, num_replicas, num_lost)
    closed_form = corollary_1(num_machines, num_replicas, num_lost)
    assert closed_form <= exact + 1e-12
    if num_lost < 2 * num_replicas:
        assert closed_form == pytest.approx(exact, abs=1e-12)


@given(st.integers(2, 40), st.data())
def test_ring_bound_is_below_the_value_and_group_above_it(num_machines, data):
    """The union bound never promises too much, and a ring is never better than mixed."""
    num_replicas = data.draw(st.integers(1, num_machines))
    num_lost = data.draw(st.integers(0, num_machines))
    ring = exact_probability("ring", num_machines, num_replicas, num_lost)
    assert ring_union_bound(num_machines, num_replicas, num_lost) <= ring + 1e-12
    assert ring <= exact_probability("mixed", num_machines, num_replicas, num_lost) + 1e-12


@given(st.integers(2, 60), st.data())
def test_mixed_is_near_optimal_at_k_equal_m(num_machines, data):
    """Within (2m − 3)/C(N, m) of the best that any placement could do (§4)."""
    num_replicas = data.draw(st.integers(2, num_machines))
    num_sets = comb(num_machines, num_replicas)
    optimum = 1 - -(-num_machines // num_replicas) / num_sets
    gap = optimum - exact_probability("mixed", num_machines, num_replicas, num_replicas)
    assert -1e-12 <= gap <= (2 * num_replicas - 3) / num_sets + 1e-12


@pytest.mark.parametrize(("kind", "num_lost"), [("group", 4), ("ring", 5), ("mixed", 3)])
def test_monte_carlo_agrees_within_its_error(kind, num_lost):
    """Five standard errors around the exact value, with a fixed seed."""
    placement = make_placement(kind, 17 if kind == "mixed" else 16, 2)
    estimate = probability_by_monte_carlo(placement, num_lost, 20_000, np.random.default_rng(7))
    exact = recovery_probability(placement, num_lost)
    assert abs(estimate.probability - exact) <= 5 * estimate.standard_error
    assert estimate.num_samples == 20_000


def test_monte_carlo_repeats_with_its_seed():
    """The generator is the caller's."""
    placement = make_placement("ring", 200, 3)
    runs = [
        probability_by_monte_carlo(placement, 20, 5_000, np.random.default_rng(1)) for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_large_clusters_are_exact_too():
    """10,000 machines, 100 lost: no enumeration and no overflow."""
    ring = exact_probability("ring", 10_000, 2, 100)
    group = exact_probability("group", 10_000, 2, 100)
    assert 0 < ring < group < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_probability("ring", 4, 2, 5), r"num_lost=5: must be in \[0, 4\]"),
        (lambda: exact_probability("ring", 4, 5, 2), r"num_replicas=5: must be in \[1, 4\]"),
        (lambda: exact_probability("group", 5, 2, 2), "no multiple"),
        (lambda: exact_probability("star", 4, 2, 2), "must be one of"),
        (lambda: probability_by_enumeration(make_placement("ring", 60, 2), 30), "at most 5000000"),
    ],
)
def test_impossible_requests_name_the_limit(call, message):
    """A value outside its range is refused, with the range."""
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_survives_unless_a_replica_group_is_lost_whole():
    """Ring of five, two replicas: neighbours are too much, others are not."""
    placement = make_placement("ring", 5, 2)
    assert survives(placement, [0, 2])
    assert not survives(placement, [4, 0])
    assert not survives(placement, [0, 2, 3])


@pytest.mark.parametrize("kind", ["group", "ring"])
def test_domains_of_one_machine_are_machines(kind):
    """Then the loss of domains is the loss of machines."""
    placement = make_placement(kind, 8, 2)
    for num_lost in range(9):
        assert probability_by_domains(placement, range(8), num_lost) == pytest.approx(
            probability_by_enumeration(placement, num_lost)
        )


@pytest.mark.parametrize("kind", ["group", "ring"])
def test_replicas_kept_apart_survive_the_loss_of_any_rack(kind):
    """And placed rack by rack they survive none."""
    racks = [machine // 2 for machine in range(8)]
    aware = make_placement(kind, 8, 2, racks)
    assert probability_by_domains(aware, racks, 1) == 1.0
    assert probability_by_domains(make_placement(kind, 8, 2), racks, 1) == 0.0


def test_more_domains_than_there_are_cannot_be_lost():
    """Nor is a placement of another size accepted."""
    placement = make_placement("group", 4, 2)
    with pytest.raises(ValueError, match="num_lost=3 of 2 domains"):
        probability_by_domains(placement, [0, 0, 1, 1], 3)
    with pytest.raises(ValueError, match="3 failure domains given: must be 4"):
        probability_by_domains(placement, [0, 0, 1], 1)
