"""`torchrun --rdzv-backend=twinckpt`: the way in for machines, as a rendezvous handler.

It runs inside torchrun's process, once a machine: starts the machine's worker agent (and the
root agent, if the endpoint is this machine; or one that stands by, if the endpoint is etcd), and
forms generations through them. This is the one module of the agents that imports torch, for the
types that torchrun expects.
"""

import contextlib
import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch.distributed import HashStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousTimeoutError

from twinckpt.agents.config import UNNAMED
from twinckpt.agents.job_settings import LAUNCHED, JobSettings
from twinckpt.agents.launch import RootCandidate, connect_to_agent, start_machine_agent
from twinckpt.errors import AgentUnavailableError, TwinckptError
from twinckpt.net.local import (
    LauncherBroken,
    LauncherDismissed,
    LauncherFormed,
    LauncherJoin,
    LauncherLeave,
    LauncherStandby,
    LauncherWaits,
)
from twinckpt.net.local_socket import AgentLink
from twinckpt.net.ports import free_port
from twinckpt.net.secret import load_secret

logger = logging.getLogger(__name__)

_JOIN_TIMEOUT_S = 600.0
_LOOK_S = 1.0  # how often a launcher that waits looks after the root agent

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


class _OneLine(SystemExit):
    """An error of which torchrun prints one line, and ends with status 1.

    A traceback through torchrun would not help a user to see why the job does not run.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"twinckpt: {reason}")


class JobEndedError(_OneLine, RendezvousClosedError):
    """The job is over on all machines; callers that catch it find a closed rendezvous."""


class NotFormedError(_OneLine, RendezvousTimeoutError):
    """Too few machines have joined; callers that catch it find a rendezvous that timed out."""


def _told_in_one_line(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
    """Return `function` with our errors told in one line, without torchrun's own frames."""

    @functools.wraps(function)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except TwinckptError as error:
            raise _OneLine(str(error)) from error

    return told


class MachineStore(HashStore):
    """The store that torchrun asks for, of this machine alone: nothing in it is shared.

    Ranks follow from the machine's place (every machine has as many), and the root agent
    knows who is there: torchrun has nothing to agree on, and `shutdown` waits at the end.
    """

    def wait(self, *_: Any) -> None:
        """Return at once."""


class TwinRendezvousHandler(RendezvousHandler):
    """One machine's part in forming generations; torchrun calls it from its main thread."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._min_machines = parameters.min_nodes
        self._wishes = (parameters.min_nodes, parameters.max_nodes, _num_ranks_asked())
        self._settings = JobSettings.load(parameters.config)
        self._secret = load_secret()  # what agents would refuse is refused here
        self._join_timeout_s = float(parameters.get("join_timeout", _JOIN_TIMEOUT_S))
        self._endpoint = parameters.endpoint
        self._root = RootCandidate(self._settings, parameters.endpoint, parameters.run_id)
        self._local_address = parameters.local_addr or self._settings.host
        self._link: AgentLink | None = None
        self._is_broken = False
        self._is_closed = False

    def get_backend(self) -> str:
        """Return the name of this backend."""
        return "twinckpt"

    @property
    def use_agent_store(self) -> bool:
        """False: ranks make a store of their own in each generation, so nothing stale is read."""
        return False

    @_told_in_one_line
    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next generation and wait until it has formed."""
        if self._is_closed:
            raise JobEndedError(f"the job {self._run_id} is closed")
        self._root.start()
        if self._settings.warm_spare and "TWINCKPT_STANDBY" not in os.environ:
            return self._stand_by(self._connect())
        formed = self._join()
        self._is_broken = False
        os.environ["TWINCKPT_GENERATION"] = str(formed.generation)
        if "TWINCKPT_STANDBY" in os.environ:
            os.environ["TWINCKPT_STANDBY"] = ""  # a member now: its ranks begin at once
        host, port = formed.master_endpoint.rsplit(":", 1)
        return RendezvousInfo(
            MachineStore(), formed.index, formed.num_machines, RendezvousStoreInfo(host, int(port))
        )

    def _join(self) -> LauncherFormed:
        """Join the next generation and wait for it, with another agent if this one dies."""
        deadline_s = time.monotonic() + self._join_timeout_s
        while True:
            link = self._connect()
            endpoint = f"{self._local_address}:{free_port()}"
            try:
                link.send(LauncherJoin(endpoint, None, *self._wishes))
                return self._wait_for_generation(link, deadline_s)
            except AgentUnavailableError as error:
                self._give_up_agent(error)

    def _stand_by(self, link: AgentLink) -> RendezvousInfo:
        """Let torchrun start the warm parents (`twinckpt.run`), which join when needed."""
        link.send(LauncherStandby(*self._wishes))
        os.environ["TWINCKPT_STANDBY"] = "1"
        address = RendezvousStoreInfo(self._local_address, free_port())
        return RendezvousInfo(MachineStore(), 0, 1, address)

    def is_closed(self) -> bool:
        """Return whether the job has ended."""
        return self._is_closed

    def set_closed(self) -> None:
        """Mark the job as ended: called when it succeeded or may not restart again."""
        self._is_closed = True

    def num_nodes_waiting(self) -> int:
        """Return 1 once this generation is over, so that torchrun restarts its ranks."""
        self._root.keep()
        try:
            while self._link is not None and (received := self._link.receive(0.0)) is not None:
                self._is_broken = self._is_broken or isinstance(received[0], LauncherBroken)
        except AgentUnavailableError as error:
            self._give_up_agent(error)
            self._is_broken = True
        return int(self._is_broken)

    def get_run_id(self) -> str:
        """Return the job's identity as torchrun knows it."""
        return self._run_id

    def shutdown(self) -> bool:
        """End this machine's part; its agent ends with torchrun's process."""
        if self._link is not None:
            with contextlib.suppress(AgentUnavailableError):
                self._link.send(LauncherLeave())
            self._link.say_goodbye()
            self._link = None
            self._root.wait_for_the_others()
        return True

    def _connect(self) -> AgentLink:
        if self._link is None:
            name = start_machine_agent(
                self._settings,
                self._root.address,
                (os.getpid(),),
                store=self._root.endpoint,
                run_id=self._run_id,
            )
            self._link = connect_to_agent(name, self._secret)
            os.environ["TWINCKPT_AGENT"] = name
            os.environ["TWINCKPT_LOCAL_ADDRESS"] = self._local_address
            os.environ[LAUNCHED] = self._settings.to_json()
            os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
        return self._link

    def _give_up_agent(self, error: AgentUnavailableError) -> None:
        logger.warning("%s; a new agent starts, its memory comes from peers", error)
        self._link = None

    def _wait_for_generation(self, link: AgentLink, deadline_s: float) -> LauncherFormed:
        while True:
            left_s = deadline_s - time.monotonic()
            received = link.receive(min(max(left_s, 0.0), _LOOK_S))
            if received is None and left_s > 0:
                self._root.keep()  # the machine that is waited for may need it
                continue
            if received is None:
                raise NotFormedError(
                    f"only {self._min_machines} or more machines make a generation, and too few "
                    f"joined within {self._join_timeout_s:.0f} s at {self._endpoint}"
                )
            message = received[0]
            if isinstance(message, LauncherFormed):
                return message
            if isinstance(message, LauncherBroken) and message.is_final:
                raise JobEndedError(f"the job has ended: {message.reason}")
            if isinstance(message, LauncherWaits):
                self._tell_spare(message.is_spare)
                now_s = time.monotonic()
                deadline_s = math.inf if message.is_spare else now_s + self._join_timeout_s
            if isinstance(message, LauncherDismissed):
                sys.exit(0)  # torch's RendezvousGracefulExitError ends in an AttributeError

    def _tell_spare(self, is_spare: bool) -> None:
        """A job that nobody named is taken for the one that runs at its endpoint."""
        if is_spare and self._run_id in UNNAMED:
            logger.warning(
                "a job runs at %s already, and this machine waits as its spare: if it is meant for "
                "another job, give that an --rdzv-endpoint and an --rdzv-id of its own",
                self._endpoint,
            )


def _num_ranks_asked() -> int:
    """Return how many ranks torchrun's command line asks for here; 0 for another launcher's.

    Torchrun does not tell a rendezvous handler. Its module is imported late, since it imports this
    one by the entry point.
    """
    from torch.distributed import run as torchrun

    if sys.argv[0] != torchrun.__file__ and os.path.basename(sys.argv[0]) != "torchrun":
        return 0
    asked = torchrun.parse_args(sys.argv[1:])
    return int(torchrun.determine_local_world_size(asked.nproc_per_node))


@_told_in_one_line
def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """Make the handler that torchrun asked for."""
    return TwinRendezvousHandler(parameters)


def registry_entry() -> Any:
    """Return the creator; torchrun finds this through the entry point `torchrun.handlers`."""
    return create_handler
