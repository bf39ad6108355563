"""Emulated machines that consist of a worker agent alone, with the memory that a loss takes away.

There is no training and no torchrun, so that a cluster forms in a second and can lose machines a
hundred times in a minute. The agents, their slots, the root and the protocol are the real
ones; this process plays the launcher and the rank of every machine.
"""

import os
import secrets
import subprocess
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from twinckpt.agents.config import RootAgentConfig, WorkerAgentConfig
from twinckpt.agents.job_settings import JobSettings
from twinckpt.agents.launch import connect_to_agent
from twinckpt.agents.process import start_root_agent, start_worker_agent
from twinckpt.errors import AgentUnavailableError, DamagedCopyError
from twinckpt.memory.seal import Seal
from twinckpt.memory.slot import Slot
from twinckpt.net import local
from twinckpt.net.local_socket import AgentLink
from twinckpt.net.ports import free_port

TIMEOUT_S = 60.0


class AgentMachine:
    """A machine: its worker agent, and this process's connections as launcher and as rank."""

    def __init__(self, config: WorkerAgentConfig, secret: bytes) -> None:
        self.place = -1
        self._secret = secret
        self._name = config.socket_name
        self._process = start_worker_agent(config, secret)
        self._launcher: AgentLink | None = None
        self._rank: AgentLink | None = None
        self._is_attached = False
        self._grant: tuple[local.Granted, int] | None = None

    def join(self, num_machines: int) -> None:
        """Ask for a place in the next generation; end the rank of the former one first."""
        self._end_rank()
        if self._launcher is None:
            self._launcher = connect_to_agent(self._name, self._secret)
        self._launcher.send(local.LauncherJoin("127.0.0.1:0", None, num_machines, num_machines))

    def wait_until_formed(self, num_machines: int) -> None:
        """Wait for the generation and start the rank in it."""
        assert self._launcher is not None
        self.place = next_message(self._launcher, local.LauncherFormed)[0].index
        self._rank = AgentLink(self._name, self._secret)
        self.to_agent(local.RankHello(self.place, num_machines))
        next_message(self._rank, local.Welcome)

    def wait_until_broken(self) -> None:
        """Wait until the agent says that the generation is over."""
        assert self._launcher is not None
        next_message(self._launcher, local.LauncherBroken)

    def attach(self, shard_bytes: int) -> None:
        """Ask for slots, once per generation: asking again would give up what was granted."""
        if not self._is_attached:
            self.to_agent(local.Attach(shard_bytes))
            self._is_attached = True

    def to_agent(self, message: local.ToAgent) -> None:
        """Send a message as the rank."""
        assert self._rank is not None
        self._rank.send(message)

    def from_agent(self, *kinds: type) -> tuple[Any, int | None]:
        """Return the next message of these kinds to the rank, and its descriptor."""
        assert self._rank is not None
        return next_message(self._rank, *kinds)

    def granted(self) -> tuple[local.Granted, int]:
        """Return the next grant of a slot, and the slot's descriptor."""
        grant, self._grant = self._grant, None
        if grant is None:
            message, fd = self.from_agent(local.Granted)
            assert fd is not None
            grant = message, fd
        return grant

    def resolved(self, ticket: int) -> local.Resolved:
        """Wait until a ticket is decided; keep a grant that comes before, for `granted`."""
        while True:
            message, fd = self.from_agent(local.Resolved, local.Granted)
            if fd is not None:
                self._grant = message, fd
            elif message.ticket == ticket:
                return message

    @property
    def pid(self) -> int:
        """Return the process id of the worker agent."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL the agent, which owns all memory of the machine."""
        self._process.kill()

    def bury(self) -> None:
        """Wait until the killed agent has ended, and close the connections to it."""
        self._process.wait()
        self._end_rank()
        if self._launcher is not None:
            self._launcher.close()
            self._launcher = None

    def _end_rank(self) -> None:
        if self._grant is not None:
            os.close(self._grant[1])
            self._grant = None
        self._is_attached = False
        if self._rank is not None:
            self._rank.close()
            self._rank = None


class AgentCluster:
    """Machines with one shard each, replicated; use it in a `with` statement.

    Args:
        num_machines, replicas, placement: as for a job; other settings are the environment's.
        shard_bytes: size of each machine's shard.
        run_dir: the agents' logs and events go here.
        store: the control store by which root agents are elected, such as
            `etcd://HOST:PORT/RUN_ID`; then one root agent leads and one stands by. Without a
            store there is a single root agent.
    """

    def __init__(
        self,
        num_machines: int,
        replicas: int,
        placement: str,
        shard_bytes: int,
        run_dir: Path,
        store: str = "",
    ) -> None:
        self.num_machines = num_machines
        self._shard_bytes = shard_bytes
        self._run_dir = Path(run_dir).resolve()
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._secret = secrets.token_hex(32).encode()
        self._settings = JobSettings.load(
            {
                "replicas": replicas,
                "placement": placement,
                "event_log": self._run_dir / "events",
            }
        )
        self._root_host = "127.0.0.1"
        self._store = store
        self._port = 0 if store else free_port()
        self._root: subprocess.Popen[bytes] | None = None
        self._candidates: list[subprocess.Popen[bytes]] = []
        self._machines: list[AgentMachine] = []
        self._step = 0

    def __enter__(self) -> Self:
        self._root = self._start_root()
        if self._store:
            self.add_candidate()
        try:
            self._form([])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def agent_pids(self) -> list[int]:
        """Return the process id of each machine's worker agent, by place."""
        return [machine.pid for machine in self._machines]

    def add_candidate(self) -> None:
        """Start one more root agent, which stands by."""
        self._candidates.append(self._start_root())

    def checkpoint(self) -> int:
        """Let every machine stage its shard of the next step; return the step once committed."""
        return self.wait_until_committed(self.stage())

    def stage(self) -> list[int]:
        """Let every machine stage its shard of the next step; return the tickets, by place."""
        self._step += 1
        for machine in self._machines:
            machine.attach(self._shard_bytes)
        return [self._stage(machine) for machine in self._machines]

    def wait_until_committed(self, tickets: list[int]) -> int:
        """Wait until every machine knows that its ticket is committed; return the step."""
        for machine, ticket in zip(self._machines, tickets, strict=True):
            if not machine.resolved(ticket).committed:
                raise AgentUnavailableError(f"step {self._step} was abandoned; see {self._run_dir}")
        return self._step

    def lose(self, places: Iterable[int]) -> int | None:
        """SIGKILL the agents in these places at once; replace them, and recover all shards.

        Returns the step that every machine has again, every byte compared with what was staged;
        None if the cluster says that no complete checkpoint survives in RAM.
        """
        lost = [self._machines[place] for place in places]
        survivors = [machine for machine in self._machines if machine not in lost]
        for machine in lost:
            machine.kill()
        for machine in lost:
            machine.bury()
        for machine in survivors:
            machine.wait_until_broken()
        self._form(survivors)
        for machine in self._machines:
            machine.to_agent(local.RestoreRequest())
        steps = {self._restored_step(machine) for machine in self._machines}
        if len(steps) != 1:
            raise DamagedCopyError(f"machines resume different steps: {steps}")
        return steps.pop()

    def _form(self, survivors: list[AgentMachine]) -> None:
        """Start the machines that are missing; wait until all machines have their places."""
        missing = self.num_machines - len(survivors)
        self._machines = survivors + [self._start_machine() for _ in range(missing)]
        for machine in self._machines:
            machine.join(self.num_machines)
        for machine in self._machines:
            machine.wait_until_formed(self.num_machines)
        self._machines.sort(key=lambda machine: machine.place)

    def _start_root(self) -> subprocess.Popen[bytes]:
        return start_root_agent(
            RootAgentConfig(
                self._root_host,
                self._port,
                self._settings.root(),
                watched=(os.getpid(),),
                event_log=self._settings.event_log,
                tls=self._settings.tls,
                store=self._store,
            ),
            self._secret,
        )

    def _start_machine(self) -> AgentMachine:
        return AgentMachine(self._new_machine(), self._secret)

    def _new_machine(self) -> WorkerAgentConfig:
        name = uuid.uuid4().hex[:12]
        return WorkerAgentConfig(
            machine=name,
            socket_name=f"twinckpt-{name}",
            root_host=self._root_host,
            root_port=self._port,
            num_slots=self._settings.num_slots,
            heartbeat_interval_s=self._settings.heartbeat_interval_s,
            heartbeat_timeout_s=self._settings.heartbeat_timeout_s,
            drain_directory=self._settings.drain_directory,
            watched=(os.getpid(),),
            log_file=str(self._run_dir / "agents.log"),
            event_log=self._settings.event_log,
            tls=self._settings.tls,
            store=self._store,
        )

    def _stage(self, machine: AgentMachine) -> int:
        """Fill the granted slot with this step's bytes; return the ticket."""
        grant, fd = machine.granted()
        slot = Slot(fd, grant.capacity_bytes)
        slot.buffer[: self._shard_bytes] = self._contents(machine.place, self._step)
        shard = slot.buffer[: self._shard_bytes]
        seal = Seal.of(
            shard,
            rank=machine.place,
            ticket=grant.ticket,
            step=self._step,
            home=machine.place,
            world_size=self.num_machines,
        )
        shard.release()
        slot.close()
        machine.to_agent(local.Staged(seal))
        return int(grant.ticket)

    def _restored_step(self, machine: AgentMachine) -> int | None:
        """Return the step that the agent restores, or None; compare its bytes with the staged."""
        answer, fd = machine.from_agent(local.RestoreFrom, local.RestoreNothing)
        if isinstance(answer, local.RestoreNothing):
            return None
        assert fd is not None
        slot = Slot(fd, answer.capacity_bytes)
        expected = self._contents(machine.place, answer.seal.step)
        intact = slot.buffer[: answer.seal.size_bytes] == expected
        slot.close()
        if not intact:
            raise DamagedCopyError(
                f"machine {machine.place} was given other bytes than it staged at step "
                f"{answer.seal.step}"
            )
        return int(answer.seal.step)

    def _contents(self, place: int, step: int) -> bytes:
        return np.random.default_rng((place, step)).bytes(self._shard_bytes)

    def _end(self) -> None:
        for machine in self._machines:
            machine.kill()
        for machine in self._machines:
            machine.bury()
        for root in filter(None, [self._root, *self._candidates]):
            root.kill()
            root.wait()


def next_message(link: AgentLink, *kinds: type) -> tuple[Any, int | None]:
    """Return the next message of these kinds, and its descriptor; messages of others are dropped.

    Raises AgentUnavailableError if the agent refuses, or sends none within `TIMEOUT_S`.
    """
    deadline_s = time.monotonic() + TIMEOUT_S
    while (received := link.receive(max(0.0, deadline_s - time.monotonic()))) is not None:
        message, fd = received
        if isinstance(message, kinds):
            return message, fd
        if isinstance(message, local.Refused):
            raise AgentUnavailableError(f"the worker agent refused: {message.reason}")
        if fd is not None:
            os.close(fd)
    names = ", ".join(kind.__name__ for kind in kinds)
    raise AgentUnavailableError(f"no {names} from a worker agent within {TIMEOUT_S:.0f} s")
