"""No fault loses a committed step: hundreds of faults in virtual time, each seed replayable.

The mutants at the end are the control plane with one rule broken; the invariants find each.
"""

import pytest

from twinckpt.core import recovery, root, slot_table
from twinckpt.core.commit import CommitLog
from twinckpt.core.copies import Copies
from twinckpt.simulation.invariants import InvariantViolation
from twinckpt.simulation.schedule import run

SEEDS = range(40)


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_faults_break_no_invariant(first):
    """Machines, ranks, links and bits; two to eight machines; twenty faults each."""
    for seed in range(first, first + 10):
        assert run(seed).num_commits > 0


def test_a_seed_replays_exactly():
    """What was found once can be looked at again."""
    assert run(7) == run(7)


def found_within(seeds):
    """Return whether some seed breaks an invariant."""
    for seed in seeds:
        try:
            run(seed)
        except InvariantViolation:
            return True
    return False


def commit_without_replicas(self, ticket):
    """A mutant: one copy of each shard is enough."""
    shards = self._of_ticket.get(ticket, {})
    return len(shards) == len(self._holders)


def reuse_the_oldest_slot(self, ticket):
    """A mutant: the oldest version is taken for dispensable."""
    index = min(range(len(self.slots)), key=lambda i: self.slots[i].ticket or 10**9)
    self.slots[index].ticket, self.slots[index].holding = ticket, None
    return index


def forget_replicas(holdings, home_machine, plan=recovery.plan_recovery):
    """A mutant: only copies on their home machines count."""
    own = {
        name: [holding for holding in held if home_machine[holding.home] == name]
        for name, held in holdings.items()
    }
    return plan(own, home_machine)


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (Copies, "is_redundant", commit_without_replicas),
        (slot_table.SlotTable, "begin", reuse_the_oldest_slot),
        (root, "plan_recovery", forget_replicas),
        (CommitLog, "conflicts", lambda self, ticket, step: False),
    ],
    ids=["commit early", "overwrite", "forget replicas", "mix steps"],
)
def test_a_broken_rule_is_found(monkeypatch, owner, name, mutant):
    """An invariant that no bug can break would prove nothing."""
    monkeypatch.setattr(owner, name, mutant)
    assert found_within(SEEDS)
