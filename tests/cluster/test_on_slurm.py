"""`train.sbatch` on a real Slurm, whose nodes are emulated hosts of this machine."""

import os
import sys
from pathlib import Path

import pytest
from slurm import SlurmCluster, why_not

from helpers import wait_until

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]

SBATCH = Path(__file__).parents[2] / "workflow/profiles/slurm/train.sbatch"
SCRIPT = Path(__file__).parent / "scripts/until_told.py"
NODES = ["node1", "node2", "node3"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes; the last test loses one."""
    with SlurmCluster(tmp_path_factory.mktemp("slurm"), NODES) as cluster:
        yield cluster


@pytest.fixture
def train(cluster, tmp_path):
    """Submit a training that ends once there is a file `end`; returns when it has begun."""

    def submit(*options, **environment):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        arguments = (SBATCH, SCRIPT, tmp_path, "two  words", '$HOME "q"')
        where = (f"--chdir={tmp_path}", f"--output={tmp_path}/output")
        job = cluster.submit(
            *where, *options, *map(str, arguments), PATH=path, OMP_NUM_THREADS="1", **environment
        )
        wait_until((tmp_path / "trains").exists, "committed steps", timeout_s=120.0)
        return job

    yield submit
    for name in ("output", "lives"):
        if (tmp_path / name).exists():
            print((tmp_path / name).read_text())


def lives(folder):
    """Return where ranks began, and from which checkpoint."""
    return sorted((folder / "lives").read_text().splitlines())


def wait_until_nothing_is_left(cluster, nodes, folder):
    """No process of the job, and no secret."""
    for node in nodes:
        wait_until(lambda node=node: not cluster.processes(node), f"silence on {node}")
    assert not list(folder.glob(".twinckpt-secret-*"))


def test_a_job_that_is_cancelled_leaves_nothing_behind(cluster, train, tmp_path):
    """Slurm here ends what it started, and not the agents, which are others' children."""
    job = train("--nodes=2")
    cluster.cancel(job)
    assert cluster.wait_for_end(job) == "CANCELLED"
    wait_until_nothing_is_left(cluster, NODES, tmp_path)


def test_a_spare_takes_the_place_of_a_node_that_dies_and_the_job_ends_well(
    cluster, train, tmp_path
):
    """Though Slurm gives the node up and takes it out of the job."""
    job = train("--nodes=3", SPARES="1")
    assert lives(tmp_path) == ["node1 nothing", "node2 nothing"]
    cluster.kill("node2")
    begun_again = ["node1 local", "node1 nothing", "node2 nothing", "node3 peer"]
    wait_until(lambda: lives(tmp_path) == begun_again, "a recovery")
    node_failure = "Node failure on node2"
    wait_until(lambda: node_failure in (tmp_path / "output").read_text(), node_failure)
    (tmp_path / "end").touch()
    assert cluster.wait_for_end(job) == "COMPLETED"
    wait_until_nothing_is_left(cluster, ["node1", "node3"], tmp_path)
