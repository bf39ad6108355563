"""A job that runs is asked what it does: by `twinckpt status`, and by Prometheus."""

import contextlib
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from twinckpt.agents.config import RootAgentConfig, WorkerAgentConfig, to_json
from twinckpt.agents.launch import connect_to_agent
from twinckpt.agents.metrics_endpoint import as_text
from twinckpt.agents.process import start_root_agent, start_worker_agent
from twinckpt.agents.status import StatusBoard
from twinckpt.cli import main
from twinckpt.core.root import Root, RootConfig
from twinckpt.experiments.agent_cluster import next_message
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.net.bulk import BulkServer
from twinckpt.net.local import LauncherBroken, LauncherFormed, LauncherJoin, RootQuestion
from twinckpt.net.ports import free_port

JOB = """
import sys, torch
from twinckpt import Checkpointer
weight = torch.rand(100)
with Checkpointer({"weight": weight, "plain": {"x": 1}}) as checkpointer:
    for step in range(1, 4):
        checkpointer.save(step, block=True)
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def job():
    """The environment of a job in another process, with its secret and metrics port."""
    port = free_port()
    environment = {
        **os.environ,
        "TWINCKPT_SECRET": secrets.token_hex(32),
        "TWINCKPT_METRICS_PORT": str(port),
        "TWINCKPT_FAILURE_DOMAIN": "rack-7",
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", JOB], env=environment, **pipes)
    assert process.stdout.readline() == "ready\n"
    yield environment
    process.communicate("\n", timeout=60)


@pytest.fixture
def as_job(job, monkeypatch):
    monkeypatch.setenv("TWINCKPT_SECRET", job["TWINCKPT_SECRET"])


@pytest.mark.usefixtures("as_job")
def test_status_finds_the_job_of_this_machine(capsys):
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("running: generation 1, 1 machines, 1 ranks")
    assert "committed step 3" in shown
    assert "domain rack-7" in shown
    assert "0 skipped, 0 failed" in shown


@pytest.mark.usefixtures("as_job")
def test_status_as_json_has_every_fact(capsys):
    assert main(["status", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["committed_step"] == 3
    assert status["num_commits"] == 3
    assert status["machines"][0]["index"] == 0


@pytest.mark.usefixtures("as_job")
def test_of_several_jobs_on_this_machine_one_has_to_be_named(job, capsys):
    """They share the user's secret file, say; choosing one at random would mislead."""
    environment = {**job, "TWINCKPT_METRICS_PORT": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", JOB], env=environment, **pipes) as other:
        assert other.stdout.readline() == "ready\n"
        assert main(["status"]) == 2
        said = capsys.readouterr().err
        other.communicate("\n", timeout=60)
    endpoints = re.findall(r"[\d.]+:\d+", said)
    assert "several jobs" in said
    assert len(set(endpoints)) == 2


@pytest.mark.usefixtures("as_job")
def test_status_finds_the_job_beside_sockets_of_any_name():
    """Anybody on the machine may have one that is no text."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"\0{secrets.token_hex(4)}".encode() + b"\xff\xfe")
        assert main(["status"]) == 0


def test_another_jobs_secret_finds_nothing(job, monkeypatch, capsys):
    monkeypatch.setenv("TWINCKPT_SECRET", "x" * 32)
    assert main(["status"]) == 2
    assert "TWINCKPT_SECRET" in capsys.readouterr().err


def test_the_port_of_a_worker_agent_is_no_endpoint(monkeypatch, capsys):
    """Its answer to the question is of another kind."""
    monkeypatch.setenv("TWINCKPT_SECRET", "s" * 32)
    server = BulkServer(InMemoryCheckpoint(), b"s" * 32, "127.0.0.1")
    assert main(["status", f"127.0.0.1:{server.port}"]) == 2
    server.close()
    assert "no root agent: give the job's --rdzv-endpoint" in capsys.readouterr().err


def test_an_endpoint_without_a_job_is_told_so(capsys):
    assert main(["status", f"127.0.0.1:{free_port()}"]) == 2
    assert "no job answers" in capsys.readouterr().err
    assert main(["status", "nonsense"]) == 2
    assert "no HOST:PORT" in capsys.readouterr().err


def test_prometheus_can_scrape_the_root_agent(job):
    address = f"http://127.0.0.1:{job['TWINCKPT_METRICS_PORT']}"
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    values = dict(re.findall(r"^(twinckpt_\w+) (\S+)$", text, re.MULTILINE))
    assert values["twinckpt_committed_step"] == "3"
    assert values["twinckpt_up_to_date"] == "1"
    assert values["twinckpt_failed_saves_total"] == "0"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/other", timeout=10)


def test_a_counter_is_scraped_whole():
    """Rounded to six digits, a million saves would count as none for a while."""
    board = StatusBoard(Root(RootConfig()))
    board.note("save_counts", {"rank": 0, "saves": 12_345_678, "skipped": 0, "failed": 0})
    assert "twinckpt_saves_total 12345678\n" in as_text(board.status())


@pytest.mark.parametrize("seconds", ["-1", "0", "nan"])
def test_watching_without_a_pause_is_refused(capsys, seconds):
    assert main(["status", "--watch", seconds, "127.0.0.1:1"]) == 2
    assert "seconds above 0" in capsys.readouterr().err


def test_an_endpoint_after_watch_is_told_where_it_belongs(capsys):
    """`--watch` takes what follows it for its seconds."""
    with pytest.raises(SystemExit):
        main(["status", "--watch", "127.0.0.1:1"])
    assert "the endpoint comes before --watch" in capsys.readouterr().err


def test_watching_goes_on_until_ctrl_c_when_the_job_falls_silent(monkeypatch, until, tmp_path):
    """Another root agent takes over, say: that is what one wants to see. A file gets no escapes."""
    monkeypatch.setenv("TWINCKPT_SECRET", "s" * 32)
    port = free_port()
    config = RootAgentConfig("127.0.0.1", port, watched=(os.getpid(),))
    shown, said = tmp_path / "shown", tmp_path / "said"
    # What a shell starts in the background ignores Ctrl-C, and so does what that starts.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeding}; import sys; from twinckpt.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "status", f"127.0.0.1:{port}", "--watch=0.1"]
    with start_root_agent(config, b"s" * 32) as root, shown.open("w") as out, said.open("w") as err:
        until(lambda: main(["status", f"127.0.0.1:{port}"]) != 2, "root agent")
        with subprocess.Popen(command, stdout=out, stderr=err) as watch:
            until(lambda: "forming" in shown.read_text(), "first status")
            root.kill()
            until(lambda: said.read_text().count("no job answers") > 1, "message")
            with start_root_agent(config, b"s" * 32) as another:
                length = len(shown.read_text())
                until(lambda: "forming" in shown.read_text()[length:], "status of the other")
                another.kill()
            watch.send_signal(signal.SIGINT)
            assert watch.wait(30) == 128 + signal.SIGINT
    assert "Traceback" not in said.read_text()
    assert "\033" not in shown.read_text()


@pytest.mark.parametrize("endpoint", ["[::1]:1", "::1:1", "127.0.0.1:1"])
def test_an_endpoint_may_be_ipv6(endpoint, capsys):
    """Written as in --rdzv-endpoint; nobody listens at this one."""
    assert main(["status", endpoint]) == 2
    said = capsys.readouterr().err
    assert "no job answers at" in said
    assert "not known" not in said


@pytest.mark.parametrize("endpoint", ["host", ":1", "host:0", "host:65536"])
def test_an_endpoint_without_a_port_is_refused(endpoint, capsys):
    assert main(["status", endpoint]) == 2
    assert f"{endpoint!r} is no HOST:PORT" in capsys.readouterr().err


def test_saves_before_a_restart_are_counted_too():
    """A rank that is restarted counts from zero; commits go on, and a counter must not fall."""
    board = StatusBoard(Root(RootConfig()))
    for saves in (5, 50):
        board.note("save_counts", {"rank": 0, "saves": saves, "skipped": 2, "failed": 1})
    board.note("rank_started", {"rank": 0, "pid": 1})
    board.note("save_counts", {"rank": 0, "saves": 60, "skipped": 1, "failed": 0})
    status = board.status()
    assert (status.num_saves, status.num_skipped, status.num_failed) == (110, 3, 1)


def test_who_is_refused_again_and_again_is_logged_once(monkeypatch, until):
    """A machine with another secret calls ten times a second, for as long as it is told to wait."""
    monkeypatch.setenv("TWINCKPT_SECRET", "s" * 32)
    port = free_port()
    config = to_json(RootAgentConfig("127.0.0.1", port, watched=(os.getpid(),)))
    command = [sys.executable, "-m", "twinckpt.agents.root", config]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as root:
        until(lambda: main(["status", f"127.0.0.1:{port}"]) != 2, "root agent")
        monkeypatch.setenv("TWINCKPT_SECRET", "x" * 32)
        for _ in range(5):
            assert main(["status", f"127.0.0.1:{port}"]) == 2
        root.terminate()
        messages = root.communicate(timeout=30)[1].splitlines()
    assert len([line for line in messages if "refused 127.0.0.1: the caller" in line]) == 1


def test_a_machine_with_other_settings_is_named(monkeypatch):
    """Two replicas were asked for there; one counts, and the user hears of it."""
    monkeypatch.setenv("TWINCKPT_SECRET", "s" * 32)
    port = free_port()
    config = to_json(
        RootAgentConfig("127.0.0.1", port, RootConfig(replicas=1), watched=(os.getpid(),))
    )
    command = [sys.executable, "-m", "twinckpt.agents.root", config]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as root:
        for name, replicas in (("same", 1), ("other", 2)):
            start_worker_agent(
                WorkerAgentConfig(
                    machine=name,
                    socket_name=f"twinckpt-test-{port}-{name}",
                    root_host="127.0.0.1",
                    root_port=port,
                    watched=(root.pid,),
                    job=RootConfig(replicas=replicas),
                )
            )
        message = root.stderr.readline()
        root.terminate()
    assert (
        "machine other was started with replicas=2, but this root agent with replicas=1" in message
    )


@pytest.mark.parametrize(("run_id", "is_refused"), [("two", True), ("one", False), ("none", False)])
def test_a_machine_of_another_job_is_refused(run_id, is_refused, monkeypatch):
    """Otherwise it would wait for the end of that job, or join it where machines may join."""
    monkeypatch.setenv("TWINCKPT_SECRET", "s" * 32)
    port = free_port()
    config = to_json(RootAgentConfig("127.0.0.1", port, watched=(os.getpid(),), run_id="one"))
    name = f"twinckpt-test-{port}"
    with subprocess.Popen([sys.executable, "-m", "twinckpt.agents.root", config]) as root:
        start_worker_agent(
            WorkerAgentConfig(name, name, "127.0.0.1", port, watched=(root.pid,), run_id=run_id)
        )
        link = connect_to_agent(name, b"s" * 32)
        link.send(LauncherJoin("127.0.0.1:1", None, 1, 1))
        # A heartbeat that meets the closed connection may cost the refusal: it comes with the next.
        answer, _ = next_message(link, LauncherBroken, LauncherFormed)
        root.terminate()
    if is_refused:
        assert answer == LauncherBroken(
            "'one' runs here, not 'two' (--rdzv-id): give it an --rdzv-endpoint of its own", True
        )
    else:
        assert isinstance(answer, LauncherFormed)


def test_a_machine_whose_root_does_not_hold_its_secret_ends():
    """Waiting cannot help: another job has the port, or this machine has another secret."""
    port = free_port()
    config = RootAgentConfig("127.0.0.1", port, watched=(os.getpid(),))
    with start_root_agent(config, b"s" * 32) as root:
        answer = join(port, watched=(root.pid,))
        root.terminate()
    assert answer.is_final
    assert "the peer closed the connection; is TWINCKPT_SECRET here what the job has" in (
        answer.reason
    )


def test_a_machine_whose_root_is_something_else_ends():
    """A service that was there before, say."""
    with socket.create_server(("127.0.0.1", 0)) as service:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    service.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.2p1" * 10)

        threading.Thread(target=serve, daemon=True).start()
        answer = join(service.getsockname()[1], watched=(os.getpid(),))
    assert answer.is_final
    assert "and is the port the job's?" in answer.reason


def test_a_lost_root_and_a_killed_rank_are_no_riddles_on_the_terminal(tmp_path, until):
    """The first is said in words; the second, which has not read all messages, is no warning."""
    port, log = free_port(), tmp_path / "log"
    name = f"twinckpt-test-{port}"
    config = RootAgentConfig("127.0.0.1", port, watched=(os.getpid(),))
    worker = WorkerAgentConfig(
        name, name, "127.0.0.1", port, watched=(os.getpid(),), log_file=str(log)
    )
    with (
        start_root_agent(config, b"s" * 32) as root,
        start_worker_agent(worker, b"s" * 32) as agent,
    ):
        link = connect_to_agent(name, b"s" * 32)
        link.send(LauncherJoin("127.0.0.1:1", None, 1, 1))
        assert select.select([link.fileno()], [], [], 60)[0]  # an answer, and nobody reads it
        root.kill()
        until(lambda: f"127.0.0.1:{port}: it closed it" in log.read_text(), "message")
        link.close()
        other = connect_to_agent(name, b"s" * 32)
        other.send(RootQuestion())
        other.receive(30.0)
        agent.kill()
    assert "WARNING" not in log.read_text()


def join(port, watched):
    """Return what a machine is told that wants to join the job at this port."""
    name = f"twinckpt-test-{port}"
    worker = WorkerAgentConfig(name, name, "127.0.0.1", port, watched=watched)
    with start_worker_agent(worker, b"x" * 32) as agent:
        link = connect_to_agent(name, b"x" * 32)
        link.send(LauncherJoin("127.0.0.1:1", None, 1, 1))
        answer = link.receive(30.0)[0]
        agent.kill()
    return answer
