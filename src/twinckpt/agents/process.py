"""Starting agent processes, and ending them with the process they serve."""

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from twinckpt.agents.config import RootAgentConfig, WorkerAgentConfig, to_json
from twinckpt.errors import ConfigurationError


def start_worker_agent(config: WorkerAgentConfig, secret: bytes = b"") -> subprocess.Popen[bytes]:
    """Start this machine's worker agent in a process of its own.

    Without a `secret` it finds the job's where this process would (`net.secret`).
    """
    return _start("twinckpt.agents.worker", to_json(config), config.log_file, secret)


def start_root_agent(config: RootAgentConfig, secret: bytes = b"") -> subprocess.Popen[bytes]:
    """Start the job's root agent in a process of its own; `secret` as for a worker agent."""
    return _start("twinckpt.agents.root", to_json(config), "", secret)


def _start(module: str, argument: str, log_file: str, secret: bytes) -> subprocess.Popen[bytes]:
    try:
        output = Path(log_file).open("ab") if log_file else None  # noqa: SIM115
    except OSError as error:
        raise ConfigurationError(f"agent_log={log_file}: {error.strerror}") from error
    try:
        return subprocess.Popen(
            [sys.executable, "-m", module, argument],
            env={**os.environ, "TWINCKPT_SECRET": secret.decode()} if secret else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        if output is not None:
            output.close()


def allow_all_descriptors() -> None:
    """Raise the limit on descriptors as far as allowed: a root has a connection a machine."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def when_all_end(pids: Iterable[int], action: Callable[[], None]) -> None:
    """Call `action` in the running event loop once all of these processes are gone, if any."""
    left = set(pids)

    def ended(pid: int) -> None:
        left.remove(pid)
        if not left:
            action()

    for pid in tuple(left):
        when_process_ends(pid, partial(ended, pid))


def when_process_ends(pid: int, action: Callable[[], None]) -> Callable[[], None]:
    """Call `action` in the running event loop once process `pid` is gone; at once if it is.

    Returns a function that ends the watch before that, and frees its descriptor.
    """
    loop = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return loop.call_soon(action).cancel
    watch = contextlib.ExitStack()
    watch.callback(os.close, fd)
    watch.callback(loop.remove_reader, fd)

    def ended() -> None:
        watch.close()
        action()

    loop.add_reader(fd, ended)
    return watch.close
