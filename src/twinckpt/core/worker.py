"""The worker agent's decisions: slots, copies, grants to ranks. Pure: no I/O, no clock.

Each method takes one event and returns actions; `twinckpt.agents.worker` carries them out.
The slots themselves sit behind `SlotStore`: memory in production, bookkeeping in simulation.
"""

from collections.abc import Sequence
from typing import Protocol

from twinckpt.core import messages as m
from twinckpt.core.commit import generation_of
from twinckpt.core.incarnation import Incarnation
from twinckpt.core.worker_actions import (
    Action,
    BreakGeneration,
    GrantSlot,
    ServeRestore,
    StartDrain,
    StartFetch,
    TellNothingToDrain,
    TellRefused,
    TellReplicated,
    TellResolved,
    ToRootAgent,
)
from twinckpt.errors import OutOfMemoryError


class SlotStore(Protocol):
    """What the worker needs of the machine's slots."""

    def begin_generation(self) -> None:
        """Note that from now on only shards that are reserved again are needed here."""

    def reserve(self, rank: int, slot_bytes: int) -> None:
        """Make slots of at least this size for a shard of `rank`."""

    def give_back(self) -> None:
        """Give back the free slots of shards that are not needed here any more."""

    def begin(self, rank: int, ticket: int) -> int | None:
        """Take a free slot and return its index; None while all are needed or pinned."""

    def find(self, rank: int, ticket: int) -> int | None:
        """Return the index of the slot with this version, sealed or not; None if there is none."""

    def holding(self, rank: int, ticket: int) -> m.Holding | None:
        """Return the sealed copy of this version; None if there is none."""

    def drop(self, rank: int, ticket: int) -> None:
        """Free the slot of one version."""

    def drop_where(self, *, older_than: int | None = None, newer_than: int | None = None) -> None:
        """Free the slots of all ranks' versions outside a range of tickets."""

    def drop_oldest(self, rank: int, *, older_than: int) -> None:
        """Free the slot of the oldest version of a rank below a ticket."""

    def holdings(self) -> list[m.Holding]:
        """Return all sealed copies."""


class Worker:
    """State machine of one machine's worker agent."""

    def __init__(self, slots: SlotStore) -> None:
        self.slots = slots
        self.generation = 0
        self.formed: m.Formed | None = None
        self._now = Incarnation()
        self.fetching: set[tuple[int, int]] = set()  # transfers under way: rank, ticket
        self._damaged: dict[tuple[int, int], str] = {}  # copies dropped, and why
        self._actions: list[Action] = []

    # From the root agent.

    def receive(self, message: m.ToWorker) -> list[Action]:
        """Handle a message of the root; one of another generation is ignored (fencing)."""
        if isinstance(message, m.Formed):
            if message.generation > self.generation:
                self._on_formed(message)
        elif message.generation == self.generation and self.formed is not None:
            match message:
                case m.Broken():
                    self.formed = None
                    self._do(BreakGeneration(message.reason, message.is_final))
                case m.Reserve():
                    self._on_reserve(message)
                case m.CannotReserve():
                    self._do(TellRefused(message.rank, message.reason))
                case m.Fetch():
                    self._on_fetch(message)
                case m.Discard():
                    self.slots.drop(message.rank, message.ticket)
                case m.Ticket() if self._now.hear(message.ticket):
                    for rank in self._now.ranks:
                        if self.slots.find(rank, message.ticket) is None:
                            self._now.grants[rank, message.ticket] = message
                case m.Replicated():
                    self._do(TellReplicated(message.rank, message.ticket))
                case m.Resolve():
                    self._on_resolve(message)
                case m.Drain():
                    what = (message.ticket, message.step, message.world_size)
                    ranks = self._ranks_to_drain(message.ticket, self.formed.index)
                    self._do(StartDrain(self.generation, *what, ranks, message.digest))
                case m.NothingToDrain(_, rank, newest_step):
                    self._do(TellNothingToDrain(rank, newest_step))
        self._retry()
        return self._flush()

    def _ranks_to_drain(self, ticket: int, index: int) -> tuple[int, ...]:
        """Return this machine's ranks: those attached, and those whose own copy is here."""
        resumed = {h.rank for h in self.slots.holdings() if (h.ticket, h.home) == (ticket, index)}
        return tuple(sorted(resumed.union(self._now.ranks)))

    def _on_formed(self, formed: m.Formed) -> None:
        self.generation, self.formed = formed.generation, formed
        self._now = Incarnation()
        self.slots.begin_generation()
        resume = formed.resume
        self.slots.drop_where(newer_than=resume.ticket if resume else 0)
        self._report_damage_again(resume.ticket if resume else 0)

    def _report_damage_again(self, ticket: int) -> None:
        """Tell the root again of dropped copies of the resumed `ticket`: it may not have known."""
        self._damaged = {
            (rank, lost): reason
            for (rank, lost), reason in self._damaged.items()
            if lost == ticket and self.slots.holding(rank, lost) is None
        }
        for (rank, lost), reason in self._damaged.items():
            self._tell_dropped(rank, lost, reason)

    def _on_reserve(self, reserve: m.Reserve) -> None:
        try:
            self.slots.reserve(reserve.rank, reserve.slot_bytes)
        except OutOfMemoryError as error:
            self._tell_root(m.CannotReserve(self.generation, reserve.rank, str(error)))
        else:
            reserved = m.Reserved(self.generation, reserve.rank, reserve.slot_bytes)
            self._now.reserved[reserve.rank] = reserved
            self._tell_root(reserved)

    def _on_fetch(self, fetch: m.Fetch) -> None:
        if self._now.is_decided(fetch.ticket) and fetch.ticket != self._now.committed_ticket:
            return
        self.slots.reserve(fetch.rank, fetch.size_bytes)
        self._now.fetches[fetch.rank, fetch.ticket] = fetch

    def _on_resolve(self, resolve: m.Resolve) -> None:
        self._now.decide(resolve)
        if resolve.committed:
            self.slots.drop_where(older_than=resolve.ticket)
            if generation_of(resolve.ticket) == self.generation:  # else not all have reserved yet
                self.slots.give_back()
        for pending in (self._now.fetches, self._now.grants):
            for key in [key for key in pending if key[1] == resolve.ticket]:
                del pending[key]
        if not resolve.committed:
            held = {holding.rank for holding in self.slots.holdings()}
            arriving = {rank for rank, _ in self.fetching}
            for rank in held | arriving | set(self._now.ranks):
                self.slots.drop(rank, resolve.ticket)
        self._retry()  # the slot that is free now is granted before a rank hears of the commit
        for rank in self._now.ranks:
            self._do(TellResolved(rank, resolve.ticket, resolve.step, resolve.committed))

    def root_lost(self) -> list[Action]:
        """No root will take this generation over, and nothing can commit: end it and rejoin."""
        if self.formed is not None:
            self.formed = None
            self._do(BreakGeneration("the root agent is gone"))
        return self._flush()

    def running(self) -> m.Running | None:
        """Return what a root that takes over must know of the running generation, if one runs."""
        return self._now.told() if self.formed is not None else None

    def unheard(self) -> list[m.ToRoot]:
        """Return the reports that end the generation: every root is told, as one may have died."""
        return list(self._now.verdicts)

    # From this machine.

    def rank_started(self, rank: int, pid: int) -> list[Action]:
        """A training process connected."""
        self._tell_root(m.RankStarted(self.generation, rank, pid))
        return self._flush()

    def attach(self, rank: int, world_size: int, slot_bytes: int) -> list[Action]:
        """A local rank knows its shard's size; raises OutOfMemoryError if it does not fit."""
        self.slots.reserve(rank, slot_bytes)
        attached = m.Attached(self.generation, rank, world_size, slot_bytes)
        self._now.attached[rank] = attached
        self._tell_root(attached)
        return self._flush()

    def staged(self, holding: m.Holding) -> list[Action]:
        """A local rank sealed its shard (the store knows it already)."""
        self._tell_root(m.Holds(self.generation, holding))
        return self._flush()

    def rank_lost(
        self, rank: int, exit_code: int | None = None, *, is_final: bool = False
    ) -> list[Action]:
        """A local rank ended without a goodbye; `is_final`: it may not be started again."""
        self._tell_verdict(m.RankLost(self.generation, rank, exit_code, is_final))
        return self._flush()

    def fetched(
        self,
        fetch: StartFetch,
        holding: m.Holding | None,
        reason: str = "",
        damaged_sources: tuple[str, ...] = (),
    ) -> list[Action]:
        """A transfer ended: sealed as `holding`, or failed at all sources for `reason`."""
        self.fetching.discard((fetch.rank, fetch.ticket))
        if holding is not None:
            self._tell_root(m.Holds(self.generation, holding))
        else:
            self.slots.drop(fetch.rank, fetch.ticket)
            # A transfer of a former generation is not reported: the present one fetches anew.
            if fetch.generation == self.generation:
                self._tell_dropped(fetch.rank, fetch.ticket, reason, damaged_sources)
        self._retry()
        return self._flush()

    def drained(self, drain: StartDrain, ok: bool) -> list[Action]:
        """The copy to persistent storage ended."""
        self._tell_root(m.Drained(drain.generation, drain.ticket, ok))
        self._retry()
        return self._flush()

    def unpinned(self) -> list[Action]:
        """A transfer from here has ended: its slot may be what a ticket or a fetch waits for."""
        self._retry()
        return self._flush()

    def restore(self, rank: int) -> list[Action]:
        """A local rank wants its state: of the newest commit or the step resumed."""
        self._now.restores.add(rank)
        ticket = self._ticket_to_restore()
        if (rank, ticket) in self._damaged and self.slots.holding(rank, ticket) is None:
            self._tell_dropped(rank, ticket, self._damaged[rank, ticket])  # now somebody waits
        self._retry()
        return self._flush()

    def awaits(self, rank: int, ticket: int) -> bool:
        """Return whether a local rank waits to restore this version, which is not here yet."""
        return rank in self._now.restores and ticket == self._ticket_to_restore()

    def damaged(self, rank: int, ticket: int, reason: str) -> list[Action]:
        """A rank found that its local copy does not match its checksums."""
        self._now.restores.add(rank)
        return self.found_damaged(rank, ticket, reason)

    def drained_damaged(self, step: int, reason: str, steps: Sequence[int]) -> list[Action]:
        """A rank cannot resume this drained step; `steps` are what else is complete."""
        self._tell_verdict(m.DamagedDrained(self.generation, step, reason, tuple(steps)))
        return self._flush()

    def found_damaged(self, rank: int, ticket: int, reason: str) -> list[Action]:
        """A copy here does not match its checksums any more: the root has it fetched again."""
        self.slots.drop(rank, ticket)
        self._damaged[rank, ticket] = reason
        self._tell_dropped(rank, ticket, reason)
        return self._flush()

    # What waits for a slot or a copy.

    def _retry(self) -> None:
        self._serve_restores()
        for (rank, ticket), grant in sorted(self._now.grants.items()):
            slot = self.slots.begin(rank, ticket)
            if slot is not None:
                del self._now.grants[rank, ticket]
                self._do(GrantSlot(rank, ticket, grant.not_before_step, slot))
        for fetch in list(self._now.fetches.values()):
            self._try_fetch(fetch)

    def _try_fetch(self, fetch: m.Fetch) -> None:
        rank, ticket = fetch.rank, fetch.ticket
        holding = self.slots.holding(rank, ticket)
        if holding is not None:
            del self._now.fetches[rank, ticket]
            self._tell_root(m.Holds(self.generation, holding))
        elif self.slots.find(rank, ticket) is None:  # else a transfer is under way
            resume = self.formed.resume if self.formed else None
            slot = self.slots.begin(rank, ticket)
            if slot is None and resume is not None and resume.ticket == ticket:
                # What is resumed matters more than what came before it.
                self.slots.drop_oldest(rank, older_than=ticket)
                slot = self.slots.begin(rank, ticket)
            if slot is not None:
                del self._now.fetches[rank, ticket]
                self.fetching.add((rank, ticket))
                self._do(StartFetch(self.generation, rank, ticket, slot, fetch.sources))

    def _serve_restores(self) -> None:
        if self.formed is None:
            return
        resume, ticket = self.formed.resume, self._ticket_to_restore()
        for rank in sorted(self._now.restores):
            if ticket:
                if self.slots.holding(rank, ticket) is None:
                    continue
                self._do(ServeRestore(rank, ticket=ticket))
            elif resume is not None:
                self._do(ServeRestore(rank, drained_step=resume.step))
            else:
                self._do(ServeRestore(rank))
            self._now.restores.discard(rank)

    def _ticket_to_restore(self) -> int:
        """Return the newest recoverable version that machines hold; 0 if there is none."""
        resume = self.formed.resume if self.formed else None
        return self._now.committed_ticket or (resume.ticket if resume else 0)

    def _tell_dropped(
        self, rank: int, ticket: int, reason: str, damaged_sources: tuple[str, ...] = ()
    ) -> None:
        what = rank, ticket, reason, damaged_sources, self.awaits(rank, ticket)
        self._tell_root(m.Dropped(self.generation, *what))

    def _tell_verdict(self, message: m.RankLost | m.DamagedDrained) -> None:
        self._now.verdicts.append(message)
        self._tell_root(message)

    def _tell_root(self, message: m.ToRoot) -> None:
        self._do(ToRootAgent(message))

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _flush(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
