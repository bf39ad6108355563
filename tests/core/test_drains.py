"""When a committed step is copied to persistent storage."""

import pytest

from twinckpt.core.drains import Drains


def due(drains, times_s):
    """Commit a step at each of these times; return the times at which one is drained."""
    found = []
    for step, now_s in enumerate(times_s, 1):
        if drains.committed(step, step, ["a"], now_s):
            found.append(now_s)
            drains.ended("a", step, ok=True)
    return found


def test_every_nth_commit():
    assert due(Drains(3), range(10, 20)) == [12, 15, 18]


def test_every_so_many_seconds_whatever_the_commits():
    assert due(Drains(0, 10.0), [0, 4, 9, 11, 12, 20, 22, 40]) == [11, 22, 40]


def test_whichever_comes_first():
    assert due(Drains(4, 10.0), [0, 1, 15, 16, 17, 18]) == [15, 16]


def test_never_while_one_is_under_way():
    drains = Drains(1)
    assert drains.committed(7, 1, ["a", "b"], 0.0)
    drains.ended("a", 7, ok=True)
    assert not drains.committed(8, 2, ["a", "b"], 1.0)
    drains.ended("b", 7, ok=True)
    assert drains.newest_step == 1


@pytest.mark.parametrize("failed", ["a", "b"])
def test_a_step_that_one_machine_could_not_write_does_not_count(failed):
    drains = Drains(1)
    drains.committed(7, 1, ["a", "b"], 0.0)
    for machine in "ab":
        drains.ended(machine, 7, ok=machine != failed)
    assert drains.newest_step is None


def test_what_another_root_had_a_machine_copy_before_does_not_count():
    """Nor what is told twice: the step would be taken for drained with a shard missing."""
    drains = Drains(1)
    drains.committed(7, 1, ["a", "b"], 0.0)
    drains.ended("b", 6, ok=True)
    drains.ended("a", 7, ok=True)
    drains.ended("a", 7, ok=True)
    assert drains.newest_step is None
    drains.ended("b", 7, ok=True)
    assert drains.newest_step == 1
