"""Events as JSON lines, one file per process, each line flushed as it is written.

A process may be killed at any moment: whole lines survive, and `read_jsonl` leaves out the
last one if it was cut off.
"""

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TAIL_BYTES = 1 << 14


def rank_log(run_dir: Path, rank: int) -> Path:
    """Return the path of a rank's log in a run."""
    return run_dir / "ranks" / f"rank-{rank}.jsonl"


class JsonLines:
    """Appends events to `path`. Each file has one writer."""

    def __init__(self, path: Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with `monotonic_s` (comparable on one host) and `wall_s`.

        A caller that took the time itself passes `monotonic_s`, which is kept.
        """
        record = {"event": event, "monotonic_s": time.monotonic(), "wall_s": time.time()} | fields
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; later writes raise `ValueError`."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return all complete events of a file; raises `ValueError` for a broken line before the last.

    A last line that was cut off is left out.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    events = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last "\n" was cut off
        if not line:
            continue
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a JSON line ({error})") from None
    return events


def last_event(path: Path) -> dict[str, Any] | None:
    """Return the last complete event of a file, or None; the cost does not grow with the file.

    For waiting for an event during a measurement, which reading whole files would disturb.
    """
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    return json.loads(lines[-2]) if len(lines) > 1 and lines[-2] else None
