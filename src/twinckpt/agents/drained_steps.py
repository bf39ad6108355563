"""Which steps persistent storage has, asked of storage that may be slow or hang."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from twinckpt.memory import drained

logger = logging.getLogger(__name__)

_SLOW_S = 10.0


class DrainedSteps:
    """Lists a directory in a thread of its own, so that the agent's loop goes on."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="list")
        self._last_known: tuple[tuple[int, ...], int] = ((), 0)

    async def list(self, timeout_s: float | None) -> tuple[tuple[int, ...], int]:
        """Return the complete steps and the newest ticket, as `drained.known` does.

        If storage takes longer than `timeout_s`, returns what was known before; None waits for
        it, however long.
        """
        loop = asyncio.get_running_loop()
        listing = loop.run_in_executor(self._thread, self._find)
        await asyncio.wait([listing], timeout=_SLOW_S if timeout_s is None else timeout_s)
        if timeout_s is None and not listing.done():
            logger.warning("waits for %s: is that storage gone?", self._directory)
            await asyncio.wait([listing])
        if listing.done():
            self._last_known = listing.result()
        return self._last_known

    def _find(self) -> tuple[tuple[int, ...], int]:
        directory = self._directory
        return drained.known(drained.location(directory)) if directory else ((), 0)
