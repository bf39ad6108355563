"""What a worker agent's threads do: receive a shard from a peer, copy a step to storage."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from twinckpt.agents.config import WorkerAgentConfig
from twinckpt.core.worker_actions import StartDrain, StartFetch
from twinckpt.errors import DamagedCopyError
from twinckpt.memory import drained
from twinckpt.memory.in_memory import CheckpointEntry, InMemoryCheckpoint
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
    with checkpoints.filling(fetch.rank, fetch.ticket, fetch.slot) as slot:
        if slot is None:
            return Fetched(None, "no longer wanted")
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


class StepDrain:
    """Copies steps of this machine's shards to persistent storage, one at a time.

    A reason for failing is told once, and again only after a step has been copied.
    """

    def __init__(self, checkpoints: InMemoryCheckpoint, config: WorkerAgentConfig) -> None:
        self._checkpoints = checkpoints
        self._config = config
        self._told: set[tuple[type[Exception], int | None]] = set()
        self._is_told_what_stays = False

    def begin(self, work: StartDrain) -> Callable[[], bool]:
        """Keep this machine's shards of a ticket from reuse; return a function that copies them.

        Called at once, since the next commit drops them. The function is to be called in a
        thread; it returns whether all shards are in storage.
        """
        kept = ExitStack()
        try:
            pins = (self._checkpoints.pinned(rank, work.ticket) for rank in work.ranks)
            entries = [kept.enter_context(pin) for pin in pins]
        except DamagedCopyError as error:
            kept.close()
            return partial(self._fail, work, error)
        return partial(self._copy, work, entries, kept)

    def _copy(self, work: StartDrain, entries: Sequence[CheckpointEntry], kept: ExitStack) -> bool:
        """Copy, and return whether that worked; the last machine also completes the step."""
        directory = drained.location(self._config.drain_directory)
        try:
            with kept:
                for entry in entries:
                    seal, rate = entry.seal, self._config.drain_bytes_per_s
                    # A root that takes over may ask for a step that is copied already.
                    if drained.read_seal(directory, seal.step, seal.rank) != seal:
                        drained.write_shard(directory, seal, entry.data, rate)
            what = (work.step, work.ticket, work.world_size, work.digest)
            if drained.finish_step(directory, *what):
                self._keep_newest(directory)
        except Exception as error:  # drivers of remote storage raise their own
            return self._fail(work, error)
        self._told.clear()
        return True

    def _fail(self, work: StartDrain, error: Exception) -> bool:
        kind = type(error), getattr(error, "errno", None)  # the message names the step
        if kind not in self._told:
            self._told.add(kind)
            logger.warning(
                "step %d was not drained to %s: %s; training and checkpoints in RAM go on, "
                "and this is told again only after a step was drained",
                work.step,
                drained.location(self._config.drain_directory),
                error,
            )
        return False

    def _keep_newest(self, directory: Path) -> None:
        """Remove what is too old; the step is drained, whether or not that can be done."""
        try:
            drained.keep_newest(directory, self._config.drain_keep)
        except Exception as error:
            if not self._is_told_what_stays:
                logger.warning("in %s more than the newest steps stay: %s", directory, error)
            self._is_told_what_stays = True
