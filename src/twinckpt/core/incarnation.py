"""What a worker knows of one generation, and forgets with it."""

from dataclasses import dataclass, field

from twinckpt.core import messages as m


@dataclass(slots=True)
class Incarnation:
    """One machine's part in a generation: its ranks, what waits for a slot, what is decided.

    `verdicts` are reports of this machine that end the generation.
    """

    attached: dict[int, m.Attached] = field(default_factory=dict)
    reserved: dict[int, m.Reserved] = field(default_factory=dict)
    grants: dict[tuple[int, int], m.Ticket] = field(default_factory=dict)
    fetches: dict[tuple[int, int], m.Fetch] = field(default_factory=dict)
    restores: set[int] = field(default_factory=set)
    verdicts: list[m.ToRoot] = field(default_factory=list)
    committed_ticket: int = 0
    committed_step: int = 0
    abandoned_tickets: set[int] = field(default_factory=set)
    undecided_tickets: set[int] = field(default_factory=set)
    newest_ticket: int = 0

    @property
    def ranks(self) -> list[int]:
        """Return the local ranks that take checkpoints, in order."""
        return sorted(self.attached)

    def hear(self, ticket: int) -> bool:
        """Remember a ticket; return whether it is undecided, as far as this machine knows."""
        if self.is_decided(ticket):
            return False
        self.undecided_tickets.add(ticket)
        self.newest_ticket = max(self.newest_ticket, ticket)
        return True

    def decide(self, resolve: m.Resolve) -> None:
        """Remember that a ticket is decided; those below a committed one are as well."""
        self.undecided_tickets.discard(resolve.ticket)
        self.newest_ticket = max(self.newest_ticket, resolve.ticket)
        if resolve.committed and resolve.ticket > self.committed_ticket:
            self.committed_ticket, self.committed_step = resolve.ticket, resolve.step
            newer = {t for t in self.abandoned_tickets if t > self.committed_ticket}
            self.abandoned_tickets = newer
        elif not resolve.committed:
            self.abandoned_tickets.add(resolve.ticket)

    def is_decided(self, ticket: int) -> bool:
        """Return whether a ticket is decided: late news of it must not take a slot again."""
        return ticket <= self.committed_ticket or ticket in self.abandoned_tickets

    def told(self) -> m.Running:
        """Return what a root that takes over must know."""
        return m.Running(
            attached=tuple(self.attached.values()),
            reserved=tuple(self.reserved.values()),
            committed_ticket=self.committed_ticket,
            committed_step=self.committed_step,
            abandoned=tuple(sorted(self.abandoned_tickets)),
            undecided=tuple(sorted(self.undecided_tickets)),
            newest_ticket=self.newest_ticket,
        )
