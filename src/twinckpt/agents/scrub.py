"""Scrubbing: resident copies are verified again, slowly, so that damage is found while another
copy is there to repair it from.

The thread takes no slot and no lock for long: a copy that is replaced meanwhile is let go.
"""

import logging
import threading
import time
from collections.abc import Callable

from twinckpt.errors import DamagedCopyError
from twinckpt.memory.in_memory import CheckpointEntry, InMemoryCheckpoint

logger = logging.getLogger(__name__)

_PAUSE_S = 0.05
_IDLE_S = 1.0


class Scrub:
    """Verifies all sealed copies of a machine, round after round.

    Args:
        checkpoints: the machine's copies.
        bytes_per_s: how much to read a second, at most.
        on_damage: takes rank, ticket and reason, in the scrubbing thread.
    """

    def __init__(
        self,
        checkpoints: InMemoryCheckpoint,
        bytes_per_s: float,
        on_damage: Callable[[int, int, str], None],
    ) -> None:
        self._checkpoints = checkpoints
        self._bytes_per_s = bytes_per_s
        self._on_damage = on_damage

    def start(self) -> None:
        """Begin; the thread ends with the process."""
        threading.Thread(target=self._run, name="scrub", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_IDLE_S)
            for holding in self._checkpoints.holdings():
                entry = self._checkpoints.entry(holding.rank, holding.ticket)
                if entry is not None:
                    self._verify(entry)

    def _verify(self, entry: CheckpointEntry) -> None:
        """Verify one copy, a burst of chunks at a time."""
        seal = entry.seal
        burst_bytes = max(seal.chunk_bytes, self._bytes_per_s * _PAUSE_S)
        num_chunks = max(1, int(burst_bytes / seal.chunk_bytes))
        for begin in range(0, seal.num_chunks, num_chunks):
            for index in range(begin, min(begin + num_chunks, seal.num_chunks)):
                try:
                    seal.verify_chunk(entry.slot.buffer, index)
                except DamagedCopyError as error:
                    if self._is_current(entry):  # else the slot was given to a newer version
                        logger.warning("found by scrubbing: %s; it is fetched again", error)
                        self._on_damage(seal.rank, seal.ticket, str(error))
                    return
                except ValueError:
                    return  # the slot was given back
            time.sleep(num_chunks * seal.chunk_bytes / self._bytes_per_s)
            if not self._is_current(entry):
                return

    def _is_current(self, entry: CheckpointEntry) -> bool:
        now = self._checkpoints.entry(entry.seal.rank, entry.seal.ticket)
        return now is not None and now.slot is entry.slot and now.seal is entry.seal
