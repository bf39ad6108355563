"""Machines that are worker agents alone: real slots, real SIGKILL, every byte compared."""

import psutil
import pytest

from twinckpt.experiments.agent_cluster import AgentCluster

SHARD_BYTES = 300_000


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """Three machines, each shard on two of them."""
    run_dir = tmp_path_factory.mktemp("ring")
    with AgentCluster(3, 2, "ring", SHARD_BYTES, run_dir) as cluster:
        yield cluster


def test_the_committed_step_survives_the_loss_of_one_machine(ring):
    """The new machine gets its shard from the peer, the others have theirs."""
    committed = ring.checkpoint()
    assert ring.lose([1]) == committed


def test_a_lost_replica_group_leaves_nothing_in_memory(ring):
    """The cluster says so, and checkpoints again."""
    ring.checkpoint()
    assert ring.lose([0, 1]) is None
    committed = ring.checkpoint()
    assert ring.lose([2]) == committed


def test_losses_one_after_the_other_find_both_copies_again(ring):
    """Redundancy is restored before the next checkpoint is allowed."""
    for place in (0, 1, 2):
        committed = ring.checkpoint()
        assert ring.lose([place]) == committed


def test_an_agent_keeps_no_connection_to_machines_that_are_gone(ring):
    """Each loss leaves one that the other side has closed; the next transfer closes this side."""
    survivor = psutil.Process(ring.agent_pids[2])  # it fetches from place 1
    for _ in range(4):
        ring.checkpoint()
        ring.lose([1])
    ring.checkpoint()
    assert not [c for c in survivor.net_connections("tcp") if c.status == "CLOSE_WAIT"]
