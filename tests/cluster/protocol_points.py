"""The points of the protocol at which the fault matrix strikes, and how a cluster gets there.

A point is reached by holding messages or bytes in relays, or by a rank that stops between two
messages; so it stays there until what is held is released.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from faulty_cluster import FaultyCluster, Machine
from puppets import SHARD_BYTES

from helpers import wait_until
from twinckpt.core import messages as m
from twinckpt.memory.drained import drained_steps, step_directory

HALF = SHARD_BYTES // 2


@dataclass
class Scene:
    """A cluster on its way to a point.

    `victim` is the machine that is struck; `step` is being checkpointed, or was; `is_there` says
    whether the point is reached and not left. `num_losses` counts the failures on the way.
    """

    cluster: FaultyCluster
    victim: Machine = field(init=False)
    step: int = field(init=False)
    begun_at: int = field(init=False)
    is_there: Callable[[], bool] = field(init=False)
    num_losses: int = 0

    def __post_init__(self) -> None:
        self.begun_at = len(self.cluster.events)
        self.step = self.cluster.step + 1
        self.victim = self.cluster.machines[1]
        for machine in self.cluster.machines:
            machine.root.passed.clear()

    def begin(self) -> None:
        """Train the next step, and wait until all ranks may checkpoint it."""
        self.cluster.advance()
        self.cluster.all_ranks("take_grant")

    def hold(
        self, kind: type, rank: int | None = None, places: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        """Hold messages of a kind (about one rank's shard) on their way from or to machines."""
        for place in places:
            self.cluster.machines[place].root.hold(
                lambda x: isinstance(x, kind) and rank in (None, _rank_of(x))
            )

    def is_held(self, kind: type, places: tuple[int, ...]) -> bool:
        """Return whether such a message waits at each of these machines."""
        return all(
            any(isinstance(x, kind) for x in self.cluster.machines[place].root.held)
            for place in places
        )

    def has_passed(self, kind: type, place: int, rank: int) -> bool:
        """Return whether such a message has passed a machine's relay."""
        passed = list(self.cluster.machines[place].root.passed)
        return any(isinstance(x, kind) and _rank_of(x) == rank for x in passed)

    def is_sealed(self, rank: int) -> bool:
        """Return whether the root knows of a rank's shard on its own machine."""
        return self.has_passed(m.Holds, rank, rank)

    def stage_last(self, last: int) -> None:
        """Stage a rank when the root knows of the others: messages that follow a held one wait."""
        first = [rank for rank in range(3) if rank != last]
        self.cluster.stage(self.cluster.machines[rank] for rank in first)
        wait_until(lambda: all(self.is_sealed(rank) for rank in first), "the other shards sealed")
        self.cluster.stage([self.cluster.machines[last]])

    def is_committed(self) -> bool:
        """Return whether the root has decided that the step is committed."""
        return bool(self.cluster.logged("committed", self.begun_at, step=self.step))

    def release(self) -> None:
        """Let everything that is held go on."""
        for machine in self.cluster.machines:
            machine.root.release()
            machine.bulk.release()

    def wait_until_told(self) -> None:
        """Return once every machine knows that the step is committed, and whether to drain it."""
        for machine in self.cluster.machines:
            wait_until(partial(self._is_told, machine), "the commit told")

    def _is_told(self, machine: Machine) -> bool:
        passed = list(machine.root.passed)
        return any(isinstance(x, m.Resolve) and x.step == self.step for x in passed)

    def is_nothing_drained(self) -> bool:
        """Return whether every drain that a machine was told of has ended."""
        drains = set()
        for place, machine in enumerate(self.cluster.machines):
            for message in list(machine.root.passed):
                if isinstance(message, m.Drain | m.Drained):
                    drains ^= {(place, message.ticket)}
        return not drains

    def lose_a_machine(self, source: int) -> None:
        """A first failure, of machine 1 after a commit; half a shard comes from `source`.

        The newest step is in persistent storage, so that nothing is on its way there, nor will be.
        """
        self.step = self.cluster.checkpoint()
        while drained_steps(self.cluster.drain_directory)[-1:] != (self.step,):
            self.step = self.cluster.checkpoint()
            self.wait_until_told()
            wait_until(self.is_nothing_drained, "nothing being drained")
        self.cluster.machines[source].bulk.hold_after(HALF)
        self.victim.kill()
        self.cluster.recover([self.victim])
        self.victim = self.cluster.machines[1]
        self.num_losses = 1


def _rank_of(message: object) -> int | None:
    return message.holding.rank if isinstance(message, m.Holds) else getattr(message, "rank", None)


# Points of the protocol. Rank 1 lives on machine 1; machine 2 holds its replica.


def before_staging(scene: Scene) -> None:
    """All ranks have finished the step and may stage it."""
    scene.begin()
    scene.is_there = lambda: not any(scene.is_sealed(rank) for rank in range(3))


def while_staging(scene: Scene) -> None:
    """Half of rank 1's shard is in its slot, the others are sealed."""
    scene.begin()
    scene.cluster.stage(x for x in scene.cluster.machines if x is not scene.victim)
    scene.victim.rank.do("fill", 0, HALF)
    scene.is_there = lambda: scene.is_sealed(0) and scene.is_sealed(2) and not scene.is_sealed(1)


def sealed(scene: Scene) -> None:
    """The root knows of every shard, and no other machine was told to fetch it yet."""
    scene.begin()
    scene.hold(m.Fetch)
    scene.cluster.stage()
    scene.is_there = lambda: (
        scene.is_held(m.Fetch, (0, 1, 2)) and all(scene.is_sealed(rank) for rank in range(3))
    )


def half_sent(scene: Scene) -> None:
    """Machine 2 has half of rank 1's shard."""
    scene.begin()
    scene.victim.bulk.hold_after(HALF)
    scene.stage_last(1)
    scene.is_there = lambda: scene.victim.bulk.is_holding


def sent(scene: Scene) -> None:
    """Machine 2 has sealed rank 1's shard, and the root does not know."""
    scene.begin()
    scene.hold(m.Holds, rank=1, places=(2,))
    scene.stage_last(1)
    scene.is_there = lambda: scene.is_held(m.Holds, (2,)) and scene.is_sealed(1)


def acknowledged(scene: Scene) -> None:
    """Rank 1 knows that its shard is safe; rank 2's is not yet."""
    scene.begin()
    scene.hold(m.Holds, rank=2, places=(0,))
    scene.stage_last(2)
    scene.is_there = lambda: (
        scene.has_passed(m.Replicated, 1, 1)
        and scene.is_held(m.Holds, (0,))
        and not scene.is_committed()
    )


def committed(scene: Scene) -> None:
    """The root has decided, and nobody was told."""
    scene.begin()
    scene.hold(m.Resolve)
    scene.cluster.stage()
    scene.is_there = lambda: scene.is_committed() and scene.is_held(m.Resolve, (0, 1, 2))


def draining(scene: Scene) -> None:
    """Rank 1's shard is being written to persistent storage."""
    scene.begin()
    scene.cluster.stage()
    folder = step_directory(scene.cluster.drain_directory, scene.step)
    scene.is_there = lambda: scene.is_committed() and any(folder.glob(".rank-00001.*"))


def recovering(scene: Scene) -> None:
    """Machine 1 was lost; half of its shard has come back, to the new one."""
    scene.lose_a_machine(source=2)
    for machine in scene.cluster.machines:
        machine.rank.tell("restore")
    scene.is_there = lambda: scene.cluster.machines[2].bulk.is_holding


def re_replicating(scene: Scene) -> None:
    """Machine 1 was lost; training goes on, and half of rank 0's replica is on the new one."""
    scene.lose_a_machine(source=0)
    scene.cluster.resume()
    scene.victim = scene.cluster.machines[0]
    scene.is_there = lambda: (
        scene.victim.bulk.is_holding
        and not scene.cluster.logged("redundancy_restored", scene.begun_at)
    )


POINTS = (
    before_staging,
    while_staging,
    sealed,
    half_sent,
    sent,
    acknowledged,
    committed,
    draining,
    recovering,
    re_replicating,
)
