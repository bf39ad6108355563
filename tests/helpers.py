"""What tests of all layers use: the one way to wait, and the agents of this process."""

import contextlib
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

_POLL_S = 0.005

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


def has_ipv6() -> bool:
    """Return whether this machine has an IPv6 address of its own."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False
