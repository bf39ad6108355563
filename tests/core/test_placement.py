"""Placement: who holds whose shards, and that failure domains are respected."""

import logging
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinckpt.core.placement import (
    Placement,
    group,
    make_placement,
    mixed,
    ring,
    shared_domains,
)

SIZES = st.integers(1, 24).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def test_group_of_two_is_pairs():
    """Each machine of a pair holds the other's shards."""
    assert group(4, 2).holders == ((0, 1), (1, 0), (2, 3), (3, 2))


def test_ring_sends_to_the_next_machines():
    """The last machine's successor is the first."""
    assert ring(4, 3).holders == ((0, 1, 2), (1, 2, 3), (2, 3, 0), (3, 0, 1))


def test_mixed_is_groups_then_one_ring():
    """Seven machines in pairs: two pairs, and a ring of the three left (Algorithm 1)."""
    assert mixed(7, 2).holders == ((0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 6), (6, 4))


def test_mixed_of_fewer_than_two_groups_is_a_ring():
    """There is no group to form before the ring."""
    assert mixed(5, 3).holders == ring(5, 3).holders


@given(SIZES)
def test_mixed_equals_group_when_it_divides(size):
    """The paper's two cases of Algorithm 1 are one."""
    num_machines, num_replicas = size
    if num_machines % num_replicas == 0:
        assert mixed(*size).holders == group(*size).holders
    else:
        with pytest.raises(ValueError, match=r"no multiple of .*use placement=mixed"):
            group(*size)


@given(SIZES, st.sampled_from(["ring", "mixed"]))
def test_every_machine_holds_and_is_held_equally(size, kind):
    """m holders a shard, itself first, and each machine keeps as much as it gives away."""
    num_machines, num_replicas = size
    placement = make_placement(kind, *size)
    for machine in range(num_machines):
        assert placement.holders[machine][0] == machine
        assert len(set(placement.holders[machine])) == num_replicas
    kept = Counter(machine for holders in placement.holders for machine in holders)
    assert kept == dict.fromkeys(range(num_machines), num_replicas)


def test_one_replica_is_the_local_copy_alone():
    """Nothing is sent."""
    for kind in ("group", "ring", "mixed"):
        placement = make_placement(kind, 3, 1)
        assert placement.holders == ((0,), (1,), (2,))


def test_replica_groups_are_distinct_sets():
    """A group appears once, a ring's window once a machine."""
    assert group(4, 2).replica_groups() == ((0, 1), (2, 3))
    assert ring(4, 2).replica_groups() == ((0, 1), (0, 3), (1, 2), (2, 3))


@pytest.mark.parametrize(
    ("kind", "num_machines", "num_replicas", "message"),
    [
        ("ring", 2, 3, "num_replicas=3: must be between 1 .* num_machines=2"),
        ("ring", 2, 0, "num_replicas=0"),
        ("mixed", 0, 1, "num_machines=0: must be at least 1"),
        ("star", 2, 1, "placement='star': must be one of group, ring, mixed"),
    ],
)
def test_impossible_sizes_name_the_value_and_the_limit(kind, num_machines, num_replicas, message):
    """The message says what to change."""
    with pytest.raises(ValueError, match=message):
        make_placement(kind, num_machines, num_replicas)


def test_a_placement_checks_its_own_table():
    """A row that does not begin with its machine, or repeats one, is refused."""
    with pytest.raises(ValueError, match="must begin with 1"):
        Placement(2, 2, "ring", ((0, 1), (0, 1)))
    with pytest.raises(ValueError, match="not 2 machines"):
        Placement(2, 2, "ring", ((0, 0), (1, 0)))
    with pytest.raises(ValueError, match="1 rows"):
        Placement(2, 2, "ring", ((0, 1),))
    with pytest.raises(ValueError, match="each of 3 machines once"):
        ring(3, 2, [0, 1, 1])


@pytest.mark.parametrize("kind", ["group", "ring", "mixed"])
def test_replicas_go_to_the_other_rack(kind):
    """In machine order, groups would stay inside a rack; with domains none does."""
    racks = ["a", "a", "b", "b"]
    assert shared_domains(make_placement(kind, 4, 2), racks)
    assert shared_domains(make_placement(kind, 4, 2, racks), racks) == ()


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["group", "ring", "mixed"]))
def test_domains_are_shared_only_if_unavoidable(data, kind):
    """Against a search of every order of a small cluster."""
    num_machines = data.draw(st.integers(1, 6))
    num_replicas = data.draw(st.integers(1, num_machines))
    if kind == "group" and num_machines % num_replicas:
        kind = "mixed"
    racks = data.draw(st.lists(st.integers(0, 4), min_size=num_machines, max_size=num_machines))
    build = {"group": group, "ring": ring, "mixed": mixed}[kind]
    avoidable = any(
        not shared_domains(build(num_machines, num_replicas, order), racks)
        for order in permutations(range(num_machines))
    )
    placement = make_placement(kind, num_machines, num_replicas, racks)
    assert (shared_domains(placement, racks) == ()) == avoidable


@given(st.data())
def test_a_large_ring_separates_domains_of_up_to_its_limit(data):
    """No domain larger than ⌊N/m⌋ machines: always separable (the bound in the code)."""
    num_machines = data.draw(st.integers(1, 60))
    num_replicas = data.draw(st.integers(1, num_machines))
    limit = num_machines // num_replicas
    racks: list[int] = []
    while len(racks) < num_machines:
        racks += [len(racks)] * data.draw(st.integers(1, limit))
    racks = data.draw(st.permutations(racks[:num_machines]))
    assert shared_domains(make_placement("ring", num_machines, num_replicas, racks), racks) == ()


def test_unavoidable_sharing_is_said(caplog):
    """One rack cannot separate two replicas; the placement is made all the same."""
    with caplog.at_level(logging.WARNING):
        placement = make_placement("ring", 3, 2, ["a", "a", "a"])
    assert shared_domains(placement, ["a", "a", "a"]) == (0, 1, 2)
    assert "3 of 3 machines keep two replicas" in caplog.text


def test_domains_must_cover_every_machine():
    """One domain a machine."""
    with pytest.raises(ValueError, match="2 failure domains given: must be num_machines=3"):
        make_placement("ring", 3, 2, ["a", "b"])
