"""Emulated machines for the fault matrix: real agents and root, and ranks as real processes.

There is no torchrun and no torch: this process is every machine's launcher, and tells each rank
when to take its next step of the protocol. All connections run through relays.
"""

import os
import secrets
import signal
import subprocess
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from puppets import SHARD_BYTES, Puppet
from relays import BulkRelay, RootRelay

from helpers import wait_until
from twinckpt.agents.config import RootAgentConfig, WorkerAgentConfig
from twinckpt.agents.event_log import EventReader
from twinckpt.agents.launch import connect_to_agent
from twinckpt.agents.process import start_root_agent, start_worker_agent
from twinckpt.core.root import RootConfig
from twinckpt.experiments.agent_cluster import next_message
from twinckpt.net import local
from twinckpt.net.local_socket import AgentLink
from twinckpt.net.ports import free_port

NUM_MACHINES = 3
HEARTBEAT_TIMEOUT_S = 2.0


class Machine:
    """A worker agent behind its relays, its launcher (this process), and its one rank."""

    def __init__(self, config: WorkerAgentConfig, root_port: int, secret: bytes) -> None:
        self.name = config.machine
        self.place = -1
        self.bulk = BulkRelay()
        self.root = RootRelay(root_port, self.bulk)
        self._socket_name, self._secret = config.socket_name, secret
        self._agent = start_worker_agent(replace(config, root_port=self.root.port), secret)
        self._launcher: AgentLink | None = None
        self._rank: Puppet | None = None

    @property
    def rank(self) -> Puppet:
        """The machine's training process."""
        assert self._rank is not None
        return self._rank

    def join(self, min_machines: int = NUM_MACHINES) -> None:
        """Stop the rank and ask for a place in the next generation, as torchrun does."""
        self._end_rank()
        if self._launcher is None:
            self._launcher = connect_to_agent(self._socket_name, self._secret)
        message = local.LauncherJoin("127.0.0.1:0", None, min_machines, NUM_MACHINES)
        self._launcher.send(message)

    def start_rank(self) -> None:
        """Wait until the generation has formed; start the rank of this place."""
        assert self._launcher is not None
        formed = next_message(self._launcher, local.LauncherFormed)[0]
        self.place = formed.index
        self._rank = Puppet(self._socket_name, self._secret, self.place, formed.num_machines)

    def wait_until_broken(self) -> None:
        """Wait until the agent says that the generation is over."""
        assert self._launcher is not None
        next_message(self._launcher, local.LauncherBroken)

    def signal_agent(self, number: signal.Signals) -> None:
        """Stop the worker agent, or let it go on."""
        os.kill(self._agent.pid, number)

    def cut(self) -> int:
        """Break every connection of the machine to others; return how many there were."""
        return self.root.cut() + self.bulk.cut()

    def kill(self) -> None:
        """SIGKILL everything of the machine, its memory included."""
        self._agent.kill()
        self._agent.wait()
        self._end_rank()
        if self._launcher is not None:
            self._launcher.close()
        self.root.close()
        self.bulk.close()

    def _end_rank(self) -> None:
        if self._rank is not None:
            self._rank.kill()
            self._rank = None


class FaultyCluster:
    """Three machines in a ring, each shard on `replicas`; `machines` in the order of places.

    Every so many commits are drained, at `drain_bytes_per_s` (0: as fast as it goes). A machine may
    be silent for longer than by default: this process passes all heartbeats on, and is often busy.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        replicas: int = 2,
        drain_every_commits: int = 2,
        last_call_s: float = 5.0,
        drain_bytes_per_s: float = 0.0,
        hang_timeout_s: float = 0.0,
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
    ) -> None:
        run_dir.mkdir(parents=True)
        self.drain_directory = run_dir / "drained"
        self._run_dir = run_dir
        self._drain_bytes_per_s, self._hang_timeout_s = drain_bytes_per_s, hang_timeout_s
        self._job = RootConfig(
            replicas,
            heartbeat_timeout_s=heartbeat_timeout_s,
            last_call_s=last_call_s,
            drain_every_commits=drain_every_commits,
        )
        self._secret = secrets.token_hex(32).encode()
        self._port = free_port()
        self._events_path = run_dir / "events.jsonl"
        self._log = EventReader(self._events_path)
        self.step = 0
        self.machines: list[Machine] = []
        self._started: list[Machine] = []
        self._root = self._start_root()
        try:
            self.form([])
            self.resume()
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the roots have logged so far."""
        return self._log.events

    def logged(self, event: str, since: int = 0, **fields: Any) -> list[dict[str, Any]]:
        """Return the events of a name, from index `since` on, that have these fields."""
        return [
            e
            for e in self.events[since:]
            if e["event"] == event and all(e.get(name) == x for name, x in fields.items())
        ]

    # What the training does.

    def all_ranks(self, command: str, *arguments: Any) -> list[Any]:
        """Have every rank do something, side by side; return what comes of it."""
        for machine in self.machines:
            machine.rank.tell(command, *arguments)
        return [machine.rank.answer() for machine in self.machines]

    def advance(self) -> None:
        """Train one step."""
        self.step += 1
        assert set(self.all_ranks("advance")) == {self.step}

    def stage(self, machines: Iterable[Machine] | None = None) -> None:
        """Have ranks (all, unless told) fill the slots that they were granted, and seal them."""
        for machine in self.machines if machines is None else machines:
            machine.rank.do("fill", 0, SHARD_BYTES)
            machine.rank.do("seal")

    def checkpoint(self) -> int:
        """Train a step, checkpoint it, wait for the commit; return the step."""
        since = len(self.events)
        self.advance()
        self.all_ranks("take_grant")
        self.stage()
        wait_until(lambda: self.logged("committed", since, step=self.step), "a commit")
        return self.step

    # What becomes of it.

    def form(
        self,
        survivors: list[Machine],
        replacements: Iterable[Machine] = (),
        min_machines: int = NUM_MACHINES,
    ) -> None:
        """Let the next generation form of the survivors and others, and start its ranks.

        New machines are started where fewer than `min_machines` are there.
        """
        machines = [*survivors, *replacements]
        machines += [self.start_machine() for _ in range(min_machines - len(machines))]
        self.machines = machines
        for machine in machines:
            machine.join(min_machines)
        for machine in machines:
            machine.start_rank()
        for machine in machines:
            machine.rank.answer()  # it has made itself known
        machines.sort(key=lambda machine: machine.place)

    def recover(self, gone: Iterable[Machine]) -> None:
        """Let the next generation form, with new machines in the places of those that are gone."""
        gone = list(gone)
        replacements = [self.start_machine() for _ in gone]
        survivors = [machine for machine in self.machines if machine not in gone]
        for machine in survivors:
            machine.wait_until_broken()
        self.form(survivors, replacements)

    def resume(self) -> list[str]:
        """Restore all ranks; return where each had its state from."""
        restored = self.all_ranks("restore")
        steps = {step for step, _ in restored}
        assert len(steps) == 1, f"ranks resume different steps: {restored}"
        self.step = steps.pop()
        self.all_ranks("attach")
        return [source for _, source in restored]

    def start_machine(self) -> Machine:
        """Start a machine; it joins when it is told to."""
        name = uuid.uuid4().hex[:12]
        config = WorkerAgentConfig(
            machine=name,
            socket_name=f"twinckpt-{name}",
            root_host="127.0.0.1",
            root_port=self._port,
            hang_timeout_s=self._hang_timeout_s,
            heartbeat_timeout_s=self._job.heartbeat_timeout_s,
            drain_directory=str(self.drain_directory),
            drain_bytes_per_s=self._drain_bytes_per_s,
            watched=(os.getpid(),),
            log_file=str(self._run_dir / "agents.log"),
        )
        self._started.append(Machine(config, self._port, self._secret))
        return self._started[-1]

    def _start_root(self) -> subprocess.Popen[bytes]:
        log = str(self._events_path)
        since = len(self.events)
        settings = {"job": self._job, "watched": (os.getpid(),), "event_log": log}
        root = start_root_agent(RootAgentConfig("127.0.0.1", self._port, **settings), self._secret)
        wait_until(lambda: self.logged("root_started", since), "a root agent")
        return root

    def replace_root(self) -> None:
        """SIGKILL the root agent, and start another one in its place."""
        self._root.kill()
        self._root.wait()
        self._root = self._start_root()

    def end(self) -> None:
        """SIGKILL everything, frozen machines too."""
        for machine in self._started:
            machine.kill()
        self._root.kill()
        self._root.wait()
