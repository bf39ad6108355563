"""`Checkpointer`: what a training loop imports.

`save` hands the state to a background thread and returns; the thread copies it into a slot
of this machine's worker agent during the next forward and backward passes. A fence before
`optimizer.step()` waits for what is left of the copy. The agent does the rest.

All that a `Checkpointer` holds belongs to the thread that saves. The staging thread runs nothing
but the jobs of `_copy_job`: each advances its handle and hands the slot over, or leaves the grant
of a save that failed. Other threads may wait for a handle, and so take in the agent's messages.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from twinckpt.checkpointer.agent_client import AgentClient, Grant
from twinckpt.checkpointer.connect import JobSettings, connect, job_settings
from twinckpt.checkpointer.device import DeviceCopies, PinnedSlots, is_capturing
from twinckpt.checkpointer.handle import SaveHandle, checked_step
from twinckpt.checkpointer.in_flight import SavesInFlight
from twinckpt.checkpointer.layout import Layout
from twinckpt.checkpointer.memory_need import MemoryNeed, tell_need
from twinckpt.checkpointer.own_slots import OwnSlots
from twinckpt.checkpointer.restorer import Restorer
from twinckpt.checkpointer.stager import Stager
from twinckpt.checkpointer.staging import SlotWriter
from twinckpt.checkpointer.state import TrainingState
from twinckpt.errors import ConfigurationError, OutOfMemoryError, TwinckptError
from twinckpt.memory.checksums import chunk_bytes_of
from twinckpt.memory.seal import Seal

logger = logging.getLogger(__name__)

GRANT_TIMEOUT_S = 60.0
COMMIT_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 600.0
_ALIKE = "do all ranks call save(), for the same steps?"
_NO_SLOT = "no slot was granted within {:.0f} s: " + _ALIKE
_INTERRUPTED = (
    "save(block=True) within a save(), fence or restore() that a signal's handler interrupts: let "
    "the handler set a flag, and save where the loop finds it set"
)
REPORT_INTERVAL_S = 1.0


class Checkpointer:
    """Keeps every step's state in the RAM of two machines.

    Args:
        state: names to anything with `state_dict` and `load_state_dict`, tensors, or plain
            values (nested containers too); all ranks use the same names.
        strict: raise what goes wrong in a save, at the next fence or save where it went wrong
            in the background; by default it is logged and counted, and training goes on.
        settings: all settings of the job at once; None takes them from the environment.
        explicit: single settings by name, such as `replicas=2`, which beat those.

    Under `torchrun --rdzv-backend=twinckpt` torchrun has decided the settings; others are refused
    (ConfigurationError). Under any other launcher all ranks must give the same.

    Every rank makes one, after its process group; all ranks call `save` for the same steps.
    One that is made after another was closed, in the same job, restores what that one saved: its
    steps are the job's. A second training in one process needs a job of its own.
    `stall_s` adds up how long `save` and the fence have kept the training loop waiting.

    >>> import torch
    >>> weights = torch.arange(3.0)
    >>> with Checkpointer({"weights": weights}, replicas=1) as checkpointer:
    ...     handle = checkpointer.save(1, block=True)
    ...     _ = weights.zero_()
    ...     step = checkpointer.restore()
    >>> handle.status, step, weights
    ('committed', 1, tensor([0., 1., 2.]))
    """

    _open: ClassVar["Checkpointer | None"] = None  # the agent knows one connection a rank
    _newest: ClassVar["Checkpointer | None"] = None  # may be closed after an exception

    def __init__(
        self,
        state: MutableMapping[str, Any],
        *,
        strict: bool = False,
        settings: JobSettings | None = None,
        **explicit: Any,
    ) -> None:
        if Checkpointer._open is not None:
            raise ConfigurationError(
                "this process has a Checkpointer already: put all parts into its state, or close() "
                "it first"
            )
        self._settings = job_settings(settings, explicit)
        self._state = TrainingState(state)
        self._strict = strict
        self._pid = os.getpid()
        self._client: AgentClient = connect(self._settings)
        self._stager = Stager()
        self._device = DeviceCopies()
        self._writer: SlotWriter | None = None
        pinned = PinnedSlots()
        self._slots = OwnSlots(self._client, pinned)
        self._in_flight = SavesInFlight(self._client)
        self._attached = False
        self.num_saves = 0
        self.num_skipped = 0
        self.num_failed = 0
        self._unraised: Exception | None = None
        self._reported_at_s = 0.0
        self._is_first = True
        self._is_proven = False
        self._newest_step = 0
        self._busy_threads: set[int] = set()
        self.stall_s = 0.0
        self._restorer = Restorer(self._state, self._client, pinned)
        if self._client.generation <= 1:  # a restart need not wait for what has been said
            tell_need(self._state, self._need, is_teller=self._client.rank == 0)
        # A hook for all optimizers: one that is not in the state may step tensors that are, and a
        # fused one leaves no trace in the version counters.
        hook = self._before_optimizer_step
        if "torch._dynamo" in sys.modules:  # as it is with any optimizer; the import takes a second
            hook = torch.compiler.disable(hook)  # a compiled step is not to trace the fence
        self._hook = register_optimizer_step_pre_hook(hook)
        atexit.register(self._close_at_exit)
        self._is_over = False
        Checkpointer._open = Checkpointer._newest = self

    def _need(self, shard_bytes: int, is_complete: bool = True) -> MemoryNeed:
        job = self._settings.replicas, self._settings.num_slots, self._client
        return MemoryNeed.of_job(shard_bytes, *job, is_complete)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, SystemExit):
            self.close(failed=bool(error.code))
        else:
            self.close(failed=error is not None)
            if error is not None:
                atexit.register(self._close_at_exit)  # it may be caught, and the program end well

    def close(self, failed: bool = False) -> None:
        """End checkpointing.

        In a job that drains, this waits until the last committed step is in persistent storage.
        After an exception (`failed`) it does not, and the agent takes the rank for lost once the
        program has ended; where that was caught, the program's normal end waits instead.
        """
        if os.getpid() != self._pid:
            return  # forked: connection and staging thread are the parent's
        is_in_use = Checkpointer._newest is self and (self._attached or self.restore_report)
        if is_in_use and not failed and not self._is_over and self._settings.is_draining:
            self._wait_until_drained()
        self._is_over = self._is_over or not failed
        atexit.unregister(self._close_at_exit)
        if Checkpointer._open is self:
            Checkpointer._open = None
        self._hook.remove()
        self._stager.close()
        self._slots.let_go()
        self._in_flight.forget_unused()
        self._writer = None
        self._client.let_go_of_slots()
        if not failed:
            self._client.close()

    def _wait_until_drained(self) -> None:
        """Wait until the last step is in storage; errors are only logged: the program is ending."""
        if threading.get_ident() in self._busy_threads:
            return  # a signal's handler ends the program, in the midst of a save
        try:
            if Checkpointer._open is self:
                self._in_flight.wait()
            newest = self._client.wait_until_drained(DRAIN_TIMEOUT_S)
        except (TwinckptError, TimeoutError) as error:
            if not self._is_over:  # else a signal's handler has closed it meanwhile
                logger.warning("the last step may be missing in persistent storage: %s", error)
            return
        last = self.committed_step
        if last is None:  # nothing was left to train
            last = self.restore_report.get("step")
        if last is not None and newest != last:
            logger.warning(
                "the last step, %d, is not in persistent storage (the newest there is %s): the "
                "agents' log says why, or it is another training's directory",
                last,
                newest,
            )

    def _close_at_exit(self) -> None:
        """Close as the program ends, which has failed only if an exception was not caught."""
        self.close(failed=getattr(sys, "last_value", None) is not None)

    def _check_open(self) -> None:
        if Checkpointer._open is not self:
            raise ConfigurationError("this Checkpointer is closed: make another one")
        if os.getpid() != self._pid:
            raise ConfigurationError(
                "this process was forked from the one with the Checkpointer: save and restore there"
            )

    @property
    def shard_bytes(self) -> int:
        """Size of this rank's shard, header included; 0 before the first save."""
        return self._slots.layout.size_bytes if self._slots.layout else 0

    @property
    def committed_step(self) -> int | None:
        """The newest step known here to be committed by all ranks."""
        return self._client.committed_step

    # Saving.

    def save(self, step: int, *, block: bool = False) -> SaveHandle:
        """Checkpoint the state as it is now, as `step`; return at once.

        Without a free slot the step is skipped: the previous one is still being replicated.
        The first call also reserves the slots, which takes as long as the machine needs to
        hand out the memory; it raises what makes checkpoints impossible (UnsupportedStateError,
        OutOfMemoryError, AgentUnavailableError). A later failure is counted. With `block`, on
        all ranks alike, the step is never skipped, and committed on return; raises TimeoutError
        where that takes minutes.

        In a signal's handler that has interrupted this, the fence or `restore` the step is skipped;
        with `block` that raises ConfigurationError.
        """
        self._check_open()
        step = self._newest_step = checked_step(step, self._newest_step)
        self.num_saves += 1
        if threading.get_ident() in self._busy_threads:
            if block:
                raise ConfigurationError(_INTERRUPTED)
            return self._skip(step)
        with self._alone():
            return self._save(step, block)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Mark this thread as busy: `save` in a signal's handler must not enter what has locks."""
        thread = threading.get_ident()
        is_outer = thread not in self._busy_threads
        self._busy_threads.add(thread)
        try:
            yield
        finally:
            if is_outer:
                self._busy_threads.discard(thread)

    def _save(self, step: int, block: bool) -> SaveHandle:
        self.fence()
        started_s = time.monotonic()
        if self._slots.layout is None or not self._slots.layout.on_device:
            self._stager.wait()  # for checksums alone; a GPU's copies may begin much later
        handle = self._save_once(step, block)
        while block and handle.wait(timeout_s=COMMIT_TIMEOUT_S) == "abandoned":
            if time.monotonic() - started_s > COMMIT_TIMEOUT_S:
                raise TimeoutError(f"step {step} is abandoned again and again: {_ALIKE}")
            handle = self._save_once(step, block)
        self._report_counts()
        self.stall_s += time.monotonic() - started_s
        return handle

    def _report_counts(self) -> None:
        """Let `twinckpt status` know what was not checkpointed, now and then."""
        now_s = time.monotonic()
        if now_s - self._reported_at_s >= REPORT_INTERVAL_S:
            self._reported_at_s = now_s
            with contextlib.suppress(TwinckptError):  # an agent that is gone is met elsewhere
                counts = self.num_saves, self.num_skipped, self.num_failed
                self._client.report_counts(*counts)

    def _save_once(self, step: int, block: bool) -> SaveHandle:
        try:
            self._in_flight.poll()
            grant = self._next_grant(step, block)
            return self._skip(step) if grant is None else self._use(step, grant, block)
        except TwinckptError as error:
            if not self._attached:
                raise  # it never worked: unsupported state, too little memory, no agent
            return self._fail(SaveHandle(step, self._advance), error)

    def fence(self) -> None:
        """Wait until no tensor is being copied; runs by itself before `optimizer.step()`.

        Where a GPU copies, its stream waits, and the host goes on. An optimizer's step in a CUDA
        graph has no fence: call this before each replay.
        """
        started_s = time.monotonic()
        with self._alone():
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.wait_until_copied()
                changed = writer.fence()
                if not changed and not self._is_proven:  # a torn copy would prove nothing
                    self._is_proven = True
                    changed = writer.differing()
                self._copy_at_once(changed)
        self.stall_s += time.monotonic() - started_s
        self._raise_if_strict()

    def _before_optimizer_step(self, *_: Any) -> None:
        if os.getpid() == self._pid and not is_capturing():
            self.fence()

    def _copy_at_once(self, names: list[str]) -> None:
        """From now on, copy these before `save` returns: they changed between it and the fence."""
        if names and self._state.distrust(names):
            logger.warning(
                "%s (and %d more) changed after save() and before optimizer.step(): from now on "
                "save() copies them before it returns, which takes longer",
                names[0],
                len(names) - 1,
            )

    def _next_grant(self, step: int, block: bool) -> Grant | None:
        if not self._attached:
            layout = Layout(self._state.capture())
            self._slots.request(layout)
            try:
                if not self._client.wait_for_grant(GRANT_TIMEOUT_S):
                    no_slot = _NO_SLOT.format(GRANT_TIMEOUT_S)
                    logger.warning("%s; until then nothing is checkpointed", no_slot)
            except OutOfMemoryError as error:
                raise OutOfMemoryError(
                    f"{error}. Checkpoints need {self._need(layout.size_bytes)}"
                ) from error
            self._attached = True
        self._in_flight.take_back_unused()
        # Of two slots, one may hold the committed step, and the other a step while it is drained.
        timeout_s = DRAIN_TIMEOUT_S if self._settings.is_draining else GRANT_TIMEOUT_S
        if block and not self._client.wait_for_grant(timeout_s):
            raise TimeoutError(_NO_SLOT.format(timeout_s))
        grants = self._client.grants
        if grants and (block or grants[0].not_before_step <= step):
            return grants.pop(0)
        return None

    def _use(self, step: int, grant: Grant, block: bool) -> SaveHandle:
        """Begin to fill a slot; if that ends by an exception (or signal), give the grant back."""
        try:
            return self._begin(step, grant, block)
        except BaseException:
            if grant not in self._in_flight:
                self._client.give_back(grant)
            raise

    def _begin(self, step: int, grant: Grant, block: bool) -> SaveHandle:
        """Copy now what may change before the next optimizer step, and the rest later."""
        flat = self._state.capture()
        layout, header = self._slots.laid_out(flat, step)
        if layout.size_bytes > grant.slot.capacity_bytes:
            self._stager.wait()
            self._in_flight.forget_unused()
            self._slots.request_larger(layout)
            larger = self._next_grant(step, block)
            return self._skip(step) if larger is None else self._use(step, larger, block)
        writer = SlotWriter(self._slots.target(layout, grant), flat, header, self._device)
        steady = self._state.steady_names(flat.tensors)
        writer.copy_now(frozenset(flat.tensors.keys() - steady))
        handle = SaveHandle(step, self._advance)
        self._in_flight.begin(grant, handle)
        try:
            self._stager.start(self._copy_job(writer, layout.size_bytes, grant, handle))
        except TwinckptError:  # nothing will be copied, so that no fence may wait for it
            self._in_flight.cancel(grant)
            raise
        self._writer = writer
        if not steady or self._is_first:
            self._stager.wait()  # the first fence shows which tensors others write to
            self._is_first = False
        return handle

    def _copy_job(
        self,
        writer: SlotWriter,
        size_bytes: int,
        grant: Grant,
        handle: SaveHandle,
    ) -> Callable[[], None]:
        client = self._client

        def copy() -> None:
            try:
                seal = Seal(
                    rank=client.rank,
                    ticket=grant.ticket,
                    step=handle.step,
                    home=client.home,
                    world_size=client.world_size,
                    size_bytes=size_bytes,
                    digests=writer.copy_rest(),
                    chunk_bytes=chunk_bytes_of(size_bytes),
                )
                handle.reach("staged")
                client.staged(seal)
            except Exception as error:
                self._note(handle, error)
                self._in_flight.leave(grant)

        return copy

    def _skip(self, step: int) -> SaveHandle:
        self.num_skipped += 1
        handle = SaveHandle(step, self._advance)
        handle.reach("skipped")
        return handle

    def _fail(self, handle: SaveHandle, error: Exception) -> SaveHandle:
        self._note(handle, error)
        self._raise_if_strict()
        return handle

    def _note(self, handle: SaveHandle, error: Exception) -> None:
        """Count a failed save; called from any thread."""
        handle.error = error
        handle.reach("failed")
        self.num_failed += 1
        if self._strict:
            self._unraised = error
        elif self.num_failed == 1:
            logger.warning("step %d was not checkpointed, training goes on: %s", handle.step, error)

    def _raise_if_strict(self) -> None:
        error, self._unraised = self._unraised, None
        if error is not None:
            raise error

    def _advance(self, timeout_s: float) -> None:
        """Let a handle that is waited for make progress."""
        self._check_open()
        if self._stager.is_busy:
            self._stager.wait()
        else:
            self._in_flight.poll(timeout_s)

    # Restoring.

    @property
    def restore_report(self) -> dict[str, Any]:
        """What was restored last: step, ticket, source, bytes, and how long it took (`…_s`)."""
        return self._restorer.report

    def restore(self) -> int | None:
        """Write the newest recoverable step into the state, in place; return it, or None.

        Every byte is verified before this returns. A damaged copy is replaced by the next one:
        another machine's, then persistent storage. Raises RestoreError if the checkpoint is of
        another state than this one, or if no copy is intact.

        Called again later, on all ranks alike, it goes back to the newest committed step; it
        waits until the steps saved last are decided, so that all ranks go back to the same.
        """
        self._check_open()
        self.fence()
        self._newest_step = 0
        self._in_flight.wait()
        with self._alone():
            return self._restorer.restore()
