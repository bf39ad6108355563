"""Draining to storage behind a URL: a real FTP server, and a job that drains to it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from twinckpt.agents.job_settings import JobSettings
from twinckpt.cli import main
from twinckpt.errors import ConfigurationError
from twinckpt.memory.drained import drained_steps, known, location, set_aside
from twinckpt.net.ports import free_port

pytest.importorskip("upath", reason="storage by URL needs twinckpt[storage]")
authorizers = pytest.importorskip("pyftpdlib.authorizers")
handlers = pytest.importorskip("pyftpdlib.handlers")
servers = pytest.importorskip("pyftpdlib.servers")

SCRIPT = Path(__file__).parent / "scripts" / "sharded.py"


@pytest.fixture
def served(tmp_path):
    """The URL of a directory that an FTP server serves."""
    (tmp_path / "served").mkdir()
    users = authorizers.DummyAuthorizer()
    users.add_user("user", "word", str(tmp_path / "served"), perm="elradfmwMT")
    handler = type("Handler", (handlers.FTPHandler,), {"authorizer": users})
    server = servers.ThreadedFTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"handle_exit": False})
    thread.start()
    yield f"ftp://user:word@127.0.0.1:{server.address[1]}/drained"
    server.close_all()
    thread.join()


def train(folder: Path, url: str, num_ranks: int) -> None:
    """Run the script, which drains every commit and resumes where the URL says."""
    options = [f"--nproc-per-node={num_ranks}", f"--master-port={free_port()}"]
    env = {"TWINCKPT_DRAIN_DIRECTORY": url, "TWINCKPT_DRAIN_EVERY_COMMITS": "1"}
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, str(SCRIPT), str(folder)],
        check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip


def test_storage_that_refuses_for_a_while_is_no_end_of_an_agent(served, caplog):
    """Its driver raises errors of its own kind."""
    assert known(location(served.replace("word", "no-word"))) == ((), 0)
    assert "cannot be read now" in caplog.text


@pytest.mark.cluster
def test_a_job_drains_to_a_url_and_resumes_from_it(served, tmp_path, capsys):
    """On another number of ranks; every checksum is verified over the network as well."""
    train(tmp_path, served, 2)
    steps = drained_steps(location(served))
    assert len(steps) == 2  # the older ones are deleted
    assert steps[-1] == 3
    assert main(["verify", served]) == 0
    assert "2 of 2 shards intact" in capsys.readouterr().out
    train(tmp_path, served, 3)
    assert (tmp_path / "progress-3-2").read_text() == str({"step": steps[-1], "rank": 0})
    set_aside(location(served), steps[-1])
    assert drained_steps(location(served)) == steps[:-1]


def test_a_url_without_a_driver_is_refused_before_the_job_starts():
    """With what can be done about it."""
    with pytest.raises(ConfigurationError, match="nowhere://"):
        JobSettings(drain_directory="nowhere://bucket")
