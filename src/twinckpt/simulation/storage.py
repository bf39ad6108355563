"""Persistent storage that all machines share: which shards are there, and which steps complete."""

from twinckpt.core.messages import Holding


class SimulatedStorage:
    """Drained shards by step and rank; nothing can be written while it `is_full`.

    As on disk, a manifest makes a step complete, and is removed before a shard of it is replaced.
    """

    def __init__(self) -> None:
        self.is_full = False
        self._shards: dict[int, dict[int, Holding]] = {}
        self._manifests: set[int] = set()

    def write(self, holding: Holding) -> bool:
        """Write one shard durably; return whether it fitted."""
        if self.is_full:
            return False
        shards = self._shards.setdefault(holding.step, {})
        if holding.rank in shards and shards[holding.rank].ticket != holding.ticket:
            self._manifests.discard(holding.step)
        shards[holding.rank] = holding
        written = [shards[rank].ticket for rank in range(holding.world_size) if rank in shards]
        if written == [holding.ticket] * holding.world_size:
            self._manifests.add(holding.step)
        return True

    def is_complete(self, step: int) -> bool:
        """Return whether every shard of a step is here, all of one checkpoint."""
        return step in self._manifests

    def newest_ticket(self) -> int:
        """Return the newest ticket of which a shard is here; 0 if there are no shards."""
        held = [holding.ticket for shards in self._shards.values() for holding in shards.values()]
        return max(held, default=0)

    def complete_steps(self) -> tuple[int, ...]:
        """Return the steps that can be resumed from, oldest first."""
        return tuple(sorted(self._manifests))
