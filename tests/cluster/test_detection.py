"""Detection at default settings: no false alarm under full load, and no silence missed."""

import multiprocessing
import os
import signal
import time

import pytest
from faulty_cluster import FaultyCluster

from helpers import wait_until
from twinckpt.agents.job_settings import JobSettings

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

LOAD_S = 8.0
PROCESSES_A_CORE = 2


@pytest.fixture
def cluster(tmp_path):
    """Three machines with real agents and a root at default timeouts."""
    timeout_s = JobSettings().heartbeat_timeout_s
    with FaultyCluster(tmp_path / "cluster", heartbeat_timeout_s=timeout_s) as cluster:
        cluster.checkpoint()
        yield cluster


def burn(until_s: float) -> None:
    """Keep a core busy."""
    while time.monotonic() < until_s:
        sum(range(10_000))


def test_no_machine_is_given_up_while_all_cores_are_busy(cluster):
    """Slow is not dead: checkpoints go on, later than otherwise."""
    until_s = time.monotonic() + LOAD_S
    context = multiprocessing.get_context("forkserver")
    num_busy = PROCESSES_A_CORE * (os.cpu_count() or 1)
    busy = [context.Process(target=burn, args=(until_s,), daemon=True) for _ in range(num_busy)]
    for process in busy:
        process.start()
    begun_at = len(cluster.events)
    while time.monotonic() < until_s:
        cluster.checkpoint()
    for process in busy:
        process.join()
    assert cluster.logged("committed", begun_at)
    for alarm in ("machine_lost", "rank_lost", "generation_broken"):
        assert cluster.logged(alarm, begun_at) == []


def test_a_silent_machine_is_found_after_the_timeout_and_soon_after_it(cluster):
    """The others are heard all the time; a dead connection is found much sooner than silence."""
    timeout_s = JobSettings().heartbeat_timeout_s
    silent, _, dead = cluster.machines
    silent.signal_agent(signal.SIGSTOP)
    dead.signal_agent(signal.SIGKILL)
    wait_until(lambda: len(cluster.logged("machine_lost")) == 2, "both losses")
    first, second = cluster.logged("machine_lost")
    assert (first["index"], second["index"]) == (2, 0)
    assert second["reason"] == f"no heartbeat for {timeout_s} s"
    assert first["silent_s"] < timeout_s <= second["silent_s"]
