"""The Slurm profile as far as it can be tested without Slurm; with it: `test_on_slurm.py`."""

import importlib.util
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from twinckpt.experiments.config import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "workflow/profiles/slurm"


@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="snakemake-executor-plugin-slurm is not installed",
)
def test_snakemake_accepts_the_profile():
    """Its keys, the plugin's resources, and every measurement in the plan."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--nolock"]
    done = subprocess.run(
        [*command, "--workflow-profile", str(PROFILE), "--config", "name=of_this_test"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = set(re.findall(r"measuring (\w+) \(progress", done.stdout))
    assert measured == set(EXPERIMENTS)


@pytest.fixture
def cluster(tmp_path):
    """Commands in Slurm's and torchrun's place: srun runs its command once a node, here."""
    programs = {
        "scontrol": "printf 'node-a\\nnode-b\\nnode-c\\n'",
        "srun": """
            while [[ $1 = -* ]]; do shift; done
            SLURMD_NODENAME=node-a SLURM_NODEID=0 "$@"
            SLURMD_NODENAME=node-b SLURM_NODEID=1 "$@"
            SLURMD_NODENAME=node-c SLURM_NODEID=2 "$@"
        """,
        "torchrun": """
            spare=${TWINCKPT_WARM_SPARE:-0}
            echo "$TWINCKPT_HOST $spare $(wc -c <"$TWINCKPT_SECRET_FILE") $*"
        """,
    }
    for name, script in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node-[a-c]",
        "SLURM_NNODES": "3",
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "8",
    }


def train(cluster, folder, **environment):
    """Run the script as Slurm would on the first node; return what its nodes' torchruns said."""
    done = subprocess.run(
        ["bash", str(PROFILE / "train.sbatch"), "train.py", "--title", "two words"],
        cwd=folder, env={**cluster, **environment},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_node_runs_torchrun_under_its_own_name(cluster, tmp_path):
    """The first node is the endpoint, all share one secret, arguments arrive whole."""
    said = train(cluster, tmp_path)
    for line, node in zip(said, ("node-a", "node-b", "node-c"), strict=True):
        assert line.startswith(f"{node} 0 45 ")
        assert "--nnodes=3:3 --nproc-per-node=8" in line
        assert "--rdzv-backend=twinckpt --rdzv-endpoint=node-a:29400 --rdzv-id=7" in line
        assert line.endswith("-m twinckpt.run train.py --title two words")


def test_the_last_nodes_are_spares_where_some_are_asked_for(cluster, tmp_path):
    """The others are the machines that train, or at least so many of them."""
    said = train(cluster, tmp_path, SPARES="1", MIN_NODES="1")
    assert [line.split()[:2] for line in said] == [
        ["node-a", "0"],
        ["node-b", "0"],
        ["node-c", "1"],
    ]
    assert all("--nnodes=1:2" in line for line in said)


def test_the_secret_is_private_and_goes_with_the_job(cluster, tmp_path):
    """Nothing is left behind in the directory that the job ran in."""
    train(cluster, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
