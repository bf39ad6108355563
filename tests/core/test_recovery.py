"""The plan names the newest checkpoint of which every shard survives."""

from twinckpt.core.messages import Holding
from twinckpt.core.recovery import plan_recovery


def holding(rank, ticket, *, step=None, digest="x", world_size=2):
    return Holding(rank, ticket, step or ticket * 10, rank, world_size, 100, digest)


HOMES = {0: "a", 1: "b"}


def test_nothing_held_means_no_plan():
    """A new job starts at the beginning."""
    assert plan_recovery({"a": [], "b": []}, HOMES) is None


def test_the_newest_complete_ticket_wins():
    """A newer one that lacks a rank does not count."""
    holdings = {
        "a": [holding(0, 1), holding(1, 1), holding(0, 2)],
        "b": [holding(0, 1), holding(1, 1)],
    }
    plan = plan_recovery(holdings, HOMES)
    assert (plan.ticket, plan.step) == (1, 10)


def test_the_home_machine_is_the_first_source():
    """Own RAM needs no network."""
    holdings = {"a": [holding(0, 1), holding(1, 1)], "b": [holding(0, 1), holding(1, 1)]}
    assert plan_recovery(holdings, HOMES).sources == {0: ("a", "b"), 1: ("b", "a")}


def test_a_replica_alone_is_enough():
    """The machine of rank 1 is gone; its peer has the twin."""
    plan = plan_recovery({"a": [holding(0, 1), holding(1, 1)]}, {0: "a", 1: "new"})
    assert plan.sources == {0: ("a",), 1: ("a",)}


def test_copies_that_contradict_each_other_are_not_used():
    """Two digests for one shard prove that one copy is wrong; an older step is safe."""
    holdings = {
        "a": [holding(0, 2), holding(1, 2), holding(0, 1), holding(1, 1)],
        "b": [holding(0, 2, digest="y")],
    }
    assert plan_recovery(holdings, HOMES).ticket == 1


def test_shards_of_different_steps_under_one_ticket_are_not_mixed():
    """That ticket was a conflict that the root had no time to abandon."""
    holdings = {"a": [holding(0, 2, step=20), holding(1, 2, step=21)]}
    assert plan_recovery(holdings, HOMES) is None


def test_a_copy_that_says_it_is_of_more_ranks_than_can_be_counted_is_no_checkpoint():
    """And takes neither time nor memory."""
    assert plan_recovery({"a": [holding(0, 1, world_size=2**62)]}, HOMES) is None
