"""Machines emulated on this host: each is a torchrun, its ranks, and its worker agent.

To kill one is to SIGKILL all of them, so its memory is gone too.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_LOG_TAIL_LINES = 15
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class EmulatedMachines:
    """The machines of one job by name; `killed` are those that were killed on purpose."""

    def __init__(self, log_dir: Path) -> None:
        self.killed: set[str] = set()
        self._log_dir = log_dir
        self._launchers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the launcher of a machine; it ends with this process, however that ends."""
        with (self._log_dir / f"{name}.log").open("wb") as log:
            self._launchers[name] = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def names(self) -> list[str]:
        """Those that were started and not killed, in the order of their start."""
        return [name for name in self._launchers if name not in self.killed]

    @property
    def done(self) -> list[str]:
        """Those whose launcher has ended well."""
        return [name for name in self.names if self._launchers[name].poll() == 0]

    @property
    def failure(self) -> str:
        """Which machine's launcher has failed, and its exit status; empty if none has."""
        for name in self.names:
            if (status := self._launchers[name].poll()) not in (None, 0):
                return f"{name} ended with {status}"
        return ""

    def processes(self, name: str) -> list[psutil.Process]:
        """Return all processes of a machine: torchrun, its agent, its ranks."""
        try:
            launcher = psutil.Process(self._launchers[name].pid)
            return [launcher, *launcher.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def launched(self, name: str) -> list[psutil.Process]:
        """Return what a machine's torchrun has started itself."""
        return psutil.Process(self._launchers[name].pid).children()

    def kill(self, name: str) -> None:
        """SIGKILL everything of a machine, its memory included."""
        self.killed.add(name)
        launcher = self._launchers[name]
        if launcher.poll() is None:
            os.kill(launcher.pid, signal.SIGSTOP)  # or it would start new ranks meanwhile
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launcher.wait()

    def kill_all(self) -> None:
        """SIGKILL everything of all machines."""
        for name in list(self._launchers):
            self.kill(name)

    def story(self, what: str) -> str:
        """Return what went wrong, with the end of every machine's logs."""
        tails = [what]
        for name in self._launchers:
            for path in sorted(self._log_dir.glob(f"{name}*.log")):
                lines = path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
                tails.append("\n".join([f"--- end of {path}", *lines]))
        return "\n".join(tails)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
