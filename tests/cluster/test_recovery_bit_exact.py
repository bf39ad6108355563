"""Whatever is killed, training ends with the same bits as if nothing had happened.

Real ranks under torchrun, real SIGKILLs. The fingerprints cover parameters, optimizer, random
number generators and data position of every rank.
"""

import pytest

from twinckpt.agents.local_cluster import ClusterConfig, LocalCluster
from twinckpt.experiments.failures import FailureRun
from twinckpt.memory.drained import drained_steps, shard_path
from twinckpt.results.jsonl import read_jsonl
from twinckpt.training.config import DataConfig, ModelConfig, TrainingConfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

NUM_MACHINES = 4
STEPS = 40  # training still runs when the last thing is killed, however slow that is
TIMEOUT_S = 120.0
MODEL = ModelConfig(context=32, width=64, layers=2, heads=4)
SOURCES = {
    "rank_loss": ["local", "local", "local", "local"],
    "machine_loss": ["local", "peer", "local", "local"],
    "group_loss": ["disk", "disk", "disk", "disk"],
}


def training_cluster(run_dir, method, sharding="fsdp", every=1, **cluster):
    """Return a cluster that trains the small model; a machine has one rank unless told."""
    path = run_dir / "training.json"
    TrainingConfig(
        steps=STEPS,
        batch=2,
        method=method,
        sharding=sharding,
        checkpoint_every=every,
        disk_directory=str(run_dir / "disk"),
        model=MODEL,
        data=DataConfig(max_bytes=1 << 16),
    ).write(path)
    config = ClusterConfig(**{"num_machines": NUM_MACHINES, "replicas": 2, **cluster})
    command = ["-m", "twinckpt.run", "-m", "twinckpt.training.run", str(path)]
    return LocalCluster(config, command, run_dir)


def undisturbed(run_dir, sharding):
    """Return the fingerprints of a run on one machine without checkpoints or failures."""
    one = {"num_machines": 1, "ranks_per_machine": NUM_MACHINES, "replicas": 1}
    with training_cluster(run_dir, "none", sharding, **one) as cluster:
        cluster.wait(TIMEOUT_S)
        return FailureRun(cluster, NUM_MACHINES).fingerprints()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a run of FSDP that nothing happens to ends with."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), "fsdp")


def restored_sources(cluster):
    """Return where each rank's state came from in its newest generation."""
    logs = [read_jsonl(cluster.run_dir / f"ranks/rank-{r}.jsonl") for r in range(NUM_MACHINES)]
    return [[e for e in log if e["event"] == "restored"][-1]["source"] for log in logs]


def count(cluster, event):
    """Return how often the root has reported an event."""
    return sum(entry["event"] == event for entry in cluster.events)


def committed_before(cluster, moment_s):
    """Return the newest step that was committed by then."""
    committed = [e for e in cluster.events if e["event"] == "committed"]
    return max(e["step"] for e in committed if e["monotonic_s"] < moment_s)


def test_ranks_differ_and_all_are_compared(expected):
    """The comparisons below are of real, distinct states."""
    assert len(set(expected)) == NUM_MACHINES
    assert all(len(fingerprint) == 64 for fingerprint in expected)


def test_rank_then_machine_lost(tmp_path, expected):
    """A rank comes back from its machine's RAM; a later new machine's from a peer's."""
    with training_cluster(tmp_path, "ram") as cluster:
        run = FailureRun(cluster, NUM_MACHINES)
        for step, kind in ((4, "rank_loss"), (9, "machine_loss")):
            run.wait_for_step(step)
            recovery = run.inject(kind, victim=1)
            assert recovery.resumed_step >= committed_before(cluster, recovery.killed_s)
            assert restored_sources(cluster) == SOURCES[kind]
        cluster.wait(TIMEOUT_S)
        assert (count(cluster, "rank_lost"), count(cluster, "machine_lost")) == (1, 1)
        assert count(cluster, "generation_broken") == 2
        assert run.fingerprints() == expected


@pytest.mark.parametrize("placement", ["ring", "group"])
def test_whole_replica_group_lost(tmp_path, expected, placement):
    """With both copies of a shard gone, all ranks go back to the newest drained step."""
    options = {"drain_every_commits": 3, "placement": placement}
    with training_cluster(tmp_path, "ram", **options) as cluster:
        run = FailureRun(cluster, NUM_MACHINES)
        run.wait_for_step(8)
        recovery = run.inject("group_loss", victim=1)
        committed = {e["step"] for e in cluster.events if e["event"] == "committed"}
        assert recovery.resumed_step in committed
        assert recovery.lost_steps >= 8 - recovery.resumed_step
        assert recovery.sources == restored_sources(cluster) == SOURCES["group_loss"]
        cluster.wait(TIMEOUT_S)
        assert count(cluster, "machine_lost") == 2
        assert run.fingerprints() == expected


@pytest.mark.parametrize(("method", "source"), [("ram", "local"), ("disk", "disk")])
def test_a_rare_checkpoint_is_waited_for(tmp_path, expected, method, source):
    """Otherwise a measurement would recover from nothing."""
    with training_cluster(tmp_path, method, every=10) as cluster:
        run = FailureRun(cluster, NUM_MACHINES)
        run.wait_for_step(2)
        run.wait_for_checkpoint()
        recovery = run.inject("rank_loss", victim=1)
        assert recovery.sources == [source] * NUM_MACHINES
        assert recovery.resumed_step >= 10
        cluster.wait(TIMEOUT_S)
        assert run.fingerprints() == expected


def test_a_damaged_drained_step_is_set_aside_for_the_one_before(tmp_path, expected):
    """Nobody has to delete anything by hand."""
    with training_cluster(tmp_path, "ram", drain_every_commits=3) as cluster:
        run = FailureRun(cluster, NUM_MACHINES)
        drained = tmp_path / "drained"
        cluster.wait_until(lambda: len(drained_steps(drained)) > 1, timeout_s=TIMEOUT_S)
        cluster.kill_machines([1, 2])
        older, newest = drained_steps(drained)[-2:]
        shard = shard_path(drained, newest, 3)
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
        cluster.wait(TIMEOUT_S)
        assert restored_sources(cluster) == SOURCES["group_loss"]
        resumed = [e["recover_step"] for e in cluster.events if e["event"] == "generation_formed"]
        assert resumed[-2:] == [newest, older]
        assert run.fingerprints() == expected


def test_machine_of_two_ranks_lost_under_ddp(tmp_path):
    """Data-parallel replicas and several ranks a machine recover like shards do."""
    expected = undisturbed(tmp_path / "undisturbed", "ddp")
    two = {"num_machines": 2, "ranks_per_machine": 2}
    with training_cluster(tmp_path / "disturbed", "ram", "ddp", **two) as cluster:
        run = FailureRun(cluster, NUM_MACHINES)
        run.wait_for_step(6)
        run.inject("machine_loss", victim=1)
        assert restored_sources(cluster) == ["local", "local", "peer", "peer"]
        cluster.wait(TIMEOUT_S)
        assert count(cluster, "machine_lost") == 1
        assert run.fingerprints() == expected


def test_a_rank_that_hangs_is_killed_and_comes_back(tmp_path, expected):
    """SIGSTOP: it neither ends nor makes progress; all others wait for it."""
    with training_cluster(tmp_path, "ram", hang_timeout_s=10) as cluster:
        run = FailureRun(cluster, NUM_MACHINES)
        run.wait_for_step(6)
        frozen_s = cluster.freeze_rank(2)
        assert cluster.wait_for_event("rank_lost", after_s=frozen_s)["exit_code"] == -9
        cluster.wait(TIMEOUT_S)
        assert run.fingerprints() == expected


def test_one_failure_after_another(tmp_path, expected):
    """Each supporting process killed; an agent, then a machine, frozen for longer than the timeout.

    What was frozen missed the end of its generation, and learns of it when it is thawed.
    """
    with training_cluster(tmp_path, "ram") as cluster:
        run = FailureRun(cluster, NUM_MACHINES)
        run.wait_for_step(4)
        for strike in (
            "kill_agent",
            "kill_launched",
            "freeze_agent",
            "freeze_machine",
            "kill_root",  # last: the next one is on a machine, which must not be the frozen one
        ):
            struck_s = strike_at(cluster, strike, machine=1)
            formed = cluster.wait_for_event("generation_formed", after_s=struck_s)
            assert formed["recover_step"] >= committed_before(cluster, struck_s)
            assert not formed["drained"]
            cluster.wait_for_event("committed", after_s=formed["monotonic_s"])
        # At the end the root leaves with its machine, and those that end later look lost to it.
        assert count(cluster, "machine_lost") == 3
        assert count(cluster, "root_started") == 2
        assert count(cluster, "generation_formed") == 6
        cluster.wait(TIMEOUT_S)
        assert run.fingerprints() == expected


def strike_at(cluster, strike, machine):
    """Kill something, or freeze it until it counts as lost; return when that was."""
    if strike == "kill_root":
        return cluster.kill_root()
    if strike.startswith("kill"):
        return getattr(cluster, strike)(machine)
    frozen_s, frozen = getattr(cluster, strike)(machine)
    assert cluster.wait_for_event("machine_lost", after_s=frozen_s)["index"] == machine
    for process in frozen if isinstance(frozen, list) else [frozen]:
        process.resume()
    return frozen_s


def test_root_then_the_machine_of_the_next_root_lost_with_etcd(tmp_path, expected, etcd):
    """Ranks train on while another machine's root agent takes over their generation."""
    with training_cluster(tmp_path, "ram", endpoint=etcd.endpoint) as cluster:
        run = FailureRun(cluster, NUM_MACHINES)
        run.wait_for_step(4)
        killed_s = cluster.kill_root()
        cluster.wait_for_event("root_started", after_s=killed_s)
        adopted = cluster.wait_for_event("generation_adopted", after_s=killed_s)
        cluster.wait_for_event("committed", after_s=adopted["monotonic_s"])
        assert count(cluster, "generation_formed") == 1
        assert count(cluster, "generation_broken") == 0
        run.wait_for_step(8)
        victim = cluster.root_index()
        recovery = run.inject("machine_loss", victim)
        assert recovery.resumed_step >= committed_before(cluster, recovery.killed_s)
        assert restored_sources(cluster)[victim] == "peer"
        cluster.wait(TIMEOUT_S)
        assert count(cluster, "generation_formed") == 2
        assert run.fingerprints() == expected
