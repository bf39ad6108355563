"""Which checkpoint to resume from: the newest one of which every shard survives.

Pure: a table of who holds what goes in, a plan comes out.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from twinckpt.core.messages import Holding, Resume

Holdings = Mapping[str, Iterable[Holding]]
_Shards = dict[int, list[tuple[str, Holding]]]  # copies of each rank's shard: machine, copy


@dataclass(frozen=True, slots=True)
class Recovery:
    """What to resume: `sources[rank]` names the machines that hold the rank's shard, best first.

    `ticket` is 0 and `sources` empty where only persistent storage is left.
    """

    step: int
    ticket: int = 0
    sources: dict[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_from_storage(self) -> bool:
        """Return whether only persistent storage is left."""
        return not self.ticket

    @property
    def resume(self) -> Resume:
        """Return what every machine is told of it."""
        return Resume(self.step, self.ticket)


def plan_recovery(holdings: Holdings, home_machine: Mapping[int, str]) -> Recovery | None:
    """Return the newest recoverable checkpoint, or None.

    Args:
        holdings: the sealed copies on each surviving machine, also of one that has no place.
        home_machine: machine of each index in the new generation; a shard's home copy is
            named first among its sources, because it needs no network.

    A ticket counts only if all its ranks are there with one step, one world size, and one
    digest a rank: copies that contradict each other prove that one of them is wrong. And its
    shards must have been written by exactly as many machines as there are now.
    """
    for shards in _complete(holdings):
        if _homes(shards) == set(home_machine):
            first = shards[0][0][1]
            members = set(home_machine.values())
            sources = {}
            for rank, copies in sorted(shards.items()):
                home = home_machine[copies[0][1].home]
                sources[rank] = nearest_first((name for name, _ in copies), home, members)
            return Recovery(step=first.step, ticket=first.ticket, sources=sources)
    return None


@dataclass(frozen=True, slots=True)
class Recoverable:
    """A checkpoint of which every shard survives, and how many machines wrote it; or zeros."""

    ticket: int = 0
    step: int = 0
    num_machines: int = 0


def newest_recoverable(holdings: Holdings) -> Recoverable:
    """Return the newest checkpoint with every shard there, however many machines wrote it."""
    for shards in _complete(holdings):
        first = shards[0][0][1]
        return Recoverable(first.ticket, first.step, len(_homes(shards)))
    return Recoverable()


def _complete(holdings: Holdings) -> Iterator[_Shards]:
    """Yield the checkpoints of which every shard is there, newest first."""
    by_ticket: dict[int, _Shards] = {}
    for machine in sorted(holdings):
        for holding in holdings[machine]:
            copies = by_ticket.setdefault(holding.ticket, {}).setdefault(holding.rank, [])
            copies.append((machine, holding))
    for ticket in sorted(by_ticket, reverse=True):
        shards = by_ticket[ticket]
        first = next(iter(shards.values()))[0][1]
        is_whole = len(shards) == first.world_size  # first, since world_size may be huge
        if is_whole and set(shards) == set(range(first.world_size)) and _agree(shards, first):
            yield shards


def _homes(shards: _Shards) -> set[int]:
    return {copies[0][1].home for copies in shards.values()}


def _agree(shards: _Shards, first: Holding) -> bool:
    return all(
        holding.step == first.step
        and holding.world_size == first.world_size
        and holding.digest == copies[0][1].digest
        for copies in shards.values()
        for _, holding in copies
    )


def nearest_first(machines: Iterable[str], home: str, members: Container[str]) -> tuple[str, ...]:
    """Return who holds a shard in the order in which to ask: its home, members, all others."""
    return tuple(sorted(machines, key=lambda name: (name != home, name not in members, name)))


def why_lost(recovery: Recovery | None, num_machines: int) -> str:
    """Return why a committed step is not what `num_machines` machines resume."""
    if recovery is None:
        return "not every shard is left in memory, and nothing is drained"
    if recovery.is_from_storage:
        return f"memory has no step for {num_machines} machines; drained is {recovery.step}"
    return "not every shard is left in memory"
