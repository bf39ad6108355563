"""The event log of one agent: JSON lines, for `twinckpt timeline` and for whoever has to explain.

Every line has `event`, `agent` (root or worker), `generation`, `monotonic_s`, `wall_s` and
`clock`, which names the kernel whose monotonic time it is; a worker's lines have its `machine`.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from twinckpt.core import messages as m
from twinckpt.core import worker_actions as act
from twinckpt.core.worker import Worker
from twinckpt.net import local

logger = logging.getLogger(__name__)

_LONGEST_LINE_BYTES = 1 << 20
MAX_BYTES = 64 << 20  # about a day of a job that commits every second


def file_of(setting: str, agent: str) -> str:
    """Return the file that an agent writes under the setting `event_log`.

    A directory holds `root.jsonl` and a file for each machine. A name with a suffix is a file,
    for the root agent alone.
    """
    if not setting:
        return ""
    path = Path(setting)
    if path.suffix and not path.is_dir():
        return setting if agent == "root" else ""
    return str(path / f"{agent.replace('/', '_')}.jsonl")


def with_former(path: Path) -> list[Path]:
    """Return a log's files, oldest first: the one put aside, if any, and the present one."""
    return [*filter(Path.exists, [_former(path)]), path]


class EventLog:
    """Appends events to a file; one that cannot be written is given up with a warning.

    A file of `max_bytes` is put aside, in the place of the one before it, and a new one begun.
    """

    def __init__(self, path: str, *, max_bytes: int = MAX_BYTES, **every_line: str) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._every_line = every_line | {"clock": _clock()}
        self._file: TextIO | None = None
        if path:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._open()
            except OSError as error:
                self._give_up(error)

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append one event, of the generation in `fields`."""
        if self._file is not None:
            times = {"monotonic_s": time.monotonic(), "wall_s": time.time()}
            try:
                line = {"event": event, **self._every_line, **times, **fields}
                self._file.write(json.dumps(line) + "\n")
                if os.fstat(self._file.fileno()).st_size >= self._max_bytes:
                    self._file.close()
                    os.replace(self._path, _former(Path(self._path)))
                    self._open()
            except OSError as error:
                self._give_up(error)

    def _open(self) -> None:
        _cut_torn_line(Path(self._path))
        self._file = open(self._path, "a", buffering=1)  # noqa: SIM115

    def _give_up(self, error: OSError) -> None:
        logger.warning("no more events in %s: %s; the job goes on", self._path, error)
        self._file = None


def _cut_torn_line(path: Path) -> None:
    """Remove what a full disk, or a power cut, has left of a line: the next would be part of it."""
    if path.is_file():
        with path.open("rb+") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE_BYTES)
            file.seek(begin)
            file.truncate(begin + file.read().rfind(b"\n") + 1)


class EventReader:
    """Reads the log of an agent that still writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._events: list[dict[str, Any]] = []
        self._num_bytes = 0

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events so far, oldest first, the last one only once its line is whole."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._num_bytes)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._events.append(json.loads(line))
                    self._num_bytes += len(line)
        return self._events


class MachineEvents:
    """What happens on one machine, put into words for its event log."""

    def __init__(self, setting: str, machine: str, worker: Worker) -> None:
        self._log = EventLog(file_of(setting, machine), agent="worker", machine=machine)
        self._worker = worker

    def write(self, event: str, **fields: Any) -> None:
        """Append an event of the machine's generation."""
        self._log.write(event, {"generation": self._worker.generation, **fields})

    def from_root(self, message: m.ToWorker) -> None:
        """Note what the root said, once it was taken in."""
        if message.generation != self._worker.generation:
            return
        match message:
            case m.Formed(_, index, num_machines, _, resume):
                step = resume.step if resume else None
                self.write("generation_formed", index=index, num_machines=num_machines, step=step)
            case m.Resolve(_, ticket, step, True):
                formed = self._worker.formed
                is_resumed = formed and formed.resume and formed.resume.ticket == ticket
                event = "redundancy_restored" if is_resumed else "committed"
                self.write(event, step=step, ticket=ticket)

    def from_machine(self, rank: int | None, message: local.ToAgent) -> None:
        """Note what a process of this machine said."""
        match message:
            case local.LauncherJoin() | local.WarmReady():
                self.write("joining")
            case local.RestoreRequest():
                self.write("restore_asked", rank=rank)

    def action(self, action: act.Action) -> None:
        """Note what the worker decided."""
        match action:
            case act.BreakGeneration(reason):
                self.write("generation_broken", reason=reason)
            case act.StartFetch(_, rank, ticket, _, sources):
                names = [source.machine for source in sources]
                self.write("fetch_started", rank=rank, ticket=ticket, sources=names)
            case act.ToRootAgent(m.RankStarted(_, rank, pid)):
                self.write("rank_started", rank=rank, pid=pid)
            case act.ToRootAgent(m.RankLost(_, rank, exit_code)):
                self.write("rank_lost", rank=rank, exit_code=exit_code)
            case act.ToRootAgent(m.Holds(_, held)):
                self.write("sealed", rank=held.rank, step=held.step, ticket=held.ticket)
            case act.ToRootAgent(m.Dropped(_, rank, ticket, reason)):
                self.write("copy_lost", rank=rank, ticket=ticket, reason=reason)
            case act.ToRootAgent(m.Drained(_, ticket, ok)):
                self.write("drained", ticket=ticket, ok=ok)


def _former(path: Path) -> Path:
    return path.with_suffix(f".former{path.suffix}")


def _clock() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
