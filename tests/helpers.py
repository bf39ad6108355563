"""What tests of all layers use: the one way to wait, the agents of this process, one it plays."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import psutil

from twinckpt.net.auth import authenticate, server_exchange
from twinckpt.net.local_socket import listen

_POLL_S = 0.005
_TIMEOUT_S = 30.0

_Found = TypeVar("_Found")


def wait_until(condition: Callable[[], _Found], what: str, timeout_s: float = 60.0) -> _Found:
    """Return what `condition` returns once that is true; fails, naming `what`, if it never is.

    Tests never wait just for a while.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(_POLL_S)
    return found


def agents_of_tests(kind: str = "twinckpt.agents") -> list[psutil.Process]:
    """Return the agents that the tests of this process have started and not ended."""
    children = psutil.Process().children()
    alive = [process for process in children if process.status() != psutil.STATUS_ZOMBIE]
    return [process for process in alive if kind in " ".join(process.cmdline())]


def open_descriptors() -> set[tuple[int, int, str]]:
    """Return this process's descriptors: number, inode (a number is used again) and what it is.

    Tests look at what is new, since what earlier tests have left may be closed at any time.
    """
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the one by which they were listed
            found.add((fd, os.fstat(fd).st_ino, os.readlink(f"/proc/self/fd/{fd}")))
    return found


@contextlib.contextmanager
def played_agent(
    call: Callable[..., _Found], secret: bytes, *arguments: object
) -> Iterator[tuple[Future[_Found], socket.socket]]:
    """Play the agent that `call(name, secret, *arguments)`, in a thread, connects to.

    Gives the call, and the agent's end of its connection, which is authenticated.
    """
    name = f"twinckpt-test-{os.getpid()}"
    with listen(name) as listener, ThreadPoolExecutor(1) as pool:
        listener.setblocking(True)
        calling = pool.submit(call, name, secret, *arguments)
        agent, _ = listener.accept()
        with agent:
            authenticate(agent, server_exchange(secret))
            agent.settimeout(_TIMEOUT_S)
            yield calling, agent


def has_ipv6() -> bool:
    """Return whether this machine has an IPv6 address of its own."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False
