"""The warm parents of a machine, as its worker agent sees them."""

from twinckpt.agents.local_server import LocalPeer
from twinckpt.net.local import WarmHello, WarmReady


class WarmParents:
    """Knows which local ranks can be forked again, and which are ready for it.

    The parents stand in for the launcher only while there is one for each local rank; if one
    dies, torchrun starts the machine's ranks anew.
    """

    def __init__(self) -> None:
        self._peers: dict[int, LocalPeer] = {}
        self._ready: dict[int, str] = {}
        self._local_world_size = 0

    @property
    def parents(self) -> list[LocalPeer]:
        """All parents, or none if one is missing."""
        complete = self._local_world_size and len(self._peers) == self._local_world_size
        return list(self._peers.values()) if complete else []

    def add(self, peer: LocalPeer, hello: WarmHello) -> None:
        """Take in a parent that has introduced itself."""
        self._peers[hello.local_rank] = peer
        self._local_world_size = hello.local_world_size

    def ready(self, peer: LocalPeer, ready: WarmReady) -> str | None:
        """Note that a parent's child is gone; return where to meet once all of them are."""
        for local_rank, known in self._peers.items():
            if known is peer:
                self._ready[local_rank] = ready.master_endpoint
        if not self.parents or len(self._ready) < self._local_world_size:
            return None
        endpoint = self._ready[0]
        self._ready = {}
        return endpoint

    def remove(self, peer: LocalPeer) -> bool:
        """Forget a parent that has ended; return whether it was one."""
        for local_rank, known in self._peers.items():
            if known is peer:
                del self._peers[local_rank]
                self._ready.pop(local_rank, None)
                return True
        return False

    def clear(self) -> None:
        """Forget all: torchrun starts the machine's ranks anew."""
        self._peers, self._ready, self._local_world_size = {}, {}, 0
