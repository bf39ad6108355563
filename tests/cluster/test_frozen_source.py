"""A machine that freezes in the middle of a transfer holds up nobody for long."""

import signal
import time

import pytest
from faulty_cluster import FaultyCluster
from puppets import SHARD_BYTES

from helpers import wait_until
from twinckpt.net.bulk import TRANSFER_TIMEOUT_S

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

HALF = SHARD_BYTES // 2
SOON_S = TRANSFER_TIMEOUT_S / 2


def replace_frozen(cluster, frozen):
    """SIGSTOP a machine's agent; once it counts as lost, a new machine takes its place."""
    since = len(cluster.events)
    frozen.signal_agent(signal.SIGSTOP)
    wait_until(lambda: cluster.logged("machine_lost", since), "the loss of a silent machine")
    cluster.recover([frozen])


def test_the_next_checkpoint_needs_the_slot_of_a_copy_that_never_ends(tmp_path):
    """The copy was half sent; the frozen machine is replaced, and the others checkpoint again."""
    with FaultyCluster(tmp_path / "cluster") as cluster:
        frozen = cluster.machines[1]
        cluster.checkpoint()
        cluster.advance()
        cluster.all_ranks("take_grant")
        frozen.bulk.hold_after(HALF)
        cluster.stage()
        wait_until(lambda: frozen.bulk.is_holding, "half a shard")
        replace_frozen(cluster, frozen)
        begun_s = time.monotonic()
        cluster.resume()
        assert cluster.step == 1
        cluster.checkpoint()
        cluster.checkpoint()
        assert time.monotonic() - begun_s < SOON_S


def test_a_recovery_turns_to_the_other_source(tmp_path):
    """Of three replicas one is lost, and another freezes while it is copied from."""
    with FaultyCluster(tmp_path / "cluster", replicas=3) as cluster:
        cluster.checkpoint()
        lost, *others = cluster.machines
        for machine in others:
            machine.bulk.hold_after(HALF)
        lost.kill()
        cluster.recover([lost])
        wait_until(lambda: any(x.bulk.is_holding for x in others), "half a shard")
        frozen = next(machine for machine in others if machine.bulk.is_holding)
        (other,) = (machine for machine in others if machine is not frozen)
        other.bulk.release()
        replace_frozen(cluster, frozen)
        begun_s = time.monotonic()
        assert "peer" in cluster.resume()
        assert cluster.step == 1
        assert time.monotonic() - begun_s < SOON_S
