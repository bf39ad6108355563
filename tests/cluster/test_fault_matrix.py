"""Every fault at every point of the protocol: training goes on as if nothing had happened.

Real agents, a real root, real processes as ranks, real signals and broken connections. A point is
reached by holding messages or bytes in relays, or by a rank that stops between two messages, and
is still held when the fault strikes. Then every rank must resume the step that the rules name, and
its state must be that of a run without failures, byte for byte, at the end as well.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faulty_cluster import NUM_MACHINES, FaultyCluster, Machine, wait_until
from puppets import SHARD_BYTES, Undisturbed, digest

from twinckpt.core import messages as m
from twinckpt.memory.drained import drained_steps, load_drained, step_directory

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

HALF = SHARD_BYTES // 2
HANG_TIMEOUT_S = 1.5
DRAIN_BYTES_PER_S = 1.0 * SHARD_BYTES


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

    def is_committed(self) -> bool:
        """Return whether the root has decided that the step is committed."""
        return bool(self.cluster.logged("committed", self.begun_at, step=self.step))

    def release(self) -> None:
        """Let everything that is held go on."""
        for machine in self.cluster.machines:
            machine.root.release()
            machine.bulk.release()

    def lose_a_machine(self, source: int) -> None:
        """A first failure, of machine 1 after a commit; half a shard comes from `source`."""
        self.step = self.cluster.checkpoint()
        while not drained_steps(self.cluster.drain_directory):
            self.step = self.cluster.checkpoint()
        self.cluster.all_ranks("take_grant")  # so nothing is being drained
        self.cluster.machines[source].bulk.hold_after(HALF)
        recover(self.cluster, kill_machine(self))
        self.victim = self.cluster.machines[1]
        self.num_losses = 1


def _rank_of(message: object) -> int | None:
    return message.holding.rank if isinstance(message, m.Holds) else getattr(message, "rank", None)


# Points of the protocol. Rank 1 lives on machine 1; machine 2 holds its replica.


def before_staging(scene: Scene) -> None:
    """All ranks have finished the step and may stage it."""
    scene.begin()
    scene.is_there = lambda: not any(scene.has_passed(m.Holds, rank, rank) for rank in range(3))


def while_staging(scene: Scene) -> None:
    """Half of rank 1's shard is in its slot, the others are sealed."""
    scene.begin()
    scene.cluster.stage(x for x in scene.cluster.machines if x is not scene.victim)
    scene.victim.rank.do("fill", 0, HALF)
    scene.is_there = lambda: (
        scene.has_passed(m.Holds, 0, 0)
        and scene.has_passed(m.Holds, 2, 2)
        and not scene.has_passed(m.Holds, 1, 1)
    )


def sealed(scene: Scene) -> None:
    """The root knows of every shard, and no other machine was told to fetch it yet."""
    scene.begin()
    scene.hold(m.Fetch)
    scene.cluster.stage()
    scene.is_there = lambda: (
        scene.is_held(m.Fetch, (0, 1, 2))
        and all(scene.has_passed(m.Holds, rank, rank) for rank in range(3))
    )


def half_sent(scene: Scene) -> None:
    """Machine 2 has half of rank 1's shard."""
    scene.begin()
    scene.victim.bulk.hold_after(HALF)
    scene.cluster.stage()
    scene.is_there = lambda: scene.victim.bulk.is_holding


def sent(scene: Scene) -> None:
    """Machine 2 has sealed rank 1's shard, and the root does not know."""
    scene.begin()
    scene.hold(m.Holds, rank=1, places=(2,))
    scene.cluster.stage()
    scene.is_there = lambda: scene.is_held(m.Holds, (2,)) and scene.has_passed(m.Holds, 1, 1)


def acknowledged(scene: Scene) -> None:
    """Rank 1 knows that its shard is safe; rank 2's is not yet."""
    scene.begin()
    scene.hold(m.Holds, rank=2, places=(0,))
    scene.cluster.stage()
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


# Faults. Each returns the machines that are gone for good.


def kill_rank(scene: Scene) -> list[Machine]:
    """SIGKILL the training process."""
    scene.victim.rank.kill()
    return []


def kill_machine(scene: Scene) -> list[Machine]:
    """SIGKILL the worker agent, and with it the machine's memory, and the training process."""
    scene.victim.kill()
    return [scene.victim]


def stop_rank(scene: Scene) -> list[Machine]:
    """SIGSTOP the training process: it is missed when it makes no progress."""
    scene.victim.rank.stop()
    return []


def stop_agent(scene: Scene) -> list[Machine]:
    """SIGSTOP the worker agent for longer than the timeout, then let it go on."""
    since = len(scene.cluster.events)
    scene.victim.signal_agent(signal.SIGSTOP)
    wait_until(lambda: scene.cluster.logged("machine_lost", since), "the loss of a silent machine")
    scene.victim.signal_agent(signal.SIGCONT)
    return []


def cut_connections(scene: Scene) -> list[Machine]:
    """Break all of the machine's connections; new ones can be made."""
    assert scene.victim.cut() >= 1
    return []


def lose_root(scene: Scene) -> list[Machine]:
    """SIGKILL the root agent; another one starts, and knows nothing."""
    scene.cluster.replace_root()
    return []


FAULTS = (kill_rank, kill_machine, stop_rank, stop_agent, cut_connections, lose_root)
# What the root logs of each, once: the event, and why.
SIGNS = {
    kill_rank: ("rank_lost", {}),
    kill_machine: ("machine_lost", {"reason": "connection closed"}),
    stop_rank: ("rank_lost", {}),
    stop_agent: ("machine_lost", {"reason": "no heartbeat for 1.0 s"}),
    cut_connections: ("machine_lost", {}),
    lose_root: ("root_started", {}),
}


def recover(cluster: FaultyCluster, gone: list[Machine]) -> None:
    """Let the next generation form, with new machines in the places of those that are gone."""
    replacements = [cluster.start_machine() for _ in gone]
    survivors = [machine for machine in cluster.machines if machine not in gone]
    for machine in survivors:
        machine.wait_until_broken()
    cluster.form(survivors, replacements)


def step_to_resume(point: Callable, fault: Callable, scene: Scene) -> tuple[int, bool]:
    """Return what the rules say: the newest step of which every shard is somewhere, or on disk."""
    if fault is kill_machine and point is re_replicating:  # it had the only copy of its shard
        return drained_steps(scene.cluster.drain_directory)[-1], True
    if point in (before_staging, while_staging):
        return scene.step - 1, False
    if fault is kill_machine and point in (sealed, half_sent):
        return scene.step - 1, False
    return scene.step, False


class Clusters:
    """The cluster that the cells share, one after the other; after a failed cell a new one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_started = 0
        self._living: dict[float, FaultyCluster] = {}

    def take(self, drain_bytes_per_s: float) -> FaultyCluster:
        """Return a cluster that trains, until it is given back."""
        cluster = self._living.pop(drain_bytes_per_s, None)
        if cluster is None:
            self._num_started += 1
            cluster = FaultyCluster(
                self._folder / str(self._num_started),
                drain_every_commits=1 if drain_bytes_per_s else 2,
                drain_bytes_per_s=drain_bytes_per_s,
                hang_timeout_s=HANG_TIMEOUT_S,
            )
            cluster.checkpoint()
        return cluster

    def give_back(self, cluster: FaultyCluster, drain_bytes_per_s: float) -> None:
        """Keep a cluster that trains for the next cell."""
        self._living[drain_bytes_per_s] = cluster

    def end(self) -> None:
        """End those that are left."""
        for cluster in self._living.values():
            cluster.end()


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    """The clusters of this module."""
    clusters = Clusters(tmp_path_factory.mktemp("matrix"))
    yield clusters
    clusters.end()


@pytest.fixture(scope="module")
def undisturbed() -> list[Undisturbed]:
    """Each rank's training without failures."""
    return [Undisturbed(rank) for rank in range(NUM_MACHINES)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.__name__)
def test_training_goes_on_as_if_nothing_had_happened(point, fault, clusters, undisturbed):
    """The step that the rules name is resumed, and no byte of any state ever differs."""
    rate = DRAIN_BYTES_PER_S if point is draining else 0.0
    cluster = clusters.take(rate)
    try:
        strike_and_compare(Scene(cluster), point, fault, undisturbed)
    except BaseException:
        cluster.end()
        raise
    clusters.give_back(cluster, rate)


def strike_and_compare(
    scene: Scene, point: Callable, fault: Callable, undisturbed: list[Undisturbed]
) -> None:
    """Reach a point, strike there, and follow the training to the next commit."""
    cluster, num_before = scene.cluster, len(scene.cluster.events)
    point(scene)
    wait_until(scene.is_there, f"{point.__name__} reached")
    was_committed = scene.is_committed()
    expected = step_to_resume(point, fault, scene)
    struck_at = len(cluster.events)
    place = scene.victim.place

    gone = fault(scene)
    sign, fields = SIGNS[fault]
    wait_until(lambda: cluster.logged(sign, struck_at, **fields), f"{sign} logged")
    if point is not draining:
        assert scene.is_committed() == was_committed, "the point was left before the fault struck"
    scene.release()

    recover(cluster, gone)
    formed = cluster.logged("generation_formed", struck_at)[-1]
    assert (formed["recover_step"], formed["drained"]) == expected
    sources = cluster.resume()
    if fault is kill_machine:
        home = ["local"] * NUM_MACHINES
        home[place] = "peer"
        assert sources == (["disk"] * NUM_MACHINES if formed["drained"] else home)
    assert_undisturbed(cluster, expected[0], undisturbed)
    while cluster.step < scene.step:
        cluster.advance()
    assert_undisturbed(cluster, cluster.checkpoint(), undisturbed)

    assert_drained(cluster.drain_directory, undisturbed)

    for event in ("rank_lost", "machine_lost", "root_started"):
        num_expected = int(event == sign) + scene.num_losses * (event == "machine_lost")
        assert len(cluster.logged(event, num_before)) == num_expected, event
    assert len(cluster.logged("generation_formed", num_before)) == 1 + scene.num_losses


def assert_undisturbed(cluster: FaultyCluster, step: int, undisturbed: list[Undisturbed]) -> None:
    """Every rank is at this step, with the bytes of a run without failures."""
    expected = [(step, rank.digest(step)) for rank in undisturbed]
    assert cluster.all_ranks("digest") == expected


def assert_drained(directory: Path, undisturbed: list[Undisturbed]) -> None:
    """The newest step in persistent storage, if there is one, is that of a run without failures."""
    for step in drained_steps(directory)[-1:]:
        for number, rank in enumerate(undisturbed):
            assert digest(load_drained(directory, step, number)[1]) == rank.digest(step)
