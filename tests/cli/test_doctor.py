"""`twinckpt doctor` on this machine, and on one that lacks something."""

import socket

from twinckpt.cli import main
from twinckpt.memory.slot import available_bytes


def test_a_machine_that_runs_these_tests_can_do_it(capsys):
    """Every check is named, none fails."""
    assert main(["doctor", "--shard-mib", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("fail") for line in lines)
    for what in (
        "kernel",
        "memory",
        "open files",
        "huge pages",
        "port",
        "secret",
        "torchrun",
        "copies",
    ):
        assert any(what in line for line in lines), what


def test_slots_that_do_not_fit_fail_with_the_sum(capsys):
    """Replicas x slots x ranks x shard, against what is free."""
    too_many_mib = available_bytes() // (1 << 20) // 4 + 1024
    assert main(["doctor", "--shard-mib", str(too_many_mib)]) == 1
    line = next(x for x in capsys.readouterr().out.splitlines() if "memory" in x)
    assert line.startswith("fail")
    assert f"{4 * too_many_mib:,} MiB" in line


def test_a_taken_port_is_said(capsys):
    """It may be the user's own job: a warning."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["doctor", "--port", str(port)]) == 0
    assert f"warn  port {port}" in capsys.readouterr().out


def test_a_secret_that_is_too_short_fails(monkeypatch, capsys):
    """With what would be right."""
    monkeypatch.setenv("TWINCKPT_SECRET", "short")
    assert main(["doctor"]) == 1
    assert "fail  secret" in capsys.readouterr().out


def test_impossible_arguments_end_in_one_line(capsys):
    """Exit status 2."""
    assert main(["doctor", "--ranks", "0"]) == 2
    assert "--ranks must be at least 1" in capsys.readouterr().err


def test_an_impossible_port_is_refused(capsys):
    for port in ("0", "65536"):
        assert main(["doctor", "--port", port]) == 2
        assert "--port must be between 1 and 65535" in capsys.readouterr().err


def test_slow_copies_are_said(monkeypatch, capsys):
    monkeypatch.setattr("twinckpt.checkpointer.moving.STREAMS", False)
    assert main(["doctor"]) == 0
    assert "warn  copies: by memmove" in capsys.readouterr().out
