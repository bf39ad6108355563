"""How `peers` uses this library beside its rivals."""

import pytest

from twinckpt.agents.local_cluster import ClusterConfig, LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

SCRIPT = """
import torch.distributed as dist
from twinckpt.checkpointer import Checkpointer
from twinckpt.experiments.ranks.rank import Rank
from twinckpt.experiments.ranks.rivals import Twinckpt

dist.init_process_group("gloo")
rank = Rank(1, 30)
with Checkpointer(rank.state) as checkpointer:
    checkpointer.save(0, block=True)
    ours = Twinckpt(checkpointer)
    for step in range(1, 30):
        ours.save(step)
        ours.fence()
    ours.finish()
    assert checkpointer.num_skipped == 0
dist.barrier()
dist.destroy_process_group()
"""


def test_steps_shorter_than_a_replication_have_a_checkpoint_each(tmp_path):
    """As of peers.size_mib=1: a save waits for the one before, as those of its rivals do."""
    program = tmp_path / "program.py"
    program.write_text(SCRIPT)
    with LocalCluster(ClusterConfig(2, max_restarts=0), [str(program)], tmp_path / "run") as job:
        job.wait(120)
