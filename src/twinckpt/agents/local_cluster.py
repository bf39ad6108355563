"""`LocalCluster`: N emulated machines on this host, and the operator who kills and replaces them.

The root agent belongs to the operator here, unless the machines elect it.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from twinckpt.agents.config import RootAgentConfig
from twinckpt.agents.emulated_machines import EmulatedMachines
from twinckpt.agents.event_log import EventReader
from twinckpt.agents.job_settings import JobSettings
from twinckpt.agents.process import start_root_agent
from twinckpt.errors import ConfigurationError, TwinckptError
from twinckpt.net.ports import free_port

_POLL_S = 0.01

_Found = TypeVar("_Found")


class ClusterFailed(TwinckptError):
    """The job on the cluster ended with an error, or did not do what was waited for."""


@dataclass(slots=True)
class ClusterConfig:
    """A job on emulated machines; durations in seconds.

    `num_spares` machines wait, with imports done if the command is `-m twinckpt.run`, to take
    the place of a lost one. Without spares and with `auto_replace` the operator starts a new
    machine for each that it killed. With `min_machines` the job goes on with as few (0: with all
    of them or not at all), `last_call_s` after the last one has joined. `endpoint` names a control
    store (`etcd://HOST:PORT`) by which the machines elect the root; else the operator runs it.
    """

    num_machines: int = 4
    min_machines: int = 0
    last_call_s: float = 5.0
    ranks_per_machine: int = 1
    replicas: int = 2
    placement: str = "ring"
    num_slots: int = 2
    heartbeat_interval_s: float = 0.1
    heartbeat_timeout_s: float = 1.0
    hang_timeout_s: float = 0.0
    max_restarts: int = 20
    drain_every_commits: int = 0
    num_spares: int = 0
    auto_replace: bool = True
    monitor_interval_s: float = 0.05
    endpoint: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= self.num_machines:
            raise ConfigurationError(
                f"replicas={self.replicas}: between 1 and num_machines={self.num_machines}"
            )
        if not 0 <= self.min_machines <= self.num_machines:
            raise ConfigurationError(
                f"min_machines={self.min_machines}: at most num_machines={self.num_machines}"
            )

    @property
    def num_needed(self) -> int:
        """How many machines the job needs at least."""
        return self.min_machines or self.num_machines


class LocalCluster:
    """A job on emulated machines; use it in a `with` statement, which ends all processes.

    Args:
        config: size and settings of the cluster.
        command: what torchrun runs, such as `["-m", "package.module", "argument"]`.
        run_dir: logs, event logs and drained steps go here; ranks find it as
            `TWINCKPT_RUN_DIR`.
        env: additional environment of the ranks.
    """

    def __init__(
        self,
        config: ClusterConfig,
        command: Sequence[str],
        run_dir: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.run_dir = Path(run_dir).resolve()
        self.log_dir = self.run_dir / "logs"
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._command = list(command)
        self._ranks_each = config.ranks_per_machine
        self._port = free_port()
        self.endpoint = config.endpoint or f"127.0.0.1:{self._port}"
        self.run_id = f"local-{secrets.token_hex(4)}"
        self.events_dir = self.run_dir / "events"
        self._log = EventReader(self.events_dir / "root.jsonl")
        for path in self.events_dir.glob("*.jsonl"):
            path.unlink()
        self._secret = secrets.token_hex(32)
        self._settings = self._job_settings()
        self._env = {
            **os.environ,
            **(env or {}),
            **self._settings.environment(),
            "TWINCKPT_RUN_DIR": str(self.run_dir),
            "TWINCKPT_SECRET": self._secret,
            "TWINCKPT_ONE_HOST": "1",
        }
        self._machines = EmulatedMachines(self.log_dir)
        self._root: subprocess.Popen[bytes] | None = None
        self._num_started = 0

    def _job_settings(self) -> JobSettings:
        """Return the job's settings: those of `config`; the environment decides the others."""
        return JobSettings.load(
            {
                "replicas": self.config.replicas,
                "placement": self.config.placement,
                "num_slots": self.config.num_slots,
                "heartbeat_interval_s": self.config.heartbeat_interval_s,
                "heartbeat_timeout_s": self.config.heartbeat_timeout_s,
                "hang_timeout_s": self.config.hang_timeout_s,
                "last_call_s": self.config.last_call_s,
                "drain_every_commits": self.config.drain_every_commits,
                "drain_directory": self.run_dir / "drained",
                "event_log": self.events_dir,
            }
        )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # Starting and stopping.

    def start(self) -> None:
        """Start the root agent, the machines and the spares."""
        if not self.config.endpoint:
            self._start_root()
        for _ in range(self.config.num_machines):
            self.add_machine()
        if self.config.num_spares:
            self.wait_for_event("generation_formed", timeout_s=120)
            for _ in range(self.config.num_spares):
                self.add_machine(spare=True)

    def _start_root(self) -> None:
        self._root = start_root_agent(
            RootAgentConfig(
                "127.0.0.1",
                self._port,
                self._settings.root(),
                watched=(os.getpid(),),
                event_log=self._settings.event_log,
                tls=self._settings.tls,
            ),
            self._secret.encode(),
        )
        self.wait_for_event("root_started", timeout_s=30)

    def add_machine(self, *, spare: bool = False) -> str:
        """Start one more machine and return its name."""
        name = f"machine-{self._num_started}"
        self._num_started += 1
        env = {
            **self._env,
            "TWINCKPT_MACHINE": name,
            "TWINCKPT_WARM_SPARE": str(int(spare and "twinckpt.run" in self._command)),
            "TWINCKPT_AGENT_LOG": str(self.log_dir / f"{name}-agent.log"),
        }
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            f"--nnodes={self.config.num_needed}:{self.config.num_machines}",
            f"--nproc-per-node={self.config.ranks_per_machine}",
            "--rdzv-backend=twinckpt",
            f"--rdzv-endpoint={self.endpoint}",
            f"--rdzv-id={self.run_id}",
            "--local-addr=127.0.0.1",
            f"--max-restarts={self.config.max_restarts}",
            f"--monitor-interval={self.config.monitor_interval_s}",
            *self._command,
        ]
        self._machines.start(name, command, env)
        return name

    def stop(self) -> None:
        """End every process of the cluster, whatever its state."""
        self._machines.kill_all()
        if self._root is not None:
            self._root.kill()
            self._root.wait()
            self._root = None

    def wait(self, timeout_s: float) -> None:
        """Wait until the job has ended on all machines; raises ClusterFailed if it failed."""

        def has_ended() -> bool:
            self._check_machines()
            return len(self._machines.done) >= self.config.num_needed

        self.wait_until(has_ended, timeout_s=timeout_s, what="end of the job")

    # Events.

    @property
    def events(self) -> list[dict[str, Any]]:
        """The root's events so far, oldest first."""
        return self._log.events

    def wait_for_event(
        self,
        event: str,
        *,
        step_at_least: int | None = None,
        after_s: float | None = None,
        timeout_s: float = 60.0,
    ) -> dict[str, Any]:
        """Return the first event of this name, at this step or later, after this monotonic time.

        Raises ClusterFailed if none comes within `timeout_s`.
        """
        checked = 0

        def found() -> dict[str, Any] | None:
            nonlocal checked
            events = self.events
            for candidate in events[checked:]:
                if (
                    candidate["event"] == event
                    and (step_at_least is None or candidate.get("step", -1) >= step_at_least)
                    and (after_s is None or candidate["monotonic_s"] > after_s)
                ):
                    return candidate
            checked = len(events)
            return None

        result = self.wait_until(found, timeout_s=timeout_s, what=f"event {event!r}")
        assert result is not None
        return result

    def wait_for_spare(self, timeout_s: float = 60.0) -> None:
        """Wait until a machine stands by, ready to join."""

        def stands_by() -> bool:
            waiting = {e["machine"] for e in self.events if e["event"] == "machine_waiting"}
            return bool(waiting - set(self.places) - self._machines.killed)

        self.wait_until(stands_by, timeout_s=timeout_s, what="spare machine")

    def wait_until(
        self, condition: Callable[[], _Found], *, timeout_s: float, what: str = "sign of progress"
    ) -> _Found:
        """Return what `condition` returns once that is true.

        Raises ClusterFailed if a machine fails meanwhile, or after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while not (result := condition()):
            self._check_machines()
            if time.monotonic() > deadline_s:
                raise ClusterFailed(self._machines.story(f"no {what} within {timeout_s} s"))
            time.sleep(_POLL_S)
        return result

    def _check_machines(self) -> None:
        if failure := self._machines.failure:
            raise ClusterFailed(self._machines.story(failure))

    # Failures.

    @property
    def places(self) -> list[str]:
        """The machine of each index in the newest generation."""
        formed = [event for event in self.events if event["event"] == "generation_formed"]
        return list(formed[-1]["machines"]) if formed else []

    @property
    def machines(self) -> list[str]:
        """The machines that were started and not killed, spares included."""
        return self._machines.names

    @property
    def members(self) -> dict[int, str]:
        """The machines of the newest generation that were not killed since, by index."""
        return {i: name for i, name in enumerate(self.places) if name not in self._machines.killed}

    def kill_rank(self, rank: int) -> float:
        """SIGKILL one training process; return the monotonic time of it."""
        pid = self._pid_of(rank)
        now_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return now_s

    def _pid_of(self, rank: int) -> int:
        started = [e for e in self.events if e["event"] == "rank_started" and e["rank"] == rank]
        if started:
            return int(started[-1]["pid"])
        # A rank that does not use the library is unknown to the agents.
        machine = self.places[rank // self._ranks_each]
        for process in self.processes(machine)[1:]:
            if process.environ().get("RANK") == str(rank):
                return process.pid
        raise ClusterFailed(f"rank {rank} has not started")

    def kill_agent(self, index: int) -> float:
        """SIGKILL a machine's worker agent, and with it the machine's memory, but no rank."""
        process = self._agent_of(index)
        now_s = time.monotonic()
        process.kill()
        return now_s

    def _agent_of(self, index: int) -> psutil.Process:
        for process in self.processes(self.places[index]):
            if "twinckpt.agents.worker" in process.cmdline():
                return process
        raise ClusterFailed(f"machine {index} has no worker agent")

    def kill_launched(self, rank: int) -> float:
        """SIGKILL the process that torchrun started for a rank: a warm parent, if it has one."""
        for process in self._machines.launched(self.places[rank // self._ranks_each]):
            if process.environ().get("RANK") == str(rank):
                now_s = time.monotonic()
                process.kill()
                return now_s
        raise ClusterFailed(f"rank {rank} has not started")

    def kill_root(self) -> float:
        """SIGKILL the root agent; another one is started by torchrun's plugin, or elected."""
        pid = self._root_pid()
        now_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return now_s

    def root_index(self) -> int:
        """Return the index in the newest generation of the machine that the root agent runs on."""
        pid = self._root_pid()
        for index, name in self.members.items():
            if pid in [process.pid for process in self.processes(name)]:
                return index
        raise ClusterFailed("the root agent runs on no machine of the generation")

    def _root_pid(self) -> int:
        pids = [int(event["pid"]) for event in self.events if event["event"] == "root_started"]
        if not pids or not psutil.pid_exists(pids[-1]):
            raise ClusterFailed("no root agent runs")
        return pids[-1]

    def kill_machine(self, index: int) -> float:
        """SIGKILL everything of one machine, its memory included; return the monotonic time."""
        return self.kill_machines([index])

    def kill_machines(self, indices: Iterable[int]) -> float:
        """SIGKILL several machines at once; then start as many, if the operator replaces."""
        names = [self.places[index] for index in indices]
        now_s = time.monotonic()
        for name in names:
            self._machines.kill(name)
        if self.config.auto_replace and not self.config.num_spares:
            for _ in names:
                self.add_machine()
        return now_s

    def freeze_rank(self, rank: int) -> float:
        """SIGSTOP one training process: alive, but without progress."""
        pid = self._pid_of(rank)
        now_s = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        return now_s

    def freeze_agent(self, index: int) -> tuple[float, psutil.Process]:
        """SIGSTOP a machine's worker agent; `resume()` of what is returned thaws it."""
        process = self._agent_of(index)
        now_s = time.monotonic()
        process.suspend()
        return now_s, process

    def freeze_machine(self, index: int) -> tuple[float, list[psutil.Process]]:
        """SIGSTOP everything of a machine, as a host that is paused; return the processes."""
        processes = self.processes(self.places[index])
        now_s = time.monotonic()
        for process in processes:
            process.suspend()
        return now_s, processes

    def processes(self, name: str) -> list[psutil.Process]:
        """Return all processes of a machine: torchrun, its agent, its ranks."""
        return self._machines.processes(name)

    def processes_of_job(self) -> list[psutil.Process]:
        """Return all living processes that were started for this job, wherever they are now.

        They are recognised by the job's secret in their environment.
        """
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("TWINCKPT_SECRET") == self._secret:
                    found.append(process)
        return found
