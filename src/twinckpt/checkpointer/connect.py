"""Finding this machine's worker agent, or starting one.

Under `torchrun --rdzv-backend=twinckpt` the rendezvous handler has started the agent.
Otherwise the machine's first rank starts it, and a root agent too; both end with the job's
launcher. That covers the loss of ranks; the loss of a machine needs the rendezvous backend.
"""

import os

from twinckpt.agents.launch import (
    JobSettings,
    connect_to_agent,
    free_port,
    start_machine_agent,
    start_root_if_local,
)
from twinckpt.checkpointer.agent_client import AgentClient
from twinckpt.errors import ConfigurationError
from twinckpt.net.local import LauncherFormed, LauncherJoin
from twinckpt.net.secret import load_secret


def connect(replicas: int | None) -> AgentClient:
    """Return a connection to this machine's agent, which is started if there is none.

    Raises ConfigurationError under a launcher that this cannot work with.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    name = os.environ.get("TWINCKPT_AGENT") or _start(world_size, replicas)
    return AgentClient(name, load_secret(), rank, world_size)


def _start(world_size: int, replicas: int | None) -> str:
    if world_size > 1:
        raise ConfigurationError(
            "several ranks need torchrun --rdzv-backend=twinckpt --rdzv-endpoint=HOST:PORT, "
            "which starts the agents"
        )
    settings = JobSettings.load({} if replicas is None else {"replicas": replicas})
    port = free_port()
    start_root_if_local(settings, "127.0.0.1", port)
    name = start_machine_agent(settings, "127.0.0.1", port, watch_pid=os.getpid())
    launcher = connect_to_agent(name, load_secret())
    launcher.send(LauncherJoin("", None, 1, 1))
    while True:
        received = launcher.receive(timeout_s=30.0)
        if received is None or isinstance(received[0], LauncherFormed):
            return name
