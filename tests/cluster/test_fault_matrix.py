"""Every fault at every point of the protocol: training goes on as if nothing had happened.

Real agents, a real root, real processes as ranks, real signals and broken connections. The point
(`protocol_points`) is held when the fault strikes. Then every rank must resume the step that the
rules name, and its state must be that of a run without failures, byte for byte, at the end as well.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_cluster import HEARTBEAT_TIMEOUT_S, NUM_MACHINES, FaultyCluster, Machine
from protocol_points import (
    POINTS,
    Scene,
    before_staging,
    draining,
    half_sent,
    re_replicating,
    sealed,
    while_staging,
)
from puppets import SHARD_BYTES, Undisturbed, digest

from helpers import wait_until
from twinckpt.memory.drained import drained_steps, load_drained

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

HANG_TIMEOUT_S = 3.0
DRAIN_BYTES_PER_S = 1.0 * SHARD_BYTES


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
    stop_agent: ("machine_lost", {"reason": f"no heartbeat for {HEARTBEAT_TIMEOUT_S} s"}),
    cut_connections: ("machine_lost", {}),
    lose_root: ("root_started", {}),
}


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

    cluster.recover(gone)
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
