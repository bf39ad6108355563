"""An awkward script is killed again and again, whenever it is; nothing is lost, nothing is left.

`TWINCKPT_TEST_KILLS=50 pytest tests/run/test_kills.py` does it fifty times.
"""

import os
import random
from pathlib import Path

import pytest

from twinckpt.agents.local_cluster import ClusterConfig, LocalCluster
from twinckpt.experiments.disturbance import Disturber, role

NUM_KILLS = int(os.environ.get("TWINCKPT_TEST_KILLS", "8"))
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120 + 15 * NUM_KILLS)]
SCRIPT = str(Path(__file__).parent / "scripts" / "awkward.py")
TIMEOUT_S = 120
# From the middle of a recovery to the middle of training.
MOMENTS = ("generation_formed", "rank_started", "committed")
GROWTH_BYTES = 8 << 20


def held(cluster):
    """Return memory and descriptors of what outlives the ranks, by process."""
    processes = [p for name in cluster.machines for p in cluster.processes(name)]
    lasting = [p for p in processes if role(p) in ("torchrun", "agent", "parent")]
    return {p: (p.memory_info().rss, p.num_fds()) for p in lasting}


def test_killed_at_any_moment_it_goes_on(tmp_path):
    """Ranks, every fourth time a warm parent; the script itself checks its state at each step."""
    draw = random.Random(5)
    config = ClusterConfig(num_machines=2, max_restarts=10 * NUM_KILLS)
    command = ["-m", "twinckpt.run", SCRIPT, str(tmp_path)]
    with LocalCluster(config, command, tmp_path / "job") as cluster:
        disturber = Disturber(cluster, seed=5)
        struck_s = cluster.wait_for_event("committed", timeout_s=TIMEOUT_S)["monotonic_s"]
        before = {}
        for number in range(NUM_KILLS):
            moment = "committed" if number == 0 else draw.choice(MOMENTS)
            cluster.wait_for_event(moment, after_s=struck_s, timeout_s=TIMEOUT_S)
            before = before or held(cluster)
            kind = "parent_loss" if number % 4 == 3 else "rank_loss"
            struck_s = disturber.strike(kind).struck_s
        cluster.wait_for_event("committed", after_s=struck_s, timeout_s=TIMEOUT_S)
        after = held(cluster)
        for process in before.keys() & after.keys():
            (rss, fds), (rss_before, fds_before) = after[process], before[process]
            assert rss - rss_before < GROWTH_BYTES, process.cmdline()
            assert fds <= fds_before + 2, process.cmdline()
        (tmp_path / "stop").touch()
        cluster.wait(TIMEOUT_S)
        cluster.wait_until(
            lambda: [role(p) for p in cluster.processes_of_job()] == ["root"],
            timeout_s=TIMEOUT_S,
            what="end of all processes but the operator's root agent",
        )
    ends = [int((tmp_path / f"ended-{rank}").read_text()) for rank in range(2)]
    assert ends[0] == ends[1]
