"""Ranks without torch, each a process of its own, that do one thing at a time as they are told.

Their state is an array that every step changes in all places, so that a wrong step, a wrong
shard, or one wrong byte shows in all that follows.
"""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import xxhash

from twinckpt.memory.drained import load_drained, location, read_manifest
from twinckpt.memory.seal import Seal
from twinckpt.memory.slot import Slot
from twinckpt.net import local
from twinckpt.net.local_socket import AgentLink

SHARD_BYTES = 1 << 20
TIMEOUT_S = 60.0
_SIGN_OF_LIFE_S = 0.2


def evolve(state: np.ndarray, rank: int, step: int) -> np.ndarray:
    """Return the state after one step of training; `step` counts from 1."""
    return state * np.uint8(5) + np.roll(state, 1) + np.uint8((7 * step + rank) % 251)


def begin(rank: int) -> np.ndarray:
    """Return the state before the first step."""
    return np.full(SHARD_BYTES, rank + 1, np.uint8)


def digest(state: np.ndarray | memoryview) -> str:
    """Return what tells this state from every other."""
    return xxhash.xxh3_128_hexdigest(state)


class Undisturbed:
    """The training of one rank where nothing ever fails."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._state = begin(rank)
        self._digests = [digest(self._state)]

    def digest(self, step: int) -> str:
        """Return the digest of the state after `step` steps."""
        while len(self._digests) <= step:
            self._state = evolve(self._state, self._rank, len(self._digests))
            self._digests.append(digest(self._state))
        return self._digests[step]


class Puppet:
    """The test's end: `tell` a command, take its `answer`; or both, by calling its name."""

    def __init__(self, agent: str, secret: bytes, rank: int, num_ranks: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["twinckpt.memory.drained", "twinckpt.net.local_socket", "numpy"]
        )
        self._pipe, its_end = context.Pipe()
        arguments = (its_end, agent, secret, rank, num_ranks)
        self._process = context.Process(target=_obey, args=arguments, daemon=True)
        self._process.start()
        its_end.close()

    def tell(self, command: str, *arguments: Any) -> None:
        """Say what to do next."""
        self._pipe.send((command, arguments))

    def answer(self) -> Any:
        """Return what came of the oldest command that has no answer yet."""
        if not self._pipe.poll(TIMEOUT_S):
            raise TimeoutError(f"the rank does not answer within {TIMEOUT_S:.0f} s")
        return self._pipe.recv()

    def do(self, command: str, *arguments: Any) -> Any:
        """Have something done; return what comes of it."""
        self.tell(command, *arguments)
        return self.answer()

    def stop(self) -> None:
        """SIGSTOP: it lives, and makes no progress."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


class _Rank:
    """The rank's end."""

    def __init__(self, agent: str, secret: bytes, rank: int, num_ranks: int) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._link = AgentLink(agent, secret)
        self._link.send(local.RankHello(rank, num_ranks))
        self._home = self._next(local.Welcome)[0].home
        self._state, self._step = begin(rank), 0
        self._grant: tuple[int, Slot] | None = None

    def live(self) -> None:
        """Say that the training goes on, between two commands."""
        self._link.send(local.SaveCounts(0, 0, 0))

    def restore(self) -> tuple[int, str]:
        """Load what the generation resumes from; return its step and where it was."""
        self._link.send(local.RestoreRequest())
        answer, fd = self._next(local.RestoreFrom, local.RestoreDrained, local.RestoreNothing)
        if isinstance(answer, local.RestoreNothing):
            return 0, "nothing"
        if isinstance(answer, local.RestoreDrained):
            directory = location(answer.directory)
            manifest = read_manifest(directory, answer.step)
            assert manifest is not None
            number = self._rank % manifest.world_size  # of what is not sharded, as everywhere
            seal, data = load_drained(directory, answer.step, number)
            self._state, self._step = np.frombuffer(data, np.uint8).copy(), seal.step
            return self._step, "disk"
        slot = Slot(fd, answer.capacity_bytes)
        self._state = np.frombuffer(bytes(slot.buffer[:SHARD_BYTES]), np.uint8)
        self._step = answer.seal.step
        slot.close()
        return self._step, answer.source

    def attach(self) -> None:
        """Ask for slots."""
        self._link.send(local.Attach(SHARD_BYTES))

    def advance(self) -> int:
        """Train one step."""
        self._step += 1
        self._state = evolve(self._state, self._rank, self._step)
        return self._step

    def take_grant(self) -> int:
        """Wait until a slot is granted; return the ticket."""
        grant, fd = self._next(local.Granted)
        self._grant = (grant.ticket, Slot(fd, grant.capacity_bytes))
        return int(grant.ticket)

    def fill(self, begin: int, end: int) -> None:
        """Stage a part of the state."""
        assert self._grant is not None
        self._grant[1].buffer[begin:end] = self._state.data[begin:end]

    def seal(self) -> None:
        """Hand the slot over."""
        assert self._grant is not None
        ticket, slot = self._grant
        shard = slot.buffer[:SHARD_BYTES]
        names = {"home": self._home, "world_size": self._num_ranks}
        seal = Seal.of(shard, rank=self._rank, ticket=ticket, step=self._step, **names)
        shard.release()
        slot.close()
        self._link.send(local.Staged(seal))

    def digest(self) -> tuple[int, str]:
        """Return the step and the state's digest."""
        return self._step, digest(self._state)

    def _next(self, *kinds: type) -> tuple[Any, int | None]:
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            received = self._link.receive(_SIGN_OF_LIFE_S)
            if received is None:
                self.live()
            elif isinstance(received[0], kinds):
                return received
            elif received[1] is not None:
                os.close(received[1])
        raise TimeoutError(f"rank {self._rank}: no {kinds} from its agent")


def _obey(pipe: Connection, agent: str, secret: bytes, rank: int, num_ranks: int) -> None:
    """Carry out commands until the process is killed."""
    puppet = _Rank(agent, secret, rank, num_ranks)
    pipe.send("connected")
    while True:
        while not pipe.poll(_SIGN_OF_LIFE_S):
            puppet.live()
        command, arguments = pipe.recv()
        pipe.send(getattr(puppet, command)(*arguments))
