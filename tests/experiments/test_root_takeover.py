"""Real agents under etcd: whatever happens to the root, the same generation commits on."""

import os
import signal
import uuid

import pytest

from twinckpt.experiments.agent_cluster import AgentCluster
from twinckpt.memory.drained import step_directory
from twinckpt.results.jsonl import read_jsonl

SHARD_BYTES = 100_000


class Watched:
    """A cluster and the events of its roots."""

    def __init__(self, cluster, run_dir, until):
        self.cluster = cluster
        self._path = run_dir / "events" / "root.jsonl"
        self._until = until

    def events(self, name):
        """Return the events of one name, oldest first."""
        return [event for event in read_jsonl(self._path) if event["event"] == name]

    def wait_for(self, name, number):
        """Wait until there are so many; return the last one."""
        return self._until(lambda: self.events(name)[number - 1 :], f"{name} {number}")[-1]

    @property
    def root_pid(self):
        """The process of the root that was elected last."""
        return self.events("root_started")[-1]["pid"]


@pytest.fixture
def draining(tmp_path, monkeypatch):
    """The directory that the cluster drains to."""
    monkeypatch.setenv("TWINCKPT_DRAIN_DIRECTORY", str(tmp_path / "drained"))
    monkeypatch.setenv("TWINCKPT_DRAIN_EVERY_COMMITS", "10")
    return tmp_path / "drained"


@pytest.fixture
def watched(tmp_path, etcd, until):
    """Three machines and two candidates, one of them elected; a step is committed."""
    store = f"{etcd.endpoint}/{uuid.uuid4().hex}"
    with AgentCluster(3, 2, "ring", SHARD_BYTES, tmp_path, store) as cluster:
        cluster.checkpoint()
        yield Watched(cluster, tmp_path, until)


def test_roots_killed_one_after_the_other(watched):
    """Each time the next one goes on; nothing is broken, every step commits."""
    for number in (1, 2, 3):
        os.kill(watched.root_pid, signal.SIGKILL)
        watched.cluster.add_candidate()
        watched.wait_for("generation_adopted", number)
        watched.cluster.checkpoint()
    assert [event["step"] for event in watched.events("committed")] == [1, 2, 3, 4]
    assert len(watched.events("generation_formed")) == 1
    assert watched.events("generation_broken") == []


def test_a_frozen_root_is_replaced_and_resigns_when_it_is_thawed(watched):
    """Nothing closes a connection: the lease tells."""
    frozen = watched.root_pid
    os.kill(frozen, signal.SIGSTOP)
    watched.wait_for("generation_adopted", 1)
    committed = watched.cluster.checkpoint()
    os.kill(frozen, signal.SIGCONT)
    replaced = watched.wait_for("root_replaced", 1)
    assert (replaced["pid"], replaced["generation"]) == (frozen, 1)
    assert watched.cluster.checkpoint() == committed + 1
    assert len(watched.events("generation_formed")) == 1
    os.kill(watched.root_pid, signal.SIGKILL)  # the thawed one stands by again
    watched.wait_for("generation_adopted", 2)
    assert watched.root_pid == frozen


def test_storage_that_hangs_keeps_no_machine_from_the_next_root(draining, watched):
    """They list what is drained whenever they have found one, and it does not wait for long."""
    listed = step_directory(draining, 99) / "manifest.json"
    listed.parent.mkdir(parents=True)
    os.mkfifo(listed)  # who reads this waits for a writer
    os.kill(watched.root_pid, signal.SIGKILL)
    watched.wait_for("generation_adopted", 1)
    assert watched.cluster.checkpoint() == 2
    assert watched.events("generation_broken") == []


def test_a_machine_lost_together_with_the_root_is_recovered(watched):
    """The successor waits for it in vain, then resumes what the others hold."""
    committed = watched.cluster.checkpoint()
    os.kill(watched.root_pid, signal.SIGKILL)
    assert watched.cluster.lose([1]) == committed
    assert watched.events("machine_lost")[0]["index"] == 1
    assert watched.events("generation_adopted") == []
    assert watched.cluster.checkpoint() == committed + 1
