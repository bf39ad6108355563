"""What a worker agent and the processes of its machine tell each other: plain data, no I/O.

Those are the ranks (checkpoint, restore), the launcher (torchrun's rendezvous handler), and warm
parents. The socket they talk over is that of `net.local_socket`.
"""

from dataclasses import dataclass

from twinckpt.memory.seal import Seal
from twinckpt.net.wire import Codec

# Rank → agent.


@dataclass(frozen=True, slots=True)
class RankHello:
    """First message of a rank."""

    rank: int
    world_size: int


@dataclass(frozen=True, slots=True)
class Attach:
    """The rank needs slots of this size."""

    slot_bytes: int


@dataclass(frozen=True, slots=True)
class Staged:
    """The rank filled the slot it was granted, and sealed it."""

    seal: Seal


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """The rank wants its state of the step that the generation resumes from."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The rank saves nothing more; see `twinckpt.core.messages.Finished`."""


@dataclass(frozen=True, slots=True)
class SaveCounts:
    """How many saves there were, were skipped, and failed, since this process started."""

    saves: int
    skipped: int
    failed: int


@dataclass(frozen=True, slots=True)
class Damaged:
    """The rank found that a local copy does not match its checksums."""

    ticket: int
    reason: str


@dataclass(frozen=True, slots=True)
class DamagedDrained:
    """The rank found that its shard of a drained step is damaged; `steps` are what is left."""

    step: int
    reason: str
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The process ends on purpose."""


# Launcher → agent.


@dataclass(frozen=True, slots=True)
class LauncherJoin:
    """The launcher waits for the next generation; see `twinckpt.core.messages.Join`."""

    master_endpoint: str
    index_hint: int | None
    min_machines: int
    max_machines: int
    num_ranks: int = 0


@dataclass(frozen=True, slots=True)
class RootQuestion:
    """Which root agent does this machine belong to?"""


@dataclass(frozen=True, slots=True)
class RootMoved:
    """The job has a new root agent, at this address."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class LauncherLeave:
    """This machine's part in the job is over, for others to know before its process ends."""


@dataclass(frozen=True, slots=True)
class LauncherStandby:
    """This machine is a warm spare: its parents will join when they are ready."""

    min_machines: int
    max_machines: int
    num_ranks: int = 0


# Warm parent (`twinckpt.run`) → agent.


@dataclass(frozen=True, slots=True)
class WarmHello:
    """A warm parent can fork the machine's rank of this number again and again."""

    local_rank: int
    local_world_size: int


@dataclass(frozen=True, slots=True)
class WarmReady:
    """The former training process is gone; `master_endpoint` is free to meet at."""

    master_endpoint: str


@dataclass(frozen=True, slots=True)
class ChildLost:
    """The training process of this warm parent ended before its work was done.

    With `is_final` it had no restart left: the job ends.
    """

    rank: int
    exit_code: int
    is_final: bool


# Agent → rank.


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to RankHello."""

    generation: int
    home: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The rank may fill this slot (its descriptor is attached) at a step ≥ not_before_step."""

    ticket: int
    not_before_step: int
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class Replicated:
    """The rank's shard of a ticket is sealed on all machines of its replica group."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """A ticket is decided."""

    ticket: int
    step: int
    committed: bool


@dataclass(frozen=True, slots=True)
class RestoreFrom:
    """Restore from this sealed slot (its descriptor is attached)."""

    seal: Seal
    capacity_bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class RestoreArriving:
    """The copy to restore is being received into this slot (its descriptor is attached).

    `RestoreProgress` tells how far it has come, `RestoreFrom` that it is sealed; or another
    answer comes, if the transfer fails.
    """

    seal: Seal
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class RestoreProgress:
    """The first `verified_bytes` of the arriving copy are there and match their checksums."""

    verified_bytes: int


@dataclass(frozen=True, slots=True)
class RestoreDrained:
    """Restore from this directory of persistent storage."""

    directory: str
    step: int


@dataclass(frozen=True, slots=True)
class RestoreNothing:
    """There is no checkpoint: begin at the beginning."""


@dataclass(frozen=True, slots=True)
class NothingToDrain:
    """Answer to `Finished`: `newest_step` is the newest step in persistent storage."""

    newest_step: int | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent could not do what was asked; `reason` says why and what to do."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The generation is over: a rank that no launcher starts again waits for nothing more."""

    reason: str


# Agent → launcher.


@dataclass(frozen=True, slots=True)
class LauncherFormed:
    """A generation has formed; its ranks meet at `master_endpoint`."""

    generation: int
    index: int
    num_machines: int
    master_endpoint: str


@dataclass(frozen=True, slots=True)
class RootAnswer:
    """Where the root agent of this machine is, and whether it is connected."""

    host: str
    port: int
    is_connected: bool


@dataclass(frozen=True, slots=True)
class LauncherBroken:
    """The generation is over; join again, unless it `is_final`: then the job has failed."""

    reason: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class LauncherWaits:
    """This machine waits: as a spare of those that train, or for enough others to come."""

    is_spare: bool


@dataclass(frozen=True, slots=True)
class LauncherDismissed:
    """The job has ended without this machine, a spare: it ends well."""


FromAgent = (
    Welcome
    | Granted
    | Replicated
    | Resolved
    | RestoreFrom
    | RestoreArriving
    | RestoreProgress
    | RestoreDrained
    | RestoreNothing
    | NothingToDrain
    | Refused
    | Broken
    | LauncherFormed
    | LauncherBroken
    | LauncherWaits
    | LauncherDismissed
    | RootAnswer
)
ToAgent = (
    RankHello
    | Attach
    | Staged
    | RestoreRequest
    | Damaged
    | DamagedDrained
    | SaveCounts
    | Finished
    | Goodbye
    | LauncherJoin
    | LauncherStandby
    | LauncherLeave
    | RootQuestion
    | RootMoved
    | WarmHello
    | WarmReady
    | ChildLost
)

TO_AGENT = Codec(ToAgent)
FROM_AGENT = Codec(FromAgent)
