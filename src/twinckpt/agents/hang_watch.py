"""Ranks that are alive but make no progress: they are killed, so that their launcher restarts them.

Progress is what a rank tells its agent: a checkpoint begun or staged, a restore. In a job
whose ranks wait for each other all of them fall silent when one hangs, and all are killed.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping

from twinckpt.agents.local_server import LocalPeer

logger = logging.getLogger(__name__)

_CHECKS = 10  # within a timeout


async def watch_for_hangs(ranks: Callable[[], Mapping[int, LocalPeer]], timeout_s: float) -> None:
    """Kill each rank that has been silent for `timeout_s`; runs until cancelled."""
    while True:
        asleep_at_s = time.monotonic()
        await asyncio.sleep(timeout_s / _CHECKS)
        now_s = time.monotonic()
        if now_s - asleep_at_s > 2 * timeout_s / _CHECKS:
            continue  # this process was held up itself: what has arrived is not read yet
        for rank, peer in ranks().items():
            if peer.pid and now_s - peer.heard_at_s > timeout_s:
                logger.error(
                    "rank %d has made no progress for %.0f s: it is killed, so that training "
                    "resumes from the newest step (hang_timeout_s=%s)",
                    rank,
                    now_s - peer.heard_at_s,
                    timeout_s,
                )
                peer.heard_at_s = now_s
                try:
                    os.kill(peer.pid, signal.SIGKILL)
                except OSError as error:
                    logger.warning("rank %d cannot be killed: %s", rank, error)
