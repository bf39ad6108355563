"""The one way in which tests wait: for a condition, with a limit, and never just for a while."""

import time
from collections.abc import Callable
from typing import TypeVar

_POLL_S = 0.005

_Found = TypeVar("_Found")


def wait_until(condition: Callable[[], _Found], what: str, timeout_s: float = 60.0) -> _Found:
    """Return what `condition` returns once that is true; fails, naming `what`, if it never is."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(_POLL_S)
    return found
