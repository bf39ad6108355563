"""Who holds which sealed copies, as far as the root was told, and which tickets are complete.

Kept as an index, by machine and by shard, with a count of the copies that are in their places:
so that a message about one copy costs the same in a cluster of two and of ten thousand machines.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from twinckpt.core.messages import Holding

Holders = Sequence[Sequence[int]]  # machine indices that hold each machine's shards, itself first


def checkpoint_digest(shards: Iterable[str]) -> str:
    """Return the digest of a checkpoint, made of its shards' digests in order of ranks."""
    return hashlib.sha256("".join(shards).encode()).hexdigest()


class Copies:
    """Sealed copies by machine, and by (ticket, rank)."""

    def __init__(self) -> None:
        self._of_machine: dict[str, dict[tuple[int, int], Holding]] = {}
        self._of_ticket: dict[int, dict[int, dict[str, Holding]]] = {}
        self._index: Mapping[str, int] = {}
        self._holders: Holders = ()
        self._num_in_place: dict[int, int] = {}

    def place(self, index: Mapping[str, int], holders: Holders) -> None:
        """Say where copies belong from now on: each machine's index, and who holds whose shards."""
        self._index, self._holders = index, holders
        self._num_in_place = {}
        for machine, held in self._of_machine.items():
            for holding in held.values():
                self._count(machine, holding, 1)

    def add_machine(self, machine: str, inventory: Iterable[Holding]) -> None:
        """Record a machine that connected, and the copies it says it holds."""
        self._of_machine[machine] = {}
        for holding in inventory:
            self.add(machine, holding)

    def remove_machine(self, machine: str) -> None:
        """Forget a machine that is gone, with all that it held."""
        for rank, ticket in list(self._of_machine.get(machine, ())):
            self.remove(machine, rank, ticket)
        self._of_machine.pop(machine, None)

    def add(self, machine: str, holding: Holding) -> None:
        """Record one more copy that a machine holds; told twice, it counts once."""
        self.remove(machine, holding.rank, holding.ticket)
        self._of_machine[machine][holding.rank, holding.ticket] = holding
        shards = self._of_ticket.setdefault(holding.ticket, {})
        shards.setdefault(holding.rank, {})[machine] = holding
        self._count(machine, holding, 1)

    def remove(self, machine: str, rank: int, ticket: int) -> None:
        """Forget a copy that a machine no longer holds; nothing happens if it is not known."""
        holding = self._of_machine.get(machine, {}).pop((rank, ticket), None)
        if holding is None:
            return
        self._count(machine, holding, -1)
        shards = self._of_ticket[ticket]
        del shards[rank][machine]
        if not shards[rank]:
            del shards[rank]
        if not shards:
            del self._of_ticket[ticket]

    def remove_older(self, machine: str, rank: int, ticket: int) -> None:
        """Forget a machine's copies of a shard that are older than `ticket`."""
        for held in list(self.of_machine(machine)):
            if held.rank == rank and held.ticket < ticket:
                self.remove(machine, rank, held.ticket)

    def remove_tickets(self, tickets: Iterable[int]) -> None:
        """Forget all copies of these tickets."""
        for ticket in tickets:
            for rank, holders in self._of_ticket.pop(ticket, {}).items():
                for machine in holders:
                    del self._of_machine[machine][rank, ticket]
            self._num_in_place.pop(ticket, None)

    def tickets(self) -> list[int]:
        """Return all tickets of which some copy is held."""
        return list(self._of_ticket)

    def of_machine(self, machine: str) -> Collection[Holding]:
        """Return what a machine holds."""
        return self._of_machine.get(machine, {}).values()

    def of_ticket(self, ticket: int) -> Mapping[int, Mapping[str, Holding]]:
        """Return the copies of a ticket by rank, then by the machine that holds them."""
        return self._of_ticket.get(ticket, {})

    def digest(self, ticket: int) -> str:
        """Return the digest of a ticket of which every shard is held."""
        shards = self.of_ticket(ticket)
        return checkpoint_digest(
            next(iter(shards[rank].values())).digest for rank in sorted(shards)
        )

    def of_shard(self, rank: int, ticket: int) -> Mapping[str, Holding]:
        """Return the copies of one shard by the machine that holds them."""
        return self._of_ticket.get(ticket, {}).get(rank, {})

    def has(self, machine: str, rank: int, ticket: int) -> bool:
        """Return whether a machine holds this copy."""
        return (rank, ticket) in self._of_machine.get(machine, ())

    def is_redundant(self, ticket: int) -> bool:
        """Return whether every shard of a ticket is sealed on all machines of its replica group."""
        world_size, shards = self.world_size(ticket), self.of_ticket(ticket)
        if not shards:
            return False
        wanted = world_size * len(self._holders[0]) if self._holders else 0
        return len(shards) == world_size and self._num_in_place.get(ticket, 0) == wanted

    def world_size(self, ticket: int) -> int:
        """Return how many shards a ticket has, held or not; 0 if none is held."""
        shards = self.of_ticket(ticket)
        return next(iter(next(iter(shards.values())).values())).world_size if shards else 0

    def _count(self, machine: str, holding: Holding, by: int) -> None:
        index = self._index.get(machine)
        if holding.home not in range(len(self._holders)):
            return  # written in a larger generation, or none has formed yet
        if index in self._holders[holding.home]:
            count = self._num_in_place.get(holding.ticket, 0) + by
            self._num_in_place[holding.ticket] = count
