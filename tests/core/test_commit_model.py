"""Tickets of several generations against a list of what became of each.

Hypothesis draws sequences of events, the same in every run; after each the code and the model must
agree.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from twinckpt.core.commit import CommitLog
from twinckpt.core.recovery import Recovery

SETTINGS = settings(max_examples=50, stateful_step_count=40, deadline=None, derandomize=True)


class CommitLogModel(RuleBasedStateMachine):
    """Tickets of several generations beside a list of what became of each."""

    @initialize(window=st.integers(1, 3))
    def begin_job(self, window: int) -> None:
        """Nothing was issued."""
        self.log = CommitLog(window)
        self.generation = 1
        self.log.restart(None, 1)
        self.open: dict[int, int | None] = {}  # ticket in flight → step, once it is known
        self.resumed = 0
        self.committed: list[int] = []
        self.ever_issued: set[int] = set()
        self.newest_step = 0
        self.not_before_step = 0
        self.head_start_steps = 2

    @rule()
    def issue(self) -> None:
        """Numbers are new for ever, no more are open than slots, none begins too early."""
        issued = self.log.issue()
        for ticket, not_before_step in issued:
            assert ticket not in self.ever_issued
            assert not_before_step == self.not_before_step
            self.ever_issued.add(ticket)
            self.open[ticket] = None
        assert len(self.open) == self.log.window

    @precondition(lambda self: self.open)
    @rule(data=st.data(), step=st.integers(0, 9))
    def use(self, data, step: int) -> None:
        """A rank used a ticket: the first one decides the step, others agree or conflict."""
        ticket = data.draw(st.sampled_from(sorted(self.open)))
        step += self.newest_step
        expected = self.open[ticket]
        assert self.log.conflicts(ticket, step) == (expected is not None and expected != step)
        self.open[ticket] = step if expected is None else expected
        self.newest_step = max(self.newest_step, step)

    @rule(data=st.data())
    def commit(self, data) -> None:
        """The oldest ones that were used commit in order; once."""
        newest = self.committed[-1] if self.committed else 0
        used = [t for t, step in self.open.items() if step is not None and t > newest]
        if used:
            ticket = data.draw(st.sampled_from(sorted(used)))
            step, is_new = self.log.commit(ticket)
            assert step == self.open.pop(ticket)
            assert is_new == (ticket != self.resumed)
            self.committed.append(ticket)
            self.head_start_steps = max(2, self.head_start_steps // 2)
            assert self.log.committed_step == step

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abandon(self, data) -> None:
        """The next ticket begins after every step that a rank has got to, later each time."""
        ticket = data.draw(st.sampled_from(sorted(self.open)))
        if ticket == self.resumed:
            return
        assert self.log.abandon(ticket) == (self.open.pop(ticket) or 0)
        self.not_before_step = self.newest_step + self.head_start_steps
        self.head_start_steps *= 2
        assert self.log.is_abandoned(ticket)

    @rule(is_known=st.booleans())
    def begin_generation(self, is_known: bool) -> None:
        """It resumes the last commit from memory, or an old step from storage, or nothing."""
        self.generation += 1
        resumable = self.log.resumable_ticket
        if is_known and resumable:
            recovery = Recovery(step=self.newest_step, ticket=resumable)
            self.open = {resumable: self.newest_step}
        else:
            recovery = Recovery(step=self.newest_step) if is_known else None
            self.open = {}
        self.resumed = recovery.ticket if recovery else 0
        self.newest_step = recovery.step if recovery else 0
        self.not_before_step = 0
        self.head_start_steps = 2
        self.log.restart(recovery, self.generation)
        self.committed = []

    @invariant()
    def it_knows_what_is_open(self) -> None:
        """In flight: issued or resumed, and not decided yet."""
        assert self.log.undecided() == sorted(self.open)
        used = sorted(t for t, step in self.open.items() if step is not None)
        assert self.log.pending() == used
        assert self.log.steps_in_flight() == sorted(self.open[t] for t in used)
        assert self.log.is_restoring == (self.resumed in self.open and self.resumed > 0)

    @invariant()
    def commits_are_monotonic(self) -> None:
        """Within a generation, and what a failure resumes from is the last one."""
        assert self.committed == sorted(set(self.committed))
        newest = self.committed[-1] if self.committed else 0
        assert self.log.committed_ticket == newest
        assert self.log.resumable_ticket == (newest or self.resumed)


TestCommitLog = CommitLogModel.TestCase
TestCommitLog.settings = SETTINGS
