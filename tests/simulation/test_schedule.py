"""No fault loses a committed step: random clusters and faults in virtual time, each replayable."""

import pytest

from twinckpt.simulation.invariants import InvariantViolation
from twinckpt.simulation.mutants import MUTANTS, first_violation
from twinckpt.simulation.schedule import HEALTHY, run

RULES = {mutant.rule for mutant in MUTANTS}


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_faults_break_no_invariant(first):
    """Two to sixteen machines, twenty faults each, of every kind there is."""
    for seed in range(first, first + 10):
        assert run(seed).num_commits > 0


def test_a_seed_replays_exactly():
    """What was found once can be looked at again."""
    assert run(7) == run(7)


def test_a_violation_tells_its_story():
    """Which rule, which seed and job, and what happened up to it."""
    violation = first_violation(MUTANTS[0], range(20))
    lines = str(violation).splitlines()
    assert lines[0].startswith(f"{violation.rule}: ")
    assert any("FAULT" in line for line in lines[1:])
    times_s = [float(line.split()[0]) for line in lines[1:]]
    assert times_s == sorted(times_s)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_is_found_by_its_invariant(mutant):
    """An invariant that no bug can break would prove nothing."""
    assert first_violation(mutant, range(60)) is not None


def test_the_right_rules_are_back_after_a_mutant():
    """Mutants do not outlive their run."""
    before = [getattr(mutant.owner, mutant.attribute) for mutant in MUTANTS]
    for mutant in MUTANTS:
        with pytest.raises(RuntimeError), mutant.active():
            raise RuntimeError
    assert [getattr(mutant.owner, mutant.attribute) for mutant in MUTANTS] == before


@pytest.mark.parametrize("rule", sorted(RULES))
def test_each_invariant_has_two_mutants(rule):
    """One could be found by chance."""
    assert sum(mutant.rule == rule for mutant in MUTANTS) >= 2


def test_a_cluster_that_never_recovers_is_a_violation(monkeypatch):
    """The job must commit again, not only keep what it has."""
    monkeypatch.setattr("twinckpt.simulation.faults.Faults.end", lambda self: None)
    rules = set()
    for seed in range(20):
        try:
            run(seed)
        except InvariantViolation as violation:
            rules.add(violation.rule)
    assert rules == {HEALTHY}
