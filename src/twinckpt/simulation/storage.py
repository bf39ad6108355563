"""Persistent storage that all machines share: which shards are there, and which steps complete."""

from twinckpt.core.messages import Holding


class SimulatedStorage:
    """Drained shards by step and rank; nothing can be written while it `is_full`."""

    def __init__(self) -> None:
        self.is_full = False
        self._shards: dict[int, dict[int, Holding]] = {}

    def write(self, holding: Holding) -> bool:
        """Write one shard durably; return whether it fitted."""
        if not self.is_full:
            self._shards.setdefault(holding.step, {})[holding.rank] = holding
        return not self.is_full

    def is_complete(self, step: int) -> bool:
        """Return whether every shard of a step is here, all of one checkpoint."""
        shards = list(self._shards.get(step, {}).values())
        tickets = {holding.ticket for holding in shards}
        return bool(shards) and len(tickets) == 1 and len(shards) == shards[0].world_size

    def newest_ticket(self) -> int:
        """Return the newest ticket of which anything is here; 0 if nothing is."""
        held = [holding.ticket for shards in self._shards.values() for holding in shards.values()]
        return max(held, default=0)

    def complete_steps(self) -> tuple[int, ...]:
        """Return the steps that can be resumed from, oldest first."""
        return tuple(sorted(step for step in self._shards if self.is_complete(step)))
