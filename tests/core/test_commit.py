"""Tickets are issued while slots are free, decided once, and committed in order."""

from twinckpt.core.commit import CommitLog
from twinckpt.core.recovery import Recovery


def test_a_new_job_may_checkpoint_at_once():
    """With two slots there is one ticket at a time."""
    log = CommitLog(window=1)
    assert log.issue() == [(1, 0)]
    assert log.issue() == []


def test_ranks_that_use_a_ticket_at_different_steps_conflict():
    """The second step reported for a ticket is a conflict, the same step is none."""
    log = CommitLog(window=1)
    log.issue()
    assert not log.conflicts(1, step=5)
    assert not log.conflicts(1, step=5)
    assert log.conflicts(1, step=6)


def test_after_a_conflict_the_next_ticket_begins_later_than_any_rank_has_got():
    """All ranks must hear of it before they reach its first step."""
    log = CommitLog(window=1)
    log.issue()
    log.conflicts(1, step=5)
    log.conflicts(1, step=6)
    log.abandon(1)
    assert log.issue() == [(2, 8)]


def test_after_each_further_conflict_the_head_start_is_twice_as_long():
    """Ranks that do not wait for each other pass many steps while a message travels."""
    log = CommitLog(window=1)
    assert begin_after_conflicts(log, num_conflicts=4) == [2, 2 + 4, 2 + 4 + 8, 2 + 4 + 8 + 16]


def test_each_commit_halves_the_head_start():
    """A loop in lockstep gets back to checkpoints at every step."""
    log = CommitLog(window=1)
    begin_after_conflicts(log, num_conflicts=4)
    for _ in range(3):
        log.conflicts(log.undecided()[0], step=100)
        log.commit(log.undecided()[0])
        log.issue()
    assert begin_after_conflicts(log, num_conflicts=1, step=200) == [200 + 32 // 8]


def begin_after_conflicts(log: CommitLog, num_conflicts: int, step: int = 0) -> list[int]:
    """Two ranks use each ticket at different steps; return where the next ones begin."""
    log.issue()
    first_steps = []
    for _ in range(num_conflicts):
        (ticket,) = log.undecided()
        log.conflicts(ticket, step - 1)
        log.conflicts(ticket, step)
        log.abandon(ticket)
        ((_, step),) = log.issue()
        first_steps.append(step)
    return first_steps


def test_the_step_resumed_from_blocks_new_tickets_until_it_is_redundant_again():
    """Otherwise its only copy could be overwritten."""
    log = CommitLog(window=1)
    log.restart(Recovery(step=7, ticket=3), generation=1)
    log.skip_past(3)
    assert log.issue() == []
    assert log.commit(3) == (7, False)
    assert log.issue() == [(4, 0)]


def test_ticket_numbers_are_never_reused_across_generations():
    """A ticket names a checkpoint for ever."""
    log = CommitLog(window=1)
    issued = {log.issue()[0][0]}
    for generation in range(2, 5):
        log.restart(None, generation)
        issued.add(log.issue()[0][0])
    assert len(issued) == 4


def test_a_new_root_reuses_no_ticket_of_a_machine_it_has_not_heard_of():
    """It knows no more than the generation; the frozen machine may come back with a copy."""
    former, successor = CommitLog(window=2), CommitLog(window=2)
    former.restart(None, generation=3)
    successor.restart(None, generation=4)
    assert not set(former.issue()) & set(successor.issue())


def test_a_third_slot_lets_two_checkpoints_be_in_flight():
    """The window is the number of slots beside the committed one."""
    assert CommitLog(window=2).issue() == [(1, 0), (2, 0)]
