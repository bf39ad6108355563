"""The control plane with one rule broken: a simulator that does not find these proves nothing.

Each mutant replaces one function by a wrong one; `first_violation` plays seeds until an
invariant notices. Each invariant has at least two mutants.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from twinckpt.core import messages as m
from twinckpt.core import recovery, root
from twinckpt.core.commit import CommitLog
from twinckpt.core.copies import Copies
from twinckpt.core.drains import Drains
from twinckpt.core.generation import Generation
from twinckpt.core.slot_table import SlotTable
from twinckpt.core.worker import Worker
from twinckpt.core.worker_actions import Action as WorkerAction
from twinckpt.simulation.invariants import InvariantViolation
from twinckpt.simulation.schedule import HEALTHY, run


@dataclass(frozen=True, slots=True)
class Mutant:
    """A wrong rule: `owner.attribute` is replaced; `rule` is the invariant it breaks."""

    name: str
    rule: str
    owner: Any
    attribute: str
    wrong: Callable[..., Any]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Put the wrong rule in place of the right one while the context lasts."""
        right = getattr(self.owner, self.attribute)
        setattr(self.owner, self.attribute, self.wrong)
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, right)


def first_violation(mutant: Mutant, seeds: Iterable[int]) -> InvariantViolation | None:
    """Return the first violation of the mutant's rule; None if no seed finds the mutant."""
    with mutant.active():
        for seed in seeds:
            try:
                run(seed)
            except InvariantViolation as violation:
                if violation.rule == mutant.rule:
                    return violation
    return None


# The right functions, where a wrong one builds on them.
_plan, _formed = recovery.plan_recovery, Worker._on_formed
_root_receive, _worker_receive, _fetch = root.Root.receive, Worker.receive, Generation._fetch
_ended, _drop_where = Drains.ended, SlotTable.drop_where
_conflicts, _commit = CommitLog.conflicts, CommitLog.commit
_adopt_tickets = Generation._adopt_tickets


def _forget_replicas(
    holdings: recovery.Holdings, home_machine: Mapping[int, str]
) -> recovery.Recovery | None:
    own = {
        name: [holding for holding in held if home_machine.get(holding.home) == name]
        for name, held in holdings.items()
    }
    return _plan(own, home_machine)


def _pass_over_the_newest(
    holdings: recovery.Holdings, home_machine: Mapping[int, str]
) -> recovery.Recovery | None:
    newest = max((copy.ticket for held in holdings.values() for copy in held), default=0)
    older = {
        name: [copy for copy in held if copy.ticket != newest] for name, held in holdings.items()
    }
    return _plan(older, home_machine)


def _root_accepts_any(
    self: root.Root, machine: str, message: m.ToRoot, now_s: float
) -> list[root.Action]:
    if self.current and not isinstance(message, m.Hello | m.Join | m.Heartbeat | m.Leave):
        message = replace(message, generation=self.current.number)
    return _root_receive(self, machine, message, now_s)


def _worker_accepts_any(self: Worker, message: m.ToWorker) -> list[WorkerAction]:
    if not isinstance(message, m.Formed):
        message = replace(message, generation=self.generation)
    return _worker_receive(self, message)


def _worker_goes_back(self: Worker, message: m.ToWorker) -> list[WorkerAction]:
    if isinstance(message, m.Formed):
        self.generation = message.generation - 1
    return _worker_receive(self, message)


def _reuse_the_oldest_slot(self: SlotTable, ticket: int) -> int:
    index = min(range(len(self.slots)), key=lambda i: self.slots[i].ticket or 10**18)
    self.slots[index].ticket, self.slots[index].holding = ticket, None
    return index


def _drop_the_commit_too(
    self: SlotTable, *, older_than: int | None = None, newer_than: int | None = None
) -> None:
    older_than = None if older_than is None else older_than + 1
    _drop_where(self, older_than=older_than, newer_than=newer_than)


def _start_empty(self: Worker, formed: m.Formed) -> None:
    _formed(self, formed)
    self.slots.drop_where(newer_than=0)


def _plan_with_ranks_missing(
    holdings: recovery.Holdings, home_machine: Mapping[int, str]
) -> recovery.Recovery | None:
    copies = [(name, holding) for name, held in holdings.items() for holding in held]
    if not copies:
        return None
    newest = max((holding for _, holding in copies), key=lambda holding: holding.ticket)
    sources: dict[int, tuple[str, ...]] = {}
    for name, holding in copies:
        if holding.ticket == newest.ticket:
            sources[holding.rank] = (*sources.get(holding.rank, ()), name)
    return recovery.Recovery(newest.step, newest.ticket, sources)


def _every_drain_succeeds(self: Drains, machine: str, ticket: int, *, ok: bool) -> None:
    _ended(self, machine, ticket, ok=True)


def _commit_resumed_anew(self: CommitLog, ticket: int) -> tuple[int, bool]:
    step, _ = _commit(self, ticket)
    return step, True


def _mix_steps(self: CommitLog, ticket: int, step: int) -> bool:
    _conflicts(self, ticket, step)
    return False


def _commit_without_replicas(self: Copies, ticket: int) -> bool:
    shards = self._of_ticket.get(ticket, {})
    return any(len(shards) == next(iter(held.values())).world_size for held in shards.values())


def _count_on_a_fetch(
    self: Generation, machine: str, holding: m.Holding, sources: tuple[str, ...]
) -> None:
    _fetch(self, machine, holding, sources)
    self._copies.add(machine, holding)


def _break_silently(self: root.Root, reason: str, *, is_final: bool = False) -> None:
    self.current = None


def _forget_what_was_told(self: Generation, told: Mapping[str, m.Running]) -> None:
    forgotten = {
        name: replace(running, committed_ticket=0, committed_step=0, abandoned=())
        for name, running in told.items()
    }
    _adopt_tickets(self, forgotten)


def _nothing(*_: Any, **__: Any) -> None:
    return None


KEPT, ONE, NEEDED = "committed step kept", "one generation", "needed slot kept"
INTACT, MONOTONIC, REAL = "plan names intact copies", "commit monotonic", "commit real"

MUTANTS = (
    Mutant("only home copies are planned with", KEPT, root, "plan_recovery", _forget_replicas),
    Mutant("the newest is passed over", KEPT, root, "plan_recovery", _pass_over_the_newest),
    Mutant("the root accepts any generation", ONE, root.Root, "receive", _root_accepts_any),
    Mutant("workers accept any generation", ONE, Worker, "receive", _worker_accepts_any),
    Mutant("workers go back a generation", ONE, Worker, "receive", _worker_goes_back),
    Mutant("the oldest slot is reused", NEEDED, SlotTable, "begin", _reuse_the_oldest_slot),
    Mutant("a commit frees itself", NEEDED, SlotTable, "drop_where", _drop_the_commit_too),
    Mutant("a generation starts empty", NEEDED, Worker, "_on_formed", _start_empty),
    Mutant("ranks are missing", INTACT, root, "plan_recovery", _plan_with_ranks_missing),
    Mutant("every drain succeeds", INTACT, Drains, "ended", _every_drain_succeeds),
    Mutant("tickets begin again at 1", MONOTONIC, CommitLog, "skip_past", _nothing),
    Mutant("resumed is committed anew", MONOTONIC, CommitLog, "commit", _commit_resumed_anew),
    Mutant(
        "a successor forgets what was told",
        MONOTONIC,
        Generation,
        "_adopt_tickets",
        _forget_what_was_told,
    ),
    Mutant("replicas do not count", REAL, Copies, "is_redundant", _commit_without_replicas),
    Mutant("steps are mixed", REAL, CommitLog, "conflicts", _mix_steps),
    Mutant("a fetch counts as done", REAL, Generation, "_fetch", _count_on_a_fetch),
    Mutant("lost copies stay lost", HEALTHY, Generation, "_on_dropped", _nothing),
    Mutant("drains never end", HEALTHY, Drains, "ended", _nothing),
    Mutant("a successor asks for no tickets", HEALTHY, Generation, "_adopt_tickets", _nothing),
    Mutant("nobody is told of the end", HEALTHY, root.Root, "_break", _break_silently),
)
