"""Tickets: which checkpoints may be taken, and which of them are committed.

All ranks must checkpoint the same steps, without asking each other and without waiting.
The root therefore hands out tickets: a rank uses ticket k at its first save of a step
≥ `not_before_step`, after ticket k − 1. If news of a ticket reached the ranks on different
sides of a save, they use it at different steps; the root sees the conflict, abandons the
ticket and lets the next one begin a few steps later, so that all ranks know it in time. This
head start doubles with each further abandoned ticket, for ranks that do not wait for each other
at every step.
A ticket is issued only while a slot for it is free everywhere, so no rank ever waits for one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from twinckpt.core.recovery import Recovery

TICKETS_A_GENERATION = 1_000_000
_MIN_HEAD_START_STEPS, _MAX_HEAD_START_STEPS = 2, 1 << 20


@dataclass(slots=True)
class _InFlight:
    """An undecided ticket: the step that the first rank used it at, None before that.

    `is_new` is False for the step that the generation resumed, until that is redundant again.
    """

    step: int | None = None
    is_new: bool = True


def generation_of(ticket: int) -> int:
    """Return the generation that issued a ticket; 0 for none."""
    return -(-ticket // TICKETS_A_GENERATION)


class CommitLog:
    """Issues tickets and decides each exactly once; commits are monotonic in ticket.

    `resumable_ticket` is what a failure now should resume from: the last commit, or else the
    step that this generation itself resumed. `resumable_step` is its step, None if nothing is.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.committed_ticket = 0
        self.committed_step: int | None = None
        self.resumable_ticket = 0
        self.resumable_step: int | None = None
        self._last_ticket = 0
        self._newest_step = 0
        self._not_before_step = 0
        self._head_start_steps = _MIN_HEAD_START_STEPS
        self._in_flight: dict[int, _InFlight] = {}

    def skip_past(self, ticket: int) -> None:
        """Never issue `ticket` or an older one: some machine already holds it."""
        self._last_ticket = max(self._last_ticket, ticket)

    def restart(self, recovery: Recovery | None, generation: int) -> None:
        """Begin a generation that resumes from `recovery`, which must be made redundant again.

        Its tickets begin at a number of its own: a root that takes over never issues one
        that its predecessor gave to a machine it has not heard of.
        """
        self.skip_past((generation - 1) * TICKETS_A_GENERATION)
        self._in_flight = {}
        self._not_before_step = 0
        self._head_start_steps = _MIN_HEAD_START_STEPS
        self._newest_step = recovery.step if recovery else 0
        self.committed_ticket, self.committed_step = 0, None
        self.resumable_ticket = recovery.ticket if recovery else 0
        self.resumable_step = recovery.step if recovery else None
        if recovery and recovery.ticket:
            self._in_flight[recovery.ticket] = _InFlight(recovery.step, is_new=False)
        elif recovery:
            self.committed_step = recovery.step

    def adopt(
        self,
        committed_ticket: int,
        step: int,
        abandoned: Iterable[int],
        undecided: Iterable[int],
        newest: int,
    ) -> None:
        """Go on, after `restart`, where another root stopped.

        Args:
            committed_ticket, step: the newest commit that it has told any machine of; 0 for none.
            abandoned: the tickets since, of which it has told any machine that they never commit.
            undecided: tickets of this generation that may still commit.
            newest: the newest ticket that any machine has heard of.
        """
        self.skip_past(newest)
        if committed_ticket:
            self._in_flight = {}
            self.committed_ticket, self.committed_step = committed_ticket, step
            self.resumable_ticket, self.resumable_step = committed_ticket, step
        for ticket in abandoned:
            self._in_flight.pop(ticket, None)
        for ticket in undecided:
            self._in_flight.setdefault(ticket, _InFlight())

    def issue(self, num_held: int = 0) -> list[tuple[int, int]]:
        """Return new tickets as (ticket, not_before_step) while slots are free for them.

        `num_held` slots hold older steps than the committed one, and are still read.
        """
        issued = []
        while len(self._in_flight) < self.window - num_held:
            self._last_ticket += 1
            self._in_flight[self._last_ticket] = _InFlight()
            issued.append((self._last_ticket, self._not_before_step))
        return issued

    def conflicts(self, ticket: int, step: int) -> bool:
        """Note that a rank used `ticket` at `step`; return whether another rank's step differs."""
        flight = self._in_flight.get(ticket)
        self._newest_step = max(self._newest_step, step)
        if flight is None:
            return False
        if flight.step is None:
            flight.step = step
        return flight.step != step

    def in_flight(self, ticket: int) -> bool:
        """Return whether the ticket is issued and undecided."""
        return ticket in self._in_flight

    def is_abandoned(self, ticket: int) -> bool:
        """Return whether nothing of this ticket will ever be needed."""
        return ticket not in self._in_flight and ticket != self.committed_ticket

    def undecided(self) -> list[int]:
        """Return the tickets in flight, oldest first."""
        return sorted(self._in_flight)

    def steps_in_flight(self) -> list[int]:
        """Return the steps of undecided tickets that a rank has used, in order."""
        return sorted(f.step for f in self._in_flight.values() if f.step is not None)

    @property
    def is_restoring(self) -> bool:
        """Return whether the step resumed from is not yet as redundant as it should be."""
        return any(not flight.is_new for flight in self._in_flight.values())

    def pending(self) -> list[int]:
        """Return the undecided tickets that a rank has used, oldest first."""
        return sorted(t for t, flight in self._in_flight.items() if flight.step is not None)

    def commit(self, ticket: int) -> tuple[int, bool]:
        """Decide that `ticket` is committed; return its step and whether it is a new step."""
        flight = self._in_flight.pop(ticket)
        assert flight.step is not None
        assert ticket > self.committed_ticket
        self._head_start_steps = max(_MIN_HEAD_START_STEPS, self._head_start_steps // 2)
        self.committed_ticket, self.committed_step = ticket, flight.step
        self.resumable_ticket, self.resumable_step = ticket, flight.step
        return flight.step, flight.is_new

    def abandon(self, ticket: int, *, is_outgrown: bool = False) -> int:
        """Decide that `ticket` never commits; return the step it was used at (or 0).

        `is_outgrown`: its slots are too small, which says nothing about how far ranks are apart.
        """
        flight = self._in_flight.pop(ticket, _InFlight())
        self._not_before_step = self._newest_step + self._head_start_steps
        if not is_outgrown:
            self._head_start_steps = min(2 * self._head_start_steps, _MAX_HEAD_START_STEPS)
        return flight.step or 0

    def abandonable(self) -> list[int]:
        """Return every undecided ticket that is not the step resumed from."""
        return [ticket for ticket, flight in self._in_flight.items() if flight.is_new]
