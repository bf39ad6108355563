"""The timeline of a job is what its agents logged, failure by failure."""

import json

import pytest

from twinckpt.analysis.recoveries import failures, read
from twinckpt.cli import main
from twinckpt.experiments.agent_cluster import AgentCluster

LOST = [
    {"event": "committed", "monotonic_s": 9.0, "step": 4},
    {"event": "machine_lost", "monotonic_s": 10.0, "machine": "b", "reason": "closed"},
    {"event": "generation_broken", "monotonic_s": 10.0, "reason": "machine 1 was lost"},
    {"event": "generation_formed", "monotonic_s": 10.5, "recover_step": 4},
    {"event": "committed", "monotonic_s": 12.25, "step": 5},
    {"event": "committed", "monotonic_s": 13.0, "step": 6},
]
PHASES = ["detect", "replace", "decide", "restart", "retrieve", "first_step"]


def shown(tmp_path, capsys, events):
    """Return the command's status and output for a log."""
    path = tmp_path / "events.jsonl"
    write(path, events)
    status = main(["timeline", str(path)])
    return status, capsys.readouterr().out.splitlines()


def write(path, events):
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_a_recovery_ends_with_the_first_new_commit(tmp_path, capsys):
    """Times count from the detection; commits before and after belong to no failure."""
    status, lines = shown(tmp_path, capsys, LOST)
    assert status == 0
    assert lines[0].startswith("failure 1: machine b lost; ")
    assert lines[0].endswith("decide 0.500 s; first step 1.750 s")
    assert [line.split(" s ")[0].strip() for line in lines[1:]] == [
        "0.000",
        "0.000",
        "0.500",
        "2.250",
    ]
    assert lines[-1].endswith("step=5")


@pytest.mark.parametrize("given", ["", "events.jsonl"])
def test_a_log_that_was_put_aside_is_read_before_the_one_that_followed(tmp_path, capsys, given):
    """Whether the directory is given, or the file."""
    write(tmp_path / "events.former.jsonl", LOST[:3])
    write(tmp_path / "events.jsonl", LOST[3:])
    assert main(["timeline", str(tmp_path / given)]) == 0
    assert "machine b lost; detect 0.000 s; decide 0.500 s; first" in capsys.readouterr().out


def test_the_loss_of_a_rank_is_not_that_of_its_machine(tmp_path, capsys):
    lost = {"event": "rank_lost", "monotonic_s": 10.0, "machine": "b", "rank": 1, "exit_code": -9}
    _, lines = shown(tmp_path, capsys, [LOST[0], lost, *LOST[2:]])
    assert lines[0].startswith("failure 1: rank 1 of machine b lost; ")


def test_a_recovery_that_a_new_root_cut_off_stays_open(tmp_path, capsys):
    """Events of two roots are not subtracted from each other."""
    events = [*LOST[:3], {"event": "root_started", "monotonic_s": 1.0}, LOST[4]]
    _, lines = shown(tmp_path, capsys, events)
    assert lines[-1].strip() == "no new step was committed after it"


@pytest.mark.parametrize(
    "text",
    ["nonsense\n", '"a line"\n', '{"event": "rank_lost"}\n', "[" * 200_000 + "\n"],
    ids=["text", "string", "fields", "depth"],
)
def test_what_is_no_log_is_refused(tmp_path, capsys, text):
    """Exit status 2 and one line on stderr."""
    path = tmp_path / "events.jsonl"
    path.write_text(text)
    assert main(["timeline", str(path)]) == 2
    assert "is no event log" in capsys.readouterr().err


def test_a_binary_file_is_not_shown(tmp_path, capsys):
    """One short line, not its bytes."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\xff\xfe\x00" * 10_000)
    assert main(["timeline", str(path)]) == 2
    said = capsys.readouterr().err
    assert "is no event log" in said
    assert len(said) < 300 + len(str(path))


def test_a_place_without_logs_is_refused(tmp_path, capsys):
    for arguments in ([str(tmp_path)], [str(tmp_path / "nowhere")]):
        assert main(["timeline", *arguments]) == 2
        assert "is no event log" in capsys.readouterr().err


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    """The logs of three machines of which one was lost and replaced."""
    run_dir = tmp_path_factory.mktemp("recovered")
    with AgentCluster(3, 2, "ring", 100_000, run_dir) as cluster:
        cluster.checkpoint()
        cluster.lose([1])
        cluster.checkpoint()
    return run_dir / "events"


def test_a_line_that_is_being_written_is_left_for_the_next_time(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    write(path, LOST)
    path.write_text(path.read_text() + '{"event": "comm')
    assert main(["timeline", str(path)]) == 0
    assert "failure 1" in capsys.readouterr().out


def test_every_agent_has_a_log_and_every_line_says_who_and_when(recovered):
    logs = read([recovered])
    assert len(logs) == 1 + 3 + 1  # the root's, the first machines', the replacement's
    for event in (event for log in logs for event in log):
        assert {"event", "agent", "generation", "monotonic_s", "wall_s", "clock"} <= set(event)
        assert event["agent"] == "root" or event["machine"]
    committed = [event for log in logs for event in log if event["event"] == "committed"]
    assert {event["step"] for event in committed} == {1, 2}


def test_a_real_recovery_is_taken_apart_into_phases_that_follow_each_other(recovered):
    failure = failures(read([recovered]))[0]
    assert [span.phase for span in failure.job] == PHASES
    assert all(a.end_s == b.begin_s for a, b in zip(failure.job, failure.job[1:], strict=False))
    assert len(failure.machines) == 3
    for spans in failure.machines.values():
        assert [span.phase for span in spans] == PHASES[3:]
    sources = [m.event["source"] for m in failure.moments if m.event["event"] == "restore_served"]
    assert sorted(sources) == ["local", "local", "peer"]


def test_machines_of_other_hosts_are_put_on_the_roots_clock(recovered, tmp_path):
    """By what both saw: as if each machine had started at another time, nothing else changes."""
    here = failures(read([recovered]))[0]
    for number, path in enumerate(sorted(recovered.glob("*.jsonl"))):
        events = read([path])[0]
        if path.name != "root.jsonl":
            for event in events:
                event["clock"] = f"host {number}"
                event["monotonic_s"] += 1000.0 * number
        write(tmp_path / path.name, events)
    there = failures(read([tmp_path]))[0]
    assert there.machines.keys() == here.machines.keys()
    for name, spans in there.machines.items():
        assert there.error_s[name] > 0
        for span, expected in zip(spans, here.machines[name], strict=True):
            assert abs(span.begin_s - expected.begin_s) <= there.error_s[name]


def test_a_recovery_is_drawn(recovered, tmp_path, capsys):
    out = tmp_path / "timeline.svg"
    assert main(["timeline", str(recovered), "--failure", "1", "--out", str(out)]) == 0
    assert out.read_text().rstrip().endswith("</svg>")
    assert "drawn" in capsys.readouterr().out
    assert main(["timeline", str(recovered), "--out", str(tmp_path / "timeline.txt")]) == 2
    assert "must end in" in capsys.readouterr().err
    assert main(["timeline", str(recovered), "--failure", "7"]) == 2
    assert "counted from 1" in capsys.readouterr().err
