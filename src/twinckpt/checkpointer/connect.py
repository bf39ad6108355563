"""Finding this machine's worker agent, or starting one.

Under `torchrun --rdzv-backend=twinckpt` the rendezvous handler has started the agent. Under
any other launcher the first rank of each machine does it, and rank 0 starts the root agent;
both end with torchrun, so they outlive the ranks that it restarts, or else with the last rank of
their machine.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch.distributed as dist

from twinckpt.agents.job_settings import JobSettings
from twinckpt.agents.launch import (
    connect_to_agent,
    start_machine_agent,
    start_root_if_local,
)
from twinckpt.checkpointer.agent_client import AgentClient
from twinckpt.checkpointer.machines import Machines, address_towards
from twinckpt.errors import AgentUnavailableError, ConfigurationError
from twinckpt.net.local import (
    LauncherBroken,
    LauncherFormed,
    LauncherJoin,
    RootAnswer,
    RootMoved,
    RootQuestion,
)
from twinckpt.net.local_socket import AgentLink
from twinckpt.net.ports import free_port
from twinckpt.net.secret import load_secret

FORM_TIMEOUT_S = 120.0
LOOPBACK = "127.0.0.1"

_LAUNCHED = (
    "{asked} in the program, but torchrun was started with {decided}, and its agents run already: "
    "give torchrun --rdzv-conf {conf}, or leave it out of Checkpointer()"
)
_STARTED = (
    "{asked}, but the agents of this job run already, with {decided}: they serve all Checkpointers "
    "of a process; take the same, or start another process"
)

_started: JobSettings | None = None  # of the agent that this process has started


def job_settings(whole: JobSettings | None, explicit: Mapping[str, Any]) -> JobSettings:
    """Return the settings of the job that this process is part of.

    `explicit` ones beat those of `whole`; without that the environment and the defaults fill
    in. Raises ConfigurationError for an unknown or impossible one, and where torchrun's
    rendezvous backend has decided otherwise.
    """
    explicit = {name: value for name, value in explicit.items() if value is not None}
    wanted = JobSettings.load(explicit)
    if whole is not None:
        wanted = replace(whole, **{name: getattr(wanted, name) for name in explicit})
    launched = JobSettings.launched()
    if launched is None:
        return wanted
    asked = explicit if whole is None else asdict(wanted)
    launched.check_agrees(asked, _LAUNCHED)
    return launched


def connect(settings: JobSettings) -> AgentClient:
    """Return a connection to this machine's agent, which is started if there is none.

    Raises ConfigurationError if several ranks have no process group to find each other by.
    """
    name = os.environ.get("TWINCKPT_AGENT")
    if name:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        num_machines = world_size // int(os.environ["LOCAL_WORLD_SIZE"])
        return AgentClient(name, load_secret(), rank, world_size, num_machines)
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError(
            "several ranks without a process group: call torch.distributed.init_process_group() "
            "before Checkpointer(), or launch with torchrun --rdzv-backend=twinckpt"
        )
    machines = Machines.gather()
    name, launcher = _start(machines, settings)
    job = machines.rank, machines.world_size, machines.count
    client = AgentClient(name, load_secret(), *job, ends_with_generation=False)
    client.launcher = launcher
    return client


def _start(machines: Machines, settings: JobSettings) -> tuple[str, AgentLink | None]:
    """Have each machine's agent form the next generation; return its socket's name and a link.

    The first rank of each machine stands in for the launcher and keeps the link; others get None.
    """
    if settings.host == LOOPBACK and "TWINCKPT_HOST" not in os.environ:
        settings = replace(settings, host=address_towards(os.environ.get("MASTER_ADDR", LOOPBACK)))
    name = _socket_name()
    agent = _find(name) if machines.is_first_here else None
    known = machines.share(lambda: _root_of(agent, settings))
    watched = _watched(machines)
    root = (
        next(filter(None, known), "")
        or machines.share(lambda: _start_root(settings, watched) if machines.rank == 0 else "")[0]
    )
    host, port = root.rsplit(":", 1)

    def join() -> str:
        global _started
        nonlocal agent
        if not machines.is_first_here:
            return ""
        if agent is None:
            root = (host, int(port))
            start_machine_agent(settings, root, watched, socket_name=name)
            _started = settings
            agent = connect_to_agent(name, load_secret())
        agent.send(RootMoved(host, int(port)))
        agent.send(LauncherJoin("", machines.index, machines.count, machines.count))
        _wait_until_formed(agent)
        return name

    return machines.share(join)[machines.first_here], agent


def _launcher_or_own_pid() -> int:
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()


def _watched(machines: Machines) -> tuple[int, ...]:
    """Return the processes that agents started here end with: torchrun, or the machine's ranks.

    A rank in a container of its own is left out: here its number is another process's.
    """
    here = f"{machines.first_here}/{_pid_namespace()}"
    told = machines.share(lambda: f"{here} {_launcher_or_own_pid()}")
    return tuple({int(pid) for place, pid in map(str.split, told) if place == here})


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _socket_name() -> str:
    job = os.environ.get("TORCHELASTIC_RUN_ID", "job").encode()
    name = hashlib.sha256(job).hexdigest()[:16]  # it must be short
    # Abstract names belong to a network namespace, process numbers perhaps to a container.
    return f"twinckpt-{name}-{_pid_namespace()}-{_launcher_or_own_pid()}"


def _find(name: str) -> AgentLink | None:
    try:
        return AgentLink(name, load_secret())
    except AgentUnavailableError:
        return None


def _root_of(agent: AgentLink | None, settings: JobSettings) -> str:
    if agent is None:
        return ""
    if _started is not None:
        _started.check_agrees(asdict(settings), _STARTED)
    agent.send(RootQuestion())
    received = agent.receive(FORM_TIMEOUT_S)
    answer = received[0] if received else None
    if isinstance(answer, RootAnswer) and answer.is_connected:
        return f"{answer.host}:{answer.port}"
    return ""


def _start_root(settings: JobSettings, watched: tuple[int, ...]) -> str:
    port = free_port(settings.host)
    start_root_if_local(settings, settings.host, port, watched)
    return f"{settings.host}:{port}"


def _wait_until_formed(agent: AgentLink) -> None:
    while True:
        received = agent.receive(FORM_TIMEOUT_S)
        if received is None:
            raise AgentUnavailableError(
                f"the job's machines have not come together within {FORM_TIMEOUT_S:.0f} s; do all "
                "ranks make a Checkpointer?"
            )
        message = received[0]
        if isinstance(message, LauncherFormed):
            return
        if isinstance(message, LauncherBroken) and message.is_final:
            raise AgentUnavailableError(message.reason)
