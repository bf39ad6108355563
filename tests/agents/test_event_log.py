"""Where agents write their events, and that a log that cannot be written stops nobody."""

import json
import logging

from twinckpt.agents.event_log import EventLog, EventReader, file_of, with_former
from twinckpt.results.jsonl import read_jsonl


def test_a_directory_holds_a_file_for_each_agent(tmp_path):
    assert file_of(str(tmp_path), "root") == str(tmp_path / "root.jsonl")
    assert file_of(str(tmp_path / "not_there_yet"), "a/b").endswith("not_there_yet/a_b.jsonl")


def test_a_file_is_the_root_agents_alone(tmp_path):
    path = str(tmp_path / "events.jsonl")
    assert file_of(path, "root") == path
    assert file_of(path, "machine-1") == ""
    assert file_of("", "root") == ""


def test_events_are_appended_to_what_a_former_agent_wrote(tmp_path):
    for generation in (1, 2):
        log = EventLog(str(tmp_path / "new" / "root.jsonl"), agent="root")
        log.write("formed", {"generation": generation})
    lines = (tmp_path / "new" / "root.jsonl").read_text().splitlines()
    assert [json.loads(line)["generation"] for line in lines] == [1, 2]


def test_a_line_that_was_cut_off_does_not_spoil_those_of_the_next_agent(tmp_path):
    """As on a full disk: no command could read the log any more."""
    path = tmp_path / "root.jsonl"
    EventLog(str(path), agent="root").write("formed", {"generation": 1})
    with path.open("a") as file:
        file.write('{"event": "comm')
    EventLog(str(path), agent="root").write("formed", {"generation": 2})
    assert [event["generation"] for event in read_jsonl(path)] == [1, 2]


def test_a_log_has_a_limit_and_the_events_before_the_newest_are_kept_beside_it(tmp_path):
    """Otherwise it would fill the disk in the end."""
    path = tmp_path / "root.jsonl"
    log = EventLog(str(path), max_bytes=1000, agent="root")
    for generation in range(50):
        log.write("formed", {"generation": generation})
    former, newest = with_former(path)
    assert newest == path
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 1500
    kept = [
        json.loads(line)["generation"]
        for line in (former.read_text() + newest.read_text()).splitlines()
    ]
    assert kept == list(range(kept[0], 50))
    assert 5 < len(kept) < 15


def test_a_log_that_cannot_be_written_is_given_up_with_a_warning(tmp_path, caplog):
    """From the start, or later when the disk is full."""
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        EventLog(str(tmp_path / "file" / "root.jsonl")).write("formed", {})
        full = EventLog("/dev/full")
        for _ in range(3):
            full.write("formed", {})
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"no more events in {tmp_path}/file/root.jsonl",
        "no more events in /dev/full",
    ]


def test_a_log_can_be_read_while_it_is_written(tmp_path):
    """A reader may start before the file exists; the last line counts once it is whole."""
    path = tmp_path / "root.jsonl"
    reader = EventReader(path)
    assert reader.events == []
    with path.open("wb", buffering=0) as file:
        file.write(b'{"event": "formed"}\n{"event": "ge\xc3')
        assert reader.events == [{"event": "formed"}]
        file.write(b'\xa4ndert"}\n')
        assert reader.events == [{"event": "formed"}, {"event": "ge\u00e4ndert"}]
