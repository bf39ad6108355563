"""What agents tell each other: plain frozen data, no I/O.

Every message that belongs to one incarnation of the cluster carries its `generation`; the
receiver refuses those of another one (fencing). Checkpoints are named by `ticket`: the root
hands out one number for each checkpoint that the ranks may take, and never reuses it.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Holding:
    """One sealed copy of a shard: what it is, and the digest that proves it.

    `home` is the index of the machine whose rank wrote the shard; `digest` covers every chunk
    checksum, the size and the identity of the shard.
    """

    rank: int
    ticket: int
    step: int
    home: int
    world_size: int
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where a machine's worker agent serves its slots."""

    machine: str
    host: str
    bulk_port: int


# Worker agent → root agent; a connection begins with Hello.


@dataclass(frozen=True, slots=True)
class Join:
    """The machine's launcher waits for the next generation to form.

    `master_endpoint` is where the generation's ranks meet if this machine gets the first place;
    `index_hint` is the machine's fixed place where the launcher already decided it. `num_ranks`
    is how many ranks the launcher starts; 0 if it has not said.
    """

    generation: int
    master_endpoint: str = ""
    index_hint: int | None = None
    min_machines: int = 1
    max_machines: int = 1
    num_ranks: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker agent lives; sent every heartbeat interval."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A rank of this machine knows the size of its shard and has its local slots."""

    generation: int
    rank: int
    world_size: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """This machine has the slots for a replica of `rank`."""

    generation: int
    rank: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class Running:
    """What a machine does in a generation that goes on while another root takes over.

    `attached` are its ranks and `reserved` the replicas that it has slots for. Of this
    generation's tickets it was told that `committed_ticket` (at `committed_step`) is committed
    (0: none is) and that later ones are `abandoned`; it has heard of the `undecided` ones, and
    of none beyond `newest_ticket`.
    """

    attached: tuple[Attached, ...] = ()
    reserved: tuple[Reserved, ...] = ()
    committed_ticket: int = 0
    committed_step: int = 0
    abandoned: tuple[int, ...] = ()
    undecided: tuple[int, ...] = ()
    newest_ticket: int = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a connection: who is calling, and what its memory holds.

    `drained_steps` are complete in persistent storage; `drained_ticket` is the newest of which
    anything is there, complete or not. `domain` is the failure domain (a rack, say) that the
    machine is in, empty if nobody has said. `fetching` is what still arrives, by rank and ticket.
    `running` is there if the machine's ranks still run in `generation`. `settings` are those of
    the job as this machine was told them, by name; `run_id` is the job's name. Both are empty if
    nobody has said.
    """

    address: Address
    generation: int
    inventory: tuple[Holding, ...] = ()
    drained_steps: tuple[int, ...] = ()
    drained_ticket: int = 0
    domain: str = ""
    fetching: tuple[tuple[int, int], ...] = ()
    running: Running | None = None
    settings: dict[str, str] = field(default_factory=dict)
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class CannotReserve:
    """A holder has no room for a replica of `rank`; the root passes it on to the rank's machine.

    `reason` says what was needed and what there is.
    """

    generation: int
    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class Holds:
    """A copy was sealed here: staged by the rank, or received and verified."""

    generation: int
    holding: Holding


@dataclass(frozen=True, slots=True)
class Dropped:
    """A copy that was here is gone or damaged, or could not be fetched.

    `damaged_sources` are the machines that were asked for it and had no intact copy. `is_awaited`:
    its rank waits to restore it.
    """

    generation: int
    rank: int
    ticket: int
    reason: str
    damaged_sources: tuple[str, ...] = ()
    is_awaited: bool = False


@dataclass(frozen=True, slots=True)
class RankStarted:
    """A training process of this machine made itself known."""

    generation: int
    rank: int
    pid: int


@dataclass(frozen=True, slots=True)
class RankLost:
    """A training process of this machine ended before its work was done.

    `exit_code` is positive if it ended itself, negative for the signal that killed it, None
    where nobody could tell. With `is_final` its launcher has no restart left.
    """

    generation: int
    rank: int
    exit_code: int | None = None
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class DamagedDrained:
    """A rank cannot resume a drained step; `drained_steps` are the complete ones that are left."""

    generation: int
    step: int
    reason: str
    drained_steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drained:
    """The local shards of a ticket were copied to persistent storage; if not `ok`, that failed."""

    generation: int
    ticket: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """A rank saves nothing more: the last committed step belongs in persistent storage.

    Said again until `NothingToDrain` is the answer.
    """

    generation: int
    rank: int


@dataclass(frozen=True, slots=True)
class SaveCounts:
    """How many saves of a rank there were, were skipped, and failed, since it started."""

    generation: int
    rank: int
    saves: int
    skipped: int
    failed: int


@dataclass(frozen=True, slots=True)
class Leave:
    """The machine ends on purpose (the job is done): not a failure."""


# Root agent → worker agent.


@dataclass(frozen=True, slots=True)
class Resume:
    """The step a generation resumes from; `ticket` is 0 where only persistent storage has it."""

    step: int
    ticket: int = 0


@dataclass(frozen=True, slots=True)
class Formed:
    """A generation begins: the machine's place, where ranks meet, which step to resume.

    `Fetch` says whom to copy from: this message must not grow with the cluster.
    """

    generation: int
    index: int
    num_machines: int
    master_endpoint: str
    resume: Resume | None


@dataclass(frozen=True, slots=True)
class Broken:
    """The generation is over: ranks must stop and the machine must join again.

    If it `is_final`, the job is given up instead, for `reason`.
    """

    generation: int
    reason: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The machine cannot take part, for `reason`: its own part of the job must end."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Spare:
    """A generation runs without this machine, which waits for a place in the next one."""

    generation: int


@dataclass(frozen=True, slots=True)
class Dismissed:
    """The job has ended on the machines that trained; this one, a spare, was not needed."""

    generation: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Make slots for replicas of a rank of another machine."""

    generation: int
    rank: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Copy a shard from one of `sources` (tried in this order) into a slot here."""

    generation: int
    rank: int
    ticket: int
    size_bytes: int
    sources: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Discard:
    """The copy here was found damaged by a machine that read it: forget it."""

    generation: int
    rank: int
    ticket: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """The ranks may checkpoint at their first save of a step ≥ `not_before_step`."""

    generation: int
    ticket: int
    not_before_step: int


@dataclass(frozen=True, slots=True)
class Replicated:
    """A shard of this machine is sealed on all machines of its replica group."""

    generation: int
    rank: int
    ticket: int


@dataclass(frozen=True, slots=True)
class Resolve:
    """A ticket is decided for ever: committed, or abandoned."""

    generation: int
    ticket: int
    step: int
    committed: bool


@dataclass(frozen=True, slots=True)
class NothingToDrain:
    """Answer to `Finished`: no step is on its way to persistent storage, nor will be.

    `newest_step` is the newest one there; None if there is none.
    """

    generation: int
    rank: int
    newest_step: int | None


@dataclass(frozen=True, slots=True)
class Drain:
    """Copy the local shards of a committed ticket to persistent storage.

    `digest` is that of the whole checkpoint.
    """

    generation: int
    ticket: int
    step: int
    world_size: int
    digest: str


ToRoot = (
    Hello
    | Join
    | Heartbeat
    | Attached
    | Reserved
    | CannotReserve
    | Holds
    | Dropped
    | RankStarted
    | RankLost
    | Drained
    | DamagedDrained
    | Finished
    | SaveCounts
    | Leave
)
ToWorker = (
    Formed
    | Broken
    | Refused
    | Spare
    | Dismissed
    | Reserve
    | CannotReserve
    | Fetch
    | Discard
    | Ticket
    | Replicated
    | Resolve
    | Drain
    | NothingToDrain
)
