"""What the worker's decisions ask for; `twinckpt.agents.worker` and the simulator carry it out."""

from dataclasses import dataclass

from twinckpt.core import messages as m


@dataclass(frozen=True, slots=True)
class ToRootAgent:
    """Send to the root agent."""

    message: m.ToRoot


@dataclass(frozen=True, slots=True)
class GrantSlot:
    """Tell a local rank which slot its next checkpoint goes to."""

    rank: int
    ticket: int
    not_before_step: int
    slot: int


@dataclass(frozen=True, slots=True)
class TellResolved:
    """Tell a local rank that a ticket is decided."""

    rank: int
    ticket: int
    step: int
    committed: bool


@dataclass(frozen=True, slots=True)
class TellReplicated:
    """Tell a local rank that its shard is sealed on all machines of its group."""

    rank: int
    ticket: int


@dataclass(frozen=True, slots=True)
class StartFetch:
    """Receive a shard from one of `sources` into `slot`; then call `fetched`."""

    generation: int
    rank: int
    ticket: int
    slot: int
    sources: tuple[m.Address, ...]


@dataclass(frozen=True, slots=True)
class StartDrain:
    """Copy the local shards of a ticket to persistent storage; then call `drained`."""

    generation: int
    ticket: int
    step: int
    world_size: int
    ranks: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class ServeRestore:
    """Answer a rank that wants to restore.

    `ticket` names a sealed local slot; else `drained_step` names a step in persistent
    storage; else there is nothing to restore.
    """

    rank: int
    ticket: int = 0
    drained_step: int | None = None


@dataclass(frozen=True, slots=True)
class TellNothingToDrain:
    """Tell a local rank that has finished the newest step in persistent storage."""

    rank: int
    newest_step: int | None


@dataclass(frozen=True, slots=True)
class TellRefused:
    """Tell a local rank that a peer has no room for its replica, and why."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class BreakGeneration:
    """Have this machine's launcher stop its ranks and join again, or end if `is_final`."""

    reason: str
    is_final: bool = False


Action = (
    ToRootAgent
    | GrantSlot
    | TellReplicated
    | TellResolved
    | StartFetch
    | StartDrain
    | ServeRestore
    | TellNothingToDrain
    | TellRefused
    | BreakGeneration
)
