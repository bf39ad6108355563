"""What a worker agent's threads do: receive a shard from a peer, copy a step to storage."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from twinckpt.agents.config import WorkerAgentConfig
from twinckpt.core.worker import StartDrain, StartFetch
from twinckpt.errors import DamagedCopyError
from twinckpt.memory import drained
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal
from twinckpt.net.bulk import BulkClient, TransferCancelled

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """How a transfer ended: with a seal; or why it failed, and which sources had a damaged copy."""

    seal: Seal | None
    reason: str = ""
    damaged_sources: tuple[str, ...] = ()


def fetch_shard(
    fetch: StartFetch,
    checkpoints: InMemoryCheckpoint,
    bulk: BulkClient,
    on_progress: Callable[[Seal, int], None],
) -> Fetched:
    """Receive a shard into its slot, from the first source that has it intact."""
    reasons, damaged = [], []
    with checkpoints.filling(fetch.rank, fetch.slot) as slot:
        # A chunk may be damaged on its way: each source gets a second chance.
        for source in sorted(fetch.sources * 2, key=fetch.sources.index):
            try:
                what = (source, fetch.rank, fetch.ticket, slot.buffer)
                return Fetched(bulk.fetch(*what, on_progress))
            except TransferCancelled as error:
                reasons.append(str(error))
                break
            except Exception as error:  # whatever it was, the root must hear that none came
                is_damaged = isinstance(error, DamagedCopyError)
                level = logging.WARNING if is_damaged else logging.INFO  # it may be abandoned
                logger.log(level, "fetch of rank %d from %s: %s", fetch.rank, source.machine, error)
                reasons.append(f"{source.machine}: {error}")
                if is_damaged:
                    damaged.append(source.machine)
    return Fetched(None, "; ".join(reasons), tuple(damaged))


def drain_step(
    work: StartDrain, checkpoints: InMemoryCheckpoint, config: WorkerAgentConfig
) -> bool:
    """Copy this machine's shards of a ticket to persistent storage; return whether all are there.

    The last machine to do so completes the step, and removes those that are too old.
    """
    directory = drained.location(config.drain_directory)
    try:
        for rank in work.ranks:
            with checkpoints.pinned(rank, work.ticket) as entry:
                drained.write_shard(directory, entry.seal, entry.data, config.drain_bytes_per_s)
        what = (work.step, work.ticket, work.world_size, work.digest)
        if drained.finish_step(directory, *what):
            drained.keep_newest(directory, config.drain_keep)
    except Exception as error:  # drivers of remote storage raise their own
        logger.warning(
            "step %d was not drained to %s: %s; training and checkpoints in RAM go on",
            work.step,
            directory,
            error,
        )
        return False
    return True
