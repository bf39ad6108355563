"""A bit that flips in a resident copy is found, and the copy is fetched again."""

import contextlib
import os
from pathlib import Path

import psutil
import pytest

from twinckpt.experiments.agent_cluster import AgentCluster
from twinckpt.results.jsonl import read_jsonl

SHARD_BYTES = 300_000
TIMEOUT_S = 30.0


def resident_copies(contents):
    """Paths of all slots of this process's agents that hold these bytes."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        for path in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                if "twinckpt-slot" in os.readlink(path) and path.read_bytes().startswith(contents):
                    found[path.stat().st_ino] = path
    return list(found.values())


def flip_a_bit(path, position):
    with path.open("r+b", buffering=0) as memory:
        memory.seek(position)
        byte = memory.read(1)[0]
        memory.seek(position)
        memory.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("position", [0, 290_000])
def test_a_damaged_copy_is_repaired_while_nobody_asks_for_it(tmp_path, position, until):
    with AgentCluster(2, 2, "ring", SHARD_BYTES, tmp_path) as cluster:
        step = cluster.checkpoint()
        contents = cluster._contents(1, step)
        copies = resident_copies(contents)
        assert len(copies) == 2  # its own machine's, and the peer's
        flip_a_bit(copies[0], position)
        until(lambda: len(resident_copies(contents)) >= 2, "repaired copy", TIMEOUT_S)
        events = read_jsonl(tmp_path / "events" / "root.jsonl")
        assert [e["rank"] for e in events if e["event"] == "copy_lost"] == [1]
        assert cluster.lose([0]) == step
