"""Which slots of a generation are still missing: tickets begin once every replica has its own."""

from collections.abc import Sequence


class Reservations:
    """Slots for each rank's shard on all machines of its replica group, by machine index."""

    def __init__(self, holders: Sequence[Sequence[int]]) -> None:
        self.home: dict[int, int] = {}
        self.world_size = 0
        self._holders = holders
        self.slot_bytes: dict[int, int] = {}
        self._missing: set[tuple[int, int]] = set()

    def attach(self, rank: int, home: int, world_size: int, slot_bytes: int) -> bool:
        """Note that a rank has its own slots; return whether its replicas need larger ones."""
        self.world_size = world_size
        self.home[rank] = home
        if self.slot_bytes.get(rank, 0) >= slot_bytes:
            return False
        self.slot_bytes[rank] = slot_bytes
        self._missing |= {(rank, holder) for holder in self._holders[home][1:]}
        return True

    def reserve(self, rank: int, holder: int, slot_bytes: int) -> None:
        """Note that a machine has slots of this size for a replica of `rank`."""
        if slot_bytes >= self.slot_bytes.get(rank, 0):
            self._missing.discard((rank, holder))

    def lacking(self, rank: int) -> list[int]:
        """Return the machines that have yet to make slots for a rank's shard."""
        holders = self._holders[self.home[rank]][1:]
        return [holder for holder in holders if (rank, holder) in self._missing]

    @property
    def is_attached(self) -> bool:
        """Return whether all ranks have their own slots, and so have restored what they wanted."""
        return bool(self.world_size) and len(self.home) == self.world_size

    @property
    def is_complete(self) -> bool:
        """Return whether all ranks have attached and all their replicas have slots."""
        return self.is_attached and not self._missing
