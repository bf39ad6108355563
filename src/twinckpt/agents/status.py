"""What a job does now, as its root agent knows it: answered to `twinckpt status`, and scraped.

A caller that holds the job's secret sends `StatusQuestion` instead of a worker's first message,
and is sent one `JobStatus`. It changes nothing.
"""

import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from twinckpt.core import messages as m
from twinckpt.core.root import Root
from twinckpt.errors import AgentUnavailableError
from twinckpt.net import wire
from twinckpt.net.auth import call
from twinckpt.net.tls import Tls

_ANSWER_TIMEOUT_S = 5.0
NUM_FAILURES = 5
FAILURES = (
    "machine_lost",
    "rank_lost",
    "generation_broken",
    "steps_lost",
    "waiting_for_machines",
    "cannot_reserve",
    "copy_lost",
)


@dataclass(frozen=True, slots=True)
class StatusQuestion:
    """What does the job do?"""


FROM_CALLER = wire.Codec(m.ToRoot | StatusQuestion)  # the first message to a root agent


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """One connected machine; `index` is its place in the running generation, None if it waits."""

    name: str
    host: str
    index: int | None
    failure_domain: str
    silent_s: float
    num_copies: int


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, and when (seconds since the epoch)."""

    wall_s: float
    event: str
    what: str


@dataclass(frozen=True, slots=True)
class JobStatus:
    """State of a job.

    `num_members` are the connected machines of the newest generation.
    state: forming (waits for machines), adopting (waits for those of a generation that another
    root has left), recovering (copies of the step resumed from are made redundant), or running.
    `committed_ago_s` is the time since the last new commit; `undecided` are steps on their way.
    `num_skipped` and `num_failed` add up all ranks' saves that were not checkpointed, of
    `num_saves`.
    """

    state: str
    generation: int
    machines: tuple[MachineStatus, ...]
    num_members: int
    num_ranks: int
    replicas: int
    placement: str
    committed_step: int | None
    committed_ago_s: float | None
    drained_step: int | None
    undecided: tuple[int, ...]
    num_commits: int
    num_saves: int
    num_skipped: int
    num_failed: int
    num_failures: int
    failures: tuple[Failure, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether checkpoints are taken, and redundant."""
        return self.state == "running"


class StatusBoard:
    """Follows the root's events; `status` adds what the root knows at that moment."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._failures: deque[Failure] = deque(maxlen=NUM_FAILURES)
        self._num_failures = 0
        self._num_commits = 0
        self._committed_at_s: float | None = None
        self._counts: dict[int, tuple[int, int, int]] = {}
        self._counts_of_ended = (0, 0, 0)

    def note(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take in one event of the root."""
        if event == "committed":
            self._num_commits += 1
            self._committed_at_s = time.monotonic()
        elif event == "rank_started":  # it counts from zero again
            ended = self._counts.pop(fields["rank"], (0, 0, 0))
            self._counts_of_ended = _sums([self._counts_of_ended, ended])
        elif event == "save_counts":
            counts = fields["saves"], fields["skipped"], fields["failed"]
            self._counts[fields["rank"]] = counts
        elif event in FAILURES:
            self._num_failures += event in ("machine_lost", "rank_lost")
            told = {k: v for k, v in fields.items() if k != "generation" and v is not None}
            what = ", ".join(f"{key}={value}" for key, value in told.items())
            self._failures.append(Failure(time.time(), event, what))

    def status(self) -> JobStatus:
        """Return the job's state now."""
        root, now_s = self._root, time.monotonic()
        saves, skipped, failed = _sums([self._counts_of_ended, *self._counts.values()])
        ago_s = None if self._committed_at_s is None else now_s - self._committed_at_s
        return JobStatus(
            state=root.state,
            generation=root.generation,
            machines=tuple(
                MachineStatus(
                    name,
                    machine.address.host,
                    root.membership.index.get(name) if root.running else None,
                    machine.domain,
                    round(now_s - machine.last_heard_s, 3),
                    len(root.copies.of_machine(name)),
                )
                for name, machine in root.membership.machines.items()
            ),
            num_members=len(root.membership.connected_places()),
            num_ranks=root.num_ranks,
            replicas=root.config.replicas,
            placement=root.config.placement,
            committed_step=root.commits.committed_step,
            committed_ago_s=ago_s,
            drained_step=root.drains.newest_step,
            undecided=tuple(root.commits.steps_in_flight()),
            num_commits=self._num_commits,
            num_saves=saves,
            num_skipped=skipped,
            num_failed=failed,
            num_failures=self._num_failures,
            failures=tuple(self._failures),
        )


def ask(host: str, port: int, secret: bytes, tls: Tls | None = None) -> JobStatus:
    """Ask the root agent at an address.

    Raises AgentUnavailableError if nobody listens, AuthenticationError for another job's secret
    or certificate.
    """
    try:
        stranger = socket.create_connection((host, port), timeout=_ANSWER_TIMEOUT_S)
    except OSError as error:
        raise AgentUnavailableError(
            f"no job answers at {host}:{port} ({error}); give the endpoint of a job that runs"
        ) from error
    with call(stranger, secret, tls) as sock, sock.makefile("rb") as answer:
        sock.settimeout(_ANSWER_TIMEOUT_S)
        sock.sendall(wire.frame(FROM_CALLER.encode(StatusQuestion())))
        prefix = answer.read(4)
        if len(prefix) < 4:
            raise AgentUnavailableError(f"the root agent at {host}:{port} broke off")
        payload = answer.read(wire.frame_length(prefix))
    try:
        return msgspec.msgpack.decode(payload, type=JobStatus)
    except msgspec.DecodeError as error:
        raise AgentUnavailableError(
            f"what answers at {host}:{port} is no root agent: give the job's --rdzv-endpoint"
        ) from error


def _sums(counts: Iterable[tuple[int, int, int]]) -> tuple[int, int, int]:
    saves, skipped, failed = zip(*counts, strict=True)
    return sum(saves), sum(skipped), sum(failed)
