"""Callers that have not proved yet that they belong here: how many there may be, and their refusal.

Anybody who reaches a port can call, as often as they like. Without a limit they could take all of
the process's descriptors and threads and, with a line for each call, the disk that logs are on.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

ACCEPT_RETRY_S = 0.1  # pause where no more descriptors are to be had
_MAX_STRANGERS = 256
_BREAKING_OFF = (EOFError, ConnectionError, TimeoutError)


class Strangers:
    """The callers of one door; thread-safe."""

    def __init__(self) -> None:
        self._callers: dict[object, Callable[[], None]] = {}
        self._refused: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def enter(self, turn_away: Callable[[], None]) -> Callable[[], None]:
        """Let a caller in; return what to call once it has proved itself, or is gone.

        If there are too many, `turn_away` of the earliest is called: a caller that holds the
        secret proves it within milliseconds, and is never that one.
        """
        caller = object()
        with self._lock:
            self._callers[caller] = turn_away
            is_full = len(self._callers) > _MAX_STRANGERS
            first = self._callers.pop(next(iter(self._callers))) if is_full else None
        if first is not None:
            first()

        def leave() -> None:
            with self._lock:
                self._callers.pop(caller, None)

        return leave

    @contextmanager
    def entered(self, turn_away: Callable[[], None]) -> Iterator[None]:
        """Have a caller in during a `with` statement; see `enter`."""
        leave = self.enter(turn_away)
        try:
            yield
        finally:
            leave()

    def refuse(self, whom: str, error: Exception) -> None:
        """Log a caller that is refused, once: a machine calls again ten times a second.

        One that breaks off is not logged: it may only have looked whether somebody listens.
        """
        told = (whom, str(error))
        if isinstance(error.__cause__, _BREAKING_OFF):
            return
        with self._lock:
            is_known = told in self._refused
            self._refused.add(told)
        if not is_known:
            logger.warning("refused %s: %s", whom, error)
