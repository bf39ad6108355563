"""JSON lines survive the death of their writer."""

from pathlib import Path

import pytest

from twinckpt.results.jsonl import JsonLines, last_event, read_jsonl


def test_events_are_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    """Each line is flushed, stamped with both clocks, and read back in order."""
    lines = JsonLines(tmp_path / "deep" / "rank0.jsonl")
    lines.write("step", step=1)
    lines.write("step", step=2, monotonic_s=7.0)
    events = read_jsonl(tmp_path / "deep" / "rank0.jsonl")
    lines.close()
    assert [event["step"] for event in events] == [1, 2]
    assert events[1]["monotonic_s"] == 7.0
    assert {"event", "monotonic_s", "wall_s"} <= events[0].keys()


def test_last_line_cut_off_is_left_out(tmp_path: Path) -> None:
    """A process killed while writing loses its last event only."""
    path = tmp_path / "rank0.jsonl"
    path.write_text('{"event": "step", "step": 1}\n{"event": "st')
    assert [event["step"] for event in read_jsonl(path)] == [1]


def test_broken_line_inside_is_an_error(tmp_path: Path) -> None:
    """Damage before the last line names file and line."""
    path = tmp_path / "rank0.jsonl"
    path.write_text('{"event": "a"}\nnonsense\n{"event": "b"}\n')
    with pytest.raises(ValueError, match=r"rank0\.jsonl:2"):
        read_jsonl(path)


def test_last_event_is_found_without_reading_the_whole_file(tmp_path: Path) -> None:
    """The last whole line is returned, or None while there is no file or line."""
    path = tmp_path / "rank0.jsonl"
    assert last_event(path) is None
    path.write_text('{"event": "cut')
    assert last_event(path) is None
    path.write_text('{"event": "first"}\n' * 5000 + '{"event": "last"}\n{"event": "cut')
    assert last_event(path) == {"event": "last"}
