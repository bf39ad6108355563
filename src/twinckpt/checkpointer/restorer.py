"""Writing a checkpoint back into the training state: from RAM, from a peer, or from storage."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from twinckpt.checkpointer.agent_client import AgentClient, ArrivalFailed, Copy, RestoreAnswer
from twinckpt.checkpointer.assemble import resharded
from twinckpt.checkpointer.cores import threads
from twinckpt.checkpointer.device import PinnedSlots
from twinckpt.checkpointer.gpu_reading import GpuReader, reading
from twinckpt.checkpointer.kernels import Kernels, kernels_on
from twinckpt.checkpointer.reading import SlotReader
from twinckpt.checkpointer.state import TrainingState
from twinckpt.errors import DamagedCopyError, RestoreError
from twinckpt.memory.drained import load_drained, location, read_manifest, set_aside, step_directory
from twinckpt.memory.seal import Seal

logger = logging.getLogger(__name__)

RESTORE_TIMEOUT_S = 120.0
MAX_READ_THREADS = 8


class Restorer:
    """Restores a rank's state from what its agent offers, until a copy proves intact.

    `report` says what was restored last: step, ticket, source, bytes, and how long it took.
    """

    def __init__(self, state: TrainingState, client: AgentClient, pinned: PinnedSlots) -> None:
        self._state = state
        self._client = client
        self._pinned = pinned
        self._kernels: Kernels | None = None
        self.report: dict[str, Any] = {}

    def restore(self) -> int | None:
        """Restore what the agent says is newest; see `Checkpointer.restore`."""
        step = self.restore_from(self._client.request_restore)
        self.prepare()
        return step

    def prepare(self) -> None:
        """Make the next restore faster, in the background: before the first there is no time."""
        gpu = self._state.gpu
        if self._kernels is None and gpu is not None:
            self._kernels = kernels_on(gpu)

    def wait_until_prepared(self) -> None:
        """Return once `prepare` has done what it can."""
        if self._kernels is not None:
            self._kernels.wait()

    def restore_from(self, ask: Callable[[float], RestoreAnswer]) -> int | None:
        """Restore what `ask`, given a limit in seconds, returns; return its step, if any."""
        asked_at_s = time.monotonic()
        answer = ask(RESTORE_TIMEOUT_S)
        damage: DamagedCopyError | None = None
        while isinstance(answer, Copy):
            answered_at_s = time.monotonic()
            try:
                self._load(answer)
            except ArrivalFailed as error:
                logger.warning("%s", error)
                answer = self._client.next_answer(RESTORE_TIMEOUT_S)
                continue
            except DamagedCopyError as error:
                logger.warning("%s; asking for another copy", error)
                damage, ticket = error, answer.seal.ticket
                answer = self._client.report_damage(ticket, str(error), RESTORE_TIMEOUT_S)
                continue
            self._note(answer.source, answer.seal, asked_at_s, answered_at_s)
            return answer.seal.step
        if answer is None:
            if damage is not None:
                raise RestoreError(
                    f"{damage}, and there is no other copy; the state may be partly overwritten: "
                    "start the process anew to begin at the beginning"
                ) from damage
            return None
        return self._load_drained(location(answer.directory), answer.step, asked_at_s)

    def _load_drained(self, directory: Path, step: int, asked_at_s: float) -> int:
        """Write a drained step into the state; all ranks were told the same one."""
        rank, world_size = self._client.rank, self._client.world_size
        manifest = read_manifest(directory, step)
        try:
            if manifest is None or manifest.world_size == world_size:
                seal, buffer = load_drained(directory, step, rank)
                self._read_here(seal, buffer)
            else:
                # Another number of ranks wrote it: each reads all shards, and keeps its part.
                seal, _ = load_drained(directory, step, rank % manifest.world_size)
                self._state.restore(*resharded(directory, step, rank, self._state.counterparts()))
        except DamagedCopyError as error:
            logger.warning("step %d in %s is set aside: %s", step, directory, error)
            left = set_aside(directory, step)  # here: storage that is slow holds up no heartbeat
            self._client.report_drained_damage(step, str(error), left)
            raise RestoreError(
                f"{error}; its manifest in {step_directory(directory, step)} is renamed, and "
                "what starts next resumes an older step"
            ) from error
        self._note("disk", seal, asked_at_s, asked_at_s)
        return step

    def _load(self, copy: Copy) -> None:
        """Write a copy into the state; one that is still arriving, chunk by chunk as it comes."""
        seal, buffer = copy.seal, copy.slot.buffer
        self._pinned.pin(buffer)
        if not copy.is_arriving:
            with reading(seal, buffer[: seal.size_bytes], self._kernels) as on_gpu:
                self._read_here(seal, buffer, on_gpu)
            return

        def arrive(index: int) -> None:
            end = min((index + 1) * seal.chunk_bytes, seal.size_bytes)
            self._client.wait_for_arrival(seal, end, RESTORE_TIMEOUT_S)

        self._read(seal, buffer, arrive=arrive)  # the agent verifies what it receives
        final = self._client.next_answer(RESTORE_TIMEOUT_S)
        if not isinstance(final, Copy) or final.seal != seal:
            raise DamagedCopyError("the agent gave up the copy that it was receiving")

    def _read_here(self, seal: Seal, buffer: memoryview, on_gpu: GpuReader | None = None) -> None:
        """Read a copy that is complete, with the cores that this rank has to itself."""

        def verify(index: int) -> None:
            seal.verify_chunk(buffer, index)

        how = {"verify": verify, "num_threads": threads(MAX_READ_THREADS), "on_gpu": on_gpu}
        self._read(seal, buffer, **how)

    def _read(self, seal: Seal, buffer: memoryview, **how: Any) -> None:
        if len(buffer) < seal.size_bytes:
            raise DamagedCopyError(f"{len(buffer)} bytes, {seal.size_bytes} were sealed")
        slot = buffer[: seal.size_bytes]
        with closing(SlotReader(slot, seal.chunk_bytes, **how)) as reader:
            self._state.restore(reader.metadata["state"], reader)

    def _note(self, source: str, seal: Seal, asked_at_s: float, answered_at_s: float) -> None:
        now_s = time.monotonic()
        self.report = {
            "step": seal.step,
            "ticket": seal.ticket,
            "source": source,
            "bytes": seal.size_bytes,
            "wait_s": answered_at_s - asked_at_s,
            "retrieve_s": now_s - asked_at_s,
        }
        logger.info("restored step %d from %s in %.3f s", seal.step, source, now_s - asked_at_s)
