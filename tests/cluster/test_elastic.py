"""`--nnodes=MIN:MAX`: machines that come late, come back, or never come; real ones."""

import math
import signal
from collections import Counter

import pytest
from faulty_cluster import FaultyCluster
from puppets import Undisturbed

from helpers import wait_until
from twinckpt.agents.local_cluster import ClusterConfig, LocalCluster
from twinckpt.results.jsonl import read_jsonl
from twinckpt.training.config import DataConfig, ModelConfig, TrainingConfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@pytest.fixture
def cluster(tmp_path):
    """Three machines with real agents that drain nothing, and a committed step."""
    with FaultyCluster(tmp_path / "cluster", drain_every_commits=0) as cluster:
        cluster.checkpoint()
        yield cluster


def assert_undisturbed(cluster):
    """Every rank has the bytes of a run without failures."""
    expected = [(cluster.step, Undisturbed(rank).digest(cluster.step)) for rank in range(3)]
    assert cluster.all_ranks("digest") == expected


def test_with_nothing_drained_fewer_machines_wait_for_a_late_one_and_say_so(cluster):
    """Two could go on, but only from the beginning; the third comes late, and nothing is lost."""
    lost, *survivors = cluster.machines
    lost.kill()
    for machine in survivors:
        machine.wait_until_broken()
        machine.join(min_machines=2)
    wait_until(lambda: cluster.logged("waiting_for_machines"), "word of the machine that lacks")
    (said,) = cluster.logged("waiting_for_machines")
    assert "2 machines are there; step 1 in their memory is of 3 machines" in said["reason"]
    assert len(cluster.logged("generation_formed")) == 1
    cluster.form(survivors)
    assert sorted(cluster.resume()) == ["local", "local", "peer"]
    assert cluster.step == 1
    cluster.checkpoint()
    assert_undisturbed(cluster)


def test_a_machine_that_returns_from_the_dead_waits_and_is_of_use_again(cluster):
    """Another one has taken its place; what it still holds is not mixed in."""
    returning = cluster.machines[0]
    returning.signal_agent(signal.SIGSTOP)
    wait_until(lambda: cluster.logged("machine_lost"), "the loss of a silent machine")
    cluster.recover([returning])
    cluster.resume()
    for _ in range(2):
        cluster.checkpoint()
    returning.signal_agent(signal.SIGCONT)
    returning.wait_until_broken()
    returning.join()
    wait_until(lambda: cluster.logged("machine_waiting", machine=returning.name), "its return")
    cluster.checkpoint()
    assert_undisturbed(cluster)

    gone = cluster.machines[1]
    gone.kill()
    survivors = [machine for machine in cluster.machines if machine is not gone]
    for machine in survivors:
        machine.wait_until_broken()
    cluster.form(survivors, [returning])
    assert cluster.resume() == ["local", "peer", "local"]
    assert cluster.step == 4
    cluster.checkpoint()
    assert_undisturbed(cluster)


def test_fewer_machines_go_on_from_a_drained_step_and_grow_at_one(tmp_path):
    """The first time they go back to what was drained last; to grow nothing is lost."""
    folder = tmp_path / "cluster"
    with FaultyCluster(folder, drain_every_commits=3, last_call_s=0.5) as cluster:
        for _ in range(5):
            cluster.checkpoint()
        lost, *survivors = cluster.machines
        lost.kill()
        for machine in survivors:
            machine.wait_until_broken()
        cluster.form(survivors, min_machines=2)
        assert cluster.resume() == ["disk", "disk"]
        assert cluster.step == 3
        (said,) = cluster.logged("steps_lost")
        assert (said["committed_step"], said["lost_steps"]) == (5, 2)

        cluster.checkpoint()
        cluster.checkpoint()  # it is not due to be drained, nor is the next one
        newcomer = cluster.start_machine()
        newcomer.join(min_machines=2)
        wait_until(lambda: cluster.logged("machine_waiting", machine=newcomer.name), "newcomer")
        committed = cluster.checkpoint()
        for machine in cluster.machines:
            machine.wait_until_broken()
        cluster.form(cluster.machines, [newcomer], min_machines=2)
        assert cluster.resume() == ["disk", "disk", "disk"]
        assert cluster.step == committed
        cluster.checkpoint()
        assert len(cluster.logged("steps_lost")) == 1
        assert len(cluster.logged("machine_lost")) == 1


def test_a_training_goes_on_with_fewer_machines_and_grows_again(tmp_path):
    """FSDP under torchrun: a machine is killed for good, and much later another one comes."""
    path = tmp_path / "training.json"
    model = ModelConfig(context=32, width=64, layers=2, heads=4)
    config = TrainingConfig(
        steps=1_000_000, batch=2, model=model, data=DataConfig(max_bytes=1 << 16)
    )
    config.write(path)
    machines = ClusterConfig(
        num_machines=3, min_machines=2, last_call_s=1.0, drain_every_commits=4, auto_replace=False
    )
    command = ["-m", "twinckpt.run", "-m", "twinckpt.training.run", str(path)]
    with LocalCluster(machines, command, tmp_path) as cluster:
        cluster.wait_for_event("drained")
        cluster.wait_for_event("committed", step_at_least=10)
        shrunk = formed_after(cluster, cluster.kill_machine(1))
        assert (len(shrunk["machines"]), shrunk["drained"]) == (2, True)
        committed = max(e["step"] for e in before(cluster, shrunk) if e["event"] == "committed")
        drained = max(steps_on_disk(before(cluster, shrunk), num_machines=3))
        assert shrunk["recover_step"] == drained
        lost = [e for e in before(cluster, shrunk) if e["event"] == "steps_lost"]
        num_lost = committed - drained
        assert [e["lost_steps"] for e in lost] == ([num_lost] if num_lost else [])
        cluster.wait_for_event("committed", after_s=shrunk["monotonic_s"])

        cluster.add_machine()
        grown = formed_after(cluster, shrunk["monotonic_s"])
        assert (len(grown["machines"]), grown["drained"]) == (3, True)
        committed = [e["step"] for e in before(cluster, grown) if e["event"] == "committed"]
        assert grown["recover_step"] == committed[-1]
        assert [e for e in before(cluster, grown) if e["event"] == "steps_lost"] == lost
        cluster.wait_for_event("committed", after_s=grown["monotonic_s"])
        restored = [
            e for e in read_jsonl(tmp_path / "ranks/rank-1.jsonl") if e["event"] == "restored"
        ]
        assert [e["source"] for e in restored[-2:]] == ["disk", "disk"]
        assert [e["at_step"] for e in restored[-2:]] == [
            shrunk["recover_step"],
            grown["recover_step"],
        ]
        steps = [e for e in read_jsonl(tmp_path / "ranks/rank-0.jsonl") if e["event"] == "step"]
        assert all(math.isfinite(e["loss"]) for e in steps)


def formed_after(cluster, time_s):
    """Return the next generation after a moment."""
    return cluster.wait_for_event("generation_formed", after_s=time_s, timeout_s=90)


def steps_on_disk(events, num_machines):
    """Return the steps of which every machine has drained its part."""
    drained = Counter(e["ticket"] for e in events if e["event"] == "drained" and e["ok"])
    committed = [e for e in events if e["event"] == "committed"]
    return [e["step"] for e in committed if drained[e["ticket"]] == num_machines]


def before(cluster, event):
    """Return the events before one."""
    return [e for e in cluster.events if e["monotonic_s"] < event["monotonic_s"]]
