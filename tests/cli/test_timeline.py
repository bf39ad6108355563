"""The timeline of a job is what its root agent logged, failure by failure."""

import json

from twinckpt.cli import main

LOST = [
    {"event": "committed", "monotonic_s": 9.0, "step": 4},
    {"event": "machine_lost", "monotonic_s": 10.0, "machine": "b", "reason": "closed"},
    {"event": "generation_broken", "monotonic_s": 10.0, "reason": "machine 1 was lost"},
    {"event": "generation_formed", "monotonic_s": 10.5, "recover_step": 4},
    {"event": "committed", "monotonic_s": 12.25, "step": 5},
    {"event": "committed", "monotonic_s": 13.0, "step": 6},
]


def shown(tmp_path, capsys, events):
    """Return the command's status and output for a log."""
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    status = main(["timeline", str(path)])
    return status, capsys.readouterr().out.splitlines()


def test_a_recovery_ends_with_the_first_new_commit(tmp_path, capsys):
    """Times count from the detection; commits before and after belong to no failure."""
    status, lines = shown(tmp_path, capsys, LOST)
    assert status == 0
    assert lines[0] == "failure 1"
    assert [line.split(" s ")[0].strip() for line in lines[1:]] == [
        "0.000",
        "0.000",
        "0.500",
        "2.250",
    ]
    assert lines[-1].endswith("step=5")


def test_a_recovery_that_a_new_root_cut_off_stays_open(tmp_path, capsys):
    """Events of two roots are not subtracted from each other."""
    events = [*LOST[:3], {"event": "root_started", "monotonic_s": 1.0}, LOST[4]]
    _, lines = shown(tmp_path, capsys, events)
    assert lines[-1].strip() == "no new step was committed after it"


def test_what_is_no_log_is_refused(tmp_path, capsys):
    """Exit status 2 and one line on stderr."""
    path = tmp_path / "events.jsonl"
    path.write_text("nonsense\n")
    assert main(["timeline", str(path)]) == 2
    assert "is no event log" in capsys.readouterr().err
