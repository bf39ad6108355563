"""A rank's conversation with its machine's worker agent: slots granted, tickets decided."""

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from twinckpt.errors import AgentUnavailableError, OutOfMemoryError, RestoreError, TwinckptError
from twinckpt.memory.seal import Seal
from twinckpt.memory.slot import Slot
from twinckpt.net import local
from twinckpt.net.local_socket import AgentLink

_ANSWERS = (
    local.RestoreFrom,
    local.RestoreArriving,
    local.RestoreDrained,
    local.RestoreNothing,
)

_ASK_AGAIN_S = 0.5  # a root that takes over has not heard the question

# Another thread may take in what is waited for.
_LONGEST_WAIT_S = 0.1


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to checkpoint once, into `slot`."""

    ticket: int
    not_before_step: int
    slot: Slot


@dataclass(frozen=True, slots=True)
class Copy:
    """A shard to restore, in a slot of this machine; perhaps it is still arriving there."""

    seal: Seal
    slot: Slot
    source: str
    is_arriving: bool = False


RestoreAnswer = Copy | local.RestoreDrained | None


class ArrivalFailed(TwinckptError):
    """The copy that was arriving is given up; the agent's next answer says what to do."""


class SlotMappings:
    """Slots of the agent mapped into this process, each once, known by inode."""

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}

    def map(self, fd: int, capacity_bytes: int) -> Slot:
        """Return the mapping of the slot behind `fd`, which is closed or kept.

        Raises OutOfMemoryError where this process may not map it.
        """
        inode = os.fstat(fd).st_ino
        slot = self._slots.get(inode)
        if slot is not None:
            os.close(fd)
            return slot
        try:
            self._slots[inode] = slot = Slot(fd, capacity_bytes)
        except OSError as error:
            os.close(fd)
            raise OutOfMemoryError(
                f"this process may not map a slot of {capacity_bytes >> 20} MiB: {error.strerror}; "
                "raise its limit (ulimit -v)"
            ) from error
        return slot

    def forget_smaller(self, capacity_bytes: int) -> None:
        """Let go of slots below this size; each is unmapped with the last view of it."""
        for inode, slot in list(self._slots.items()):
            if slot.capacity_bytes < capacity_bytes:
                del self._slots[inode]
                os.close(slot.fd)


class AgentClient:
    """Receives what the agent says and keeps it until the training loop asks."""

    def __init__(
        self,
        name: str,
        secret: bytes,
        rank: int,
        world_size: int,
        num_machines: int,
        *,
        ends_with_generation: bool = True,
    ) -> None:
        self._link = AgentLink(name, secret)
        self._mappings = SlotMappings()
        self.rank = rank
        self.world_size = world_size
        self.num_machines = num_machines
        self.grants: list[Grant] = []
        self._open: set[int] = set()  # tickets that were granted and are not decided
        self.replicated: deque[int] = deque()
        self.resolved: deque[local.Resolved] = deque()
        self.committed_step: int | None = None
        self._early_answer: tuple[local.FromAgent, int | None] | None = None
        self._verified_bytes = 0
        self._ends_with_generation = ends_with_generation
        self._broken = ""
        try:
            self._link.send(local.RankHello(rank, world_size))
            welcome, _ = self._expect(local.Welcome, timeout_s=30.0)
        except TwinckptError:
            self._link.close()
            raise
        assert isinstance(welcome, local.Welcome)
        self.launcher: AgentLink | None = None
        self.generation = welcome.generation
        self.home = welcome.home

    def attach(self, slot_bytes: int) -> None:
        """Ask for slots of this size; grants follow once all replicas have theirs.

        Smaller ones are let go: the kernel keeps a slot as long as any process has it mapped.
        """
        self.grants.clear()
        self._open.clear()
        self._mappings.forget_smaller(slot_bytes)
        self._link.send(local.Attach(slot_bytes))

    def let_go_of_slots(self) -> None:
        """Let go of all slots: nothing is staged or restored here any more, but this may run on."""
        self.grants.clear()
        self._mappings.forget_smaller(sys.maxsize)

    def is_open(self, ticket: int) -> bool:
        """Whether this ticket's slot may be filled: it is not decided, nor too small by now."""
        return ticket in self._open

    def give_back(self, grant: Grant) -> None:
        """Let the next save have an unused grant, if its slot may still be filled."""
        if self.is_open(grant.ticket):
            self.grants.insert(0, grant)

    def staged(self, seal: Seal) -> None:
        """Hand a filled slot over; from now on it is immutable. Called from any thread."""
        self._link.send(local.Staged(seal))

    def report_counts(self, saves: int, skipped: int, failed: int) -> None:
        """Tell how many saves were not checkpointed, for `twinckpt status`."""
        self._link.send(local.SaveCounts(saves, skipped, failed))

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take in what the agent has said; raises what it refused.

        Waits for the first message up to `timeout_s`, but at most `_LONGEST_WAIT_S`.
        """
        received = self._link.receive(min(timeout_s, _LONGEST_WAIT_S))
        while received is not None:
            self._take(*received)
            received = self._link.receive(0.0)

    def wait_for_grant(self, timeout_s: float) -> bool:
        """Wait until a slot is granted; return whether one was."""
        deadline_s = time.monotonic() + timeout_s
        while not self.grants and (left_s := deadline_s - time.monotonic()) > 0:
            self.poll(left_s)
        return bool(self.grants)

    def request_restore(self, timeout_s: float) -> RestoreAnswer:
        """Ask what to restore from; waits while the agent fetches it from a peer.

        An answer that is left from a restore that failed half way does not count for this one.
        """
        if self._early_answer is not None:
            early, self._early_answer = self._early_answer, None
            self._take(*early)
        self.poll()
        self._link.send(local.RestoreRequest())
        return self.next_answer(timeout_s)

    def report_damage(self, ticket: int, reason: str, timeout_s: float) -> RestoreAnswer:
        """Say that the local copy is damaged, and wait for the next one."""
        self._link.send(local.Damaged(ticket, reason))
        return self.next_answer(timeout_s)

    def report_drained_damage(self, step: int, reason: str, left: Sequence[int]) -> None:
        """Say that a drained step is damaged: the next generation resumes one that is left."""
        self._link.send(local.DamagedDrained(step, reason, tuple(left)))

    def wait_until_drained(self, timeout_s: float) -> int | None:
        """Say that nothing more is saved; return the newest step in persistent storage.

        Waits until the newest committed step is there, or could not be written. Raises TimeoutError
        where that takes too long.
        """
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            self._link.send(local.Finished())
            received = self._next_of(local.NothingToDrain, _ASK_AGAIN_S)
            if received is not None:
                assert isinstance(received[0], local.NothingToDrain)
                return received[0].newest_step
        raise TimeoutError(f"the agents have not said within {timeout_s:.0f} s that it is there")

    def close(self) -> None:
        """Say goodbye, so that the end of this process does not count as a failure.

        If this process stands in for a launcher, the connection `launcher` says goodbye, too.
        """
        self._link.say_goodbye()
        if self.launcher is not None:
            self.launcher.say_goodbye()

    def next_answer(self, timeout_s: float) -> RestoreAnswer:
        """Return what to restore from, after the request or after a copy that was arriving."""
        if self._early_answer is not None:
            (message, fd), self._early_answer = self._early_answer, None
        else:
            message, fd = self._expect(_ANSWERS, timeout_s)
        if isinstance(message, local.RestoreFrom | local.RestoreArriving):
            assert fd is not None
            slot = self._mappings.map(fd, message.capacity_bytes)
            self._verified_bytes = 0
            if isinstance(message, local.RestoreArriving):
                return Copy(message.seal, slot, "peer", is_arriving=True)
            return Copy(message.seal, slot, message.source)
        return message if isinstance(message, local.RestoreDrained) else None

    def wait_for_arrival(self, seal: Seal, num_bytes: int, timeout_s: float) -> None:
        """Wait until so much of the arriving copy is verified; raises ArrivalFailed if it fails."""
        while self._verified_bytes < num_bytes:
            if self._early_answer is None:
                message, fd = self._expect((local.RestoreProgress, *_ANSWERS), timeout_s)
                if isinstance(message, local.RestoreProgress):
                    self._verified_bytes = max(self._verified_bytes, message.verified_bytes)
                    continue
                self._early_answer = message, fd
            answer, _ = self._early_answer
            if not isinstance(answer, local.RestoreFrom) or answer.seal != seal:
                raise ArrivalFailed(f"the copy of rank {self.rank} that was arriving is given up")
            self._verified_bytes = seal.size_bytes

    def _expect(
        self, kinds: type | tuple[type, ...], timeout_s: float
    ) -> tuple[local.FromAgent, int | None]:
        """Return a message of one of these kinds; raises AgentUnavailableError if none comes."""
        received = self._next_of(kinds, timeout_s)
        if received is None:
            raise AgentUnavailableError(
                f"the worker agent did not answer rank {self.rank} within {timeout_s:.0f} s; "
                "its log says whom it waits for"
            )
        return received

    def _next_of(
        self, kinds: type | tuple[type, ...], timeout_s: float
    ) -> tuple[local.FromAgent, int | None] | None:
        """Return a message of one of these kinds, taking in the others; None if none comes."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            received = self._link.receive(min(left_s, _LONGEST_WAIT_S))
            if received is None:
                self._raise_if_broken()
                continue
            if isinstance(received[0], kinds):
                return received
            self._take(*received)
        return None

    def _raise_if_broken(self) -> None:
        """Raise RestoreError if the generation is over, and no launcher ends this process."""
        if self._broken and not self._ends_with_generation:
            raise RestoreError(
                f"{self._broken}; start the process anew, to resume from the newest step left"
            )

    def _take(self, message: local.FromAgent, fd: int | None) -> None:
        match message:
            case local.Granted():
                assert fd is not None
                slot = self._mappings.map(fd, message.capacity_bytes)
                self._open.add(message.ticket)
                self.grants.append(Grant(message.ticket, message.not_before_step, slot))
            case local.Replicated():
                self.replicated.append(message.ticket)
            case local.Resolved():
                self._open.discard(message.ticket)
                for grant in [g for g in self.grants if g.ticket == message.ticket]:
                    self.grants.remove(grant)
                self.resolved.append(message)
                if message.committed:
                    self.committed_step = message.step
            case local.Broken(reason):
                self._broken = reason
            case local.Refused():
                kind = OutOfMemoryError if message.kind == "OutOfMemoryError" else TwinckptError
                raise kind(message.reason)
            case _ if fd is not None:  # nobody waits for that copy any more
                os.close(fd)
