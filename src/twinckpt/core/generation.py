"""What the root decides within one generation: tickets, copies, commits, drains.

    ranks attach, slots reserved → tickets → holdings, fetches → commits …

Messages of other generations never come here (`twinckpt.core.root` refuses them).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twinckpt.core import messages as m
from twinckpt.core.adoption import GenerationRecord
from twinckpt.core.commit import CommitLog, generation_of
from twinckpt.core.copies import Copies
from twinckpt.core.drains import Drains
from twinckpt.core.outbox import Outbox
from twinckpt.core.recovery import Recovery, nearest_first
from twinckpt.core.reservations import Reservations


@dataclass(frozen=True, slots=True)
class Memory:
    """What the root knows across generations."""

    copies: Copies
    commits: CommitLog
    drains: Drains


class Generation:
    """One incarnation of the cluster: machines in their places, and what they checkpoint."""

    def __init__(
        self,
        number: int,
        places: Sequence[str],
        holders: Sequence[Sequence[int]],
        recovery: Recovery | None,
        memory: Memory,
        address: Callable[[str], m.Address | None],
        outbox: Outbox,
    ) -> None:
        self.number = number
        self.places = tuple(places)
        self.holders = holders
        self.recovery = recovery
        self._index = {name: index for index, name in enumerate(places)}
        self.fetches: set[tuple[str, int, int]] = set()  # under way: machine, rank, ticket
        self._reservations = Reservations(holders)
        self._copies, self._commits, self._drains = memory.copies, memory.commits, memory.drains
        self._address = address
        self._outbox = outbox
        self._now_s = 0.0
        self.is_growing = False  # further machines wait for a drained step
        self.is_ending = False  # a rank has finished, so that nothing more is trained
        self._finished: dict[int, str] = {}  # ranks to answer, and their machines
        self._copies.place(self._index, holders)
        self._commits.restart(recovery, number)
        self._drains.give_up()
        # Shards newer than the step resumed from belong to a future that is not repeated.
        newest = recovery.ticket if recovery else 0
        former = [t for t in self._copies.tickets() if t > newest and generation_of(t) < number]
        self._copies.remove_tickets(former)

    @property
    def record(self) -> GenerationRecord:
        """Return what a root that takes this generation over must know of it."""
        resume = self.recovery.resume if self.recovery else None
        return GenerationRecord(self.number, self.places, resume)

    @property
    def num_ranks(self) -> int:
        """Return how many ranks take checkpoints."""
        return len(self._reservations.home)

    def receive(self, machine: str, message: m.ToRoot, now_s: float) -> str | None:
        """Handle one message of a machine of this generation; return why it must end, or None."""
        self._now_s = now_s
        reason = None
        match message:
            case m.Attached():
                self._on_attached(machine, message)
            case m.Reserved():
                index = self._index[machine]
                self._reservations.reserve(message.rank, index, message.slot_bytes)
            case m.CannotReserve():
                self._on_cannot_reserve(machine, message)
            case m.Holds():
                self._on_holds(machine, message.holding)
            case m.Dropped():
                reason = self._on_dropped(machine, message)
            case m.RankStarted():
                self._log("rank_started", rank=message.rank, pid=message.pid, machine=machine)
            case m.Drained():
                self._log("drained", machine=machine, ticket=message.ticket, ok=message.ok)
                self._drains.ended(machine, message.ticket, ok=message.ok)
                if self._drains.is_owed or self.is_growing:
                    self._drain_newest()
            case m.Finished():
                self.is_ending = True
                self._finished[message.rank] = machine
            case _:
                pass
        if reason is None:
            self._commit_complete()
            self._issue_tickets()
            self._attend_to_finished()
        return reason

    def fetch_missing(self, ticket: int) -> None:
        """Have each machine fetch what it should hold of a ticket and does not, own ranks first."""
        is_resumed = self.recovery is not None and self.recovery.ticket == ticket
        for position in range(len(self.holders[0])):
            for rank, copies in sorted(self._copies.of_ticket(ticket).items()):
                holding = next(iter(copies.values()))
                target = self.places[self.holders[holding.home][position]]
                if target in copies:
                    continue
                if is_resumed:  # it may overwrite what it has of older tickets
                    self._copies.remove_older(target, rank, ticket)
                sources = nearest_first(copies, self.places[holding.home], self._index)
                self._fetch(target, holding, sources)

    # Taking over from another root.

    def adopt(self, told: Mapping[str, m.Running], now_s: float) -> str | None:
        """Go on where another root stopped, with what every machine of the generation says.

        Called once, before any message. Returns why the generation must end, or None.
        """
        self._now_s = now_s
        for machine, running in told.items():
            for attached in running.attached:
                home = self._index[machine]
                self._reservations.attach(
                    attached.rank, home, attached.world_size, attached.slot_bytes
                )
        for machine, running in told.items():
            for reserved in running.reserved:
                index = self._index[machine]
                self._reservations.reserve(reserved.rank, index, reserved.slot_bytes)
        self._adopt_tickets(told)
        for rank in self._reservations.home:
            self._reserve_lacking(rank)
        self._commit_complete()
        if not self._reservations.is_complete:
            self._abandon(self._commits.abandonable())
        for ticket in {*self._commits.undecided(), self._commits.committed_ticket}:
            self.fetch_missing(ticket)
        self._issue_tickets()
        return self._lost_forever()

    def _adopt_tickets(self, told: Mapping[str, m.Running]) -> None:
        """Make what any machine was told hold for all; give up tickets not all have heard of."""
        committed, step = max(
            (each.committed_ticket, each.committed_step) for each in told.values()
        )
        abandoned = {ticket for each in told.values() for ticket in each.abandoned}
        heard = {ticket for each in told.values() for ticket in each.undecided}
        undecided = {ticket for ticket in heard - abandoned if ticket > committed}
        newest = max(each.newest_ticket for each in told.values())
        self._commits.adopt(committed, step, abandoned, undecided, newest)
        gone = [t for t in self._copies.tickets() if t < committed or t in abandoned]
        self._copies.remove_tickets(gone)
        given_up = abandoned | {ticket for ticket in heard if ticket < committed}
        for machine, running in told.items():
            for ticket in sorted(given_up.difference(running.abandoned)):
                if ticket > running.committed_ticket or ticket in running.undecided:
                    resolve = m.Resolve(self.number, ticket, 0, committed=False)
                    self._outbox.send(machine, resolve)
            if running.committed_ticket < committed:
                self._outbox.send(machine, m.Resolve(self.number, committed, step, committed=True))
        for ticket in sorted(undecided):
            holdings = [
                next(iter(held.values())) for held in self._copies.of_ticket(ticket).values()
            ]
            is_mixed = any([self._commits.conflicts(ticket, held.step) for held in holdings])
            if is_mixed or any(ticket not in each.undecided for each in told.values()):
                self._abandon([ticket])
            for holding in holdings:
                if self._is_replicated(holding):
                    self._tell_replicated(holding)

    def _lost_forever(self) -> str | None:
        """Return the reason to end if a shard that a rank has yet to restore is lost; or None."""
        ticket = self.recovery.ticket if self.recovery else 0
        if not ticket or self._commits.committed_ticket > ticket or self._reservations.is_attached:
            return None
        shards, home = self._copies.of_ticket(ticket), self._reservations.home
        size = self._copies.world_size(ticket) or 1
        lost = next((r for r in range(size) if r not in shards and r not in home), None)
        return None if lost is None else f"no intact copy of rank {lost} at ticket {ticket} is left"

    # Slots.

    def _on_attached(self, machine: str, attached: m.Attached) -> None:
        rank, slot_bytes = attached.rank, attached.slot_bytes
        home = self._index[machine]
        self.is_ending = False  # if a rank had finished, its program made another Checkpointer
        is_again = rank in self._reservations.home  # the grants it had are gone
        if self._reservations.attach(rank, home, attached.world_size, slot_bytes) or is_again:
            self._abandon(self._commits.abandonable(), is_outgrown=True)
        self._reserve_lacking(rank)

    def _reserve_lacking(self, rank: int) -> None:
        slot_bytes = self._reservations.slot_bytes[rank]
        for holder in self._reservations.lacking(rank):
            self._outbox.send(self.places[holder], m.Reserve(self.number, rank, slot_bytes))

    def _on_cannot_reserve(self, machine: str, refused: m.CannotReserve) -> None:
        """Tell the rank whose shard does not fit: without slots it gets no ticket."""
        rank, reason = refused.rank, f"machine {self._index[machine]}: {refused.reason}"
        self._log("cannot_reserve", machine=machine, rank=rank, reason=refused.reason)
        home = self._reservations.home.get(rank)
        if home is not None:
            passed_on = m.CannotReserve(self.number, rank, reason)
            self._outbox.send(self.places[home], passed_on)

    # Copies.

    def _on_holds(self, machine: str, holding: m.Holding) -> None:
        self.fetches.discard((machine, holding.rank, holding.ticket))
        if self._commits.is_abandoned(holding.ticket):
            return
        self._copies.add(machine, holding)
        if self._commits.conflicts(holding.ticket, holding.step):
            self._abandon([holding.ticket])
        elif holding.home == self._index[machine]:
            for holder in self.holders[holding.home][1:]:
                self._fetch(self.places[holder], holding, (machine,))
        elif self._commits.in_flight(holding.ticket) and self._is_replicated(holding):
            self._tell_replicated(holding)

    def _tell_replicated(self, holding: m.Holding) -> None:
        replicated = m.Replicated(self.number, holding.rank, holding.ticket)
        self._outbox.send(self.places[holding.home], replicated)

    def _is_replicated(self, holding: m.Holding) -> bool:
        holders = (self.places[index] for index in self.holders[holding.home])
        return all(self._copies.has(name, holding.rank, holding.ticket) for name in holders)

    def _on_dropped(self, machine: str, dropped: m.Dropped) -> str | None:
        """Fetch a lost copy again, or give its ticket up; return why all must end, or None."""
        rank, ticket = dropped.rank, dropped.ticket
        self.fetches.discard((machine, rank, ticket))
        lacking = [machine]
        self._copies.remove(machine, rank, ticket)
        for source in dropped.damaged_sources:
            if self._copies.has(source, rank, ticket):
                self._copies.remove(source, rank, ticket)
                self._outbox.send(source, m.Discard(self.number, rank, ticket))
                lacking.append(source)
        self._log("copy_lost", machine=machine, rank=rank, ticket=ticket, reason=dropped.reason)
        copies = self._copies.of_shard(rank, ticket)
        sources = tuple(name for name in sorted(copies) if self._address(name))
        if sources:
            for name in lacking:
                self._fetch(name, copies[sources[0]], sources)
        elif dropped.is_awaited or self._is_awaited(rank, ticket):
            return f"no intact copy of rank {rank} at ticket {ticket} is left"
        elif self._commits.in_flight(ticket):
            self._abandon([ticket])
        return None

    def _is_awaited(self, rank: int, ticket: int) -> bool:
        """Return whether a rank has yet to restore this shard; one that attached has done so."""
        is_resumed = self.recovery is not None and self.recovery.ticket == ticket
        return is_resumed and rank not in self._reservations.home

    def _fetch(self, machine: str, holding: m.Holding, sources: tuple[str, ...]) -> None:
        known = tuple(address for name in sources if (address := self._address(name)))
        fetch = (self.number, holding.rank, holding.ticket, holding.size_bytes, known)
        self.fetches.add((machine, holding.rank, holding.ticket))
        self._outbox.send(machine, m.Fetch(*fetch))

    # Tickets.

    def _issue_tickets(self) -> None:
        if not self._reservations.is_complete:
            return
        if self._drains.is_busy and self.is_growing:
            return  # what is drained must be the newest commit, or growing would lose a step
        # The step that is drained keeps its slot when a newer one commits.
        is_held = self._drains.is_busy and self._drains.ticket != self._commits.committed_ticket
        for ticket, not_before_step in self._commits.issue(num_held=int(is_held)):
            self._broadcast(m.Ticket(self.number, ticket, not_before_step))

    def _commit_complete(self) -> None:
        for ticket in self._commits.pending():
            if not self._commits.in_flight(ticket) or not self._copies.is_redundant(ticket):
                continue
            step, is_new = self._commits.commit(ticket)
            self._abandon([t for t in self._commits.undecided() if t < ticket])
            self._copies.remove_tickets([t for t in self._copies.tickets() if t < ticket])
            self._log("committed" if is_new else "redundancy_restored", step=step, ticket=ticket)
            drained = ticket, step, self.places, self._now_s
            if is_new and self._drains.committed(*drained, is_wanted=self.is_growing):
                self._drain(ticket, step)
            # First the next ticket: whoever waits for a commit may checkpoint right after it.
            self._issue_tickets()
            self._broadcast(m.Resolve(self.number, ticket, step, committed=True))

    def _drain(self, ticket: int, step: int) -> None:
        world_size = self._copies.world_size(ticket)  # known even if no rank has attached
        digest = self._copies.digest(ticket)
        self._broadcast(m.Drain(self.number, ticket, step, world_size, digest))

    def _drain_newest(self) -> None:
        """Drain the newest commit, unless it is in storage already or could not be written."""
        ticket, step = self._commits.committed_ticket, self._commits.committed_step
        if self._drains.is_busy or ticket == self._drains.ticket or step is None:
            return
        if not self._drains.has(step) and self._copies.world_size(ticket):
            self._drains.begin(ticket, step, self.places, self._now_s)
            self._drain(ticket, step)

    def _attend_to_finished(self) -> None:
        """Answer the finished ranks once the newest commit is drained: without them none follows.

        All are answered together, since agents may end with the first rank that does.
        """
        if self._finished and self._drains.is_enabled:
            self._drain_newest()
            if self._drains.is_busy or self._commits.is_restoring:
                return
        for rank, machine in self._finished.items():
            answer = m.NothingToDrain(self.number, rank, self._drains.newest_step)
            self._outbox.send(machine, answer)
        self._finished.clear()

    def _abandon(self, tickets: Sequence[int], *, is_outgrown: bool = False) -> None:
        for ticket in tickets:
            step = self._commits.abandon(ticket, is_outgrown=is_outgrown)
            self._copies.remove_tickets([ticket])
            self._broadcast(m.Resolve(self.number, ticket, step, committed=False))
            self._log("abandoned", step=step, ticket=ticket)

    def _broadcast(self, message: m.ToWorker) -> None:
        self._outbox.broadcast(self.places, message)

    def _log(self, event: str, **fields: object) -> None:
        self._outbox.log(event, self.number, **fields)
