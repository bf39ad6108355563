"""The checkpoints in one machine's RAM: `InMemoryCheckpoint`, thread-safe and bounded.

It holds the shards of the machine's own ranks and the replicas of its peers' shards, each in
a fixed number of slots that are allocated once and reused.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from twinckpt.core.messages import Holding
from twinckpt.core.slot_table import SlotState, SlotTable
from twinckpt.errors import DamagedCopyError, OutOfMemoryError
from twinckpt.memory.seal import Seal
from twinckpt.memory.slot import Slot


@dataclass(frozen=True, slots=True)
class CheckpointEntry:
    """One sealed shard in RAM: its seal and the slot that holds its bytes."""

    seal: Seal
    slot: Slot

    @property
    def data(self) -> memoryview:
        """The shard's bytes: a safetensors file."""
        return self.slot.buffer[: self.seal.size_bytes]


class _Shelf:
    """The slots of one rank's shard."""

    def __init__(self, max_checkpoints: int) -> None:
        self.table = SlotTable(max_checkpoints)
        self.slots: list[Slot | None] = [None] * max_checkpoints
        self.spare: list[Slot] = []  # for slots that were in use when all had to grow
        self.seals: dict[int, Seal] = {}
        self.slot_bytes = 0

    def close(self) -> None:
        """Give back all memory."""
        for slot in (*self.slots, *self.spare):
            if slot is not None:
                slot.close()

    def num_to_make(self, slot_bytes: int) -> int:
        """Return how many slots are free, or have to grow when they are."""
        return sum(
            slot is None or _is_free(state) or slot.capacity_bytes < slot_bytes
            for slot, state in zip(self.slots, self.table.slots, strict=True)
        )

    def give_back(self) -> None:
        """Give back what is free; whoever needs it after all reserves it anew."""
        self.slot_bytes = 0
        while self.spare:
            self.spare.pop().close()
        for index, state in enumerate(self.table.slots):
            slot = self.slots[index]
            if slot is not None and _is_free(state):
                self.slots[index] = None
                slot.close()

    def forget_seals(self) -> None:
        """Drop the seals of versions that the table has dropped."""
        kept = {state.ticket for state in self.table.slots}
        self.seals = {ticket: seal for ticket, seal in self.seals.items() if ticket in kept}


class InMemoryCheckpoint:
    """Sealed shards by (rank, ticket), at most `max_checkpoints` a rank.

    Args:
        max_checkpoints: slots a rank; the committed version stays until a newer one commits,
            then its slot is reused (eviction).
        capacity_bytes: upper limit of all slots together; None for what the machine has. What
            the shards of a former generation still take does not count: the next commit frees it.
    """

    def __init__(self, max_checkpoints: int = 2, capacity_bytes: int | None = None) -> None:
        self.max_checkpoints = max_checkpoints
        self.capacity_bytes = capacity_bytes
        self._shelves: dict[int, _Shelf] = {}
        self._needed: set[int] = set()
        self._lock = threading.RLock()
        self.on_unpinned: Callable[[], None] = lambda: None  # called in the thread that has read

    @property
    def allocated_bytes(self) -> int:
        """Memory of all slots."""
        with self._lock:
            return sum(
                slot.capacity_bytes
                for shelf in self._shelves.values()
                for slot in (*shelf.slots, *shelf.spare)
                if slot is not None
            )

    def begin_generation(self) -> None:
        """Note that from now on only shards that are reserved again are needed here."""
        with self._lock:
            self._needed.clear()

    def reserve(self, rank: int, slot_bytes: int) -> None:
        """Make slots of at least `slot_bytes` for `rank`; a slot in use grows when it is free.

        Raises OutOfMemoryError if they do not fit; then nothing has changed. Memory is taken
        without holding the lock, because the kernel needs seconds for gigabytes.
        """
        with self._lock:
            self._needed.add(rank)
            if self.has_room(rank, slot_bytes):
                return
            others = self._shelves.keys() & self._needed - {rank}
            held = sum(self._shelves[other].slot_bytes for other in others)
            needed = (held + slot_bytes) * self.max_checkpoints
            if self.capacity_bytes is not None and needed > self.capacity_bytes:
                raise OutOfMemoryError(
                    f"{needed >> 20} MiB are needed for {self.max_checkpoints} slots of each of "
                    f"{len(others) + 1} shards, capacity_bytes allows "
                    f"{self.capacity_bytes >> 20} MiB; raise it or use fewer replicas"
                )
            shelf = self._shelves.get(rank) or _Shelf(self.max_checkpoints)
            num_to_make = shelf.num_to_make(slot_bytes)
        fresh = _allocate(num_to_make, slot_bytes)
        with self._lock:
            shelf = self._shelves.setdefault(rank, shelf)
            for index, state in enumerate(shelf.table.slots):
                if fresh and _is_free(state):
                    unused, shelf.slots[index] = shelf.slots[index], fresh.pop()
                    if unused is not None:
                        unused.close()
            shelf.slot_bytes = max(shelf.slot_bytes, slot_bytes)
            unneeded, shelf.spare = shelf.spare, fresh
        for slot in unneeded:
            slot.close()

    def give_back(self) -> None:
        """Give back the free slots of shards that are not needed here any more."""
        with self._lock:
            for rank in self._shelves.keys() - self._needed:
                shelf = self._shelves[rank]
                shelf.give_back()
                if not any(shelf.slots):
                    del self._shelves[rank]

    def has_room(self, rank: int, slot_bytes: int) -> bool:
        """Return whether `reserve` has nothing to do."""
        with self._lock:
            shelf = self._shelves.get(rank)
            return shelf is not None and shelf.slot_bytes >= slot_bytes

    def begin(self, rank: int, ticket: int) -> int | None:
        """Take a free slot for a version of `rank`; None while all are needed or pinned."""
        with self._lock:
            shelf = self._shelves[rank]
            index = shelf.table.begin(ticket)
            if index is not None:
                slot = shelf.slots[index]
                if slot is None or slot.capacity_bytes < shelf.slot_bytes:
                    spare = shelf.spare.pop() if shelf.spare else Slot.allocate(shelf.slot_bytes)
                    shelf.slots[index] = spare
                    if slot is not None:
                        slot.close()
            return index

    def slot(self, rank: int, index: int) -> Slot:
        """Return a slot by its index."""
        slot = self._shelves[rank].slots[index]
        assert slot is not None
        return slot

    def seal(self, seal: Seal) -> CheckpointEntry:
        """Make a begun slot immutable; its bytes are complete and match `seal`."""
        with self._lock:
            shelf = self._shelves[seal.rank]
            index = shelf.table.seal(seal.holding)
            shelf.seals[seal.ticket] = seal
            return CheckpointEntry(seal, self.slot(seal.rank, index))

    def find(self, rank: int, ticket: int) -> int | None:
        """Return the index of the slot with this version, sealed or not."""
        with self._lock:
            shelf = self._shelves.get(rank)
            return shelf.table.find(ticket) if shelf else None

    def entry(self, rank: int, ticket: int) -> CheckpointEntry | None:
        """Return a sealed version, or None."""
        with self._lock:
            index = self.find(rank, ticket)
            if index is None:
                return None
            shelf = self._shelves[rank]
            if shelf.table.slots[index].holding is None:
                return None
            return CheckpointEntry(shelf.seals[ticket], self.slot(rank, index))

    def holding(self, rank: int, ticket: int) -> Holding | None:
        """Return the control plane's view of a sealed version."""
        entry = self.entry(rank, ticket)
        return entry.seal.holding if entry else None

    def holdings(self) -> list[Holding]:
        """Return the control plane's view of everything sealed here."""
        with self._lock:
            return [h for shelf in self._shelves.values() for h in shelf.table.holdings()]

    @contextmanager
    def pinned(self, rank: int, ticket: int) -> Iterator[CheckpointEntry]:
        """Keep a sealed version's slot from reuse while it is read.

        Raises DamagedCopyError if this version is not here.
        """
        with self._lock:
            entry = self.entry(rank, ticket)
            if entry is None:
                raise DamagedCopyError(f"no sealed copy of rank {rank} at ticket {ticket} is here")
            index = self.find(rank, ticket)
            assert index is not None
            state = self._shelves[rank].table.slots[index]
            state.num_pins += 1
        try:
            yield entry
        finally:
            with self._lock:
                state.num_pins -= 1
            self.on_unpinned()

    @contextmanager
    def filling(self, rank: int, ticket: int, index: int) -> Iterator[Slot | None]:
        """Keep a begun slot from reuse while a transfer writes it, even if it is dropped.

        Gives None if it was dropped already, while the transfer waited for its turn: the slot
        may hold another version by now.
        """
        slot, state = None, None
        with self._lock:
            if self.find(rank, ticket) == index:
                slot, state = self.slot(rank, index), self._shelves[rank].table.slots[index]
                state.num_pins += 1
        try:
            yield slot
        finally:
            if state is not None:
                with self._lock:
                    state.num_pins -= 1

    def drop(self, rank: int, ticket: int) -> None:
        """Forget one version; its slot becomes free."""
        with self._lock:
            shelf = self._shelves.get(rank)
            if shelf is not None:
                shelf.table.drop(ticket)
                shelf.forget_seals()

    def drop_where(self, *, older_than: int | None = None, newer_than: int | None = None) -> None:
        """Forget the versions of all ranks outside a range of tickets."""
        with self._lock:
            for shelf in self._shelves.values():
                shelf.table.drop_where(older_than=older_than, newer_than=newer_than)
                shelf.forget_seals()

    def drop_oldest(self, rank: int, *, older_than: int) -> None:
        """Forget the oldest version of a rank below a ticket."""
        with self._lock:
            shelf = self._shelves.get(rank)
            if shelf is not None:
                shelf.table.drop_oldest(older_than=older_than)
                shelf.forget_seals()

    def close(self) -> None:
        """Give all memory back."""
        with self._lock:
            for shelf in self._shelves.values():
                shelf.close()
            self._shelves = {}


def _allocate(count: int, slot_bytes: int) -> list[Slot]:
    """Return `count` new slots, or none of them."""
    slots: list[Slot] = []
    try:
        while len(slots) < count:
            slots.append(Slot.allocate(slot_bytes))
    except OutOfMemoryError as error:
        for slot in slots:
            slot.close()
        raise OutOfMemoryError(
            f"{error} ({count * slot_bytes >> 20} MiB are needed for {count} slots of this shard; "
            f"{len(slots)} fitted)"
        ) from error
    return slots


def _is_free(state: SlotState) -> bool:
    return state.ticket == 0 and state.num_pins == 0
